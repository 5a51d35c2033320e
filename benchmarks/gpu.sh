#!/bin/sh
# One GPU in eight minutes, on a bare machine: Python 3.11 or later with a CUDA torch, no network, no environment built.
# What else is missing comes from a folder of wheels, fetched where there is a network:
#
#     pip download --no-deps --only-binary=:all: --python-version 3.12 -c constraints.txt -r benchmarks/gpu.txt -d wheels
#     WHEELS=wheels sh benchmarks/gpu.sh --data fashion.npz
set -eu
ROOT=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=${PYTHON:-python3}
SITE=${SITE:-${TMPDIR:-/tmp}/dsno-gpu-site-$("$PYTHON" -c 'import sys; print(sys.version_info[1])')}
"$PYTHON" "$ROOT/benchmarks/_bare.py" "$SITE" ${WHEELS:+"$WHEELS"}
mkdir -p runs/gpu
rm -f runs/gpu/failed
export PYTHONPATH="$ROOT/src:$SITE${PYTHONPATH:+:$PYTHONPATH}"
{ "$PYTHON" -u "$ROOT/benchmarks/gpu.py" "$@" 2>&1 || echo $? > runs/gpu/failed; } | tee -a runs/gpu/log.txt
# Of a pipe the shell knows the status of `tee` alone.
if [ -f runs/gpu/failed ]; then exit "$(cat runs/gpu/failed)"; fi
