r"""A student as a `diffusers` pipeline: load, move, call, save and share it like any other.

```python
from dsno.app.pipeline import DSNOPipeline

DSNOPipeline.from_student(load_student("runs/student")).save_pretrained("digits")
pipe = DSNOPipeline.from_pretrained("digits").to("cuda")  # or the name of a repository on the Hub
pipe(seeds=range(16)).images  # 16 PIL images; image i is the same in any batch
```

A call is one pass of the network, $z \mapsto (x_{t_1}, \dots, x_{t_M})$, or as many `passes` as a student or a flow map
was trained for. There is no scheduler. The student of a latent model comes with its autoencoder (`vae`), which decodes
the sample once, at the end.

On disk: `model_index.json`, `student/config.json`, `student/diffusion_pytorch_model.safetensors`, and a `README.md`
that says how to open it; no pickle, no code. Load it with `DSNOPipeline.from_pretrained`.
`diffusers.DiffusionPipeline.from_pretrained` cannot: it looks for the class inside diffusers, or runs code that lies
beside the weights, and there is none. What version 0.1 saved loads, too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from accelerate import init_empty_weights
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.constants import SAFETENSORS_WEIGHTS_NAME
from diffusers.utils.outputs import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor, nn

from dsno.borrow import borrowed, unwrapped
from dsno.checkpoint import CONFIG, build, check_weights, read_json, read_tensors
from dsno.condition import Cond, named
from dsno.data.samples import to_uint8, to_unit
from dsno.listing import entries
from dsno.nets.backbone import Backbone, net_from_config
from dsno.outside import check, reading, try_out
from dsno.schedule import schedule_from_config
from dsno.seeds import as_seeds, noise
from dsno.students.files import build_student
from dsno.students.flowmap import FlowMap, TwoTime
from dsno.students.heads import ParallelDecoder
from dsno.students.operator import TrajectoryStudent
from dsno.students.samplers import Student, sampler_of
from dsno.teachers.latents import Latents
from dsno.trajectory import Trajectory

__all__ = ["DSNOModel", "DSNOPipeline", "DSNOPipelineOutput", "FlowMapModel"]

# diffusers takes a component's class from the module that the index names, and from one that is imported already alone.
# Version 0.1 saved the name that this module had then.
sys.modules.setdefault("dsno.pipeline", sys.modules[__name__])


# The two models are students by inheritance, where elsewhere in this library classes are abstract or final. What a
# pipeline saves and loads has to be a `ModelMixin` whose own modules bear the names in its file, so a model that held a
# student could not register it, but only its network, and make another student around that at every turn; and then
# `pipe.student` would be no student: `OnePass(pipe.student)`, `save_student` and the exports take it as it is.


class _Shared(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """What a model of either kind reads of diffusers' folders."""

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> Self:
        """Load from a folder or the Hub; arguments as in diffusers. Only safetensors are read.

        Raises:
            FileNotFoundError: if a file is missing; says which.
            ValueError: if the folder holds another class, an unknown key, or damaged or foreign weights.
        """
        folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        if folder.is_dir():
            cls._check(folder)
        model = super().from_pretrained(pretrained_model_name_or_path, **{**kwargs, "use_safetensors": True})
        model.refresh()
        return model

    def refresh(self) -> None:
        """Make again what diffusers, which builds a model without memory and fills in its weights, leaves empty."""

    @classmethod
    def _check(cls, folder: Path) -> None:
        config = read_json(folder / CONFIG)
        _must_be(cls.__name__, config, folder)
        files = entries(folder, "*.safetensors") or [folder / SAFETENSORS_WEIGHTS_NAME]
        tensors = {name: tensor for file in files for name, tensor in read_tensors(file).items()}

        def make() -> nn.Module:
            with init_empty_weights():
                return build(cls, _public(config))

        def look(model: nn.Module) -> None:
            check_weights(model.state_dict(), tensors, folder)

        try_out(make, len(tensors), folder / CONFIG, look)


