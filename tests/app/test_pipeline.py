"""A student behaves in diffusers as any pipeline does."""

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor, nn

import dsno
from dsno.app.pipeline import DSNOModel, DSNOPipeline, DSNOPipelineOutput
from dsno.checkpoint import read_tensors, write_json, write_tensors
from dsno.data.samples import to_uint8
from dsno.denoise import Prediction
from dsno.grids import quadratic
from dsno.nets.diffusers import DiffusersNet
from dsno.nets.unet import UNet
from dsno.runs.shipped import shipped
from dsno.schedule import Cosine
from dsno.seeds import noise
from dsno.students.files import load_student, save_student
from dsno.students.flowmap import flow_map_from_teacher
from dsno.students.heads import decoder_from_teacher
from dsno.students.lift import lift
from dsno.students.operator import TrajectoryStudent, student_from_teacher
from dsno.students.samplers import OnePass, passes_of
from dsno.trajectory import Trajectory

WEIGHTS = "diffusion_pytorch_model.safetensors"
FIXTURES = Path(__file__).parents[1] / "fixtures" / "v0_1"


def student(channels: int = 1, classes: int | None = None, target: str = "x0") -> TrajectoryStudent:
    net = UNet(channels, 8, (4, 8), attention=(), classes=classes)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    return student_from_teacher(Prediction(net, Cosine(), "v"), quadratic(4)[1:], target, init="normal").eval()


@pytest.fixture
def pipe() -> DSNOPipeline:
    return DSNOPipeline.from_student(student())


@pytest.fixture
def folder(pipe: DSNOPipeline, tmp_path: Path) -> Path:
    pipe.save_pretrained(tmp_path / "pipe")
    return tmp_path / "pipe"


def images(pipe: DSNOPipeline, **arguments: object) -> Tensor:
    return pipe(output_type="pt", **{"seeds": range(3), **arguments}).images


def test_it_wraps_a_student_without_copying_it() -> None:
    made = student()
    made.train()
    pipe = DSNOPipeline.from_student(made)
    assert isinstance(pipe, DiffusionPipeline) and isinstance(pipe.student, TrajectoryStudent)
    mine, theirs = pipe.student.net.state_dict(), made.net.state_dict()
    assert all(mine[name].data_ptr() == value.data_ptr() for name, value in theirs.items())
    assert all(m.training for m in made.modules()) and not any(m.training for m in pipe.student.modules())
    assert pipe.student.state_dict().keys() == made.state_dict().keys()
    z = torch.randn(2, 1, 8, 8)
    assert torch.equal(OnePass(pipe.student, True)(z).x, OnePass(made, True)(z).x)
    assert isinstance(DSNOPipeline(made).student, DSNOModel)
    # Wrapping draws no random numbers.
    torch.manual_seed(3)
    DSNOModel.from_student(made)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), after)


def test_only_what_can_be_saved_is_wrapped() -> None:
    backbone = nn.Sequential(nn.Conv2d(1, 1, 1))
    lifted = lift(backbone, [torch.zeros(1, 1, 8, 8)], ["0"], 4, where=lambda name, shape: True)
    with pytest.raises(ValueError, match="a Sequential does not say how to rebuild it: a pipeline needs a `Backbone`"):
        DSNOPipeline.from_student(TrajectoryStudent(lifted, Cosine(), quadratic(4)[1:]))
    decoder = decoder_from_teacher(Prediction(UNet(1, 4, (4,), attention=()), Cosine(), "v"), 2)
    with pytest.raises(ValueError, match="a pipeline holds an operator or a flow map, and this is a ParallelDecoder"):
        DSNOPipeline.from_student(decoder)


