"""A diffusers model is the same model here: its x0 at every training step, and its pipeline's images.

All models are tiny and random, written by `save_pretrained` of the real pipelines and read back from the disk.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsno.checkpoint import read_json, write_json
from dsno.denoise import Guided, Prediction, tensors_of
from dsno.grids import uniform
from dsno.nets.backbone import Backbone, example, net_from_config
from dsno.nets.diffusers import DiffusersNet
from dsno.schedule import RectifiedFlow, Tabulated
from dsno.solvers.first_order import Ancestral
from dsno.solvers.run import solve
from dsno.teachers.diffusers import load_diffusers, wrap_diffusers
from dsno.teachers.latents import Latents, load_decoder
from dsno.teachers.load import load_teacher
from dsno.teachers.native import load_native, save_teacher
from dsno.teachers.prompts import encode_prompts, null_cond
from dsno.teachers.schedulers import grid_from_scheduler, load_scheduler
from pipelines import BETAS, N, diffusers, images, make_text_unet, make_unet, noise, ours, pipeline_images

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

# Pipelines


def test_ddpm_pipeline(folders: dict[str, Path]) -> None:
    teacher = load_diffusers(folders["ddpm"])
    assert (teacher.kind, teacher.clip, teacher.shape, teacher.classes) == ("eps", 1.0, (3, 8, 8), None)
    assert isinstance(teacher.schedule, Tabulated)
    want = pipeline_images(folders["ddpm"], batch_size=2, num_inference_steps=10)
    drawn = torch.Generator().manual_seed(0)
    # The pipeline draws z, then the noise of each step but the last.
    tape = torch.stack([torch.randn(2, 3, 8, 8, generator=drawn) for _ in range(10)] + [torch.zeros(2, 3, 8, 8)])
    grid = grid_from_scheduler(folders["ddpm"], 10)
    with torch.no_grad():
        x = solve(teacher, teacher.schedule, tape[0], grid, Ancestral(), tape=tape[1:]).x[:, -1]
    torch.testing.assert_close(images(x), want, rtol=0, atol=1e-4)


DDIM_CASES = {
    "plain": {"clip_sample": False},
    "clip": {"clip_sample": True},
    "clip-range": {"clip_sample": True, "clip_sample_range": 0.5},
    "threshold": {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5},
    "trailing": {"clip_sample": True, "timestep_spacing": "trailing"},
    "offset": {"clip_sample": True, "steps_offset": 1, "set_alpha_to_one": False},
    "v": {
        "clip_sample": True,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    },
}


@pytest.mark.parametrize("case", DDIM_CASES)
@pytest.mark.parametrize("steps", [1, 5])
def test_ddim_pipeline(folders: dict[str, Path], tmp_path: Path, case: str, steps: int) -> None:
    # 5 divides the 50 training steps, so that `trailing` steps as far down as it says.
    scheduler = diffusers.DDIMScheduler(**BETAS, **DDIM_CASES[case])
    unet = diffusers.UNet2DModel.from_pretrained(folders["ddim"] / "unet")
    diffusers.DDIMPipeline(unet, scheduler).save_pretrained(tmp_path)
    teacher = load_diffusers(tmp_path)
    # By default DDIMScheduler puts a clipped x0 and the noise of the unclipped one together; we, and this option, the
    # noise that belongs to the clipped x0. Without clipping there is no difference.
    want = pipeline_images(tmp_path, batch_size=2, num_inference_steps=steps, use_clipped_model_output=True)
    x = ours(teacher, teacher.schedule, noise(2, 3, 8, 8), grid_from_scheduler(tmp_path, steps))
    torch.testing.assert_close(images(x), want, rtol=0, atol=1e-4)
    default = pipeline_images(tmp_path, batch_size=2, num_inference_steps=steps)
    last_is_data = steps == 1 and case != "offset"
    assert torch.allclose(images(x), default, atol=1e-4) == (case == "plain" or last_is_data)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_dit_pipeline(folders: dict[str, Path], scale: float) -> None:
    teacher, decoder = load_diffusers(folders["dit"]), load_decoder(folders["dit"])
    assert (teacher.shape, teacher.classes) == ((4, 8, 8), 1000)
    assert isinstance(decoder, Latents)
    labels = torch.tensor([3, 999])
    want = pipeline_images(folders["dit"], class_labels=labels.tolist(), guidance_scale=scale, num_inference_steps=N)
    guided = Guided(teacher, null_cond(folders["dit"]), scale - 1)
    z = ours(guided, teacher.schedule, noise(2, 4, 8, 8), grid_from_scheduler(folders["dit"], N), labels)
    torch.testing.assert_close(images(decoder(z)), want, rtol=0, atol=1e-4)
    other = ours(guided, teacher.schedule, noise(2, 4, 8, 8), grid_from_scheduler(folders["dit"], N), labels.flip(0))
    assert not torch.allclose(other, z, atol=1e-3)


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_stable_diffusion_pipeline(folders: dict[str, Path], scale: float) -> None:
    folder = folders["sd"]
    teacher, decoder, prompts = load_diffusers(folder), load_decoder(folder), ["a cat", "two owls"]
    assert isinstance(decoder, Latents)
    assert isinstance(teacher.net, DiffusersNet)
    assert teacher.net.tokens == {"text": (12, 16)}
    cond = encode_prompts(folder, prompts)
    assert {k: v.shape for k, v in cond.items()} == {"text": (2, 12, 16)}
    null = null_cond(folder)
    want = pipeline_images(folder, prompt=prompts, guidance_scale=scale, num_inference_steps=N)
    guided = Guided(teacher, null, scale - 1)
    z = ours(guided, teacher.schedule, noise(2, 4, 8, 8), grid_from_scheduler(folder, N), cond["text"])
    torch.testing.assert_close(images(decoder(z)), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_stable_diffusion_3_pipeline(folders: dict[str, Path], scale: float) -> None:
    folder = folders["sd3"]
    teacher, decoder, prompts = load_diffusers(folder), load_decoder(folder), ["a cat", "two owls"]
    assert isinstance(decoder, Latents)
    assert (teacher.schedule, teacher.kind) == (RectifiedFlow(), "flow")
    cond, null = encode_prompts(folder, prompts), null_cond(folder)
    assert isinstance(teacher.net, DiffusersNet)
    assert teacher.net.tokens == {k: tuple(v.shape[1:]) for k, v in cond.items()}
    want = pipeline_images(folder, prompt=prompts, guidance_scale=scale, num_inference_steps=N, height=8, width=8)
    guided = Guided(teacher, null, scale - 1)
    grid = grid_from_scheduler(folder, N)
    z = ours(guided, teacher.schedule, noise(2, 4, 8, 8), grid, cond)
    torch.testing.assert_close(images(decoder(z)), want, rtol=0, atol=1e-4)
    assert (grid - uniform(N)).abs().max() > 0.1


def test_stable_diffusion_xl_network_is_told_its_sizes() -> None:
    unet = make_text_unet(
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=48 + 10
    )
    teacher = wrap_diffusers(unet, diffusers.EulerDiscreteScheduler(**BETAS), time_ids=(64, 64, 0, 0, 64, 64))
    x, text, pooled = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 16), torch.randn(2, 10)
    assert isinstance(teacher.net, DiffusersNet)
    assert teacher.net.tokens == {"text": (77, 16), "pooled": (10,)}

    def raw(*ids: float) -> Tensor:
        told = {"text_embeds": pooled, "time_ids": torch.tensor([ids] * 2)}
        return unet(x, 19, text, added_cond_kwargs=told).sample

    with torch.no_grad():
        t, cond = torch.full((2,), 0.4), {"text": text, "pooled": pooled}
        torch.testing.assert_close(teacher.net(x, t, cond), raw(64.0, 64, 0, 0, 64, 64), rtol=0, atol=1e-5)
        cropped = {**cond, "time_ids": torch.tensor([[64.0, 64, 8, 8, 64, 64]] * 2)}
        torch.testing.assert_close(teacher.net(x, t, cropped), raw(64.0, 64, 8, 8, 64, 64), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="pass time_ids"):
        wrap_diffusers(unet, diffusers.EulerDiscreteScheduler(**BETAS))


# The network as a backbone


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dit", "sd", "sd3"])
def test_saved_as_our_own_it_is_the_same(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    teacher = load_diffusers(folders[name])
    again = load_native(save_teacher(tmp_path / "teacher", teacher))
    assert isinstance(teacher.net, Backbone)
    assert (again.schedule, again.kind, again.clip) == (teacher.schedule, teacher.kind, teacher.clip)
    torch.manual_seed(0)
    x, t, *cond = (torch.randn_like(v) if isinstance(v, Tensor) and v.ndim == 4 else v for v in arguments(teacher))
    with torch.no_grad():
        want = teacher(x, t, *cond)
        torch.testing.assert_close(again(x, t, *cond), want, rtol=0, atol=0)
    assert want.shape == x.shape
    for block in teacher.net.blocks:
        held = dict(teacher.net.named_modules())
        assert block in held if isinstance(block, str) else any(isinstance(m, block) for m in held.values())


def arguments(teacher: Prediction) -> tuple[Any, ...]:
    assert isinstance(teacher.net, Backbone)
    parameter = next(teacher.net.parameters())
    x, _, *cond = example(teacher.net, parameter, 2)
    return x, torch.full((2,), 0.5), *cond


@pytest.mark.parametrize("name", ["ddpm", "dit", "sd", "sd3"])
def test_the_embedding_is_where_it_says(folders: dict[str, Path], name: str) -> None:
    teacher = load_diffusers(folders[name])
    assert isinstance(teacher.net, Backbone)
    shapes = []
    for module in map(teacher.net.get_submodule, teacher.net.embedding):
        module.register_forward_hook(lambda m, args, output: shapes.append(output.shape))
    x, t, *cond = arguments(teacher)
    with torch.no_grad():
        teacher(x, t, *cond)
    assert shapes
    assert {s[0] for s in shapes} == {2}
    assert {len(s) for s in shapes} == {2}


@pytest.mark.parametrize("name", ["ddpm", "dit", "sd", "sd3"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_networks_take_states_of_any_dtype(
    folders: dict[str, Path], name: str, dtype: torch.dtype
) -> None:
    full, half = load_diffusers(folders[name]), load_diffusers(folders[name], dtype)
    x, t, *cond = arguments(full)
    x = torch.randn_like(x)
    with torch.no_grad():
        want, got = full(x, t, *cond), half(x, t, *cond)
        assert got.dtype == torch.float32
        # A few parts in 2^8 (bfloat16) of a network output of about one.
        assert (want - got).abs().max() < 0.1
        # Steps 998 and 999 are one number in bfloat16: that they differ is t in float32.
        late = torch.full_like(t, 0.999)
        assert isinstance(half.net, DiffusersNet)
        assert half.net.time(late).dtype == torch.float32
        assert half(x.to(dtype), t, *cond).dtype == dtype


@pytest.mark.parametrize(
    ("settings", "cond", "classes"),
    [
        ({"num_class_embeds": 5}, torch.tensor([1, 4]), 5),
        ({"class_embed_type": "timestep"}, torch.tensor([1, 4]), None),
        ({"class_embed_type": "identity"}, torch.randn(2, 32), None),
    ],
    ids=["labels", "numbers", "vectors"],
)
def test_class_conditional_unets(settings: dict[str, Any], cond: Tensor, classes: int | None) -> None:
    unet = make_unet(**settings)
    teacher = wrap_diffusers(unet, diffusers.DDPMScheduler(**BETAS))
    assert teacher.classes == classes
    x, t = torch.randn(2, 3, 8, 8), torch.full((2,), 0.4)
    with torch.no_grad():
        torch.testing.assert_close(teacher.net(x, t, cond), unet(x, 19, class_labels=cond).sample)
        assert not torch.allclose(teacher.net(x, t, cond), teacher.net(x, t, cond.flip(0)))
        x, t, told = arguments(teacher)
        teacher(x, t, told)
    with pytest.raises(ValueError, match="UNet2DModel needs a condition: pass (label|pooled) as cond"):
        teacher(x, t)


def test_learned_variances_are_dropped() -> None:
    unet = make_unet(out_channels=6)
    teacher = wrap_diffusers(unet, diffusers.DDPMScheduler(**BETAS, variance_type="learned_range"))
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(teacher.net(x, torch.full((2,), 0.4)), unet(x, 19).sample[:, :3])


def test_dit_does_not_forget_labels_in_training(folders: dict[str, Path]) -> None:
    net = load_diffusers(folders["dit"]).net.train()
    x, t, label = torch.randn(64, 4, 8, 8), torch.full((64,), 0.5), torch.zeros(64, dtype=torch.long)
    with torch.no_grad():
        torch.testing.assert_close(net(x, t, label), net.eval()(x, t, label))


def test_networks_we_cannot_read_are_refused(folders: dict[str, Path]) -> None:
    scheduler = diffusers.DDIMScheduler(**BETAS)
    with pytest.raises(ValueError, match="takes 9 channels and gives 4"):
        wrap_diffusers(make_text_unet(in_channels=9), scheduler)
    with pytest.raises(ValueError, match="time_cond_proj_dim=8 is not supported"):
        wrap_diffusers(make_text_unet(time_cond_proj_dim=8), scheduler)
    with pytest.raises(ValueError, match="unknown network class Linear: expected one of UNet2DModel"):
        wrap_diffusers(torch.nn.Linear(2, 2), scheduler)
    with pytest.raises(ValueError, match=r"no sample_size: pass shape=\(C, H, W\)"):
        wrap_diffusers(make_unet(sample_size=None), scheduler)
    assert wrap_diffusers(make_unet(sample_size=None), scheduler, shape=(3, 16, 8)).shape == (3, 16, 8)
    with pytest.raises(ValueError, match="unconditional"):
        load_diffusers(folders["ddpm"])(torch.zeros(1, 3, 8, 8), torch.ones(1), torch.tensor([1]))
    with pytest.raises(ValueError, match="unknown key 'setings' in the configuration of a DiffusersNet"):
        net_from_config({"name": "DiffusersNet", "model": "UNet2DModel", "setings": {}})


def test_a_pipeline_in_memory_is_a_teacher_too(folders: dict[str, Path]) -> None:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folders["sd"], safety_checker=None)
    teacher, decoder = load_diffusers(pipe), load_decoder(pipe)
    assert decoder is not None
    stored = load_diffusers(folders["sd"])
    assert isinstance(teacher.net, DiffusersNet)
    assert isinstance(stored.net, DiffusersNet)
    assert teacher.net.config == stored.net.config
    torch.testing.assert_close(encode_prompts(pipe, "a cat"), encode_prompts(folders["sd"], ["a cat"]))
    torch.testing.assert_close(null_cond(pipe), null_cond(folders["sd"]))
    assert load_scheduler(pipe).config == load_scheduler(folders["sd"]).config
    with pytest.raises(ValueError, match="a dict has neither a unet nor a transformer"):
        load_diffusers({})


# Repositories of one variant


def test_a_repository_of_a_variant_alone_is_read_by_its_name(folders: dict[str, Path], tmp_path: Path) -> None:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folders["sd"]).to(torch.float16)
    pipe.save_pretrained(tmp_path, variant="fp16")
    says = r"(unet|vae|text_encoder) has no weights \w+.safetensors .*: take the variant fp16 \(variant='fp16'\)"
    for load in (load_diffusers, load_decoder, null_cond, lambda ref: encode_prompts(ref, "a cat")):
        with pytest.raises(FileNotFoundError, match=says):
            load(tmp_path)
    teacher, decoder = load_diffusers(tmp_path, variant="fp16"), load_decoder(tmp_path, variant="fp16")
    exact, exact_decoder = load_diffusers(folders["sd"]), load_decoder(folders["sd"])
    assert decoder is not None and exact_decoder is not None
    cond = encode_prompts(tmp_path, "a cat", variant="fp16")["text"]
    torch.testing.assert_close(null_cond(tmp_path, "fp16"), null_cond(folders["sd"]), rtol=0, atol=1e-2)
    torch.testing.assert_close(cond, encode_prompts(folders["sd"], "a cat")["text"], rtol=0, atol=1e-2)
    z, t = noise(1, 4, 8, 8), torch.tensor([0.5])
    assert {p.dtype for p in (*teacher.parameters(), *decoder.parameters())} == {torch.float32}
    with torch.no_grad():
        torch.testing.assert_close(teacher(z, t, cond), exact(z, t, cond), rtol=0, atol=1e-2)
        torch.testing.assert_close(decoder(z), exact_decoder(z), rtol=0, atol=1e-2)


def test_weights_of_another_network_are_no_teacher(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["ddpm"], tmp_path / "model")
    file = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({f"_orig_mod.{name}": value for name, value in load_file(file).items()}, file)
    with pytest.raises(
        ValueError, match="unet lack conv_in.bias and .* more that a UNet2DModel has: .* .save the module inside"
    ):
        load_diffusers(tmp_path / "model")


# In memory


def test_a_pipeline_in_memory_stays_as_it_is(folders: dict[str, Path]) -> None:
    pipe = diffusers.DiTPipeline.from_pretrained(folders["dit"])
    pipe.transformer.train(), pipe.vae.train()
    dropout = [m for m in pipe.transformer.modules() if type(m).__name__ == "LabelEmbedding"]
    assert all(m.dropout_prob == 0.1 for m in dropout)
    shared = load_teacher(pipe)
    low, decoder = load_teacher(pipe, dtype="bf16"), load_decoder(pipe)
    assert pipe.transformer.training and pipe.vae.training and all(m.dropout_prob == 0.1 for m in dropout)
    assert {p.dtype for p in pipe.transformer.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in pipe.vae.parameters())
    assert decoder is not None and not decoder.vae.training and not shared.training
    weights = dict(pipe.transformer.named_parameters())
    assert all(p.data_ptr() == weights[n].data_ptr() for n, p in shared.net.model.named_parameters())
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16}
    assert all(m.dropout_prob == 0 for m in shared.modules() if type(m).__name__ == "LabelEmbedding")


def test_compiled_parts_are_taken_as_they_are_inside(folders: dict[str, Path], tmp_path: Path) -> None:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folders["sd"])
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    pipe.vae = torch.nn.DataParallel(pipe.vae)
    teacher, decoder = load_diffusers(pipe), load_decoder(pipe)
    assert isinstance(decoder, Latents) and teacher.shape == (4, 8, 8)
    exact, z, t = load_diffusers(folders["sd"]), noise(1, 4, 8, 8), torch.tensor([0.5])
    cond = torch.zeros(1, 12, 16)
    with torch.no_grad():
        assert torch.equal(teacher(z, t, cond), exact(z, t, cond))
    # Compiled afterwards it is stored, and is a teacher of the same weights, as if it were not.
    teacher.net.model = torch.compile(teacher.net.model, backend="eager")
    assert tensors_of(teacher).keys() == tensors_of(exact).keys()
    save_teacher(tmp_path / "inside", teacher)
    teacher.net = torch.compile(teacher.net, backend="eager")
    save_teacher(tmp_path / "around", teacher)
    for name in ("inside", "around"):
        again = load_native(tmp_path / name)
        with torch.no_grad():
            assert torch.equal(again(z, t, cond), exact(z, t, cond))


# Files that are not what they say


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"layers_per_block": 10**8}, r"unet/config\.json describes a network of more than the \d+ weights"),
        ({"block_out_channels": [8, 10**6]}, r"unet holds another architecture than its configuration says: \w+"),
        ({"block_out_channels": [[]]}, r"unet/config\.json: Must provide the same number of `block_out_channels`"),
        ({"norm_num_groups": 0}, r"unet/config\.json describes no network \(ZeroDivisionError"),
        ({"time_embedding_type": 3}, r"unet/config\.json describes no network \(UnboundLocalError"),
        ({"sample_size": "a"}, r"unet/config\.json: the sample_size of this UNet2DModel must be a whole number"),
    ],
)
def test_a_network_is_tried_out_before_it_takes_memory(
    folders: dict[str, Path], tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    folder = shutil.copytree(folders["ddpm"], tmp_path / "ddpm")
    path = folder / "unet" / "config.json"
    write_json(path, {**read_json(path), **changed})
    with pytest.raises(ValueError, match=message) as caught:
        load_diffusers(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_train_timesteps": 10**9}, r": its training steps must be a whole number from 1 to 100000, got 10{9}"),
        ({"beta_start": "many"}, r" is of no scheduler that diffusers can make \(TypeError"),
        ({"prediction_type": [[]]}, r" is of no scheduler that we know \(TypeError"),
        ({"beta_end": 10**9}, r": alphas_cumprod must be"),
    ],
)
def test_a_scheduler_is_named_by_its_file(
    folders: dict[str, Path], tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    folder = shutil.copytree(folders["ddpm"], tmp_path / "ddpm")
    path = folder / "scheduler" / "scheduler_config.json"
    write_json(path, {**read_json(path), **changed})
    with pytest.raises(ValueError, match=r"scheduler_config\.json" + message):
        load_diffusers(folder)
