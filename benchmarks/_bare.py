"""What a bare machine lacks of what `gpu.py` cannot do without, taken from a folder of wheels.

python benchmarks/_bare.py SITE [WHEELS]
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

NEEDED = ("filelock", "numpy", "packaging", "psutil", "safetensors", "torch")
KEPT = re.compile(r"torch(vision|audio)?|triton|nvidia-.*|cuda-.*")
"""The packages that the machine has its own of, which knows its GPU."""


def usable(folder: Path) -> list[Path]:
    """The wheels that this Python can take, the newest of each package; none of torch and what came with it."""
    from pip._vendor.packaging.tags import sys_tags
    from pip._vendor.packaging.utils import parse_wheel_filename

    tags, newest = {*sys_tags()}, {}
    for wheel in folder.glob("*.whl"):
        name, version, _, fits = parse_wheel_filename(wheel.name)
        if fits & tags and not KEPT.fullmatch(name):
            newest[name] = max(newest.get(name, (version, wheel)), (version, wheel))
    return sorted(wheel for _, wheel in newest.values())


def main(site: str, wheels: str | None = None) -> None:
    if wheels is not None:
        if not (found := usable(Path(wheels))):
            sys.exit(f"{wheels} holds no wheel for {sys.executable}, which is Python {sys.version.split()[0]}")
        install = ["pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir"]
        into = ["--disable-pip-version-check", "--upgrade", "--target", site]
        subprocess.run([sys.executable, "-m", *install, *into, *map(str, found)], check=True)
    sys.path.insert(0, site)
    if lacking := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        sys.exit(
            f"{sys.executable} has no {', '.join(lacking)}: name another Python (PYTHON=...) or a folder of wheels "
            "(WHEELS=..., see benchmarks/gpu.sh)"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
