"""From a guide to a student: what a steered teacher makes is stored, resumed, cited and distilled like any other."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dsno.data.load import load_data
from dsno.denoise import Prediction
from dsno.distillation.run import distill
from dsno.guidance import CleanClassifier, LossGuide, NoisyClassifier, Sum
from dsno.inverse.operators import Mask
from dsno.nets.classifier import Classifier
from dsno.nets.unet import UNet, with_classes
from dsno.references import used_by
from dsno.runs.shipped import shipped
from dsno.schedule import Cosine
from dsno.seeds import noise, seed_range
from dsno.solvers.run import SolverSampler
from dsno.solvers.splitting import STSP
from dsno.steer import Guide, Steered
from dsno.students.files import load_student
from dsno.teachers.load import load_teacher
from dsno.train import TrainConfig
from dsno.trajectories.compute import Compute
from dsno.trajectories.generate import generate
from dsno.trajectories.labels import uniform_labels
from dsno.trajectories.sets import TrajectorySet, samples_of
from stored import contents


def teacher() -> Prediction:
    torch.manual_seed(0)
    net = UNet(1, 8, (4, 8), attention=())
    nn.init.normal_(net.head.conv.weight, std=0.1)
    return Prediction(net, Cosine(), "v", shape=(1, 8, 8)).eval()


def classifier(seed: int = 1) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(1, 8, 3, (4, 8)).eval()


def steered(seed: int = 1, scale: float = 2.0) -> Steered:
    return Steered(teacher(), NoisyClassifier(classifier(seed), Cosine()), scale)


def targets(seeds: Tensor) -> dict[str, Tensor]:
    return {"guide": uniform_labels(3)(seeds)}


def make(out: Path, model: Steered, **options: object) -> TrajectorySet:
    settings = {"times": (0.25, 0.0), "solver": "stsp4", "steps": 6, "grid": "uniform", "batch": 8, "shard": 16}
    return generate(model, out, 40, label=targets, **{**settings, **options})


def test_a_set_says_which_guide_steered_it_by_hash_and_how_much(tmp_path: Path) -> None:
    made = make(tmp_path / "a", steered())
    said = made.manifest["teacher"]
    assert (said["class"], said["scale"], said["denoiser"]["class"]) == ("Steered", 2.0, "Prediction")
    assert (said["guide"]["class"], said["guide"]["classes"]) == ("NoisyClassifier", 3) and len(
        said["guide"]["sha256"]
    ) == 64
    assert made.manifest["solver"] == {"name": "STSP", "order": 4} and [*made.manifest["cond"]] == ["guide"]
    for other in (steered(seed=2), steered(scale=3.0)):
        with pytest.raises(ValueError, match=r"teacher\.(guide\.sha256|scale): expected"):
            make(tmp_path / "a", other, resume=True)
    assert used_by(tmp_path / "a")[:2] == ["wizadwongsa2023accelerating", "dhariwal2021diffusion"]
    # What was solved is what is stored.
    sampler = SolverSampler(steered(), Cosine(), torch.tensor(made.manifest["grid"]), STSP())
    rows = made.__getitems__(range(8))
    torch.testing.assert_close(rows["x0"][:, -1], sampler(rows["noise"], rows["cond"]).sample, rtol=0, atol=2e-3)


def test_a_run_that_is_resumed_equals_one_that_was_not_interrupted(tmp_path: Path) -> None:
    whole = contents(make(tmp_path / "whole", steered()).folder)
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    (tmp_path / "part" / "shard-00001.safetensors").unlink()
    assert contents(make(tmp_path / "part", steered(), resume=True).folder) == whole


def test_every_guide_and_projection_is_described_in_json(tmp_path: Path) -> None:
    def keep(x_s: Tensor, s: float) -> Tensor:
        return x_s.clamp(-3, 3)

    def colour(x0_hat: Tensor, y: Tensor | None) -> Tensor:
        return x0_hat.mean((1, 2, 3)).square()

    guide: Guide = Sum([LossGuide(colour, Cosine(), False), CleanClassifier(classifier(), Cosine())], [1.0, 0.5])
    made = make(tmp_path / "a", Steered(teacher(), guide, 0.1, project=keep), solver="ddim")
    said = made.manifest["teacher"]
    assert said["project"]["class"] == "keep" and said["guide"]["weights"] == [1.0, 0.5]
    loss, clean = said["guide"]["parts"]
    assert loss == {"class": "LossGuide", "loss": "colour", "through": False, "data_std": 0.5}
    assert clean == {"class": "CleanClassifier", "classes": 3, "through": True} and said["guide"]["classes"] == 3
    assert json.loads(json.dumps(said)) == said
    assert "bansal2023universal" in used_by(tmp_path / "a")


def test_in_mixed_precision_the_guide_can_still_be_split_off(tmp_path: Path) -> None:
    made = make(tmp_path / "a", steered(), compute=Compute(torch.bfloat16))
    full = make(tmp_path / "b", steered())
    a, b = (data.__getitems__(range(40))["x0"][:, -1] for data in (made, full))
    assert 0 < float((a - b).abs().max()) < 0.2


def test_a_one_pass_student_is_told_the_target_as_its_class(tmp_path: Path) -> None:
    model, data = steered(), make(tmp_path / "data", steered())
    config = TrainConfig(steps=4, lr=1e-3, warmup=0, checkpoint_every=4)
    for name, source in (("inside", model.denoiser), ("steered", model)):
        distill(source, data, tmp_path / name, config=config, batch=8)
    assert (tmp_path / "inside" / "model.safetensors").read_bytes() == (
        tmp_path / "steered" / "model.safetensors"
    ).read_bytes()
    student = load_student(tmp_path / "inside")
    assert student.classes == 3
    z = noise(seed_range(0, 4), (1, 8, 8))
    assert student.sample(z, torch.tensor([0, 1, 2, 0])).shape == z.shape
    assert {"wizadwongsa2023accelerating", "dhariwal2021diffusion"} <= {*used_by(tmp_path / "inside")}
    x, labels = samples_of(data)
    assert torch.equal(labels, targets(seed_range(0, 40))["guide"]) and x.shape == (40, 1, 8, 8)
    with pytest.raises(ValueError, match="matching asks the teacher while it trains, and .* was steered by a guide"):
        distill(model, data, tmp_path / "matching", "matching", config, batch=8)
    other = teacher()
    nn.init.zeros_(other.net.head.conv.weight)
    with pytest.raises(ValueError, match="holds trajectories of another teacher"):
        distill(other, data, tmp_path / "other", config=config, batch=8)


class Misfit(nn.Module):
    """What is known of a sample; the measurement is a buffer, and so in the checksum."""

    def __init__(self, problem: Mask, y: Tensor) -> None:
        super().__init__()
        self.problem, self.noise = problem, 0.2
        self.register_buffer("y", y)

    def forward(self, x0_hat: Tensor, target: Tensor | None) -> Tensor:
        return (self.problem.A(x0_hat) - self.y).square().flatten(1).sum(1) / (2 * self.noise**2)


def constrained(y: Tensor) -> Steered:
    model = load_teacher(str(shipped("digits") / "teacher")).requires_grad_(False)
    return Steered(model, LossGuide(Misfit(Mask.half((1, 8, 8)), y), model.schedule))


def test_a_constrained_teacher_is_stored_and_distilled_like_any_other(tmp_path: Path) -> None:
    """Trained, and not a closed form: its Jacobian must not be taken for one near pure noise."""
    picture = load_data("digits").x[:1]
    problem, teacher = Mask.half((1, 8, 8)), constrained(picture)
    y = problem.A(picture)
    options = {"solver": "stsp4", "steps": 12, "grid": "even", "times": (0.0,), "batch": 16, "shard": 16}
    made = generate(constrained(y), tmp_path / "a", 16, **options)
    x0, free = made.__getitems__(range(16))["x0"][:, -1], teacher.denoiser(noise(seed_range(0, 16), (1, 8, 8)), 1.0)
    misfit, without = ((problem.A(x) - y).square().mean().sqrt() for x in (x0, free))
    assert float(misfit) < 0.15 < 0.3 < float(without) and float(x0.abs().max()) < 1.5
    # Restorations of one measurement, which differ where it says nothing.
    assert float(x0.std(0)[..., 4:].mean()) > 3 * float(x0.std(0)[..., :4].mean())
    with pytest.raises(ValueError, match=r"teacher\.guide\.sha256: expected"):
        generate(constrained(y.flip(-2)), tmp_path / "a", 16, resume=True, **options)
    config = TrainConfig(steps=2, lr=1e-3, warmup=0, checkpoint_every=2)
    student = distill(constrained(y), made, tmp_path / "student", config=config, batch=8)
    assert student.sample(noise(seed_range(0, 4), (1, 8, 8))).shape == (4, 1, 8, 8)


def test_classes_that_are_added_change_nothing_yet() -> None:
    inner = teacher().net
    told, x, t = with_classes(inner, 3), torch.randn(4, 1, 8, 8), torch.rand(4)
    assert torch.equal(told(x, t, torch.tensor([0, 1, 2, 0])), inner(x, t)) and told.classes == 3
    with pytest.raises(ValueError, match="this U-Net is told one of 3 classes already"):
        with_classes(told, 5)


def test_a_splitting_by_name_needs_a_steered_teacher(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the solver stsp4 splits a guide off, and this teacher has none"):
        generate(teacher(), tmp_path / "a", 8, solver="stsp4")
    assert not (tmp_path / "a").exists()
