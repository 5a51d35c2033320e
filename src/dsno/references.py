"""What to cite: the papers behind methods, guidance, solvers, schedules, networks and metrics, and what a folder used.

Every file of a run says what it was made by: a student its method, distance and solver, trajectories their solver and
guidance, results their metrics. `used_by` reads those notes and gives keys of `REFERENCES`, `bibtex` their entries.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dsno.checkpoint import CONFIG, STUDENTS, read_json, version_of
from dsno.distillation.registry import METHODS
from dsno.listing import entries
from dsno.measure.results import RESULTS
from dsno.papers import REFERENCES, Citation, entry
from dsno.runs.restore import RESTORATIONS
from dsno.trajectories.manifest import MANIFEST

__all__ = ["REFERENCES", "Citation", "bibtex", "used_by"]


OF_SOLVER = {
    "Hybrid": "zhou2024denoising",
    "ExponentialHeun": "zheng2025diffusion",
    "ODES3": "wang2024ordinary",
    "DDIM": "song2021denoising",
    "Ancestral": "ho2020denoising",
    "Heun": "karras2022elucidating",
    "DPMSolverPP": "lu2022dpmpp",
    "DPM-Solver++": "lu2022dpmpp",
    "UniPC": "zhao2023unipc",
    "PLMS": "liu2022pseudo",
    "LTSP": "wizadwongsa2023accelerating",
    "STSP": "wizadwongsa2023accelerating",
    "Strang2": "wizadwongsa2023accelerating",
    # The exact samplers; a receding draft is this library's own.
    "Picard": "shih2023parallel",
    "ParaTAA": "tang2024accelerating",
    "SRDS": "selvam2024self",
    "Speculative": "debortoli2025accelerated",
}
"""A solver or sampler by its class, as files name it, or its family, as tables do."""

OF_SCHEDULE = {
    "Cosine": "nichol2021improved",
    "RectifiedFlow": "liu2023flow",
    "VE": "karras2022elucidating",
    "VPLinear": "song2021score",
    "Tabulated": "ho2020denoising",
}

OF_KIND = {
    "x0": "ho2020denoising",
    "eps": "ho2020denoising",
    "v": "salimans2022progressive",
    "flow": "liu2023flow",
    "score": "song2021score",
    "edm": "karras2022elucidating",
}
"""What a network predicts."""

OF_NET = {
    "IDDPMUNet": "nichol2021improved",
    "PreconditionedUNet": "karras2022elucidating",
    "GuidedUNet": "dhariwal2021diffusion",
    **dict.fromkeys(("PairedUNet", "StartedUNet"), "zhou2024denoising"),
    "SongUNet": "song2021score",
    "DhariwalUNet": "dhariwal2021diffusion",
    "MagnitudeUNet": "karras2024analyzing",
}

OF_GUIDE = {
    "NoisyClassifier": "dhariwal2021diffusion",
    "CleanClassifier": "bansal2023universal",
    "LossGuide": "bansal2023universal",
    "ClassifierFree": "ho2022classifier",
}
"""A guide by its class."""

OF_RESTORER: dict[str, tuple[str, ...]] = {
    "constrained": ("graikos2025fast",),
    "dps": ("chung2023diffusion",),
    "pigdm": ("song2023pseudoinverse",),
    "diffpir": ("zhu2023denoising", "wang2023zero"),
    "replacement": ("lugmayr2022repaint",),
    "mpgd": ("he2024manifold",),
    "blind": ("laroche2024fast", "song2023pseudoinverse"),
    "blind-classic": ("laroche2024fast", "song2023pseudoinverse"),
    "start": ("yue2025arbitrary",),
}
"""A restorer by its name in `dsno.inverse.named.RESTORERS`."""

OF_COLOUR_FIX: dict[str, tuple[str, ...]] = {
    "wavelet": ("wang2024exploiting",),
    "moments": ("wang2024exploiting", "huang2017arbitrary"),
}
"""A colour fix by its name in `dsno.inverse.colours.FIXES`."""

OF_BRIDGE = {
    "BrownianBridge": "li2023bbdm",
    "I2SB": "liu2023i2sb",
    "DDBMVP": "zhou2024denoising",
    "DDBMVE": "zhou2024denoising",
}

OF_METRIC = {
    "frechet": "heusel2017gans",
    "kernel": "binkowski2018demystifying",
    "kernel_std": "binkowski2018demystifying",
    "precision": "kynkaanniemi2019improved",
    "recall": "kynkaanniemi2019improved",
    "copying": "meehan2020nonparametric",
}
"""The numbers of `dsno.measure.results.Quality` and `HeldOut`; `diversity` is this library's own."""


