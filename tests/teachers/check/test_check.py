"""A teacher that is what it is said to be passes; each way of being another is caught, and called by its name."""

import json
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dsno.condition import Cond
from dsno.cost import Meter
from dsno.denoise import Denoiser, Guided, Kind, Prediction, convert
from dsno.denoise import scale_input as shown
from dsno.schedule import VE, Cosine, RectifiedFlow, Schedule, Tabulated, linear_beta
from dsno.teachers.check.check import check_teacher
from dsno.teachers.check.verdict import Verdict
from dsno.teachers.closed import Gaussian, GaussianMixture
from dsno.teachers.load import load_teacher

SHAPE = (1, 4, 4)


def mixture(schedule: Schedule, low: float = -0.9, high: float = 0.9, labels: Tensor | None = None) -> GaussianMixture:
    """Four stripes, of values between `low` and `high`."""
    rows = torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1], [1, 1, 1, 0]], dtype=torch.float32)
    means = low + (high - low) * rows[:, None, :, None].expand(4, 1, 4, 4)
    return GaussianMixture(schedule, means, 0.1 * (high - low) / 2, labels=labels)


class Exact(nn.Module):
    """A network that predicts `kind` without an error; `seen` translates what it is told for t."""

    def __init__(
        self,
        kind: Kind,
        schedule: Schedule,
        seen: Callable[[Tensor], Tensor] = lambda t: t,
        denoiser: GaussianMixture | None = None,
        sign: int = 1,
    ) -> None:
        super().__init__()
        self.kind, self.schedule, self.seen, self.sign = kind, schedule, seen, sign
        self.D = mixture(schedule) if denoiser is None else denoiser

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        t = self.seen(t).clamp(1e-4, 1)
        x_t = x
        if self.kind == "edm":
            x_t = x / shown("edm", torch.ones_like(x), t, self.schedule)
        return self.sign * convert(self.kind, self.D(x_t, t, cond), x_t, t, self.schedule)


def stated(net: nn.Module, kind: Kind = "v", schedule: Schedule | None = None, **options: object) -> Prediction:
    options = {"shape": SHAPE, **options}
    return Prediction(net, Cosine() if schedule is None else schedule, kind, **options).eval()  # type: ignore[arg-type]


def data(count: int = 256, low: float = -0.9, high: float = 0.9) -> Tensor:
    return mixture(Cosine(), low, high).sample(count, torch.Generator().manual_seed(1))


def of(verdict: Verdict, check: str) -> str:
    """The state of a check, the worst of its findings."""
    states = [f.state for f in verdict.findings if f.check == check]
    return max(states, key=["ok", "warning", "failure"].index)


def said(verdict: Verdict) -> str:
    return " | ".join(f"{f.check}: {f.text} -> {f.mend}" for f in verdict.findings if f.state != "ok")


# Right ones


@pytest.mark.parametrize("kind", ["x0", "eps", "v", "flow", "score", "edm"])
def test_an_exact_teacher_of_any_kind_passes(kind: Kind) -> None:
    # Short of pure noise, where eps would have to be exact to 1e-5.
    schedule = Cosine(-8, 20)
    verdict = check_teacher(stated(Exact(kind, schedule), kind, schedule), data(), levels=6)
    assert verdict.ok and verdict.state == "ok", said(verdict)
    assert {f.check for f in verdict.findings} == {
        "output", "determinism", "batch", "ends", "schedule", "sampling", "denoising", "reading", "range", "cost"
    }  # fmt: skip
    assert len(verdict.levels) == 6 and all(level.ratio < 1.03 for level in verdict.levels)
    assert verdict.levels[2].ratio < 0.8


def test_an_exact_teacher_passes_on_any_schedule(schedule: Schedule) -> None:
    for teacher in (mixture(schedule), Gaussian(schedule, torch.zeros(SHAPE), 0.7), Meter(mixture(schedule))):
        x = torch.randn(256, *SHAPE) * 0.7 if isinstance(teacher, Gaussian) else data()
        verdict = check_teacher(teacher, x, levels=6)
        assert verdict.ok, said(verdict)