@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB")])
def test_output_types(channels: int, mode: str) -> None:
    pipe = DSNOPipeline.from_student(student(channels))
    x = pipe.student.sample(noise(range(3), (channels, 8, 8)))
    pil, array, tensor = (pipe(seeds=range(3), output_type=kind).images for kind in ("pil", "np", "pt"))
    assert isinstance(pil[0], Image.Image) and [(i.mode, i.size) for i in pil] == [(mode, (8, 8))] * 3
    assert isinstance(array, np.ndarray) and array.shape == (3, 8, 8, channels) and array.dtype == np.float32
    assert tensor.shape == (3, channels, 8, 8) and float(tensor.min()) >= 0 and float(tensor.max()) <= 1
    assert torch.allclose(tensor, (x / 2 + 0.5).clamp(0, 1), atol=1e-6)
    assert np.array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    expected = to_uint8(x).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(np.stack([np.asarray(i) for i in pil]).reshape(expected.shape), expected)


def test_other_channels_have_no_pil_mode() -> None:
    pipe = DSNOPipeline.from_student(student(2))
    with pytest.raises(ValueError, match="no images of 2 channels: ask for output_type 'np' or 'pt'"):
        pipe()
    assert pipe(output_type="np").images.shape == (1, 8, 8, 2)


def test_an_image_is_its_seeds_in_any_batch(pipe: DSNOPipeline) -> None:
    together = images(pipe, seeds=[7, 2**62, 3])
    for i, seed in enumerate([7, 2**62, 3]):
        assert torch.allclose(images(pipe, seeds=seed)[0], together[i], atol=1e-6)
    assert torch.allclose(images(pipe, seeds=torch.tensor([3, 7])), together[[2, 0]], atol=1e-6)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_in_a_list_each_generator_makes_its_own_image(pipe: DSNOPipeline) -> None:
    def generators(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(s) for s in seeds]

    together = images(pipe, seeds=None, generator=generators(4, 5, 6))
    assert torch.allclose(images(pipe, seeds=None, generator=generators(6, 4)), together[[2, 0]], atol=1e-6)
    assert torch.allclose(images(pipe, seeds=None, generator=generators(5)), together[[1]], atol=1e-6)
    assert torch.allclose(images(pipe, seeds=None, generator=generators(5)[0]), together[[1]], atol=1e-6)


def test_one_generator_makes_the_batch_and_moves_on(pipe: DSNOPipeline) -> None:
    g = torch.Generator().manual_seed(4)
    first, second = (images(pipe, seeds=None, num_images=3, generator=g) for _ in range(2))
    z = torch.randn(3, 1, 8, 8, generator=g.manual_seed(4))
    assert torch.allclose(first, (pipe.student.sample(z) / 2 + 0.5).clamp(0, 1), atol=1e-6)
    assert not torch.allclose(first, second, atol=1e-3)


def test_how_many_images(pipe: DSNOPipeline) -> None:
    assert len(pipe().images) == 1 and len(pipe(4).images) == 4 and len(pipe(num_images=2, seeds=[1, 2]).images) == 2
    for wrong, message in [
        ({"num_images": 0}, "num_images must be at least 1, got 0"),
        ({"num_images": 4, "seeds": [1, 2]}, "there are 2 seeds for 4 images: give one for each"),
        ({"num_images": 4, "seeds": 1}, "there are 1 seeds for 4 images"),
        ({"num_images": 3, "generator": [torch.Generator()]}, "there are 1 generators for 3 images"),
        ({"seeds": [1], "generator": torch.Generator()}, "a generator or seeds, not both"),
        ({"seeds": [-1]}, r"seeds must be integers in \[0, 2\^63\)"),
        ({"output_type": "jpg"}, "unknown output_type 'jpg': expected 'pil', 'np', 'pt' or 'latent'"),
    ]:
        with pytest.raises(ValueError, match=message):
            pipe(**wrong)


