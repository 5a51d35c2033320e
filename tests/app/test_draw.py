"""A seed is the same picture as in Python, what it cost is what was called, and the way there leads to it."""

from pathlib import Path

import pytest
import torch

import planned
from dsno.app.draw import FRAMES, draw
from dsno.app.models import Ask, Model, open_model
from dsno.app.places import Places
from dsno.denoise import Guided
from dsno.grids import even
from dsno.runs.shipped import shipped
from dsno.schedule import VE
from dsno.seeds import noise, seed_range
from dsno.solvers.named import SOLVERS
from dsno.solvers.run import SolverSampler
from dsno.students.files import load_student
from dsno.students.operator import TrajectoryStudent
from dsno.students.samplers import sampler_of
from dsno.teachers.latents import load_decoder
from dsno.teachers.load import load_teacher

STUDENT = str(shipped() / "student")


@pytest.fixture(scope="module")
def student() -> Model:
    return open_model("it", Places(known={"it": STUDENT}))


@pytest.fixture(scope="module")
def teacher() -> Model:
    return open_model("digits", Places())


def test_a_students_seed_is_its_sample_in_one_pass(student: Model) -> None:
    z = noise(seed_range(7, 1), (1, 8, 8))
    made, own = draw(student, Ask(7, path=True)), load_student(STUDENT)
    torch.testing.assert_close(made.picture, own.sample(z)[0].clamp(-1, 1))
    assert made.calls == 1 and made.seconds > 0
    frames = sampler_of(own, whole=True)(z)
    assert [t for t, _ in made.path] == frames.t.tolist()
    torch.testing.assert_close(torch.stack([x for _, x in made.path]), frames.x[0].clamp(-1, 1))
    assert draw(student, Ask(7)).path == ()


@pytest.mark.parametrize("solver, steps, calls", [("ddim", 5, 5), ("heun", 3, 5), ("ancestral", 4, 4), ("dpm2", 1, 1)])
def test_a_teachers_seed_is_its_solvers_sample_and_each_call_is_told(
    solver: str, steps: int, calls: int, teacher: Model
) -> None:
    told: list[tuple[int, int]] = []
    made = draw(teacher, Ask(3, steps=steps, solver=solver), lambda done, total: told.append((done, total)))
    own, seeds = load_teacher("digits"), seed_range(3, 1)
    sampler = SolverSampler(own, own.schedule, even(own.schedule, steps), SOLVERS[solver]())
    assert torch.equal(made.picture, sampler(noise(seeds, (1, 8, 8)), None, seeds).sample[0].clamp(-1, 1))
    assert made.calls == calls and told == [(n + 1, calls) for n in range(calls)]


def test_the_way_there_begins_with_noise_and_ends_with_the_sample(teacher: Model) -> None:
    for steps in (1, 40):
        made = draw(teacher, Ask(3, steps=steps, path=True))
        times = [t for t, _ in made.path]
        assert len(times) == min(FRAMES, steps + 1) and times == sorted(times, reverse=True)
        assert times[0] == 1 and torch.equal(made.path[-1][1], made.picture)
    # A state of a large variance is shown at that of noise.
    model = Model("ve", planned.teacher("edm"))
    assert isinstance(model.schedule, VE)
    first = draw(model, Ask(3, steps=1, path=True)).path[0][1]
    torch.testing.assert_close(first, noise(seed_range(3, 1), (1, 4, 4))[0].clamp(-1, 1), rtol=1e-3, atol=1e-3)


def test_a_student_that_was_told_draws_in_as_many_passes_and_its_teacher_under_guidance() -> None:
    own, seeds = planned.told()[0], seed_range(0, 1)
    model = Model("told", own, weights=(0.0, 3.0))
    made = draw(model, Ask(0, label=1, guidance=2.0, passes=3))
    cond = {"label": torch.tensor([1]), "weight": torch.tensor([2.0])}
    expected = sampler_of(own, 3)(noise(seeds, (1, 4, 4)), cond, seeds).sample[0].clamp(-1, 1)
    assert made.calls == 3 and torch.equal(made.picture, expected)
    teacher = planned.told()[1]
    made = draw(Model("teacher", teacher, null=3), Ask(0, label=1, guidance=2.0, steps=4, solver="ddim"))
    sampler = SolverSampler(Guided(teacher, torch.tensor(3), 2.0), teacher.schedule, even(teacher.schedule, 4))
    expected = sampler(noise(seeds, (1, 4, 4)), torch.tensor([1]), seeds).sample[0].clamp(-1, 1)
    assert made.calls == 4 and torch.equal(made.picture, expected)


def test_passes_are_made_as_they_were_trained() -> None:
    seeds, known = seed_range(5, 1), {name: str(shipped(name) / "student") for name in ("digits", "digits-classes")}
    for name, fresh in (("digits", True), ("digits-classes", False)):
        model = open_model(name, Places(known=known))
        assert isinstance(model.of, TrajectoryStudent) and model.of.fresh == fresh
        cond = {"label": torch.tensor([3]), "weight": torch.tensor([1.0])} if model.classes else None
        made = draw(model, Ask(5, label=3 if cond else None, guidance=1.0 if cond else 0.0, passes=2, path=True))
        expected = sampler_of(model.of, 2, fresh=fresh)(noise(seeds, (1, 8, 8)), cond, seeds).sample[0].clamp(-1, 1)
        assert made.calls == 2 and torch.equal(made.picture, expected)
        torch.testing.assert_close(made.path[-1][1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_latents_are_decoded_on_their_way_and_at_its_end(pipelines: dict[str, Path]) -> None:
    folder = pipelines["dit"].parent
    model = open_model(str(folder / "dit"), Places((folder,)))
    made = draw(model, Ask(0, label=3, steps=2, solver="ddim", path=True))
    own, decoder = load_teacher(folder / "dit"), load_decoder(folder / "dit")
    sampler = SolverSampler(own, own.schedule, even(own.schedule, 2))
    assert decoder is not None
    with torch.no_grad():
        expected = decoder.decode(sampler(noise([0], (4, 8, 8)), torch.tensor([3])).sample)[0]
    torch.testing.assert_close(made.picture, expected, rtol=1e-4, atol=1e-4)
    assert {x.shape for _, x in made.path} == {made.picture.shape} and made.picture.shape[0] == 3


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"passes": 5}, r"it makes 1, 2, 3, 4 pass\(es\), got 5"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"label": 0}, "label 0 is outside the classes of it: it has no classes"),
        ({"prompt": "a cat"}, "it is told no text: leave the prompt out"),
        ({"guidance": -1.0}, "it takes the guidance weight -1 not: expected none"),
    ],
)
def test_what_a_student_cannot_be_asked_is_refused(changes: dict[str, object], message: str, student: Model) -> None:
    with pytest.raises(ValueError, match=message):
        draw(student, Ask(**changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": 0}, r"steps must be in \[1, 1000\], got 0"),
        ({"steps": 1001}, r"steps must be in \[1, 1000\], got 1001"),
        ({"solver": "dpm9"}, "unknown solver 'dpm9': expected one of ddim, heun,"),
    ],
)
def test_what_a_teacher_cannot_be_asked_is_refused(changes: dict[str, object], message: str, teacher: Model) -> None:
    with pytest.raises(ValueError, match=message):
        draw(teacher, Ask(**changes))  # type: ignore[arg-type]
