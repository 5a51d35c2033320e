"""A student's frames are what the formulas say, whatever its teacher predicts, and it comes back from its folder."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dsno.checkpoint import read_json, read_tensors, write_json, write_tensors
from dsno.denoise import Kind, Prediction, convert, expand_like, x0_from
from dsno.grids import quadratic
from dsno.nets.unet import UNet
from dsno.schedule import Cosine, RectifiedFlow, Schedule, linear_beta
from dsno.seeds import noise_tape
from dsno.solvers.run import initial_state, solve
from dsno.students.blocks import Told
from dsno.students.files import load_student, save_student
from dsno.students.operator import TrajectoryStudent, student_from_teacher
from dsno.students.samplers import MultiPass, OnePass
from dsno.teachers.closed import Gaussian
from dsno.teachers.load import load_teacher
from dsno.teachers.native import save_teacher

TIMES = quadratic(4)[1:]


class Oracle(nn.Module):
    """In place of a network: whatever `answer(x_t, start)` says for every frame, (B, M, *shape)."""

    def __init__(self, answer, frames: int = 4) -> None:
        super().__init__()
        self.answer, self.frames = answer, frames

    def forward(
        self, x: Tensor, times: Tensor, cond: Tensor | None, start: Tensor | float, select: Sequence[int] | None
    ) -> Tensor:
        frames = self.answer(x, torch.as_tensor(start, dtype=x.dtype))
        return frames if select is None else frames[:, list(select)]


def teacher(kind: Kind = "v", classes: int | None = None, schedule: Schedule | None = None) -> Prediction:
    net = UNet(1, 8, (4, 8), attention=(), classes=classes)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    return Prediction(net, Cosine() if schedule is None else schedule, kind).eval()


def student(target: str = "x0", classes: int | None = None, **arguments: object) -> TrajectoryStudent:
    return student_from_teacher(teacher(classes=classes), TIMES, target, init="normal", **arguments).eval()


@pytest.mark.parametrize("start", [1.0, torch.tensor([1.0, 0.6, 0.3])], ids=["noise", "inner"])
@pytest.mark.parametrize("kind", ["x0", "v", "flow", "eps"])
def test_the_output_is_read_as_the_teachers_prediction(kind: Kind, start: Tensor | float, schedule: Schedule) -> None:
    x0, eps = torch.randn(3, 4, 1, 2, 2, dtype=torch.float64), torch.randn(3, 1, 2, 2, dtype=torch.float64)
    t = torch.as_tensor(start, dtype=torch.float64)
    alpha_t, sigma_t = (expand_like(c, eps) for c in schedule(t))
    # One state, and in each frame the prediction that a teacher certain of another x0 would make there.
    x_t = alpha_t * x0[:, 0] + sigma_t * eps
    answer = torch.stack([convert(kind, x0[:, m], x_t, t, schedule) for m in range(4)], 1)
    h = TrajectoryStudent(Oracle(lambda x, s: answer), schedule, TIMES, kind=kind)(x_t, start=start)
    # An eps head is not divided by alpha.
    expected = x0 * alpha_t.unsqueeze(1) if kind == "eps" else x0
    assert torch.allclose(h, expected, atol=1e-9)


def test_states_are_exact_at_the_start(schedule: Schedule) -> None:
    made = TrajectoryStudent(Oracle(None), schedule, TIMES)
    x_t, h = torch.randn(3, 1, 2, 2), torch.randn(3, 4, 1, 2, 2)
    for m, t in enumerate(TIMES[:-1].tolist()):
        assert torch.allclose(made.states(x_t, h, start=t)[:, m], x_t, atol=1e-5)


def test_states_are_the_formula(schedule: Schedule) -> None:
    made = TrajectoryStudent(Oracle(None), schedule, TIMES)
    z, h = torch.randn(3, 1, 2, 2, dtype=torch.float64), torch.randn(3, 4, 1, 2, 2, dtype=torch.float64)
    (alpha_1, sigma_1), x_1 = schedule.at(1.0), initial_state(schedule, z)
    states = made.states(x_1, h)
    for m, t in enumerate(TIMES.tolist()):
        alpha, sigma = schedule.at(t)
        expected = alpha * h[:, m] + sigma * (x_1 - alpha_1 * h[:, m]) / sigma_1
        assert torch.allclose(states[:, m], expected, atol=1e-10)
    assert torch.equal(made.states(x_1, h[:, [3, 1]], select=(-1, 1)), states[:, [3, 1]])
    starts = torch.tensor([1.0, 0.7, 0.6], dtype=torch.float64)
    one_by_one = [made.states(x_1[i : i + 1], h[i : i + 1], float(starts[i])) for i in range(3)]
    assert torch.allclose(made.states(x_1, h, starts), torch.cat(one_by_one), atol=1e-10)


def test_with_the_denoiser_as_h_every_frame_is_one_ddim_step(schedule: Schedule) -> None:
    denoiser = Gaussian(schedule, torch.randn(1, 2, 2, dtype=torch.float64), 0.5)
    made = TrajectoryStudent(
        Oracle(lambda x, t: denoiser(x, t)[:, None].expand(-1, 4, -1, -1, -1)), schedule, TIMES, "state", "x0"
    )
    z = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    trajectory = OnePass(made)(z)
    for m, t in enumerate(TIMES.tolist()):
        step = solve(denoiser, schedule, initial_state(schedule, z), [1.0, t])
        assert torch.allclose(trajectory.x[:, m + 1], step.sample, atol=1e-9)


def test_with_the_exact_h_the_states_are_the_exact_flow(schedule: Schedule) -> None:
    gaussian = Gaussian(schedule, torch.randn(1, 2, 2, dtype=torch.float64), 0.5)
    alpha_1, sigma_1 = schedule.at(1.0)

    def exact(x_1: Tensor, start: Tensor) -> Tensor:
        h = []
        for t in TIMES.tolist():
            alpha, sigma = schedule.at(t)
            h.append((gaussian.flow(x_1, 1.0, t) - sigma / sigma_1 * x_1) / (alpha - sigma / sigma_1 * alpha_1))
        return torch.stack(h, 1)

    made = TrajectoryStudent(Oracle(exact), schedule, TIMES, "state", "x0")
    z = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    trajectory = OnePass(made)(z)
    for m, t in enumerate([1.0, *TIMES.tolist()]):
        assert torch.allclose(trajectory.x[:, m], gaussian.flow(sigma_1 * z, 1.0, t), atol=1e-9)
    assert torch.allclose(made.sample(z), trajectory.sample, atol=1e-9)


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("target", ["x0", "state"])
def test_the_sample_alone_is_the_last_frame_of_the_trajectory(target: str, classes: int | None) -> None:
    made = student(target, classes)
    z, cond = torch.randn(3, 1, 8, 8), None if classes is None else torch.tensor([0, 2, 1])
    # torch picks other matrix kernels where it records gradients; without, both ways are the same to the last bit.
    with torch.no_grad():
        trajectory, h = OnePass(made)(z, cond), made(initial_state(made.schedule, z), cond)
    assert torch.allclose(made.sample(z, cond), trajectory.sample, atol=1e-5)
    last = h[:, -1] if target == "x0" else made.states(initial_state(made.schedule, z), h)[:, -1]
    assert torch.equal(trajectory.sample, last)
    # At t = 0 the state is h up to what a truncated schedule leaves of the noise.
    assert torch.allclose(trajectory.sample, h[:, -1], atol=1e-3)


def test_a_trajectory_says_what_it_is() -> None:
    made, z, seeds = student(), torch.randn(2, 1, 8, 8), torch.tensor([5, 6])
    trajectory = OnePass(made)(z, seeds=seeds)
    assert trajectory.x.shape == (2, 5, 1, 8, 8) and trajectory.t.tolist() == [1.0, *TIMES.tolist()]
    assert torch.equal(trajectory.noise, initial_state(made.schedule, z)) and trajectory.seeds is seeds
    assert trajectory.rounds == 1 and trajectory.x0 is not None and trajectory.x0.shape == trajectory.x.shape
    assert not trajectory.x.requires_grad


@pytest.mark.parametrize("target", ["x0", "state"])
def test_the_last_frame_can_be_the_only_one(target: str) -> None:
    made, z = student(target), torch.randn(2, 1, 8, 8)
    alone, whole = OnePass(made, whole=False)(z), OnePass(made)(z)
    assert alone.t.tolist() == [1.0, 0.0] and alone.x.shape == (2, 2, 1, 8, 8)
    assert torch.allclose(alone.x, whole.x[:, [0, -1]], atol=1e-5)


# Several passes


def restartable(target: str = "x0", **arguments: object) -> TrajectoryStudent:
    made = student(target, **arguments)
    made.restarts = True
    return made


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("through", [1, ()])
@pytest.mark.parametrize("target", ["x0", "state"])
def test_one_of_many_passes_is_one_pass(target: str, through: int | tuple[int, ...], whole: bool) -> None:
    # Any student makes one pass.
    made, z = student(target), torch.randn(3, 1, 8, 8)
    several, once = MultiPass(made, through, whole)(z), OnePass(made, whole)(z)
    assert torch.equal(several.x, once.x) and torch.equal(several.t, once.t) and several.rounds == several.nfe == 1
    x_1, frames = initial_state(made.schedule, z), range(4) if whole else (3,)
    with torch.no_grad():
        h = made(x_1, select=frames)
        states = made.states(x_1, h, select=frames)
    assert torch.equal(once.x[:, 1:-1], states[:, :-1])
    assert torch.equal(once.sample, h[:, -1] if target == "x0" else states[:, -1])
    assert (once.x0 is None) == (target == "state")


@pytest.mark.parametrize("target", ["x0", "state"])
def test_each_pass_starts_from_the_state_of_the_one_before(target: str) -> None:
    made, z, seeds = restartable(target, classes=3), torch.randn(3, 1, 8, 8), torch.arange(3)
    cond, calls = torch.tensor([0, 2, 1]), []
    handle = made.register_forward_hook(lambda module, arguments, output: calls.append(arguments[2:]))
    trajectory = MultiPass(made, (0, 2))(z, cond, seeds)
    handle.remove()
    assert calls == [(1.0, range(1)), (TIMES[0].item(), range(1, 3)), (TIMES[2].item(), range(3, 4))]
    assert trajectory.nfe == trajectory.rounds == 3 and trajectory.seeds is seeds and trajectory.cond is cond
    assert trajectory.t.tolist() == [1.0, *TIMES.tolist()] and not trajectory.x.requires_grad
    for start, frames in ((0, (0,)), (1, (1, 2)), (3, (3,))):
        t = float(trajectory.t[start])
        h = made(trajectory.x[:, start], cond, t, frames)
        states = made.states(trajectory.x[:, start], h, t, frames)
        ends = h if target == "x0" and frames == (3,) else states
        assert torch.allclose(trajectory.x[:, [m + 1 for m in frames]], ends, atol=1e-5)
    # Which is another sample than that of one pass.
    assert not torch.allclose(trajectory.sample, OnePass(made)(z, cond).sample, atol=1e-2)


@pytest.mark.parametrize("target", ["x0", "state"])
def test_the_frames_passed_through_can_be_the_only_ones(target: str) -> None:
    made, z = restartable(target), torch.randn(2, 1, 8, 8)
    whole, alone = MultiPass(made, (0, 2))(z), MultiPass(made, (0, 2), whole=False)(z)
    assert alone.t.tolist() == [1.0, 0.5625, 0.0625, 0.0]
    assert torch.allclose(alone.x, whole.x[:, [0, 1, 3, 4]], atol=1e-5)


@pytest.mark.parametrize(
    "frames, inner",
    [
        (1, [()]),
        (2, [(), (0,)]),
        (4, [(), (1,), (0, 2), (0, 1, 2)]),
        (8, [(), (3,), (2, 4), (1, 3, 5), (1, 2, 4, 5), (0, 2, 3, 4, 6), (0, 1, 2, 4, 5, 6), (0, 1, 2, 3, 4, 5, 6)]),
    ],
)
def test_passes_spread_evenly(frames: int, inner: list[tuple[int, ...]]) -> None:
    times = torch.linspace(0.9, 0, frames) if frames > 1 else [0.0]
    made = TrajectoryStudent(Oracle(None, frames), Cosine(), times, restarts=True)
    for passes, expected in enumerate(inner, 1):
        sampler = MultiPass(made, passes)
        assert sampler.inner == expected and sampler.passes == passes
    range_ = f"{frames} frames makes 1 to {frames} passes" if frames > 1 else "one frame makes one pass alone"
    for passes in (0, frames + 1, -1):
        with pytest.raises(ValueError, match=rf"a student of {range_}, got {passes}"):
            MultiPass(made, passes)


@pytest.mark.parametrize("through", [(3,), (1, 1), (2, 0), (-1,), (0, 4)])
def test_only_inner_frames_are_passed_through(through: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must increase within \[0, 2\], the last of 4 being the sample: got \["):
        MultiPass(restartable(), through)


@pytest.mark.parametrize("through", [2, 4, (1,)])
def test_a_student_of_noise_alone_makes_one_pass(through: int | tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"from noise alone, in one pass: for more, .*dsno distill --inner-starts 0\.5"
    ):
        MultiPass(student(), through)
    restartable().check_restarts()


def test_a_folder_says_that_a_student_restarts_and_else_nothing(tmp_path: Path) -> None:
    for name, made in (("plain", student()), ("again", restartable())):
        save_student(tmp_path / name, made)
        loaded = load_student(tmp_path / name)
        assert loaded.restarts == made.restarts == (name == "again") and loaded.config == made.config
    plain, again = (read_json(tmp_path / name / "config.json") for name in ("plain", "again"))
    assert "restarts" not in plain and again == {**plain, "restarts": True}


def test_frames_can_be_chosen() -> None:
    made, x_1 = student(), torch.randn(2, 1, 8, 8)
    every = made(x_1)
    for select in [(0,), (-1,), (1, 3), (2, 1), (0, 1, 2, 3)]:
        assert torch.allclose(made(x_1, select=select), every[:, list(select)], atol=1e-5)


@pytest.mark.parametrize("told", ["output", "input"])
@pytest.mark.parametrize("kind", ["x0", "eps", "v", "flow"])
def test_untrained_it_is_the_teacher_told_one_time_a_frame(kind: Kind, told: Told) -> None:
    source = teacher(kind, schedule=RectifiedFlow())
    before = {k: v.clone() for k, v in source.net.state_dict().items()}
    made = student_from_teacher(source, TIMES, once=False, told=told)
    x_1 = torch.randn(2, 1, 8, 8)
    h = made(x_1)
    for m, t in enumerate(TIMES.tolist()):
        output = source.net(x_1, torch.full((2,), t if told == "output" else 1.0))
        one = torch.ones(2)
        expected = x_1 - output if kind == "eps" else x0_from(kind, output, x_1, one, source.schedule)
        assert torch.allclose(h[:, m], expected, atol=1e-5)
    with torch.no_grad():
        for p in made.parameters():
            p.zero_()
    assert all(torch.equal(v, before[k]) for k, v in source.net.state_dict().items())


def test_modes_are_two_or_what_one_frame_has_unless_they_are_given() -> None:
    made = student_from_teacher(teacher(), [0.0])
    assert made.frames == 1 and all(layer.modes == 1 for layer in made.net.temporal_layers().values())
    assert made(torch.randn(2, 1, 8, 8)).shape == (2, 1, 1, 8, 8)
    assert {layer.modes for layer in student().net.temporal_layers().values()} == {2}
    for times, modes, message in ((TIMES, 4, r"in \[1, 3\], got 4"), ([0.0], 2, r"in \[1, 1\], got 2")):
        with pytest.raises(ValueError, match=message):
            student_from_teacher(teacher(), times, modes=modes)


def test_a_student_is_of_its_teachers_precision() -> None:
    source = teacher()
    source.net.to(torch.bfloat16)
    made = student_from_teacher(source, TIMES, init="normal")
    assert {p.dtype for p in made.parameters()} == {torch.bfloat16}
    assert OnePass(made)(torch.randn(2, 1, 8, 8, dtype=torch.bfloat16)).x.dtype == torch.bfloat16


def test_labels_choose_the_sample() -> None:
    made, z = student(classes=3), torch.randn(1, 1, 8, 8).expand(3, 1, 8, 8)
    together = made.sample(z, torch.tensor([0, 1, 2]))
    for label in range(3):
        assert torch.allclose(together[label], made.sample(z[:1], torch.tensor([label]))[0], atol=1e-5)
    assert len({round(float(x.sum()), 4) for x in together}) == 3
    with pytest.raises(ValueError, match="class conditional: pass labels"):
        made.sample(z)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"target": "state"},
        {"classes": 3},
        {"where": "every", "once": False},
        {"where": "none"},
        {"activation": "leaky_relu", "modes": 3},
    ],
    ids=str,
)
def test_a_student_comes_back_from_its_folder(arguments: dict[str, object], tmp_path: Path) -> None:
    made = student(**arguments)
    save_student(tmp_path / "student", made, steps=7)
    loaded = load_student(tmp_path / "student")
    assert not any(m.training for m in loaded.modules())
    assert loaded.config == made.config and torch.equal(loaded.times, made.times)
    z, cond = torch.randn(2, 1, 8, 8), torch.tensor([0, 2]) if "classes" in arguments else None
    assert torch.equal(OnePass(loaded)(z, cond).x, OnePass(made)(z, cond).x)
    assert read_json(tmp_path / "student" / "config.json")["notes"] == {"steps": 7}


@pytest.mark.parametrize("made", [Cosine(-10, 12), RectifiedFlow(), linear_beta(num_steps=10)], ids=repr)
def test_its_schedule_and_kind_come_back_too(made: Schedule, tmp_path: Path) -> None:
    save_student(tmp_path, student_from_teacher(teacher("eps", schedule=made), TIMES, "state"))
    loaded = load_student(tmp_path)
    assert loaded.schedule == made and loaded.kind == "eps" and loaded.target == "state"


@pytest.mark.parametrize(
    "times, message",
    [
        ([0.5, 0.0], r"has 4 frames but \(2,\) times"),
        ([0.5, 0.6, 0.1, 0.0], "must decrease strictly"),
        ([0.5, 0.5, 0.1, 0.0], "must decrease strictly"),
        ([1.0, 0.5, 0.1, 0.0], r"inside \[0, 1\)"),
        ([0.5, 0.2, 0.0, -0.1], r"inside \[0, 1\)"),
    ],
)
def test_times_must_fit(times: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrajectoryStudent(Oracle(None), Cosine(), times)


def test_what_a_student_cannot_be() -> None:
    with pytest.raises(ValueError, match="unknown target 'image': expected x0 or state"):
        TrajectoryStudent(Oracle(None), Cosine(), TIMES, "image")
    with pytest.raises(ValueError, match="no head for a teacher that predicts 'score'"):
        TrajectoryStudent(Oracle(None), Cosine(), TIMES, kind="score")
    with pytest.raises(
        ValueError, match="a Linear does not say which of its modules are blocks: pass `blocks`, or use `lift`"
    ):
        student_from_teacher(Prediction(nn.Linear(1, 1), Cosine()), TIMES)


def edit(folder: Path, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    write_json(folder / "config.json", config)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda c: c.update(tmies=[0.0]),
            "unknown key 'tmies' in the configuration of a student: did you mean 'times'",
        ),
        (lambda c: c["backbone"].update(chanels=[4]), "unknown key 'chanels' in .*UNet: did you mean 'channels'"),
        (lambda c: c["lift"].update(mods=2), "unknown key 'mods' in the configuration of a lift: did you mean 'modes'"),
        (lambda c: c["schedule"].update(name="Cosin"), "unknown schedule 'Cosin'"),
        (lambda c: c.pop("lift"), "the configuration of a student lacks lift"),
        (lambda c: c["lift"].pop("temporal"), "the configuration of a lift lacks temporal"),
        (lambda c: c.update(times=[0.5, 0.0]), r"has 4 frames but \(2,\) times"),
        (lambda c: c["backbone"].update(channels=[8, 8]), "holds another architecture than its configuration says"),
        (lambda c: c.update(type="teacher"), "holds a teacher, expected a student"),
    ],
)
def test_a_wrong_configuration_is_explained(change, message: str, tmp_path: Path) -> None:
    save_student(tmp_path, student())
    edit(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        load_student(tmp_path)


def test_broken_folders_are_explained(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        load_student(tmp_path / "nowhere")
    save_student(tmp_path, student())
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or damaged"):
        load_student(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors \(it has config\.json\)"):
        load_student(tmp_path)


def test_weights_of_another_student_are_refused(tmp_path: Path) -> None:
    save_student(tmp_path / "a", student(modes=3))
    save_student(tmp_path / "b", student(modes=2))
    write_tensors(tmp_path / "a" / "model.safetensors", read_tensors(tmp_path / "b" / "model.safetensors"))
    with pytest.raises(ValueError, match=r"a holds another architecture than its configuration says: .*temporal"):
        load_student(tmp_path / "a")


def test_teachers_come_back_and_are_no_students(tmp_path: Path) -> None:
    source = teacher("v", classes=3)
    source.clip = 1.5
    save_teacher(tmp_path, source, steps=3)
    loaded = load_teacher(tmp_path)
    x, t, cond = torch.randn(2, 1, 8, 8), torch.rand(2), torch.tensor([0, 2])
    assert torch.equal(loaded(x, t, cond), source(x, t, cond))
    assert (loaded.schedule, loaded.kind, loaded.clip) == (source.schedule, "v", 1.5)
    with pytest.raises(ValueError, match="holds a teacher, expected a student"):
        load_student(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.update(kinds="v"), "unknown key 'kinds' in the configuration of a teacher: did you mean 'kind'"),
        (lambda c: c.pop("net"), "the configuration of a teacher lacks net"),
        (lambda c: c["net"].update(clases=3), "unknown key 'clases' in .*UNet: did you mean 'classes'"),
        (lambda c: c.update(kind="w"), "unknown"),
        (
            lambda c: c["schedule"].update(log_snr_mx=3),
            "Cosine has log_snr_min, log_snr_max: got an unexpected .*'log_snr_mx'",
        ),
    ],
)
def test_a_wrong_configuration_of_a_teacher_is_explained(change, message: str, tmp_path: Path) -> None:
    save_teacher(tmp_path, teacher())
    edit(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        load_teacher(tmp_path)


# Passes that noise the sample again.


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("target", ["x0", "state"])
def test_with_fresh_noise_a_pass_starts_from_the_noised_sample_of_the_one_before(target: str, whole: bool) -> None:
    made, z, seeds = restartable(target, classes=3), torch.randn(3, 1, 8, 8), torch.arange(3)
    cond, tape = torch.tensor([0, 2, 1]), noise_tape(seeds, (1, 8, 8), 2)
    trajectory = MultiPass(made, (0, 2), whole, fresh=True)(z, cond, seeds)
    assert trajectory.nfe == trajectory.rounds == 3 and trajectory.x0 is None
    assert trajectory.t.tolist() == [1.0, *(TIMES if whole else TIMES[[0, 2, 3]]).tolist()]
    x_t, start = initial_state(made.schedule, z), 1.0
    for n, frame in enumerate((0, 2)):
        with torch.no_grad():
            h = made(x_t, cond, start, (-1,))
            x = h[:, 0] if target == "x0" else made.states(x_t, h, start, (-1,))[:, 0]
        start = float(TIMES[frame])
        alpha_j, sigma_j = made.schedule.at(start)
        x_t = alpha_j * x + sigma_j * tape[n]
        place = trajectory.t.tolist().index(start)
        assert torch.allclose(trajectory.x[:, place], x_t, atol=1e-5)
    with torch.no_grad():
        h = made(x_t, cond, start, (-1,))
        last = h if target == "x0" else made.states(x_t, h, start, (-1,))
    assert torch.allclose(trajectory.sample, last[:, 0], atol=1e-5)
    # A row is the same in any batch.
    alone = MultiPass(made, (0, 2), whole, fresh=True)(z[1:2], cond[1:2], seeds[1:2])
    assert torch.allclose(alone.sample, trajectory.sample[1:2], atol=1e-5)


def test_fresh_noise_keeps_the_law_of_exact_samples() -> None:
    """With the exact flow as h every restart is a draw of the same Gaussian, and independent of the one before."""
    exact = Gaussian(Cosine(), torch.full((1,), 0.7, dtype=torch.float64), 0.4)

    def answer(x: Tensor, start: Tensor) -> Tensor:
        return exact.flow(x, float(start), 0.0).unsqueeze(1).expand(-1, 4, -1)

    made = TrajectoryStudent(Oracle(answer), Cosine(), TIMES, kind="x0", restarts=True)
    count = 20_000
    z, seeds = torch.randn(count, 1, dtype=torch.float64), torch.arange(count)
    again = MultiPass(made, (0,), whole=False, fresh=True)(z, None, seeds).sample
    assert abs(float(again.mean()) - 0.7) < 0.012 and abs(float(again.std()) - 0.4) < 0.01
    once = OnePass(made)(z).sample
    gain = float(torch.corrcoef(torch.cat([again, once], 1).T)[0, 1])
    alpha_j, sigma_j = Cosine().at(float(TIMES[0]))
    assert abs(gain - alpha_j * 0.4 / (alpha_j**2 * 0.16 + sigma_j**2) ** 0.5) < 0.03


def test_fresh_noise_needs_seeds_only_where_it_is_drawn() -> None:
    made, z = restartable(), torch.randn(2, 1, 8, 8)
    with pytest.raises(ValueError, match="fresh noise at every restart: pass the seeds"):
        MultiPass(made, 2, fresh=True)(z)
    once = MultiPass(made, 1, fresh=True)(z)
    assert torch.equal(once.x, OnePass(made)(z).x) and once.x0 is not None
    with pytest.raises(ValueError, match="from noise alone"):
        MultiPass(student(), 2, fresh=True)
