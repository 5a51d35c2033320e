"""What may be wrong with the answers of a teacher, each caught and named."""

import pytest
import torch
from torch import Tensor, nn

from dsno.condition import Cond
from dsno.denoise import Guided
from dsno.schedule import Cosine
from dsno.teachers.check.calls import check_labels
from dsno.teachers.check.run import check_teacher
from dsno.teachers.check.subject import subject_of
from exact import Exact, broken, data, mixture, said, stated, worst_of


class Wrapped(nn.Module):
    def __init__(self, extra: nn.Module) -> None:
        super().__init__()
        self.net, self.extra = Exact("v", Cosine()), extra

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.extra(self.net(x, t))


def test_dropout_that_was_left_on_is_caught_and_the_teacher_left_as_it_was() -> None:
    teacher = stated(Wrapped(nn.Dropout(0.1))).train()
    verdict = check_teacher(teacher, data(), levels=4, rows=16)
    assert (
        worst_of(verdict, "determinism") == "failure" and "training mode" in said(verdict) and "eval()" in said(verdict)
    )
    assert worst_of(verdict, "batch") == worst_of(verdict, "denoising") == "ok"
    assert teacher.training and teacher.net.training
    assert check_teacher(teacher.eval(), data(), levels=4, rows=16).ok


def test_batch_statistics_are_caught_and_not_learned_from() -> None:
    norm = nn.BatchNorm2d(1)
    teacher = stated(Wrapped(norm)).train()
    verdict = check_teacher(teacher, data(), levels=4, rows=16)
    assert worst_of(verdict, "batch") == "failure" and "batch statistics" in said(verdict)
    assert float(norm.running_mean.abs().max()) == 0 and int(norm.num_batches_tracked) == 0  # type: ignore[union-attr]


def test_nan_at_an_end_is_caught() -> None:
    for end in (0.0, 1.0):
        teacher = broken(lambda out, t, end=end: torch.where(t[:, None, None, None] == end, torch.nan, out))
        verdict = check_teacher(teacher, data(), levels=4, rows=16)
        assert worst_of(verdict, "ends") == "failure" and f"not finite at t = {end:g}" in said(verdict)


def test_eps_on_pure_noise_is_warned_of() -> None:
    class Small(Exact):
        def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            return super().forward(x, t, cond) + 0.02

    verdict = check_teacher(stated(Small("eps", Cosine()), "eps"), data(), levels=4, rows=16)
    assert worst_of(verdict, "ends") == "warning" and "divided by alpha" in said(verdict)


def test_an_output_of_another_shape_is_caught() -> None:
    verdict = check_teacher(broken(lambda out, t: torch.cat([out, out], 1)), data())
    assert [f.check for f in verdict.findings if f.state == "failure"] == ["output"]
    assert "(64, 2, 4, 4)" in said(verdict) and "learned variance" in said(verdict)
    verdict = check_teacher(broken(lambda out, t: out[..., :2]), data())
    assert worst_of(verdict, "output") == "failure" and "(64, 1, 4, 2)" in said(verdict)


def test_a_network_that_cannot_be_called_so_is_caught() -> None:
    class Other(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    verdict = check_teacher(stated(Other()), data())
    assert worst_of(verdict, "output") == "failure" and "TypeError" in said(verdict) and not verdict.levels


def test_double_precision_is_warned_of() -> None:
    class Double(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return Exact("v", Cosine())(x, t).double()

    assert worst_of(check_teacher(stated(Double()), data(), levels=4, rows=16), "output") == "warning"


def test_a_clip_that_cuts_the_data_is_caught() -> None:
    verdict = check_teacher(stated(Exact("v", Cosine()), clip=0.5), data(), levels=4)
    assert worst_of(verdict, "range") == "failure" and "clipped to 0.5" in said(verdict)


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
    assert worst_of(verdict, "condition") == "warning" and "random ones" in said(verdict)
    guided = Guided(stated(Labelled((0, 1, 2, 1)), classes=3), {"label": torch.tensor(3)})
    verdict = check_teacher(guided, x, {"label": labels, "weight": torch.zeros(len(x))}, levels=4)
    assert verdict.ok, said(verdict)


def test_ignored_and_exchanged_labels_are_caught() -> None:
    x, labels = labelled()
    verdict = check_teacher(stated(Labelled(ignore=True), classes=3), x, labels, levels=4, patience=0)
    assert worst_of(verdict, "labels") == "failure" and "ignores them" in said(verdict)
    verdict = check_teacher(stated(Labelled((1, 2, 0)), classes=3), x, labels, levels=4, patience=0)
    assert worst_of(verdict, "labels") == "failure" and "numbered" in said(verdict)
    verdict = check_teacher(stated(Labelled((0, 1, 2, 0, 0, 0)), classes=3), x, labels, levels=4, patience=0)
    assert worst_of(verdict, "labels") == "warning" and "labels 3 and 4" in said(verdict)


@pytest.mark.parametrize("weight, state", [(0.0, "failure"), (1.0, "ok")])
def test_an_embedding_that_is_ignored_is_caught(weight: float, state: str) -> None:
    class Embedded(Exact):
        def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            return super().forward(x, t) + weight * 0.1 * cond.mean(1)[:, None, None, None]

    subject, findings = subject_of(stated(Embedded("v", Cosine())), data(), torch.randn(256, 8), 0, 16)
    [finding] = check_labels(subject)
    assert not findings and (finding.check, finding.state) == ("condition", state)
