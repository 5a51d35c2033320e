"""A start is trained into a folder of its own, read back, and resumed alike; the teacher stays as it was."""

import copy
from pathlib import Path

import pytest
import torch

from dsno.data.samples import Samples
from dsno.denoise import Prediction
from dsno.grids import uniform
from dsno.inverse.blur import Blur
from dsno.inverse.decoded import Decoded
from dsno.inverse.operators import Composition, Downsample, Function, Mask
from dsno.inverse.start import LearnedStart, OneJump
from dsno.inverse.start_loss import Shares
from dsno.inverse.start_net import PHASES, load_start, start_grid
from dsno.nets.features import FeatureNet, save_feature_net
from dsno.nets.unet import UNet
from dsno.runs.start import fingerprint, train_start
from dsno.schedule import Cosine
from dsno.students.operator import student_from_teacher
from dsno.students.samplers import OnePass
from dsno.teachers.latents import Latents
from dsno.train import TrainConfig
from pipelines import make_vae
from pretend import stop_at

SHAPE = (1, 8, 8)
IMAGES = Samples(torch.randn(32, *SHAPE, generator=torch.Generator().manual_seed(1)).clamp(-1, 1), None, "noise")
PROBLEM = Downsample(2, noise=0.1)
BRIEF = TrainConfig(steps=4, lr=1e-3, warmup=2, checkpoint_every=2, log_every=1)
SMALL = {"channels": (8,), "config": BRIEF, "batch": 8, "attention": ()}


def teacher() -> Prediction:
    torch.manual_seed(5)
    return Prediction(UNet(1, 8, (8,), attention=(), dropout=0.5), Cosine(), "v", shape=SHAPE)


def test_a_start_is_trained_and_read_back_and_restores(tmp_path: Path) -> None:
    held = teacher()
    before = {name: value.clone() for name, value in held.state_dict().items()}
    made = train_start(held, PROBLEM, IMAGES, tmp_path, **SMALL)
    assert all(torch.equal(value, before[name]) for name, value in held.state_dict().items())
    assert held.training and all(p.requires_grad and p.grad is None for p in held.parameters())
    net = load_start(tmp_path)
    assert net.phases == PHASES and all(map(torch.equal, net.parameters(), made.parameters()))
    y, z = PROBLEM.A(IMAGES.x[:3]), torch.randn(3, *SHAPE)
    for steps in (1, 2, 5):
        restored = LearnedStart(start_grid(Cosine(), steps), net)(held.eval(), Cosine(), PROBLEM, y, z)
        assert restored.x.isfinite().all() and restored.cost.rounds == steps
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors", "training"]


def test_a_start_is_resumed_alike_its_critic_and_the_features_included(tmp_path: Path) -> None:
    save_feature_net(tmp_path / "features", FeatureNet("tiny", width=4, dim=4))
    alike = {
        "teacher": teacher(),
        "problem": PROBLEM,
        "images": IMAGES,
        "out": tmp_path / "one",
        "shares": Shares(after=2),
        "features": tmp_path / "features",
        **SMALL,
    }
    with pytest.raises(KeyboardInterrupt):
        train_start(**alike, report=stop_at("start", 3))
    for change, message in (
        ({"problem": Downsample(4, noise=0.1)}, "was trained with problem = Downsample"),
        ({"shares": Shares()}, "was trained with loss = "),
        ({"batch": 16}, "was trained with batch = 8, now 16: resume alike"),
        ({"phases": (0.2,)}, "was trained with phases = "),
    ):
        with pytest.raises(ValueError, match=message):
            train_start(**{**alike, **change}, resume=True)
    resumed = train_start(**alike, resume=True)
    whole = train_start(**{**alike, "out": tmp_path / "two"})
    assert all(map(torch.equal, resumed.parameters(), whole.parameters()))
    with pytest.raises(FileExistsError, match="exists already: pass resume=True"):
        train_start(**alike)


def test_a_problem_that_is_a_function_is_the_same_where_it_lies_elsewhere_in_memory(tmp_path: Path) -> None:
    def problem() -> Function:
        return Function(lambda x: x[..., ::2], SHAPE)

    with pytest.raises(KeyboardInterrupt):
        train_start(teacher(), problem(), IMAGES, tmp_path, **SMALL, report=stop_at("start", 2))
    assert train_start(teacher(), problem(), IMAGES, tmp_path, **SMALL, resume=True).shape == SHAPE


def test_a_problem_is_told_apart_by_what_its_tensors_hold_and_by_nothing_else() -> None:
    kernel, keep = torch.tensor([[1.0, 2.0, 1.0]]) / 4, torch.arange(4096).reshape(64, 64) % 7 > 2
    other = keep.clone()
    other[32, 32] ^= True  # in the middle, which a tensor's text leaves out
    for one, two in ((Blur(kernel), Blur(kernel.flip(0) * 1.5)), (Mask(keep), Mask(other))):
        assert fingerprint(one) != fingerprint(two) and fingerprint(one) == fingerprint(copy.deepcopy(one))
    both = Composition((Blur(kernel), Downsample(2)), noise=0.1)
    assert fingerprint(both).startswith("Composition(problems=(Blur(kernel=1 x 3 numbers ")
    assert "0x" not in fingerprint(both)
    used = Blur(kernel)
    used.A(torch.zeros(1, 1, 8, 8))
    assert fingerprint(used) == fingerprint(Blur(kernel))


def test_a_student_of_one_pass_starts_from_noise(tmp_path: Path) -> None:
    student = student_from_teacher(teacher().eval(), [0.5, 0.0]).eval()
    made = train_start(OneJump(student), PROBLEM, IMAGES, tmp_path, **SMALL)
    assert made.phases == (1.0,) and all(p.grad is None for p in student.parameters())
    y, z = PROBLEM.A(IMAGES.x[:3]), torch.randn(3, *SHAPE)
    restored = LearnedStart(uniform(1), made)(OneJump(student), Cosine(), PROBLEM, y, z)
    with torch.no_grad():
        f = made.noise(PROBLEM.prox_l2(torch.zeros(3, *SHAPE), y, 1 / 0.1**2), torch.ones(3), z)
    # Nearly nothing is left of the pseudo-inverse on pure noise: the predictor says the student's noise.
    assert torch.allclose(restored.x, OnePass(student)(f).sample, atol=1e-3)
    assert restored.cost.rounds == 1


def test_a_start_for_latents_is_trained_on_images(tmp_path: Path) -> None:
    latents, images = Latents(make_vae()), Samples(0.3 * torch.randn(16, 3, 8, 8), None, "coloured")
    shape = latents.encode(images.x[:1]).shape[1:]
    torch.manual_seed(5)
    frozen = Prediction(UNet(shape[0], shape[1], (8,), attention=()), Cosine(), "v", shape=shape).eval()
    problem = Decoded(Mask(torch.arange(8) < 4), latents)
    made = train_start(frozen, problem, images, tmp_path, **SMALL)
    assert made.shape == shape


def test_what_cannot_be_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not say its schedule"):
        train_start(lambda x, t, cond=None: x, PROBLEM, IMAGES, tmp_path, **SMALL)
    with pytest.raises(ValueError, match="has no labels to tell the teacher"):
        train_start(teacher(), PROBLEM, IMAGES, tmp_path, labelled=True, **SMALL)
    with pytest.raises(ValueError, match="a factor of 3 does not divide"):
        train_start(teacher(), Downsample(3), IMAGES, tmp_path, **SMALL)
    assert not [*tmp_path.iterdir()]
