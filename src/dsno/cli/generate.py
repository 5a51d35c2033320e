"""`dsno generate`: a teacher's trajectories."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from dsno.bridge.files import load_bridge
from dsno.bridge.student import generate_crossings
from dsno.cli.bridges import is_bridge, starts_of
from dsno.cli.conditions import condition_by_seed
from dsno.cli.console import progress, say
from dsno.cli.options import Device, TeacherRef, Variant, device_of, launched
from dsno.cli.steering import steered, targets_by_seed
from dsno.cli.words import command, refuse_others
from dsno.data.load import load_data
from dsno.denoise import Around, Prediction
from dsno.outputs import check_apart, check_request
from dsno.solvers.named import ODESolver, Splitting
from dsno.teachers.load import check_dtype, load_teacher
from dsno.teachers.prompts import under_guidance
from dsno.trajectories.compute import Compute
from dsno.trajectories.generate import generate, quadratic_frames
from dsno.trajectories.labels import Label

__all__ = ["Generate"]

NOT_OF_BRIDGE = {
    *("labels", "prompts", "guidance", "guide", "scale", "null", "variant"),
    *("frames", "solver", "steps", "grid"),
}
"""Options that the trajectories of a bridge have not."""


@dataclass(frozen=True)
class Generate:
    """Generate a teacher's trajectories: resumable, sharded, self-describing.

    Several processes share the work: accelerate launch --multi_gpu --num_processes 2 -m dsno.cli generate ...

    In Python:

        from dsno import generate, load_teacher
        data = generate(load_teacher("runs/teacher"), "runs/trajectories", 20_000)
    """

    teacher: TeacherRef = "runs/teacher"
    variant: Variant = None
    device: Device = None
    out: Path = Path("runs/trajectories")
    """Folder for the shards."""
    count: int = 20_000
    """Trajectories."""
    input: str | None = None
    """Of a bridge, the pictures that its trajectories start from, by turns: of 20 calls of ODES3 each, with the end
    alone unless --times are given."""
    labels: str | None = None
    """Classes: `uniform` (each row's drawn from its seed), one label for all,
    or a text or .npy file of them, by seed."""
    prompts: Path | None = None
    """Text file of a text-to-image teacher's prompts, one a line, taken by turns."""
    guidance: tuple[float, ...] = ()
    """Weight of classifier-free guidance (0 is none; diffusers' scale less one), or LOW HIGH:
    each row's drawn from its seed."""
    guide: str | None = None
    """Steer the teacher towards --labels by classifier:FOLDER, of what `dsno classifier` wrote."""
    scale: float | None = None
    """Scale of --guide; 1 is Bayes' rule and the default."""
    null: int | None = None
    """The label that stands for no class, where the teacher does not say."""
    frames: int = 4
    """Frames to keep, at the quadratic times (1 - m/M)^2 of the phase, on cosine paths t itself; --times overrides."""
    times: tuple[float, ...] = ()
    """Times to keep, decreasing, ending with 0."""
    targets: tuple[Literal["x0", "state"], ...] = ("x0",)
    """What to store of each frame: the denoised prediction, the state, or both."""
    solver: Literal[ODESolver, Splitting] = "unipc3"
    """Solver of the probability-flow ODE; ltsp, stsp and strang2 split --guide off."""
    steps: int = 16
    """Solver steps."""
    grid: Literal["best", "quadratic", "uniform", "even", "log-snr", "karras"] = "best"
    """Where they are; `best` tries them on 32 noises, in some 4,000 evaluations,
    and takes the one nearest to the fine solution."""
    batch: int = 256
    """Trajectories solved at once."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision that the network computes in; the solver keeps float32."""
    store: Literal["float16", "bfloat16", "float32"] = "float16"
    """Precision on disk."""
    channels_last: bool = False
    """Keep images channels last, which tensor cores prefer."""
    compile: bool = False
    """Compile the network: a minute at the start, faster steps."""
    shard: int = 4096
    """Trajectories per file."""
    first_seed: int = 0
    """Trajectory i starts from the noise of seed first_seed + i."""
    resume: bool = False
    """Continue what is in --out."""
    overwrite: bool = False
    """Throw away the trajectories in --out."""

    def run(self) -> None:
        autocast = None if self.dtype == "fp32" else check_dtype(self.dtype, device_of(self.device))
        if len(self.guidance) > 2 or any(w < 0 for w in self.guidance) or sorted(self.guidance) != [*self.guidance]:
            raise ValueError(
                f"--guidance is a weight of 0 or more, or LOW HIGH, got {' '.join(map(str, self.guidance))}"
            )
        if self.times and self.times[-1] != 0:
            shown = " ".join(f"{t:g}" for t in self.times)
            raise ValueError(f"times must end with 0, the time of the sample that a student is to make, got {shown}")
        for name in ("guidance", "prompts", "null") if self.guide is not None else ():
            if getattr(self, name) not in (None, ()):
                raise ValueError(f"--{name} is no option of trajectories under --guide: leave one of them out")
        if self.scale is not None and self.guide is None:
            raise ValueError("--scale goes with --guide: give that, too, or leave it out")
        check_apart(self.out, self.teacher, self.labels, self.prompts, self.input)
        check_request(self.resume, self.overwrite)
        if is_bridge(self.teacher):
            return self._crossings(autocast)
        if self.input is not None:
            raise ValueError(
                f"--input is of bridges, and {self.teacher} is none: give a bridge's folder, or leave it out"
            )
        accelerator = launched()
        teacher = load_teacher(self.teacher, None, device_of(self.device), variant=self.variant)
        if accelerator is not None:
            teacher.to(accelerator.device)
        ref, variant, prompts = self.teacher, self.variant, self.prompts
        denoiser: Prediction | Around
        if self.guide is not None:
            label: Label | None = targets_by_seed(self.guide, teacher, self.labels or "uniform")
            denoiser = steered(ref, teacher, self.guide, self.scale)
        else:
            label = condition_by_seed(ref, teacher, self.labels, prompts, self.guidance, self.null, variant)
            denoiser = under_guidance(ref, teacher, self.guidance, prompts is not None, self.null, variant)
        with progress() as report:
            data = generate(
                denoiser,
                self.out,
                self.count,
                times=self.times or quadratic_frames(teacher.schedule, self.frames),
                solver=self.solver,
                steps=self.steps,
                grid=self.grid,
                targets=self.targets,
                label=label,
                first_seed=self.first_seed,
                batch=self.batch,
                shard=self.shard,
                dtype=getattr(torch, self.store),
                compute=Compute(autocast, self.channels_last, self.compile),
                accelerator=accelerator,
                resume=self.resume,
                overwrite=self.overwrite,
                report=report,
            )
        say(f"{len(data)} trajectories in {self.out}", command("distill", teacher=self.teacher, data=self.out))

    def _crossings(self, autocast: torch.dtype | None) -> None:
        """The trajectories of a bridge."""
        refuse_others(self, NOT_OF_BRIDGE, "does not go with a bridge")
        if self.input is None:
            raise ValueError("a bridge starts from pictures: give the degraded ones, --input FOLDER")
        device, accelerator = device_of(self.device), launched()
        bridge = load_bridge(self.teacher).to(device if accelerator is None else accelerator.device)
        start = starts_of(load_data(self.input).x, bridge.shape, self.teacher)
        with progress() as report:
            data = generate_crossings(
                bridge,
                start,
                self.out,
                self.count,
                times=self.times or (0.0,),
                first_seed=self.first_seed,
                targets=self.targets,
                batch=self.batch,
                shard=self.shard,
                dtype=getattr(torch, self.store),
                compute=Compute(autocast, self.channels_last, self.compile),
                accelerator=accelerator,
                resume=self.resume,
                overwrite=self.overwrite,
                progress=lambda done, total: report("trajectories", done, total, ""),
            )
        following = command("distill", teacher=self.teacher, data=self.out, method="knowledge")
        say(f"{len(data)} trajectories in {self.out}", following)