def test_class_labels() -> None:
    pipe = DSNOPipeline.from_student(student(classes=3))
    each = images(pipe, class_labels=[0, 1, 2], seeds=[5, 5, 5])
    for label in range(3):
        assert torch.allclose(images(pipe, class_labels=label, seeds=[5, 5]), each[[label, label]], atol=1e-6)
    assert len({round(float(x.sum()), 4) for x in each}) == 3
    trajectory = pipe(class_labels=torch.tensor([2, 0]), return_trajectory=True).trajectory
    assert trajectory is not None and trajectory.cond is not None and trajectory.cond.tolist() == [2, 0]
    for wrong in (None, 3, [0, -1]):
        with pytest.raises(ValueError, match=r"class conditional: class_labels must be in \[0, 3\)"):
            pipe(class_labels=wrong)
    with pytest.raises(ValueError, match="not class conditional: leave class_labels out"):
        DSNOPipeline.from_student(student())(class_labels=1)


@pytest.mark.parametrize("target", ["x0", "state"])
def test_the_trajectory_ends_in_the_images(target: str) -> None:
    pipe = DSNOPipeline.from_student(student(target=target))
    output = pipe(seeds=[3, 4], return_trajectory=True, output_type="pt")
    assert isinstance(output, DSNOPipelineOutput) and isinstance(output.trajectory, Trajectory)
    assert output.trajectory.x.shape == (2, 5, 1, 8, 8) and output.trajectory.rounds == 1
    assert output.trajectory.seeds is not None and output.trajectory.seeds.tolist() == [3, 4]
    assert torch.equal(output.images, (output.trajectory.sample.clamp(-1, 1) + 1) / 2)
    # Alone, the last blocks run for the last frame only: the same image.
    assert torch.allclose(output.images, images(pipe, seeds=[3, 4]), atol=1e-5)
    assert pipe(seeds=[3]).trajectory is None


def test_a_tuple_is_returned_on_request(pipe: DSNOPipeline) -> None:
    (alone,) = pipe(seeds=[3], return_dict=False)
    assert alone[0].size == (8, 8)
    pictures, trajectory = pipe(seeds=[3], return_dict=False, return_trajectory=True)
    assert len(pictures) == 1 and isinstance(trajectory, Trajectory)


def test_no_gradient_and_no_global_noise(pipe: DSNOPipeline) -> None:
    torch.manual_seed(3)
    assert not images(pipe).requires_grad
    images(pipe, seeds=None, generator=torch.Generator())
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), after)


@pytest.mark.parametrize("classes", [None, 3])
def test_it_comes_back_from_its_folder(classes: int | None, tmp_path: Path) -> None:
    pipe = DSNOPipeline.from_student(student(classes=classes))
    pipe.save_pretrained(tmp_path / "pipe")
    found = sorted(str(p.relative_to(tmp_path / "pipe")) for p in (tmp_path / "pipe").rglob("*") if p.is_file())
    assert found == ["README.md", "model_index.json", "student/config.json", f"student/{WEIGHTS}"]
    index = json.loads((tmp_path / "pipe" / "model_index.json").read_text())
    assert index["_class_name"] == "DSNOPipeline" and index["student"] == ["dsno.app.pipeline", "DSNOModel"]
    loaded = DSNOPipeline.from_pretrained(tmp_path / "pipe")
    labels = None if classes is None else [0, 1, 2]
    assert torch.equal(images(loaded, class_labels=labels), images(pipe, class_labels=labels))
    assert not any(m.training for m in loaded.student.modules())
    # And once more: what was loaded can be saved, as a pipeline and as a student.
    loaded.save_pretrained(str(tmp_path / "again"))
    again = DSNOPipeline.from_pretrained(str(tmp_path / "again"))
    assert torch.equal(images(again, class_labels=labels), images(pipe, class_labels=labels))
    save_student(tmp_path / "student", DSNOModel.from_student(loaded.student))
    saved = read_tensors(tmp_path / "student" / "model.safetensors")
    assert saved.keys() == read_tensors(tmp_path / "pipe" / "student" / WEIGHTS).keys()


