r"""The one-pass sampler outside of Python's reach: `torch.export`, ONNX, and CUDA graphs.

A sample of one pass, a student's or a flow map's, is one network call between two multiplications by constants,

$$ x = a z + b F(c z), $$

whose $(a, b, c)$ follow from its schedule and prediction, in float64 on the host. That function of noise and condition
is what is written. Every file is run and compared with the student before it appears under its name; beside
`sampler.pt2` lies `sampler.pt2.json` with what a caller must know, the condition's tensors among it.

Needs: ONNX the packages onnx, onnxscript and onnxruntime (`pip install dsno[onnx]`).
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from torch import Tensor, nn

from dsno.app.archive import read_archive
from dsno.borrow import borrowed
from dsno.checkpoint import (
    SEAL,
    check_seal,
    naming,
    publish,
    read_json,
    seal,
    temporary_name,
    version_of,
    write_json,
)
from dsno.condition import Cond, map_cond, named, unnamed
from dsno.denoise import evaluating
from dsno.nets.backbone import Backbone, example
from dsno.outputs import locked, sweep, writable
from dsno.outside import Length, Within, check, one_line
from dsno.solvers.run import initial_state
from dsno.students.flowmap import FlowMap, TwoTime
from dsno.students.heads import ParallelDecoder
from dsno.students.operator import TrajectoryStudent
from dsno.students.samplers import Student, passes_of, sampler_of
from dsno.trajectory import Trajectory

__all__ = ["CUDAGraphSampler", "Program", "export_onnx", "export_program", "hushed", "load_program"]


class _Sampler(nn.Module):
    """Noise (B, *shape) and the condition's tensors in the order of `names` to samples (B, *shape)."""

    def __init__(self, student: Student, names: tuple[str, ...]) -> None:
        super().__init__()
        self.student, self.names = student, names

    def forward(self, z: Tensor, *conds: Tensor) -> Tensor:
        return self.student.one_pass(z, unnamed(dict(zip(self.names, conds, strict=True))))


def _backbone(student: Student) -> nn.Module:
    """The network inside, which knows what it is told.

    Raises:
        ValueError: for a flow map or decoder that one pass does not sample, or a map whose network does not say what it
            makes.
    """
    if isinstance(student, ParallelDecoder):
        sampler_of(student, 1)
    if not isinstance(student, FlowMap):
        return cast(nn.Module, student.net.backbone)
    passes_of(student, 1)
    if not isinstance(student.net, TwoTime):
        raise ValueError(
            f"a flow map of a {type(student.net).__name__} does not say what it takes: export one of a TwoTime"
        )
    return student.net.backbone