def test_without_data_it_looks_at_its_own_samples_and_says_so() -> None:
    verdict = check_teacher(stated(Exact("v", Cosine())), levels=6)
    assert verdict.state == "ok", said(verdict)
    assert verdict.source == "own samples"
    assert any("weaker" in f.text for f in verdict.findings if f.check == "denoising")


def test_the_digits_teacher_that_ships_passes() -> None:
    from dsno.data.load import load_data

    verdict = check_teacher(load_teacher("digits"), load_data("digits").x, levels=5, rows=16, patience=0)
    assert verdict.state == "ok", said(verdict)
    # 3x3 convolutions of an 8x8 image: known from the benchmark.
    assert verdict.cost["flop_per_row"] > 1e7 and 0 < verdict.cost["seconds_1"] < 10


# What a wrong convention is


WRONG: list[tuple[str, Callable[[], Prediction], str]] = [
    ("x0 for v", lambda: stated(Exact("v", Cosine()), "x0"), "v"),
    ("eps for v", lambda: stated(Exact("v", Cosine()), "eps"), "v"),
    ("v for eps", lambda: stated(Exact("eps", Cosine()), "v"), "eps"),
    ("v for x0", lambda: stated(Exact("x0", Cosine()), "v"), "x0"),
    ("v for flow", lambda: stated(Exact("flow", RectifiedFlow()), "v", RectifiedFlow()), "flow"),
    ("the sign", lambda: stated(Exact("v", Cosine(), sign=-1)), "minus"),
    ("time in thousandths", lambda: stated(Exact("v", Cosine(), lambda t: t / 1000)), "told 1000 t"),
    ("time in thousands", lambda: stated(Exact("v", Cosine(), lambda t: 1000 * t)), "told t / 1000"),
    ("time reversed", lambda: stated(Exact("v", Cosine(), lambda t: 1 - t)), "told 1 - t"),
    ("the schedule", lambda: stated(Exact("eps", linear_beta()), "eps", RectifiedFlow()), "on (Tabulated|VPLinear)"),
    ("kind and schedule", lambda: stated(Exact("v", Cosine()), "x0", linear_beta()), "v, on Cosine"),
    ("kind and time", lambda: stated(Exact("eps", Cosine(), lambda t: 1 - t), "v"), "eps, told 1 - t"),
]


@pytest.mark.parametrize("make, name", [(m, n) for _, m, n in WRONG], ids=[w for w, _, _ in WRONG])
def test_a_wrong_convention_fails_and_the_right_one_is_named(make: Callable[[], Prediction], name: str) -> None:
    verdict = check_teacher(make(), data(), levels=6, rows=24)
    # A network told a constant time may be a linear estimate, as good as trivial and no worse.
    assert not verdict.ok and of(verdict, "reading") == "failure" and of(verdict, "denoising") != "ok"
    assert re.search(f"denoises much better read as {name}", said(verdict)), said(verdict)
    assert "reading" in verdict.summary


@pytest.mark.parametrize("low, high, name", [(0.0, 1.0, "[0, 1]"), (0.0, 255.0, "[0, 255]")])
def test_a_teacher_of_another_range_is_caught(low: float, high: float, name: str) -> None:
    inside = (low + 0.05 * (high - low), low + 0.95 * (high - low))
    verdict = check_teacher(
        stated(Exact("eps", Cosine(), denoiser=mixture(Cosine(), *inside)), "eps"), data(), levels=6
    )
    assert of(verdict, "range") == "failure" and f"for data in {name}" in said(verdict), said(verdict)
    # The teacher is right and the data are wrong: the same, the other way round.
    verdict = check_teacher(stated(Exact("eps", Cosine()), "eps"), data(256, *inside), levels=6)
    assert of(verdict, "range") == "failure" and "for data in [-1, 1]" in said(verdict), said(verdict)


def test_a_wrong_convention_is_found_without_data_as_well() -> None:
    verdict = check_teacher(stated(Exact("v", Cosine()), "x0"), levels=6, rows=16)
    assert not verdict.ok and "v" in said(verdict), said(verdict)
    verdict = check_teacher(stated(Exact("v", Cosine(), lambda t: 1 - t)), levels=6, rows=16)
    assert not verdict.ok and "told 1 - t" in said(verdict), said(verdict)