class DSNOModel(TrajectoryStudent, _Shared):  # type: ignore[misc]
    """A `TrajectoryStudent` that diffusers can save, load, move and share.

    The arguments are those of `build_student`, that is, the student's `config`; the weights are fresh. Names of weights
    are those of `save_student`.
    """

    # Both parents have one; diffusers' holds the same keys and its own private ones.
    config = ConfigMixin.config

    @register_to_config
    def __init__(
        self,
        schedule: dict[str, Any],
        times: Sequence[float],
        target: str,
        kind: str,
        backbone: dict[str, Any],
        lift: dict[str, Any],
        data_std: float = 1.0,
        restarts: bool = False,
        fresh: bool = False,
    ) -> None:
        own = {"schedule": schedule, "times": times, "target": target, "kind": kind, "data_std": data_std}
        made = build_student({**own, "backbone": backbone, "lift": lift})
        super().__init__(
            made.net, made.schedule, made.times, made.target, made.kind, data_std, restarts=restarts, fresh=fresh
        )

    @classmethod
    def from_student(cls, student: TrajectoryStudent) -> Self:
        """The same student, sharing its weights, in evaluation mode; the given one stays in its own.

        Raises:
            ValueError: if its backbone is no `Backbone`: its configuration could not be saved.
        """
        if not isinstance(backbone := unwrapped(student.lifted.backbone), Backbone):
            raise ValueError(
                f"a {type(backbone).__name__} does not say how to rebuild it: a pipeline needs a `Backbone`"
            )
        with init_empty_weights():
            model = cls(**_public(student.config))
        model.net = borrowed(student.net)
        return model.eval()

    def refresh(self) -> None:
        """Make the Fourier tables again: no weights, but what the layers make whenever they are moved."""
        for layer in self.net.temporal_layers().values():
            layer._apply(lambda tensor: tensor)


class FlowMapModel(FlowMap, _Shared):  # type: ignore[misc]
    """A `FlowMap` that diffusers can save, load, move and share; the weights are fresh.

    Arguments as in `FlowMap`, where `backbone` is the configuration of a `Backbone`, and `embedding` and `guidance` are
    those of the `TwoTime` around it.
    """

    @register_to_config
    def __init__(
        self,
        schedule: dict[str, Any],
        kind: Any,
        data_std: float,
        backbone: dict[str, Any],
        embedding: dict[str, int],
        guidance: bool = False,
        way: Any = "any",
        steps: int | None = None,
    ) -> None:
        net = TwoTime(net_from_config(backbone), embedding, guidance)
        super().__init__(net, schedule_from_config(schedule), kind, data_std, way, steps)

    @classmethod
    def from_student(cls, student: FlowMap) -> Self:
        """The same map, sharing its weights, in evaluation mode; the given one stays in its own.

        Raises:
            ValueError: if its network cannot be rebuilt from a configuration.
        """
        net = unwrapped(student.net)
        if not isinstance(net, TwoTime) or not isinstance(net.backbone, Backbone):
            inner = net.backbone if isinstance(net, TwoTime) else net
            raise ValueError(f"a {type(inner).__name__} does not say how to rebuild it: a pipeline needs a `Backbone`")
        with init_empty_weights():
            model = cls(
                schedule=student.schedule.config,
                kind=student.kind,
                data_std=student.data_std,
                backbone=net.backbone.config,
                embedding=net.embedding,
                guidance=net.guidance is not None,
                way=student.way,
                steps=student.steps,
            )
        model.net = borrowed(net)
        return model.eval()


@dataclass
class DSNOPipelineOutput(BaseOutput):
    """What a pipeline returns.

    Attributes:
        images: A list of PIL images (mode L or RGB), an array (N, H, W, C) or a tensor (N, C, H, W), both in [0, 1]; or
            the samples as they are.
        trajectory: The whole trajectory, not clamped, in [-1, 1] at t = 0; None unless it was asked for.
    """

    images: list[Image.Image] | np.ndarray | Tensor
    trajectory: Trajectory | None = None


