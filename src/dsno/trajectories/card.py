"""The card of a set of trajectories on the Hub: its manifest in words, and how to load it."""

from __future__ import annotations

import html
import json

from dsno.trajectories.format import layout, shard_count, shard_size
from dsno.trajectories.manifest import Manifest

__all__ = ["CARD", "card", "human_size", "is_card"]

CARD = "README.md"

SUMMARY = (
    "Noise, and where a pretrained diffusion model takes it: each row holds the noise of one seed and the frames of "
    "the solution of\nthe model's probability-flow ODE that starts there. Made with dsno; `manifest.json` says "
    "everything that determined them."
)


def human_size(count: float) -> str:
    """A number of bytes as it is read."""
    if count < 1e5:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def is_card(text: bytes) -> bool:
    """Whether a README was made by `card`."""
    return SUMMARY.encode() in text


def card(manifest: Manifest, url: str, license: str) -> str:
    """A dataset card: what the set is, in words, and how to load it."""
    from huggingface_hub import DatasetCardData

    count, first, solver, teacher = (manifest[k] for k in ("count", "first_seed", "solver", "teacher"))
    front = DatasetCardData(
        license=license,
        pretty_name=f"{count:,} diffusion trajectories",
        tags=["dsno", "diffusion", "trajectories", "distillation", "safetensors"],
        size_categories=_category(count),
        viewer=False,
    )
    last = shard_count(manifest) - 1
    # Only the last shard is shorter.
    size = last * shard_size(manifest, 0) + shard_size(manifest, last)
    cond = [name for name in layout(manifest, 0) if name.split(".")[0] == "cond"]
    settings = ", ".join(f"{k} {v}" for k, v in solver.items() if k != "name")
    options = {"kind": teacher.get("kind"), "clip": teacher.get("clip"), "guidance weight": teacher.get("weight")}
    network = teacher["class"] + "".join(f", {k} {v}" for k, v in options.items() if v is not None)
    facts = {
        "trajectories": f"{count:,}, of the seeds {first} to {first + count - 1}",
        "shape of a sample": " x ".join(map(str, manifest["shape"])) or "a number",
        "stored of each frame": " and ".join(manifest["targets"]),
        "times of the frames": ", ".join(f"{t:.6g}" for t in manifest["times"]) + " (1 is noise, 0 is data)",
        "condition": ", ".join(f"`{name}`" for name in cond) or "none",
        "storage": f"{manifest['dtype']}, {human_size(size)} in {last + 1} shards",
        "teacher": _words(network),
        "weights of the teacher": f"sha256 `{teacher.get('sha256') or teacher.get('denoiser', {}).get('sha256')}`",
        "schedule": _code(manifest["schedule"]),
        "solver": _words(f"{solver['name']}{f' ({settings})' if settings else ''}, {len(manifest['grid']) - 1} steps"),
        "fingerprint": f"`{manifest['fingerprint']}`",
    } | {f"teacher's {_words(name)}": _code(value) for name, value in teacher["description"].items()}
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    names = ", ".join(f"`{name}`" for name in ("noise", *manifest["targets"], "seeds", *["cond"] * bool(cond)))
    return f"""---
{front.to_yaml()}
---

# {count:,} diffusion trajectories

{SUMMARY}

| | |
|---|---|
{table}

They come from the teacher's weights, whose licence may extend to them.

## Loading

```python
from dsno.trajectories.sets import TrajectorySet

data = TrajectorySet("{url}")  # shards are fetched when they are needed
rows = data.__getitems__([0, 1, 2])  # {names}
```

Without dsno, each `shard-*.safetensors` is a plain safetensors file.
"""


def _words(text: str) -> str:
    """Text in a cell of a table: neither HTML, nor another cell, nor another line."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "&#124;").replace("`", "&#96;")


def _code(value: object) -> str:
    """JSON in a cell of a table, whose strings may hold what would end it."""
    return "`" + json.dumps(value).replace("`", "\\u0060").replace("|", "\\u007c") + "`"


def _category(count: int) -> str:
    """The Hub's name for the size of a data set."""
    bounds = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M")]
    return next((name for bound, name in bounds if count < bound), "10M<n<100M")