def test_that_it_restarts_comes_back_too(tmp_path: Path) -> None:
    for restarts, fresh in ((True, True), (True, False), (False, False)):
        made = student()
        made, out = made.restarting(restarts, fresh), tmp_path / f"{restarts}-{fresh}"
        DSNOPipeline.from_student(made).save_pretrained(out)
        again = DSNOPipeline.from_pretrained(out).student
        assert (again.restarts, again.fresh) == (restarts, fresh)


def test_the_student_comes_back_alone(pipe: DSNOPipeline, folder: Path) -> None:
    for made in (DSNOModel.from_pretrained(folder, subfolder="student"), DSNOModel.from_pretrained(folder / "student")):
        assert torch.equal(images(DSNOPipeline(made)), images(pipe))
    other = DSNOModel.from_student(student())
    swapped = DSNOPipeline.from_pretrained(folder, student=other)
    assert swapped.student is other


def test_every_way_of_loading_gives_the_same_images(pipe: DSNOPipeline, folder: Path) -> None:
    for arguments in ({"low_cpu_mem_usage": False}, {"device_map": "balanced"}, {"use_safetensors": False}):
        assert torch.equal(images(DSNOPipeline.from_pretrained(folder, **arguments)), images(pipe))


def test_precision(pipe: DSNOPipeline, folder: Path) -> None:
    full = images(pipe)
    loaded = DSNOPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
    cast = DSNOPipeline.from_pretrained(folder).to(torch.bfloat16)
    for half in (loaded, cast):
        assert half.dtype == torch.bfloat16 and {p.dtype for p in half.student.parameters()} == {torch.bfloat16}
        assert 0 < float((images(half) - full).abs().max()) < 0.05
        # What is stored in half precision is computed in it, and handed out in full.
        assert images(half).dtype == torch.float32 and half(seeds=[1], output_type="np").images.dtype == np.float32
    assert torch.equal(images(loaded), images(cast))
    back = loaded.to("cpu", torch.float32)
    assert back.device == torch.device("cpu") and float((images(back) - full).abs().max()) < 0.05


def edit(path: Path, **changes: object) -> None:
    write_json(path, {**json.loads(path.read_text()), **changes})


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / "student" / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=rf"student has no {WEIGHTS} \(it has config\.json\)"):
        DSNOPipeline.from_pretrained(folder)
    (folder / "student" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"student has no config\.json \(it has nothing\)"):
        DSNOPipeline.from_pretrained(folder)
    (folder / "student").rmdir()
    with pytest.raises(FileNotFoundError, match=r"no folder .*student"):
        DSNOPipeline.from_pretrained(folder)
    (folder / "model_index.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"pipe has no model_index\.json \(it has README\.md\)"):
        DSNOPipeline.from_pretrained(folder)
    save_student(tmp_path / "student", student())
    with pytest.raises(
        FileNotFoundError, match=r"has no model_index\.json \(it has config\.json, model\.safetensors\)"
    ):
        DSNOPipeline.from_pretrained(tmp_path / "student")


def test_litter_beside_the_weights_is_none(pipe: DSNOPipeline, folder: Path) -> None:
    for name in ("._diffusion_pytorch_model.safetensors", "._config.json", ".DS_Store"):
        (folder / "student" / name).write_bytes(b"\x00\x05\x16\x07")
    assert torch.equal(images(DSNOPipeline.from_pretrained(folder)), images(pipe))


def test_a_pickle_is_not_looked_for(folder: Path) -> None:
    made = DSNOModel.from_pretrained(folder / "student")
    (folder / "student" / WEIGHTS).unlink()
    torch.save(made.state_dict(), folder / "student" / "diffusion_pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=f"has no {WEIGHTS}"):
        DSNOPipeline.from_pretrained(folder)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere: expected one with model_index\.json in it"):
        DSNOPipeline.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="org/nowhere is no folder, and the Hub gave no pipeline of that name"):
        DSNOPipeline.from_pretrained("org/nowhere", local_files_only=True)


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.999])
def test_truncated_weights_are_refused(keep: float, folder: Path) -> None:
    path = folder / "student" / WEIGHTS
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=rf"{WEIGHTS} is truncated or damaged"):
        DSNOPipeline.from_pretrained(folder)


