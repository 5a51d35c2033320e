"""What to cite: the papers behind methods, guidance, solvers, schedules, networks and metrics, and what a folder used.

Every file of a run says what it was made by: a student its method, distance and solver, trajectories their solver and
guidance, results their metrics. `used_by` reads those notes and gives keys of `REFERENCES`, `bibtex` their entries.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsno.checkpoint import CONFIG, read_json, version_of
from dsno.distillation.registry import METHODS
from dsno.listing import entries
from dsno.measure.results import RESULTS
from dsno.trajectories.manifest import MANIFEST

__all__ = ["REFERENCES", "Citation", "bibtex", "used_by"]


@dataclass(frozen=True)
class Citation:
    """A paper; `venue` is a journal or a conference, or empty where there is only a preprint."""

    authors: str
    title: str
    year: int
    arxiv: str = ""
    venue: str = ""
    journal: bool = False

    @property
    def short(self) -> str:
        """`Song et al., 2023, arXiv 2303.01469`."""
        names = [author.split(",")[0] for author in self.authors.split(" and ")]
        by = names[0] if len(names) == 1 else " & ".join(names) if len(names) == 2 else f"{names[0]} et al."
        return f"{by}, {self.year}" + (f", arXiv {self.arxiv}" if self.arxiv else "")

    def bibtex(self, key: str) -> str:
        """The entry of this paper."""
        kind = "article" if self.journal else "inproceedings" if self.venue else "misc"
        held = {
            "author": self.authors,
            "title": f"{{{self.title}}}",
            ("journal" if self.journal else "booktitle"): self.venue,
            "year": str(self.year),
            "eprint": self.arxiv,
            "archiveprefix": "arXiv" if self.arxiv else "",
        }
        return _entry(kind, key, held)


ICLR, ICML, CVPR = (
    "International Conference on Learning Representations",
    "International Conference on Machine Learning",
    "IEEE/CVF Conference on Computer Vision and Pattern Recognition",
)

NEURIPS = "Advances in Neural Information Processing Systems"

REFERENCES: dict[str, Citation] = {
    # Methods
    "zheng2023fast": Citation(
        "Zheng, Hongkai and Nie, Weili and Vahdat, Arash and Azizzadenesheli, Kamyar and Anandkumar, Anima",
        "Fast Sampling of Diffusion Models via Operator Learning",
        2023,
        "2211.13449",
        ICML,
    ),
    "luhman2021knowledge": Citation(
        "Luhman, Eric and Luhman, Troy",
        "Knowledge Distillation in Iterative Generative Models for Improved Sampling Speed",
        2021,
        "2101.02388",
    ),
    "salimans2022progressive": Citation(
        "Salimans, Tim and Ho, Jonathan",
        "Progressive Distillation for Fast Sampling of Diffusion Models",
        2022,
        "2202.00512",
        ICLR,
    ),
    "meng2023distillation": Citation(
        "Meng, Chenlin and Rombach, Robin and Gao, Ruiqi and Kingma, Diederik P. and Ermon, Stefano and Ho, Jonathan "
        "and Salimans, Tim",
        "On Distillation of Guided Diffusion Models",
        2023,
        "2210.03142",
        CVPR,
    ),
    "song2023consistency": Citation(
        "Song, Yang and Dhariwal, Prafulla and Chen, Mark and Sutskever, Ilya",
        "Consistency Models",
        2023,
        "2303.01469",
        ICML,
    ),
    "song2024improved": Citation(
        "Song, Yang and Dhariwal, Prafulla",
        "Improved Techniques for Training Consistency Models",
        2024,
        "2310.14189",
        ICLR,
    ),
    "geng2025consistency": Citation(
        "Geng, Zhengyang and Pokle, Ashwini and Luo, Weijian and Lin, Justin and Kolter, J. Zico",
        "Consistency Models Made Easy",
        2025,
        "2406.14548",
        ICLR,
    ),
    "lu2025simplifying": Citation(
        "Lu, Cheng and Song, Yang",
        "Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models",
        2025,
        "2410.11081",
        ICLR,
    ),
    "boffi2025flow": Citation(
        "Boffi, Nicholas M. and Albergo, Michael S. and Vanden-Eijnden, Eric",
        "Flow map matching with stochastic interpolants: A mathematical framework for consistency models",
        2025,
        "2406.07507",
        "Transactions on Machine Learning Research",
        journal=True,
    ),
    "frans2025one": Citation(
        "Frans, Kevin and Hafner, Danijar and Levine, Sergey and Abbeel, Pieter",
        "One Step Diffusion via Shortcut Models",
        2025,
        "2410.12557",
        ICLR,
    ),
    "geng2025mean": Citation(
        "Geng, Zhengyang and Deng, Mingyang and Bai, Xingjian and Kolter, J. Zico and He, Kaiming",
        "Mean Flows for One-step Generative Modeling",
        2025,
        "2505.13447",
        NEURIPS,
    ),
    "yin2024one": Citation(
        "Yin, Tianwei and Gharbi, Micha{\\\"e}l and Zhang, Richard and Shechtman, Eli and Durand, Fr{\\'e}do and "
        "Freeman, William T. and Park, Taesung",
        "One-step Diffusion with Distribution Matching Distillation",
        2024,
        "2311.18828",
        CVPR,
    ),
    "yin2024improved": Citation(
        'Yin, Tianwei and Gharbi, Micha{\\"e}l and Park, Taesung and Zhang, Richard and Shechtman, Eli and Durand, '
        "Fr{\\'e}do and Freeman, William T.",
        "Improved Distribution Matching Distillation for Fast Image Synthesis",
        2024,
        "2405.14867",
        NEURIPS,
    ),
    # Guidance
    "ho2022classifier": Citation(
        "Ho, Jonathan and Salimans, Tim", "Classifier-Free Diffusion Guidance", 2022, "2207.12598"
    ),
    "saharia2022photorealistic": Citation(
        "Saharia, Chitwan and Chan, William and Saxena, Saurabh and others",
        "Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding",
        2022,
        "2205.11487",
        NEURIPS,
    ),
    # Solvers
    "song2021denoising": Citation(
        "Song, Jiaming and Meng, Chenlin and Ermon, Stefano",
        "Denoising Diffusion Implicit Models",
        2021,
        "2010.02502",
        ICLR,
    ),
    "ho2020denoising": Citation(
        "Ho, Jonathan and Jain, Ajay and Abbeel, Pieter",
        "Denoising Diffusion Probabilistic Models",
        2020,
        "2006.11239",
        NEURIPS,
    ),
    "karras2022elucidating": Citation(
        "Karras, Tero and Aittala, Miika and Aila, Timo and Laine, Samuli",
        "Elucidating the Design Space of Diffusion-Based Generative Models",
        2022,
        "2206.00364",
        NEURIPS,
    ),
    "lu2022dpmpp": Citation(
        "Lu, Cheng and Zhou, Yuhao and Bao, Fan and Chen, Jianfei and Li, Chongxuan and Zhu, Jun",
        "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models",
        2022,
        "2211.01095",
    ),
    "zhao2023unipc": Citation(
        "Zhao, Wenliang and Bai, Lujia and Rao, Yongming and Zhou, Jie and Lu, Jiwen",
        "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models",
        2023,
        "2302.04867",
        NEURIPS,
    ),
    # Exact samplers in few rounds
    "shih2023parallel": Citation(
        "Shih, Andy and Belkhale, Suneel and Ermon, Stefano and Sadigh, Dorsa and Anari, Nima",
        "Parallel Sampling of Diffusion Models",
        2023,
        "2305.16317",
        NEURIPS,
    ),
    "tang2024accelerating": Citation(
        "Tang, Zhiwei and Tang, Jiasheng and Luo, Hao and Wang, Fan and Chang, Tsung-Hui",
        "Accelerating Parallel Sampling of Diffusion Models",
        2024,
        "2402.09970",
        ICML,
    ),
    "selvam2024self": Citation(
        "Selvam, Nikil Roashan and Merchant, Amil and Ermon, Stefano",
        "Self-Refining Diffusion Samplers: Enabling Parallelization via Parareal Iterations",
        2024,
        "2412.08292",
        NEURIPS,
    ),
    "debortoli2025accelerated": Citation(
        "De Bortoli, Valentin and Galashov, Alexandre and Gretton, Arthur and Doucet, Arnaud",
        "Accelerated Diffusion Models via Speculative Sampling",
        2025,
        "2501.05370",
        ICML,
    ),
    # Schedules and networks
    "nichol2021improved": Citation(
        "Nichol, Alexander Quinn and Dhariwal, Prafulla",
        "Improved Denoising Diffusion Probabilistic Models",
        2021,
        "2102.09672",
        ICML,
    ),
    "song2021score": Citation(
        "Song, Yang and Sohl-Dickstein, Jascha and Kingma, Diederik P. and Kumar, Abhishek and Ermon, Stefano and "
        "Poole, Ben",
        "Score-Based Generative Modeling through Stochastic Differential Equations",
        2021,
        "2011.13456",
        ICLR,
    ),
    "liu2023flow": Citation(
        "Liu, Xingchao and Gong, Chengyue and Liu, Qiang",
        "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow",
        2023,
        "2209.03003",
        ICLR,
    ),
    "dhariwal2021diffusion": Citation(
        "Dhariwal, Prafulla and Nichol, Alexander Quinn",
        "Diffusion Models Beat {GANs} on Image Synthesis",
        2021,
        "2105.05233",
        NEURIPS,
    ),
    "karras2024analyzing": Citation(
        "Karras, Tero and Aittala, Miika and Lehtinen, Jaakko and Hellsten, Janne and Aila, Timo and Laine, Samuli",
        "Analyzing and Improving the Training Dynamics of Diffusion Models",
        2024,
        "2312.02696",
        CVPR,
    ),
    # Distances and metrics
    "zhang2018unreasonable": Citation(
        "Zhang, Richard and Isola, Phillip and Efros, Alexei A. and Shechtman, Eli and Wang, Oliver",
        "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
        2018,
        "1801.03924",
        CVPR,
    ),
    "heusel2017gans": Citation(
        "Heusel, Martin and Ramsauer, Hubert and Unterthiner, Thomas and Nessler, Bernhard and Hochreiter, Sepp",
        "{GANs} Trained by a Two Time-Scale Update Rule Converge to a Local {Nash} Equilibrium",
        2017,
        "1706.08500",
        NEURIPS,
    ),
    "binkowski2018demystifying": Citation(
        "Bi{\\'n}kowski, Miko{\\l}aj and Sutherland, Danica J. and Arbel, Michael and Gretton, Arthur",
        "Demystifying {MMD} {GANs}",
        2018,
        "1801.01401",
        ICLR,
    ),
    "kynkaanniemi2019improved": Citation(
        'Kynk{\\"a}{\\"a}nniemi, Tuomas and Karras, Tero and Laine, Samuli and Lehtinen, Jaakko and Aila, Timo',
        "Improved Precision and Recall Metric for Assessing Generative Models",
        2019,
        "1904.06991",
        NEURIPS,
    ),
    # Kernels of a blur
    "laroche2024fast": Citation(
        "Laroche, Charles and Almansa, Andr{\\'e}s and Coupet{\\'e}, Eva",
        "Fast Diffusion EM: a Diffusion Model for Blind Inverse Problems with Application to Deconvolution",
        2024,
        "2309.00287",
        "IEEE/CVF Winter Conference on Applications of Computer Vision",
    ),
    "zhang2017beyond": Citation(
        "Zhang, Kai and Zuo, Wangmeng and Chen, Yunjin and Meng, Deyu and Zhang, Lei",
        "Beyond a Gaussian Denoiser: Residual Learning of Deep CNN for Image Denoising",
        2017,
        "1608.03981",
        "IEEE Transactions on Image Processing",
        journal=True,
    ),
}
"""The papers by key."""

OF_SOLVER = {
    "DDIM": "song2021denoising",
    "Ancestral": "ho2020denoising",
    "Heun": "karras2022elucidating",
    "DPMSolverPP": "lu2022dpmpp",
    "DPM-Solver++": "lu2022dpmpp",
    "UniPC": "zhao2023unipc",
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
    "SongUNet": "song2021score",
    "DhariwalUNet": "dhariwal2021diffusion",
    "MagnitudeUNet": "karras2024analyzing",
}

OF_METRIC = {
    "frechet": "heusel2017gans",
    "kernel": "binkowski2018demystifying",
    "kernel_std": "binkowski2018demystifying",
    "precision": "kynkaanniemi2019improved",
    "recall": "kynkaanniemi2019improved",
}
"""The numbers of `dsno.measure.results.Quality`; `diversity` is this library's own."""


