"""What a Fréchet distance is worth: parts of the digits against other parts of them, which have one law.

    python benchmarks/halves.py

Claim: the distance of equal laws is not 0 but in proportion to one over the number of images, in the features of
`dsno reproduce digits` (which ship with the package). Halving the images must so double it, to within a fifth; any
other ratio refutes that it can be told at other counts. Parts are drawn by lot, several times. `expected` is what the
law says at the counts of the tables, 2,048 samples against all images. Writes benchmarks/results/halves.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from _common import Claim, claim, mean_and_spread, parse, parser, write

from dsno.data.load import load_data
from dsno.measure.evaluate import Reference
from dsno.measure.metrics import frechet_distance, precision_recall
from dsno.nets.features import load_feature_net
from dsno.runs.shipped import shipped
from dsno.seeds import generator

SAMPLES = 2048
"""Samples of a row of the tables."""


@dataclass(frozen=True)
class Size:
    """Images a part, most first, and how often they are drawn."""

    counts: tuple[int, ...] = (898, 449, 224)
    draws: int = 32


QUICK = Size((100, 50), 2)


def apart(features: torch.Tensor, count: int, draws: int) -> dict[str, Any]:
    """Distance, precision and recall of two parts of `count` rows without one in common, over draws."""
    found: dict[str, list[float]] = {"frechet": [], "precision": [], "recall": []}
    for draw in range(draws):
        rows = torch.randperm(len(features), generator=generator(draw, count))[: 2 * count]
        one, other = features[rows].split(count)
        found["frechet"].append(frechet_distance(one, other))
        for name, value in precision_recall(one, other)._asdict().items():
            found[name].append(value)
    return {"count": count, **{name: mean_and_spread(values) for name, values in found.items()}}


def judged(numbers: Mapping[str, Any]) -> list[Claim]:
    """How the distance grows as the images become fewer."""
    claims = []
    for more, fewer in zip(numbers["rows"], numbers["rows"][1:], strict=False):
        ratio = fewer["frechet"]["mean"] * fewer["count"] / (more["frechet"]["mean"] * more["count"])
        title = f"Frechet distance times images of {fewer['count']} over that of {more['count']}"
        claims += [claim(title, ratio, 1.2, "<="), claim(f"the same, {fewer['count']}, at least", ratio, 0.8, ">=")]
    return claims


def options() -> argparse.ArgumentParser:
    return parser(__file__, __doc__)


def main(given: Sequence[str] | None = None) -> None:
    arguments = parse(options(), given)
    size = QUICK if arguments.quick else Size()
    net = load_feature_net(shipped("digits") / "features")
    features = Reference.of(load_data("digits").x, net).features
    rows = [apart(features, count, size.draws) for count in size.counts]
    largest = rows[0]
    law = largest["frechet"]["mean"] * largest["count"] / 2
    numbers = {"rows": rows, "samples": SAMPLES, "expected": law * (1 / SAMPLES + 1 / len(features))}
    write(
        arguments,
        "halves",
        f"{len(features):,} digits of 8x8, features {net.name}; two parts of them without a common image, {size.draws} "
        "draws; mean and standard deviation",
        judged(numbers),
        **numbers,
    )


if __name__ == "__main__":
    main()