def test_foreign_weights_are_refused(folder: Path) -> None:
    path = folder / "student" / WEIGHTS
    whole = read_tensors(path)
    name = next(iter(whole))
    for tensors, message in [
        ({k: v for k, v in whole.items() if k != name}, "is missing"),
        ({**whole, "extra": torch.zeros(1)}, "extra is not part of the model"),
        ({**whole, name: torch.zeros(1)}, r"has shape \(1,\)"),
    ]:
        write_tensors(path, tensors)
        with pytest.raises(ValueError, match=f"student holds another architecture .*{message}"):
            DSNOPipeline.from_pretrained(folder)


def test_other_classes_and_keys_are_refused(folder: Path) -> None:
    edit(folder / "student" / "config.json", tims=[0.0])
    with pytest.raises(ValueError, match="unknown key 'tims' in .*DSNOModel: did you mean 'times'"):
        DSNOPipeline.from_pretrained(folder)
    edit(folder / "student" / "config.json", _class_name="UNet2DModel")
    with pytest.raises(ValueError, match="student holds a UNet2DModel, expected a DSNOModel"):
        DSNOPipeline.from_pretrained(folder)
    edit(folder / "model_index.json", _class_name="DDPMPipeline")
    with pytest.raises(ValueError, match="pipe holds a DDPMPipeline, expected a DSNOPipeline"):
        DSNOPipeline.from_pretrained(folder)
    (folder / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match=r"model_index\.json is not valid JSON"):
        DSNOPipeline.from_pretrained(folder)


def test_the_base_class_cannot_load_it(folder: Path) -> None:
    # Documented, and measured with diffusers 0.42.1: once this passes, the note in the module can go.
    with pytest.raises(AttributeError, match="DSNOPipeline"):
        diffusers.DiffusionPipeline.from_pretrained(folder)


# Real backbones


def dit(guidance: bool = False) -> TrajectoryStudent:
    options = dict(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        norm_num_groups=4,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=5,
    )
    net = DiffusersNet("DiTTransformer2DModel", options)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    made = student_from_teacher(Prediction(net, Cosine(), "v"), quadratic(4)[1:], init="normal", guidance=guidance)
    for p in made.net.added().parameters():
        nn.init.normal_(p, std=0.2)
    return made.eval()


def autoencoder() -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 8),
        norm_num_groups=2,
        latent_channels=4,
        sample_size=16,
        scaling_factor=0.5,
        shift_factor=0.1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()


def test_latents_are_decoded_once_at_the_end(tmp_path: Path) -> None:
    pipe = DSNOPipeline.from_student(dit(), autoencoder())
    pipe.save_pretrained(tmp_path)
    loaded = DSNOPipeline.from_pretrained(tmp_path)
    latents = loaded(class_labels=[0, 4], seeds=[1, 2], output_type="latent").images
    assert torch.equal(latents, pipe.student.sample(noise([1, 2], (4, 8, 8)), torch.tensor([0, 4])))
    with torch.no_grad():
        decoded = pipe.vae.decode(latents / 0.5 + 0.1).sample
    found = images(loaded, class_labels=[0, 4], seeds=[1, 2])
    assert found.shape == (2, 3, 16, 16)
    torch.testing.assert_close(found, (decoded / 2 + 0.5).clamp(0, 1), rtol=1e-5, atol=1e-5)
    whole = loaded(class_labels=[0, 4], seeds=[1, 2], output_type="pt", return_trajectory=True)
    assert whole.trajectory.x.shape == (2, 5, 4, 8, 8)
    torch.testing.assert_close(whole.images, found, rtol=1e-4, atol=1e-4)
    assert loaded(class_labels=3).images[0].size == (16, 16)