def used_by(folder: Path | str) -> list[str]:
    """The keys of what a folder used, in the order of what it was made by; a run's folder is the sum of those in it.

    A teacher, trajectories, a student or flow map, the results of an evaluation, or restored pictures.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds none of them.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {folder}: name one of a student, a flow map, trajectories or a teacher, or of a whole run"
        )
    found = _used(folder)
    if found is None:
        parts = [used for path in entries(folder) if path.is_dir() and (used := _used(path)) is not None]
        if not parts:
            raise ValueError(
                f"{folder} holds no student, flow map, trajectories, teacher, results or restored pictures, and "
                "neither does a folder in it: nothing to cite"
            )
        found = [key for part in parts for key in part]
    return list(dict.fromkeys(found))


def bibtex(keys: Iterable[str]) -> str:
    """The entries of these papers, and of the library itself, as one BibTeX text.

    Raises:
        KeyError: for an unknown key.
    """
    return "\n\n".join([*(REFERENCES[key].bibtex(key) for key in dict.fromkeys(keys)), _own()])


def _own() -> str:
    title = "dsno: learn the whole sampling trajectory of a diffusion model, and emit it in one pass"
    held = {"author": "{The dsno authors}", "title": f"{{{title}}}", "version": version_of("dsno")}
    return entry("software", "dsno", held)


def _used(folder: Path) -> list[str] | None:
    """What one folder used, or None where it holds nothing we know."""
    for name, read in (
        (CONFIG, _model),
        (MANIFEST, _trajectories),
        (RESULTS, _results),
        (RESTORATIONS, _restorations),
    ):
        if (folder / name).is_file():
            return read(read_json(folder / name))
    return None


def _model(config: Any) -> list[str] | None:
    kind = config.get("type") if isinstance(config, Mapping) else None
    if kind == "bridge":
        return _known([OF_BRIDGE.get(config["bridge"]["name"]), OF_NET.get(config["net"].get("name"))])
    if kind == "start":
        perceptual = config.get("notes", {}).get("features")
        return ["yue2025arbitrary", *(["zhang2018unreasonable"] if perceptual else [])]
    if kind == "kernel denoiser":
        return ["laroche2024fast", "zhang2017beyond"]
    if kind not in ("teacher", *STUDENTS):
        return None
    net = config.get("net") or config.get("backbone") or {}
    inner = net.get("net")
    nets = (net.get("name"), inner.get("type") if isinstance(inner, Mapping) else None)
    return _known(
        [
            *([] if kind == "teacher" else _student(config)),
            OF_SCHEDULE.get(config["schedule"]["name"]),
            OF_KIND.get(config["kind"]),
            *(OF_NET.get(str(name)) for name in nets),
            _threshold(config.get("clip")),
        ]
    )


def _student(config: Mapping[str, Any]) -> list[str | None]:
    """What a student, an adapter, a flow map or a decoder was made by."""
    notes, lifted = config.get("notes", {}), config["type"] not in ("flow map", "decoder")
    # Students of before the methods had names are operators.
    method = METHODS.get(notes.get("method", "operator" if lifted else ""))
    weighted = config.get("guidance") or config.get("lift", {}).get("guidance")
    return [
        *(method.references if method else ()),
        *notes.get("references", ()),
        "zheng2023fast" if lifted and len(config["times"]) > 1 else None,
        "zhang2018unreasonable" if "perceptual" in str(notes.get("options", notes).get("distance", "")) else None,
        "meng2023distillation" if weighted else None,
        "ho2022classifier" if notes.get("guided") else None,
        OF_GUIDE.get(notes.get("guide", "")),
        OF_SOLVER.get(notes.get("solver", "")),
    ]


def _trajectories(manifest: Any) -> list[str] | None:
    if not isinstance(manifest, Mapping) or "solver" not in manifest:
        return None
    teacher = manifest["teacher"]
    guided = teacher["class"] == "Guided"
    inner = teacher.get("denoiser", teacher)
    return _known(
        [
            OF_SOLVER.get(manifest["solver"]["name"]),
            "ho2022classifier" if guided else None,
            *_guides(teacher.get("guide")),
            OF_SCHEDULE.get(manifest["schedule"]["name"]),
            OF_KIND.get(inner.get("kind", "")),
            _threshold(inner.get("clip")),
        ]
    )


def _guides(guide: Any) -> list[str | None]:
    """What a manifest's guide is of, or each of its parts."""
    if not isinstance(guide, Mapping):
        return []
    return [OF_GUIDE.get(str(guide.get("class"))), *(key for part in guide.get("parts", ()) for key in _guides(part))]


def _threshold(clip: Any) -> str | None:
    """Dynamic thresholding has settings where a bound is a number."""
    return "saharia2022photorealistic" if isinstance(clip, Mapping) else None


def _results(results: Any) -> list[str] | None:
    rows = results.get("results") if isinstance(results, Mapping) else results
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        return None
    parts = ("quality", "held_out")
    metrics = {name: None for part in parts for row in rows for name in row.get(part) or ()}
    return _known([*(OF_SOLVER.get(row.get("family", "")) for row in rows), *(OF_METRIC.get(name) for name in metrics)])


def _restorations(held: Any) -> list[str] | None:
    if not isinstance(held, Mapping) or not isinstance(held.get("pictures"), list):
        return None
    measured = any(isinstance(row, Mapping) and "ssim" in row for row in held["pictures"])
    return _known(
        [
            *OF_RESTORER.get(str(held.get("method")), ()),
            *OF_COLOUR_FIX.get(str(held.get("colour_fix")), ()),
            "bartal2023multidiffusion" if held.get("tiled") else None,
            "ho2022classifier" if held.get("guidance") else None,
            OF_SCHEDULE.get(str(held.get("schedule"))),
            OF_KIND.get(str(held.get("kind"))),
            "wang2004image" if measured else None,
        ]
    )


def _known(keys: Iterable[str | None]) -> list[str]:
    """Without repetitions, and without what is not known here."""
    return list(dict.fromkeys(key for key in keys if key in REFERENCES))
