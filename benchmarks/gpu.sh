#!/bin/sh
# One GPU in eight minutes, on a bare machine: Python 3.11 or later with a CUDA torch, no network, no environment built.
# What else is missing may lie in a folder of wheels.
#
#     WHEELS=wheels sh benchmarks/gpu.sh --data fashion.npz
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
SITE=${SITE:-${TMPDIR:-/tmp}/dsno-gpu-site}
if [ -n "${WHEELS:-}" ]; then
    "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$SITE" "$WHEELS"/*.whl
fi
mkdir -p runs/gpu
PYTHONPATH="$PWD/src:$SITE${PYTHONPATH:+:$PYTHONPATH}" "$PYTHON" -u benchmarks/gpu.py "$@" 2>&1 | tee runs/gpu/log.txt