def used_by(folder: Path | str) -> list[str]:
    """The keys of what a folder used, in the order of what it was made by; a run's folder is the sum of those in it.

    A teacher, trajectories, a student or flow map, or the results of an evaluation.

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
                f"{folder} holds no student, flow map, trajectories, teacher or results, and neither does a folder in "
                "it: nothing to cite"
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
    return _entry("software", "dsno", held)


def _entry(kind: str, key: str, held: Mapping[str, str]) -> str:
    """A BibTeX entry; fields without a value are left out."""
    lines = [f"  {name:<13} = {{{value}}}," for name, value in held.items() if value]
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])


def _used(folder: Path) -> list[str] | None:
    """What one folder used, or None where it holds nothing we know."""
    for name, read in ((CONFIG, _model), (MANIFEST, _trajectories), (RESULTS, _results)):
        if (folder / name).is_file():
            return read(read_json(folder / name))
    return None


def _model(config: Any) -> list[str] | None:
    kind = config.get("type") if isinstance(config, Mapping) else None
    if kind == "kernel denoiser":
        return ["laroche2024fast", "zhang2017beyond"]
    if kind not in ("teacher", "student", "adapter", "flow map"):
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
    """What a student, an adapter or a flow map was made by."""
    notes, is_map = config.get("notes", {}), config["type"] == "flow map"
    # Students of before the methods had names are operators.
    method = METHODS.get(notes.get("method", "" if is_map else "operator"))
    weighted = config.get("guidance") or config.get("lift", {}).get("guidance")
    return [
        *(method.references if method else ()),
        *notes.get("references", ()),
        "zheng2023fast" if not is_map and len(config["times"]) > 1 else None,
        "zhang2018unreasonable" if "perceptual" in str(notes.get("options", notes).get("distance", "")) else None,
        "meng2023distillation" if weighted else None,
        "ho2022classifier" if notes.get("guided") else None,
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
            OF_SCHEDULE.get(manifest["schedule"]["name"]),
            OF_KIND.get(inner.get("kind", "")),
            _threshold(inner.get("clip")),
        ]
    )


def _threshold(clip: Any) -> str | None:
    """Dynamic thresholding has settings where a bound is a number."""
    return "saharia2022photorealistic" if isinstance(clip, Mapping) else None


def _results(results: Any) -> list[str] | None:
    rows = results.get("results") if isinstance(results, Mapping) else results
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        return None
    metrics = {name: None for row in rows for name in row.get("quality") or ()}
    return _known([*(OF_SOLVER.get(row.get("family", "")) for row in rows), *(OF_METRIC.get(name) for name in metrics)])


def _known(keys: Iterable[str | None]) -> list[str]:
    """Without repetitions, and without what is not known here."""
    return list(dict.fromkeys(key for key in keys if key in REFERENCES))