class DSNOPipeline(DiffusionPipeline):
    """Images from noise in one pass of a student, or a few.

    Arguments:
        student: A `DSNOModel` or `FlowMapModel`, or a `TrajectoryStudent` or `FlowMap`, which is then wrapped.
        vae: The autoencoder whose latents the student makes; None where it makes the images.
    """

    student: DSNOModel | FlowMapModel
    vae: Any
    model_cpu_offload_seq = "student->vae"  # type: ignore[assignment]
    _optional_components = ["vae"]  # noqa: RUF012

    def __init__(self, student: Student, vae: nn.Module | None = None) -> None:
        super().__init__()
        if not isinstance(student, DSNOModel | FlowMapModel):
            student = unwrapped(student)
            if isinstance(student, ParallelDecoder):
                raise ValueError(
                    "a pipeline holds an operator or a flow map, and this is a ParallelDecoder: draw with sampler_of, "
                    "or export it"
                )
            wrapped = FlowMapModel.from_student if isinstance(student, FlowMap) else DSNOModel.from_student
            student = wrapped(student)
        self.register_modules(student=student, vae=vae)

    @classmethod
    def from_student(cls, student: Student, vae: nn.Module | None = None) -> Self:
        """A pipeline around a student or flow map, sharing its weights, in evaluation mode."""
        return cls(student, vae)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Load a pipeline from a folder that `save_pretrained` wrote, or from the Hub; arguments as in diffusers.

        Raises:
            FileNotFoundError: if there is no such folder or repository, or a file is missing; says which.
            ValueError: if it holds another class, an unknown key, or damaged or foreign weights.
        """
        folder = Path(pretrained_model_name_or_path)
        if folder.is_dir():
            index = read_json(folder / cls.config_name)
            _must_be(cls.__name__, index, folder)
            check(_public(index), dict[str, tuple[str | None, str | None]], f"{folder / cls.config_name}: ")
            if "student" not in kwargs:
                read_json(folder / "student" / CONFIG)
        elif len(folder.parts) > 2:
            raise FileNotFoundError(f"no folder {folder}: expected one with {cls.config_name} in it")
        try:
            with reading(folder, "holds no pipeline that diffusers can read") if folder.is_dir() else nullcontext():
                return super().from_pretrained(pretrained_model_name_or_path, **{**kwargs, "use_safetensors": True})
        except OSError as error:
            if folder.is_dir():
                raise
            raise FileNotFoundError(
                f"{folder} is no folder, and the Hub gave no pipeline of that name: {error}"
            ) from error

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save as diffusers does, arguments as there, with a `README.md` where there is none."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        if not (card := folder / "README.md").exists():
            card.write_text(CARD, encoding="utf-8")
        super().save_pretrained(save_directory, *args, **kwargs)

    @torch.no_grad()
    def __call__(
        self,
        num_images: int | None = None,
        class_labels: int | Sequence[int] | Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        seeds: int | Sequence[int] | Tensor | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_trajectory: bool = False,
        return_dict: bool = True,
        cond: Cond | None = None,
        guidance_weight: float | Sequence[float] | Tensor | None = None,
        passes: int | None = None,
        **others: Any,
    ) -> DSNOPipelineOutput | tuple[Any, ...]:
        r"""Draw images.

        Arguments:
            num_images: N; by default as many as there are labels, generators or seeds, else one.
            class_labels: One label for all images, or one for each, in [0, classes); for a class-conditional student.
            generator: One generator for the batch, or a list with one for each image, whose noise then depends on its
                own generator alone.
            seeds: One integer in $[0, 2^{63})$ for each image instead (`dsno.seeds.noise`): the same noise in any batch
                and on any device, so the same image up to rounding.
            output_type: `pil`, `np` (N, H, W, C) or `pt` (N, C, H, W); the latter two in [0, 1]. `latent` is the sample
                itself, neither decoded nor clamped.
            return_trajectory: Also return the trajectory. Without it the last blocks run for the sample alone.
            return_dict: Return a `DSNOPipelineOutput`, else a tuple of what it would hold.
            cond: What else the student is told: embeddings, alone or by name (`text` (N, L, D), `pooled` (N, P)); one
                row is for all images. `dsno.teachers.prompts.encode_prompts` makes them from prompts.
            guidance_weight: One w for all images, or one for each; for a student with guidance. The `guidance_scale`
                of diffusers is 1 + w.
            passes: Network passes that the student was trained for; the fewest by default. Passes that noise again
                (consistency models) need `seeds`.
            others: What pipelines of diffusers take and this one does not: refused, with what to pass instead.

        Raises:
            TypeError: for an argument that nobody knows.
            ValueError: if the numbers of labels, generators, seeds, embeddings or weights differ, labels are missing,
                superfluous or out of range, a weight is missing or superfluous, both a generator and seeds are given,
                the output type does not exist, or the student was not trained for so many passes.
        """
        _refuse(others)
        student = self.student
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"unknown output_type {output_type!r}: expected 'pil', 'np', 'pt' or 'latent'")
        if output_type == "pil" and self.vae is None and student.shape[0] not in (1, 3):
            raise ValueError(f"PIL has no images of {student.shape[0]} channels: ask for output_type 'np' or 'pt'")
        if generator is not None and seeds is not None:
            raise ValueError("pass a generator or seeds, not both")
        seeds = seeds.reshape(-1) if isinstance(seeds, Tensor) else [seeds] if isinstance(seeds, int) else seeds
        seed = None if seeds is None else as_seeds(seeds)
        label = None if class_labels is None else torch.as_tensor(class_labels, dtype=torch.int64)
        w = None if guidance_weight is None else torch.as_tensor(guidance_weight, dtype=torch.float32)
        given = {
            "class_labels": None if label is None or label.ndim == 0 else len(label),
            "generators": len(generator) if isinstance(generator, list) else None,
            "seeds": None if seed is None else len(seed),
            "guidance weights": None if w is None or w.ndim == 0 else len(w),
            **{f"rows of {name or 'cond'}": len(c) if len(c) != 1 else None for name, c in named(cond).items()},
        }
        count = _agree(num_images, {name: size for name, size in given.items() if size is not None})

        if seed is not None:
            z = noise(seed, student.shape)
        else:
            z = randn_tensor((count, *student.shape), generator, self._execution_device, torch.float32)
        z = z.to(self._execution_device, student.dtype)
        rows = {**named(cond), **{name: c for name, c in (("label", label), ("weight", w)) if c is not None}}
        rows = {name: c.expand(count, *c.shape[1:]) for name, c in rows.items()}
        _check_labels(rows.get("label"), student.classes)
        _check_weight(rows.get("weight"), student.guided)
        rows = {name: c.to(z) if c.is_floating_point() else c.to(z.device) for name, c in rows.items()}
        # A single condition is told without its name, as everywhere.
        cond = rows if len(rows) > 1 or student.guided else next(iter(rows.values()), None)
        sampler = sampler_of(student, passes, whole=return_trajectory)
        if isinstance(student, TrajectoryStudent) and passes in (None, 1) and not return_trajectory:
            trajectory, sample = None, student.sample(z, cond)
        else:
            made = sampler(z, cond, seed)
            trajectory, sample = made if return_trajectory else None, made.sample
        if self.vae is not None and output_type != "latent":
            sample = Latents(self.vae).decode(sample)
        output = DSNOPipelineOutput(_images(sample.float(), output_type), trajectory)
        return output if return_dict else output.to_tuple()


INSTEAD = {
    "batch_size": "num_images says how many images there are",
    "eta": "a student draws no noise on its way, but between passes where it was trained to",
    "guidance_scale": "guidance_weight is it less 1, of a student that is told one",
    "height": "a student makes images of one size",
    "num_images_per_prompt": "num_images says how many images there are",
    "num_inference_steps": "a student makes one pass, or as many as it was trained for: passes",
    "prompt": "cond takes embeddings, which `dsno.teachers.prompts.encode_prompts` makes",
    "width": "a student makes images of one size",
}
"""What is passed in place of arguments that other pipelines take."""

CARD = """# A sampler in one pass