def test_a_student_with_guidance_is_told_the_weight(tmp_path: Path) -> None:
    pipe = DSNOPipeline.from_student(dit(guidance=True))
    pipe.save_pretrained(tmp_path)
    loaded = DSNOPipeline.from_pretrained(tmp_path)

    def latents(**arguments: object) -> Tensor:
        return loaded(class_labels=2, seeds=[1, 1], output_type="latent", **arguments).images

    low, high = latents(guidance_weight=0), latents(guidance_weight=4.0)
    assert not torch.allclose(low, high, atol=1e-4)
    torch.testing.assert_close(latents(guidance_weight=[0.0, 4.0]), torch.stack([low[0], high[1]]))
    unsaved = pipe(class_labels=2, seeds=[1, 1], output_type="latent", guidance_weight=4.0)
    torch.testing.assert_close(unsaved.images, high)
    for weight, message in [(None, "is told a guidance weight"), (-1, "at least 0"), ([1, 2, 3], "3 guidance weights")]:
        with pytest.raises(ValueError, match=message):
            latents(guidance_weight=weight)
    with pytest.raises(ValueError, match="takes no guidance weight"):
        DSNOPipeline.from_student(student())(guidance_weight=1.0)


def test_embeddings_are_told() -> None:
    options = dict(
        in_channels=4,
        out_channels=4,
        cross_attention_dim=6,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        layers_per_block=1,
        sample_size=8,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    net = DiffusersNet("UNet2DConditionModel", options, text_length=3)
    pipe = DSNOPipeline.from_student(student_from_teacher(Prediction(net, Cosine(), "v"), quadratic(4)[1:]))
    text = torch.randn(2, 3, 6)
    made = pipe(cond={"text": text}, seeds=[1, 1], output_type="latent").images
    assert not torch.allclose(made[0], made[1], atol=1e-5)
    torch.testing.assert_close(pipe(cond=text[:1], seeds=[1, 1], output_type="latent").images, made[[0, 0]])
    with pytest.raises(ValueError, match="there are 2 rows of text for 3 images"):
        pipe(num_images=3, cond={"text": text}, output_type="latent")


# Flow maps


@pytest.mark.parametrize("guidance", [False, True])
def test_a_flow_map_goes_where_a_student_goes(guidance: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = UNet(1, 8, (4, 8), attention=(), classes=3, null=True)
    made = flow_map_from_teacher(Prediction(net, Cosine(), "v"), guidance).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    DSNOPipeline.from_student(made).save_pretrained(tmp_path)
    pipe = DSNOPipeline.from_pretrained(tmp_path)
    assert type(pipe.student).__name__ == "FlowMapModel"
    told = {"guidance_weight": 2.0} if guidance else {}
    labels = torch.tensor([0, 1, 2])
    cond = {"label": labels, "weight": torch.full((3,), 2.0)} if guidance else labels
    z = noise(torch.tensor([1, 2, 3]), (1, 8, 8))
    images = pipe(seeds=[1, 2, 3], class_labels=labels, output_type="latent", **told).images
    torch.testing.assert_close(images, made.sample(z, cond))
    several = pipe(seeds=[1, 2, 3], class_labels=labels, output_type="latent", passes=2, return_trajectory=True, **told)
    assert several.trajectory.rounds == 2
    torch.testing.assert_close(several.images, passes_of(made, 2)(z, cond).sample)


def test_a_flow_map_of_one_grid_makes_its_passes_alone() -> None:
    made = flow_map_from_teacher(Prediction(UNet(1, 8, (4, 8), attention=()), Cosine(), "v"))
    made.way, made.steps = "grid", 2
    pipe = DSNOPipeline.from_student(made)
    assert pipe(seeds=[1], output_type="pt", return_trajectory=True).trajectory.rounds == 2
    with pytest.raises(ValueError, match=r"trained for the grid of 2 step\(s\) alone"):
        pipe(seeds=[1], passes=1)


# Version 0.1


@pytest.mark.parametrize(("kind", "name"), [("operator", "operator"), ("flow_map", "shortcut")])
def test_a_pipeline_of_version_0_1_loads(kind: str, name: str, tmp_path: Path) -> None:
    """It names the module that its class was in then."""
    folder, classes = FIXTURES / "pipeline" / kind, {"operator": "DSNOModel", "flow_map": "FlowMapModel"}
    assert json.loads((folder / "model_index.json").read_text())["student"] == ["dsno.pipeline", classes[kind]]
    pipe = DSNOPipeline.from_pretrained(folder)
    made = pipe(seeds=[0, 1], output_type="latent").images
    expected = json.loads((FIXTURES / "expected.json").read_text())["students"][name]["passes"]["default"]
    torch.testing.assert_close(made[0].flatten(), torch.tensor(expected["first"]), rtol=1e-4, atol=1e-4)
    assert float(made.sum()) == pytest.approx(expected["sum"], abs=1e-2)
    pipe.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "model_index.json").read_text())["student"]
    assert saved == ["dsno.app.pipeline", classes[kind]]
    assert torch.equal(DSNOPipeline.from_pretrained(tmp_path)(seeds=[0, 1], output_type="latent").images, made)