def _inputs(student: Student, batch: int, cond: Cond | None) -> tuple[Tensor, dict[str, Tensor]]:
    """Noise and a condition of `batch` rows: the given one, repeated, or what the backbone says of itself.

    Raises:
        ValueError: if there is not one row.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    backbone, like = _backbone(student), next(student.parameters())
    if cond is None and isinstance(backbone, Backbone):
        cond = _described(backbone, student.guided, like)
    rows = named(map_cond(lambda c: c.to(like.device), cond))
    if empty := [n or "the condition" for n, c in rows.items() if not len(c)]:
        raise ValueError(f"{empty[0]} is an example of no rows: give at least one")
    rows = {n: c.repeat(-(-batch // len(c)), *[1] * (c.ndim - 1))[:batch] for n, c in rows.items()}
    g = torch.Generator().manual_seed(0)
    z = torch.randn(batch, *student.shape, generator=g).to(like)
    # Zeros would hide what an embedding or a weight does.
    return z, {
        n: torch.rand(c.shape, generator=g).to(c) if c.is_floating_point() and not bool(c.any()) else c
        for n, c in rows.items()
    }


def _described(backbone: Backbone, guided: bool, like: Tensor) -> Cond | None:
    """A row, all zeros, of what a backbone says it is told, and of the guidance weight."""
    cond: Cond | None = (*example(backbone, like), None)[2]
    if not guided:
        return cond
    alone = next(iter(backbone.tokens), "label")
    return {**{name or alone: c for name, c in named(cond).items()}, "weight": like.new_zeros(1)}


def _metadata(student: Student, cond: Mapping[str, Tensor], form: str, notes: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(student, FlowMap):
        own: dict[str, Any] = {"times": [0.0]}
    elif isinstance(student, ParallelDecoder):
        own = {"times": student.grid[-1:].tolist()}
    else:
        own = {"times": student.times.tolist(), "target": student.target}
    return {
        "format": form,
        "dsno": version_of("dsno"),
        "torch": str(torch.__version__),
        "shape": list(student.shape),
        "dtype": _name(next(student.parameters()).dtype),
        "classes": student.classes,
        "cond": {name: {"shape": list(c.shape[1:]), "dtype": _name(c.dtype)} for name, c in cond.items()},
        "schedule": student.schedule.config,
        **own,
        "kind": student.kind,
        **notes,
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@torch.no_grad()
def _error(student: Student, run: Callable[..., Tensor], cond: Cond | None, batch: int, dynamic: bool) -> float:
    """The largest difference from the student, relative to its largest value; over three batches where any will do."""
    worst = 0.0
    for rows in (batch, batch + 1, 1) if dynamic else (batch,):
        z, conds = _inputs(student, rows, cond)
        expected = student.sample(z, unnamed(conds))
        found = run(z, *conds.values()).to(expected)
        difference = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
        # A comparison with NaN is false, so it is asked the other way round.
        worst = worst if difference <= worst else difference
    return worst


def _check(error: float, tolerance: float, path: Path) -> None:
    if not error <= tolerance:
        raise ValueError(
            f"the exported sampler differs from the student by {error:.2g} of its largest value, more than the "
            f"tolerance {tolerance:.2g}: {path} was not written; raise `tolerance` if that is acceptable"
        )


FORMATS = ("torch.export", "onnx")


def _described_in(path: Path) -> Path:
    """The description that lies beside a file."""
    return path.with_name(f"{path.name}.json")


def _check_description(path: Path) -> None:
    """Refuse to replace a JSON beside `path` that describes no export.

    Raises:
        FileExistsError: if there is one.
    """
    beside = _described_in(path)
    if beside.exists() and _format_of(beside) not in FORMATS:
        raise FileExistsError(f"{beside} describes no export and would be replaced: move it away, or name another file")


def _format_of(path: Path) -> object:
    """What a description says the file beside it is; None if it is no description."""
    try:
        found = read_json(path)
    except ValueError:
        return None
    return found.get("format") if isinstance(found, dict) else None


def _publish(path: Path, write: Callable[[Path], Mapping[str, Any]]) -> Path:
    """Let `write` fill a folder with `path.name`, and publish its files at `path`; what it returns becomes the JSON.

    Raises:
        BlockingIOError: if another export is writing there.
        OSError: if it cannot be written; names `path`.
    """
    writable(path.parent)
    folder, beside = path.with_name(temporary_name(path.name)), _described_in(path)
    with locked(path.with_name(f".{path.name}.lock"), f"{path}"), naming(path):
        sweep(path.parent, f"{path.name}.")
        folder.mkdir()
        try:
            metadata = write(folder / path.name)
            write_json(folder / beside.name, {**metadata, SEAL: seal(metadata, folder / path.name)})
            beside.unlink(missing_ok=True)
            # What refers to another is published behind it: the file itself, and last what describes it.
            last = [path.name, beside.name]
            for file in sorted(folder.iterdir(), key=lambda f: last.index(f.name) if f.name in last else -1):
                publish(file, path.with_name(file.name))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return path


def export_program(
    student: Student,
    path: Path | str,
    batch: int = 2,
    cond: Cond | None = None,
    dynamic: bool = True,
    tolerance: float = 1e-4,
) -> Path:
    """Write the one-pass sampler as a `torch.export` program, `path` (`.pt2`) and its description beside it.

    Arguments:
        student: Any student or flow map whose backbone `torch.export` takes; in evaluation mode here, and left as it
            was.
        path: The file.
        batch: Rows of the example, at least 1; the only batch size if not `dynamic`.
        cond: An example of the condition, first dimension at least 1; by default what the backbone says it is told.
        dynamic: Whether the batch may be any size.
        tolerance: The largest error allowed, relative to the largest value of a sample.

    Raises:
        BlockingIOError, OSError: if another export is writing to `path`, or it cannot be written.
        FileExistsError: if the JSON beside it describes no export.
        ValueError: if the program differs from the student, or the backbone fixes the batch, or a flow map is not
            sampled in one pass; nothing is written then.
    """
    path, student = Path(path), borrowed(student)
    _check_description(path)
    with evaluating(student), hushed():
        program, conds, most = _exported(student, batch, cond, dynamic)

        def write(file: Path) -> dict[str, Any]:
            # Through memory: on a full disk torch's own writer aborts the process.
            torch.export.save(program, held := io.BytesIO())
            file.write_bytes(held.getbuffer())
            error = _error(student, read_archive(file), cond, batch, dynamic)
            _check(error, tolerance, path)
            return _metadata(student, conds, "torch.export", {"batch": most if dynamic else batch, "error": error})

        return _publish(path, write)


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Without what the libraries of an export say of themselves; errors are raised all the same."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch._dynamo", "onnxscript")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _exported(
    student: Student, batch: int, cond: Cond | None, dynamic: bool
) -> tuple[torch.export.ExportedProgram, dict[str, Tensor], int | None]:
    """The program, the condition that it was traced with, and its largest batch where there is one."""
    # A size of one is kept as it is, whatever was said of it.
    z, conds = _inputs(student, max(batch, 2) if dynamic else batch, cond)
    sampler, args = _Sampler(student, tuple(conds)), (z, *conds.values())
    if not dynamic:
        return torch.export.export(sampler, args, strict=False), conds, None
    # The upsampling of diffusers' U-Nets takes another way from 64 rows on, so a program of them ends there.
    for most in (None, 63):
        rows = {0: torch.export.Dim("B", min=1, max=most)}
        shapes = {"z": rows, "conds": (rows,) * (len(args) - 1)} if len(args) > 1 else {"z": rows}
        try:
            return torch.export.export(sampler, args, dynamic_shapes=shapes, strict=False), conds, most
        except torch._dynamo.exc.UserError as error:
            failure = error
    raise ValueError(f"torch.export keeps the batch of this backbone fixed: pass dynamic=False ({failure})")


def export_onnx(
    student: Student,
    path: Path | str,
    batch: int = 2,
    cond: Cond | None = None,
    dynamic: bool = True,
    tolerance: float = 1e-3,
) -> Path:
    """Write the one-pass sampler as ONNX, `path` (`.onnx`) and its description, checked in onnxruntime on the CPU.

    The inputs are `z` and the names of the condition (`cond` where it has none), the output is `x`. Weights beyond the
    2 GB that one file can hold lie in `.onnx.data`. Arguments as in `export_program`; the student in float32 or
    float16, which are what onnxruntime computes in on a CPU.

    Raises:
        BlockingIOError, OSError: if another export is writing to `path`, or it cannot be written.
        FileExistsError: if the JSON beside it describes no export.
        ImportError: without onnx, onnxscript or onnxruntime.
        ValueError: for a student of another dtype, or a network that ONNX cannot express; if the model differs from the
            student; nothing is written then.
    """
    import onnxruntime

    path, student = Path(path), borrowed(student)
    _check_description(path)
    if others := {p.dtype for p in student.parameters()} - {torch.float32, torch.float16}:
        found = " and ".join(sorted(map(_name, others)))
        raise ValueError(f"the student is in {found}, which onnxruntime has not on a CPU: export student.float()")
    with evaluating(student), hushed():
        with torch.no_grad():
            program, conds, most = _exported(student, batch, cond, dynamic)
            names = ["z", *(name or "cond" for name in conds)]
            try:
                made = torch.onnx.export(program, input_names=names, output_names=["x"], dynamo=True, verbose=False)
            except torch.onnx.errors.OnnxExporterError as error:
                raise ValueError(f"ONNX cannot express this network ({one_line(error)}): export it as .pt2") from error
        assert made is not None

        def write(file: Path) -> dict[str, Any]:
            made.save(file)
            try:
                session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
            except Exception as failure:  # Its own errors are none of Python's.
                said = one_line(failure)
                raise ValueError(f"onnxruntime cannot run this network ({said}): export it as .pt2") from None
            inputs = {given.name for given in session.get_inputs()}

            def run(*args: Tensor) -> Tensor:
                given = {n: a.detach().cpu().numpy() for n, a in zip(names, args, strict=True) if n in inputs}
                return torch.from_numpy(session.run(None, given)[0])

            error = _error(student, run, cond, batch, dynamic)
            _check(error, tolerance, path)
            notes = {"batch": most if dynamic else batch, "error": error, "inputs": [n for n in names if n in inputs]}
            return _metadata(student, conds, "onnx", notes)

        return _publish(path, write)


@dataclass(frozen=True)
class Program:
    """A loaded program: noise (B, *shape) and a condition to samples (B, *shape); `metadata` is what lay beside it."""

    run: Callable[..., Tensor]
    metadata: dict[str, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.metadata["shape"])

    @torch.no_grad()
    def __call__(self, z: Tensor, cond: Cond | None = None) -> Tensor:
        conds, names = named(cond), list(self.metadata["cond"])
        if sorted(conds) != sorted(names):
            wanted = ", ".join(n or "one tensor" for n in names) or "no condition"
            raise ValueError(
                f"this program is told {wanted}, got {', '.join(n or 'one tensor' for n in conds) or 'none'}"
            )
        return self.run(z, *(conds[n] for n in names))


@dataclass
class _Described:
    """What must lie beside a program."""

    shape: Annotated[list[Annotated[int, Within(1, 2**20)]], Length(1, 8)]
    cond: dict[str, dict[str, Any]]


def load_program(path: Path | str, unchecked: bool = False) -> Program:
    """Read what `export_program` wrote; nothing in the file is run (`dsno.app.archive`).

    Arguments:
        path: The `.pt2` file, with its `.json` beside it.
        unchecked: Open files that were changed since they were written; what would run is refused in any case.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if it is no exported program, was changed since it was written, or holds what would run code.
    """
    path = Path(path)
    described = _described_in(path)
    # Version 0.1 named descriptions by the stem.
    if not described.exists() and path.with_suffix(".json").exists():
        described = path.with_suffix(".json")
    metadata = read_json(described)
    if not isinstance(metadata, dict) or metadata.get("format") != "torch.export":
        raise ValueError(f"{described} describes no torch.export program: make one with `export_program`")
    if not path.exists():
        raise FileNotFoundError(f"no file {path}, though {described.name} describes it: export it again")
    check(metadata, _Described, f"{described}: ")
    run = read_archive(path)
    check_seal(metadata, described, path, unchecked=unchecked)
    return Program(run, metadata)


def _times_on_device(student: Student, device: torch.device) -> Student:
    """The same student, sharing its weights: a graph cannot read the times from the host while it is recorded."""
    if not isinstance(student, TrajectoryStudent):
        return student
    made = copy.copy(student)
    made.times = student.times.float().to(device)
    return made


class CUDAGraphSampler:
    """A student's sampler recorded as one CUDA graph: the host launches it once instead of every kernel.

    Worth it where kernels are short, that is, for small batches. A `Sampler` of the sample alone. The graph has one
    batch size; smaller batches are filled up, larger ones taken in parts.

    Arguments:
        student: On a GPU; its weights are read in place, so it may be trained on, but not moved or cast.
        batch: Rows of the graph.
        cond: An example of the condition, as for `export_program`.

    Raises:
        ValueError: if the student is not on a CUDA device, or a condition differs in its names or shapes.
    """

    def __init__(self, student: Student, batch: int, cond: Cond | None = None) -> None:
        device = next(student.parameters()).device
        if device.type != "cuda":
            raise ValueError(f"CUDA graphs need a CUDA device, the student is on {device}: use OnePass there")
        self.student, self.batch = student, batch
        self.z, self.conds = _inputs(student, batch, cond)
        sampler = _Sampler(_times_on_device(student, device), tuple(self.conds))
        with torch.no_grad(), torch.cuda.device(device), evaluating(student):
            # Lazy initialisation (cuBLAS, cuDNN's choice of kernels) must not be recorded.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    sampler(self.z, *self.conds.values())
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.x = sampler(self.z, *self.conds.values())

    @torch.no_grad()
    def sample(self, z: Tensor, cond: Cond | None = None) -> Tensor:
        """Samples (B, *shape) from noise (B, *shape), any B."""
        conds = named(cond)
        if {n: c.shape[1:] for n, c in conds.items()} != {n: c.shape[1:] for n, c in self.conds.items()}:
            raise ValueError(f"this graph is told {sorted(self.conds)}, got {sorted(conds)}, or of other shapes")
        parts = []
        for i in range(0, len(z), self.batch):
            n = len(z[i : i + self.batch])
            self.z[:n].copy_(z[i : i + n])
            for name, held in self.conds.items():
                held[:n].copy_(conds[name][i : i + n])
            self.graph.replay()
            parts.append(self.x[:n].clone())
        return torch.cat(parts)

    def __call__(self, z: Tensor, cond: Cond | None = None, seeds: Tensor | None = None) -> Trajectory:
        x = torch.stack([initial_state(self.student.schedule, z), self.sample(z, cond)], 1)
        student, times = self.student, [0.0]
        if not isinstance(student, FlowMap):
            times = (student.grid if isinstance(student, ParallelDecoder) else student.times)[-1:].tolist()
        t = torch.tensor([1.0, *times], dtype=torch.float64)
        return Trajectory(x, t, None, cond, seeds, nfe=1, rounds=1)