A student of a diffusion model, made with `dsno`. Its class is in that package, and no code lies here:
install `dsno`, then

```python
from dsno import DSNOPipeline

images = DSNOPipeline.from_pretrained("this folder, or its name on the Hub")(num_images=4).images
```

`diffusers.DiffusionPipeline.from_pretrained` does not know the class.
"""


def _refuse(others: Mapping[str, Any]) -> None:
    for name in others:
        if name not in INSTEAD:
            raise TypeError(f"DSNOPipeline takes no argument {name!r}")
        raise ValueError(f"DSNOPipeline takes no {name}: {INSTEAD[name]}")


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in config.items() if not k.startswith("_")}


def _must_be(name: str, config: object, folder: Path) -> None:
    found = config.get("_class_name", "foreign model") if isinstance(config, Mapping) else "foreign model"
    if found != name:
        raise ValueError(f"{folder} holds a {found}, expected a {name}")


def _agree(num_images: int | None, sizes: dict[str, int]) -> int:
    """How many images: what was asked for, else what was given one by one, else one."""
    count = num_images if num_images is not None else next(iter(sizes.values()), 1)
    if count < 1:
        raise ValueError(f"num_images must be at least 1, got {count}")
    for name, size in sizes.items():
        if size != count:
            raise ValueError(f"there are {size} {name} for {count} images: give one for each")
    return count


def _check_labels(cond: Tensor | None, classes: int | None) -> None:
    if classes is None:
        if cond is not None:
            raise ValueError("this student is not class conditional: leave class_labels out")
    elif cond is None or not bool(((cond >= 0) & (cond < classes)).all()):
        shown = "none" if cond is None else cond.tolist()
        raise ValueError(f"this student is class conditional: class_labels must be in [0, {classes}), got {shown}")


def _check_weight(w: Tensor | None, guided: bool) -> None:
    if guided and w is None:
        raise ValueError("this student is told a guidance weight: pass guidance_weight (0 is the conditional model)")
    if w is not None and not guided:
        raise ValueError("this student takes no guidance weight: leave guidance_weight out")
    if w is not None and not bool((w >= 0).all()):
        raise ValueError(f"a guidance weight is at least 0, got {w.tolist()}")


def _images(x: Tensor, output_type: str) -> list[Image.Image] | np.ndarray | Tensor:
    if output_type == "latent":
        return x
    if output_type == "pt":
        return to_unit(x)
    if output_type == "np":
        return to_unit(x).permute(0, 2, 3, 1).cpu().numpy()
    pixels = to_uint8(x).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(p[..., 0] if p.shape[-1] == 1 else p) for p in pixels]