def test_what_is_declared_is_named_by_its_file(folder: Path) -> None:
    before = (folder / "student" / "config.json").read_text()
    edit(folder / "student" / "config.json", backbone={**json.loads(before)["backbone"], "blocks": 10**8})
    with pytest.raises(ValueError, match=r"student/config\.json describes a network of more than the \d+ weights"):
        DSNOPipeline.from_pretrained(folder)
    edit(folder / "student" / "config.json", backbone=json.loads(before)["backbone"], target=[])
    with pytest.raises(
        ValueError, match=r"student/config\.json: the configuration of DSNOModel: target must be a text"
    ):
        DSNOPipeline.from_pretrained(folder)
    edit(folder / "model_index.json", student=[1, 2])
    with pytest.raises(ValueError, match=r"model_index\.json: student\[0\] must be a text or null, got 1"):
        DSNOPipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"batch_size": 4}, ValueError, "takes no batch_size: num_images says how many images there are"),
        ({"num_inference_steps": 4}, ValueError, "takes no num_inference_steps: a student makes one pass, or"),
        ({"guidance_scale": 4.0}, ValueError, "takes no guidance_scale: guidance_weight is it less 1"),
        ({"colour": "red"}, TypeError, "takes no argument 'colour'"),
        ({"seeds": [0.5]}, ValueError, "seeds must be integers"),
        ({"seeds": [2**63]}, ValueError, "seeds must be integers"),
    ],
)
def test_what_other_pipelines_take_is_answered(arguments: dict, error: type[Exception], message: str) -> None:
    pipe = DSNOPipeline.from_student(load_student(shipped() / "student"))
    with pytest.raises(error, match=message):
        pipe(**arguments)


def test_a_saved_folder_says_how_to_open_it(tmp_path: Path) -> None:
    pipe = dsno.DSNOPipeline.from_student(load_student(shipped() / "student"))
    pipe.save_pretrained(tmp_path / "pipe")
    said = (tmp_path / "pipe" / "README.md").read_text()
    (line,) = (line for line in said.splitlines() if line.startswith("images = "))
    names: dict[str, object] = {}
    line = line.replace("this folder, or its name on the Hub", str(tmp_path / "pipe"))
    exec(f"from dsno import DSNOPipeline\n{line}", names)
    assert len(names["images"]) == 4
    (tmp_path / "pipe" / "README.md").write_text("mine")
    pipe.save_pretrained(tmp_path / "pipe")
    assert (tmp_path / "pipe" / "README.md").read_text() == "mine"
    # No code lies in the folder, and none is run: diffusers does not find the class.
    with pytest.raises(AttributeError, match="DSNOPipeline"):
        diffusers.DiffusionPipeline.from_pretrained(tmp_path / "pipe")