def test_an_untrained_teacher_fails_without_a_reading_to_blame() -> None:
    class Untrained(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.sin(5 * x.roll(1, -1))

    verdict = check_teacher(stated(Untrained()), data(), levels=6, rows=32)
    assert of(verdict, "denoising") == "failure" and of(verdict, "reading") == "warning"
    assert "not trained?" in said(verdict)


# What else may be wrong


class Wrapped(nn.Module):
    def __init__(self, extra: nn.Module) -> None:
        super().__init__()
        self.net, self.extra = Exact("v", Cosine()), extra

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.extra(self.net(x, t))


def broken(change: Callable[[Tensor, Tensor], Tensor]) -> Prediction:
    class Changed(Exact):
        def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            return change(super().forward(x, t, cond), t)

    return stated(Changed("v", Cosine()))


def test_dropout_that_was_left_on_is_caught_and_the_teacher_left_as_it_was() -> None:
    teacher = stated(Wrapped(nn.Dropout(0.1))).train()
    verdict = check_teacher(teacher, data(), levels=4, rows=16)
    assert of(verdict, "determinism") == "failure" and "training mode" in said(verdict) and "eval()" in said(verdict)
    assert of(verdict, "batch") == of(verdict, "denoising") == "ok"
    assert teacher.training and teacher.net.training
    assert check_teacher(teacher.eval(), data(), levels=4, rows=16).ok


def test_batch_statistics_are_caught_and_not_learned_from() -> None:
    norm = nn.BatchNorm2d(1)
    teacher = stated(Wrapped(norm)).train()
    verdict = check_teacher(teacher, data(), levels=4, rows=16)
    assert of(verdict, "batch") == "failure" and "batch statistics" in said(verdict)
    assert float(norm.running_mean.abs().max()) == 0 and int(norm.num_batches_tracked) == 0  # type: ignore[union-attr]


def test_the_random_state_is_left_as_it_was() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    check_teacher(stated(Exact("v", Cosine())), data(), levels=2, rows=8, patience=0)
    assert torch.equal(torch.rand(1), wanted)


def test_nan_at_an_end_is_caught() -> None:
    for end in (0.0, 1.0):
        teacher = broken(lambda out, t, end=end: torch.where(t[:, None, None, None] == end, torch.nan, out))
        verdict = check_teacher(teacher, data(), levels=4, rows=16)
        assert of(verdict, "ends") == "failure" and f"not finite at t = {end:g}" in said(verdict)


def test_eps_on_pure_noise_is_warned_of() -> None:
    class Small(Exact):
        def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            return super().forward(x, t, cond) + 0.02

    verdict = check_teacher(stated(Small("eps", Cosine()), "eps"), data(), levels=4, rows=16)
    assert of(verdict, "ends") == "warning" and "divided by alpha" in said(verdict)


def test_an_output_of_another_shape_is_caught() -> None:
    verdict = check_teacher(broken(lambda out, t: torch.cat([out, out], 1)), data())
    assert [f.check for f in verdict.findings if f.state == "failure"] == ["output"]
    assert "(64, 2, 4, 4)" in said(verdict) and "learned variance" in said(verdict)
    verdict = check_teacher(broken(lambda out, t: out[..., :2]), data())
    assert of(verdict, "output") == "failure" and "(64, 1, 4, 2)" in said(verdict)


def test_a_network_that_cannot_be_called_so_is_caught() -> None:
    class Other(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    verdict = check_teacher(stated(Other()), data())
    assert of(verdict, "output") == "failure" and "TypeError" in said(verdict) and not verdict.levels


def test_double_precision_is_warned_of() -> None:
    class Double(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return Exact("v", Cosine())(x, t).double()

    assert of(check_teacher(stated(Double()), data(), levels=4, rows=16), "output") == "warning"


def test_a_schedule_that_does_not_end_in_noise_is_caught() -> None:
    short = Tabulated([0.99, 0.9, 0.8, 0.7])
    verdict = check_teacher(mixture(short), data(), levels=4)
    assert of(verdict, "schedule") == "failure" and "t = 1 has to be noise" in said(verdict)
    # Stable Diffusion's table leaves 7 % of the signal.
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    verdict = check_teacher(mixture(Tabulated(torch.cumprod(1 - betas, 0).tolist())), data(), levels=4)
    assert of(verdict, "schedule") == "warning" and "2305.08891" in said(verdict) and verdict.ok


def test_a_clip_that_cuts_the_data_is_caught() -> None:
    verdict = check_teacher(stated(Exact("v", Cosine()), clip=0.5), data(), levels=4)
    assert of(verdict, "range") == "failure" and "clipped to 0.5" in said(verdict)


def test_eval_runs_on_ve_far_from_the_ends() -> None:
    assert check_teacher(stated(Exact("x0", VE()), "x0", VE()), data(), levels=4, patience=0).ok


# Labels

LABELS = torch.tensor([0, 1, 2, 2])


def labelled() -> tuple[Tensor, Tensor]:
    x = data()
    return x, LABELS[(x.flatten(1)[:, None] - mixture(Cosine()).means.flatten(1)).square().sum(-1).argmin(1)]


class Labelled(nn.Module):
    def __init__(self, order: tuple[int, ...] = (0, 1, 2), ignore: bool = False) -> None:
        super().__init__()
        self.order, self.ignore = torch.tensor(order), ignore
        self.net = Exact("v", Cosine(), denoiser=mixture(Cosine(), labels=LABELS))

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        label = cond if isinstance(cond, Tensor) else cond["label"]
        return self.net(x, t, None if self.ignore else self.order[label])


def test_a_conditional_teacher_passes_with_labels_and_tells_of_random_ones() -> None:
    x, labels = labelled()
    verdict = check_teacher(stated(Labelled(), classes=3), x, labels, levels=4, patience=0)
    assert verdict.state == "ok", said(verdict)
    assert any("3 is refused" in f.text for f in verdict.findings)
    verdict = check_teacher(stated(Labelled(), classes=3), x, levels=4, patience=0)
    assert of(verdict, "condition") == "warning" and "random ones" in said(verdict)
    named = check_teacher(Guided(stated(Labelled((0, 1, 2, 1)), classes=3), {"label": torch.tensor(3)}), x, {"label": labels, "weight": torch.zeros(len(x))}, levels=4)  # fmt: skip
    assert named.ok, said(named)


def test_ignored_and_exchanged_labels_are_caught() -> None:
    x, labels = labelled()
    verdict = check_teacher(stated(Labelled(ignore=True), classes=3), x, labels, levels=4, patience=0)
    assert of(verdict, "labels") == "failure" and "ignores them" in said(verdict)
    verdict = check_teacher(stated(Labelled((1, 2, 0)), classes=3), x, labels, levels=4, patience=0)
    assert of(verdict, "labels") == "failure" and "numbered" in said(verdict)
    verdict = check_teacher(stated(Labelled((0, 1, 2, 0, 0, 0)), classes=3), x, labels, levels=4, patience=0)
    assert of(verdict, "labels") == "warning" and "labels 3 and 4" in said(verdict)


# The verdict


def test_a_verdict_prints_and_is_json() -> None:
    verdict = check_teacher(broken(lambda out, t: out * torch.nan), data())
    assert json.loads(json.dumps(verdict.to_dict(), allow_nan=False))["verdict"] == "failure"
    verdict = check_teacher(stated(Exact("v", Cosine())), data(), levels=4, patience=0)
    told = json.loads(json.dumps(verdict.to_dict(), allow_nan=False))
    assert told["verdict"] == "ok" and len(told["levels"]) == 4 and told["levels"][0]["ratio"] > 0
    page = str(verdict)
    assert page.splitlines()[-1] == "this teacher is fit to use" == verdict.summary
    assert all(f.check in page for f in verdict.findings)


def test_what_cannot_be_checked_is_refused() -> None:
    def bare(x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return x

    teacher = stated(Exact("v", Cosine()))
    cases: list[tuple[Denoiser, dict[str, object], str]] = [
        (bare, {"data": data()}, "does not say which schedule"),
        (mixture(Cosine()), {}, "does not say what shape"),
        (teacher, {"data": data()[:3]}, "N of 16 or more"),
        (teacher, {"data": torch.zeros(20, *SHAPE)}, "constant"),
        (teacher, {"data": data(), "cond": torch.zeros(3)}, "the condition has 3 rows, the data 256"),
        (teacher, {"levels": 1}, "2 or more levels"),
    ]
    for denoiser, arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            check_teacher(denoiser, **arguments)  # type: ignore[arg-type]
