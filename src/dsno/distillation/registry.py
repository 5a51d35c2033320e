r"""The methods of distillation by name: what each needs, what it makes, its options, and when to take it.

All of them learn the flow of the teacher's ODE, $x_t \mapsto x_s$, and differ in the pairs $(t, s)$ they learn it for
and in what the map is compared with:

| compared with | for | methods |
|---|---|---|
| solved trajectories | t = 1 and some s | `operator`, `knowledge`, `matching` |
| two steps of the teacher, or of itself | a grid, or any | `progressive`, `guided`, `shortcut`, `progressive-map` |
| its own value one small step on | s = 0 | `consistency` and its kin |
| the teacher's velocity, or the data's | any | `lagrangian`, `eulerian`, `meanflow`, `rectified-meanflow`, `direct` |
| the teacher's solver, from the student's own states | a grid | `decoding` |
| the law of the teacher's samples | s = 0 | `matching`, `identity` |

A method is a function `(student, given, options) -> stages` (`dsno.distillation.stages`) in the file of its family,
beside the dataclass of its options, from which the command line, the notes of a student and the table in the
documentation are made. Nothing outside of this file knows a method by its name.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import pairwise
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, cast, get_args, get_origin, get_type_hints

import torch
from torch import nn

from dsno.checkpoint import check_keys
from dsno.distillation import (
    consistency,
    decoding,
    flowmaps,
    guided,
    identity,
    matching,
    progressive,
    rectified,
    regression,
)
from dsno.distillation.derivatives import jvp
from dsno.distillation.stages import FlowMapOptions, Given, Options, Stage
from dsno.students.flowmap import FlowMap
from dsno.students.heads import ParallelDecoder
from dsno.students.operator import TrajectoryStudent
from dsno.students.samplers import Student

__all__ = ["METHODS", "Method", "Need", "Option", "Passes", "method_named"]

Need = Literal["trajectories", "teacher", "samples", "data"]
"""Solved trajectories; the teacher itself, while training; clean samples, be they the ends of trajectories; or samples
of the data, which are what the student then learns, whatever the teacher says. Beside these, every student starts from
a teacher's weights."""

Passes = Literal["1", "1 to M", "1 to N, in blocks", "any", "one number, chosen beforehand"]

KINDS: dict[str, tuple[type[Student], ...]] = {
    "operator": (TrajectoryStudent,),
    "flow map": (FlowMap,),
    "decoder": (ParallelDecoder,),
    "student": (TrajectoryStudent, FlowMap, ParallelDecoder),
}
"""What methods train; a `student` is any of them, one that another method trained."""

MAKERS = {"flow map": "flow_map_from_teacher", "decoder": "decoder_from_teacher"}

ADVICE = {
    "1": "makes one pass: leave `passes` out, or take a method that makes more (`dsno methods`)",
    "1 to M": "is not trained for a number of passes: leave `passes` out, and train it with inner_starts=0.5 for "
    "several (`dsno sample --passes`)",
    "1 to N, in blocks": "is trained for all passes that its blocks allow: leave `passes` out, choose heads, least and "
    "most, and the number when you draw (`dsno sample --passes`)",
    "any": "is not trained for a number of passes: leave `passes` out, and choose it when you draw "
    "(`dsno sample --passes`)",
    "one number, chosen beforehand": "makes at least one pass",
}


class Option(NamedTuple):
    """One option of a method."""

    name: str
    type: str
    default: Any
    help: str


@dataclass(frozen=True)
class Method:
    """A way to train a student.

    Attributes:
        name: What it is called by.
        title: Its name in the literature.
        student: What it trains: a `TrajectoryStudent`, a `FlowMap`, a `ParallelDecoder`, or whichever it is given to go
            on from.
        needs: What it cannot do without.
        passes: How many passes the student can make afterwards.
        references: Keys of `dsno.references.REFERENCES`.
        choose: When to take it.
        stages: `(student, given, options) -> stages`.
        options: The dataclass of its options.
        batch: Rows per step, where none is asked for.
        extends: Whether a run may be made longer when it is resumed: nothing in it depends on the number of steps.
        guides: Whether it distils guidance: its teacher is then guided, by a weight that the student is told, too.
    """

    name: str
    title: str
    student: Literal["operator", "flow map", "decoder", "student"]
    needs: tuple[Need, ...]
    passes: Passes
    references: tuple[str, ...]
    choose: str
    stages: Callable[[Any, Given, Any], list[Stage]]
    options: type[Options]
    batch: int = 64
    extends: bool = False
    guides: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its options."""
        return tuple(f.name for f in fields(cast(Any, self.options)))

    def described(self) -> tuple[Option, ...]:
        """Its options: name, type, default and help, in the order of the dataclass."""
        texts, hints = _texts(self.options), get_type_hints(self.options)
        return tuple(
            Option(f.name, _said(hints[f.name]), f.default, texts[f.name]) for f in fields(cast(Any, self.options))
        )

    def configured(self, **options: Any) -> Options:
        """The options, those not given as they are by default.

        Raises:
            ValueError: for an unknown one, with the nearest known.
        """
        if "passes" in options:
            self.check_passes()
        check_keys(options, [*self.names], f"the options of {self.name}")
        return self.options(**options)

    def asks(self, options: Options) -> set[Need]:
        """What it cannot do without, with these options."""
        return {*self.needs, *cast(tuple[Need, ...], getattr(options, "needs", ()))}

    def check_passes(self) -> None:
        """Make sure that the number of passes is chosen while it trains.

        Raises:
            ValueError: if not; says when it is chosen.
        """
        if "passes" not in self.names:
            raise ValueError(f"{self.name} {ADVICE[self.passes]}")

    def check(self, given: Given) -> None:
        """Make sure that `given` is what the method needs.

        Raises:
            ValueError: for the first thing that is missing; says how to mend it.
        """
        self.check_data(given.trajectories is not None)
        if {"samples", "data"} & {*self.needs}:
            _ = given.samples
        if "teacher" in self.needs:
            _ = given.denoiser
        if self.guides:
            guided.label_name(given.denoiser)

    def check_data(self, solved: bool, found: str = "") -> None:
        """Make sure that there are trajectories, if the method needs them; `found` is what there is instead.

        Raises:
            ValueError: if not.
        """
        if "trajectories" in self.needs and not solved:
            instead = "shortcut" if "teacher" in self.needs else "consistency"
            raise ValueError(
                f"{self.name} learns from the teacher's trajectories and there are none"
                + (f" in {found}" if found else "")
                + ": make them, `generate(...)`, and give their folder as data, or take a method "
                f"that needs samples alone, such as {instead} (`dsno methods`)"
            )

    def check_student(self, student: nn.Module, given: Given, options: Options) -> None:
        """Make sure that the student is of the method's kind, and has the derivatives it takes.

        Raises:
            ValueError: if not; says what to do instead.
        """
        if not isinstance(student, KINDS[self.student]):
            makes = MAKERS.get(self.student, "student_from_teacher")
            raise ValueError(
                f"{self.name} trains {_a(self.student)}, got {_a(_kind(student))}: make the student with {makes}, or "
                "take "
                "another method"
            )
        if isinstance(options, FlowMapOptions) and options.exact:
            try:
                _try_derivative(student, given)
            except NotImplementedError as error:
                raise ValueError(
                    f"{self.name} takes derivatives of the student, and a layer of its network has no forward mode: "
                    "take "
                    "them by differences (derivative='difference'), or a method without, such as shortcut "
                    f"({error})"
                ) from None


def method_named(name: str) -> Method:
    """A method by its name.

    Raises:
        ValueError: for an unknown one, with those that there are.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}: expected one of {', '.join(METHODS)}")
    return METHODS[name]


def _kind(student: nn.Module) -> str:
    return next((kind for kind, made in KINDS.items() if isinstance(student, made)), type(student).__name__)


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _texts(options: type) -> dict[str, str]:
    """The strings below the fields of a dataclass and of those it is made of, by field."""
    found: dict[str, str] = {}
    for part in reversed(options.__mro__[:-1]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(part))).body
        body = cast(ast.ClassDef, tree).body
        for node, below in pairwise(body):
            if (
                isinstance(node, ast.AnnAssign)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                found[ast.unparse(node.target)] = " ".join(str(below.value.value).split())
    return found


def _said(hint: Any) -> str:
    """A type in words: choices as they are, several of a tuple, `or none`."""
    if get_origin(hint) is Literal:
        return ", ".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        parts = [part for part in get_args(hint) if part is not Ellipsis]
        return f"{parts[0].__name__}s" if Ellipsis in get_args(hint) else " ".join(part.__name__ for part in parts)
    if get_origin(hint) is UnionType:
        return " or ".join("none" if part is NoneType else _said(part) for part in get_args(hint))
    return str(hint.__name__).lower()


@torch.no_grad()
def _try_derivative(student: nn.Module, given: Given) -> None:
    """One row in every direction there is: fails as the loss would."""
    like = next(student.parameters())
    x = given.samples[:1].to(like)
    cond = None if given.labels is None else given.labels[:1].to(like.device)
    t, s = like.new_full((1,), 0.6), like.new_full((1,), 0.3)
    jvp(lambda x, t, s: student(x, t, s, cond), (x, t, s), (x, torch.ones_like(t), torch.ones_like(s)))


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "operator",
            "DSNO",
            "operator",
            ("trajectories",),
            "1 to M",
            ("zheng2023fast",),
            "You want the path as well as the sample, in one pass, and can make trajectories first.",
            regression.operator,
            regression.OperatorOptions,
            batch=256,
            extends=True,
        ),
        Method(
            "knowledge",
            "knowledge distillation",
            "operator",
            ("trajectories",),
            "1",
            ("luhman2021knowledge",),
            "You want the sample alone, in one pass: the simplest loss there is, and the one to beat.",
            regression.knowledge,
            regression.KnowledgeOptions,
            batch=256,
            extends=True,
        ),
        Method(
            "matching",
            "DSNO, then distribution matching",
            "operator",
            ("trajectories", "teacher"),
            "1",
            ("zheng2023fast", "yin2024one", "yin2024improved"),
            "A regressed student is blurred, and you care about the look of the set more than about each path.",
            matching.matched,
            matching.MatchingOptions,
            batch=256,
        ),
        Method(
            "identity",
            "score identity distillation",
            "student",
            ("teacher",),
            "1",
            ("zhou2024score", "yin2024improved"),
            "A student of one pass is there and should reach its teacher, or pass it: needs no data, only minutes.",
            identity.identity,
            identity.IdentityOptions,
            extends=True,
        ),
        Method(
            "decoding",
            "parallel decoding distillation",
            "decoder",
            ("teacher",),
            "1 to N, in blocks",
            ("shaul2026parallel",),
            "One, two and four passes from one student at the teacher's cost a pass, without trajectories or data.",
            decoding.decoding,
            decoding.DecodingOptions,
        ),
        Method(
            "progressive",
            "progressive distillation",
            "flow map",
            ("teacher", "samples"),
            "one number, chosen beforehand",
            ("salimans2022progressive", "song2021denoising"),
            "You know how many passes you will make, two to eight, and have no disk for trajectories.",
            progressive.progressive,
            progressive.ProgressiveOptions,
        ),
        Method(
            "guided",
            "distillation of guided diffusion",
            "flow map",
            ("teacher", "samples"),
            "one number, chosen beforehand",
            ("meng2023distillation", "salimans2022progressive", "ho2022classifier", "song2021denoising"),
            "The teacher is guided, and one student has to serve a range of guidance weights.",
            guided.guided,
            guided.GuidedOptions,
            guides=True,
        ),
        Method(
            "consistency",
            "consistency distillation",
            "flow map",
            ("teacher", "samples"),
            "any",
            ("song2023consistency", "song2024improved", "karras2022elucidating"),
            "One or two passes from a teacher, cheap steps, no trajectories; more passes than a few do not help it.",
            consistency.consistency,
            consistency.ConsistencyOptions,
        ),
        Method(
            "consistency-training",
            "improved consistency training",
            "flow map",
            ("data",),
            "any",
            ("song2023consistency", "song2024improved", "karras2022elucidating"),
            "There is data and a teacher that is worth starting from, not trusting; with a good one, distillation "
            "learns faster.",
            consistency.consistency_training,
            consistency.ConsistencyTrainingOptions,
        ),
        Method(
            "easy-consistency",
            "easy consistency tuning",
            "flow map",
            ("data",),
            "any",
            ("geng2025consistency",),
            "Data and the weights of a teacher, and little time: it starts as a diffusion model and tightens step by "
            "step.",
            consistency.easy_consistency,
            consistency.EasyConsistencyOptions,
        ),
        Method(
            "continuous-consistency",
            "sCM, continuous-time consistency",
            "flow map",
            ("teacher", "samples"),
            "any",
            ("lu2025simplifying", "song2023consistency"),
            "As consistency, in small steps of normalised size: for several passes rather than for one.",
            consistency.continuous_consistency,
            consistency.ContinuousConsistencyOptions,
        ),
        Method(
            "lagrangian",
            "Lagrangian map distillation",
            "flow map",
            ("teacher", "samples"),
            "any",
            ("boffi2025flow",),
            "Any number of passes from one student, two above all; the network needs a forward mode.",
            flowmaps.lagrangian,
            flowmaps.LagrangianOptions,
        ),
        Method(
            "eulerian",
            "Eulerian map distillation",
            "flow map",
            ("teacher", "samples"),
            "any",
            ("boffi2025flow",),
            "You want the loss that bounds the distance of the samples; lagrangian learns faster.",
            flowmaps.eulerian,
            flowmaps.EulerianOptions,
        ),
        Method(
            "progressive-map",
            "progressive flow map matching",
            "flow map",
            ("teacher", "samples"),
            "any",
            ("boffi2025flow",),
            "Any number of passes without derivatives, doubling the length of a step in stages.",
            flowmaps.progressive_map,
            flowmaps.ProgressiveMapOptions,
        ),
        Method(
            "shortcut",
            "shortcut model",
            "flow map",
            ("samples",),
            "any",
            ("frans2025one",),
            "Any number of passes without derivatives, in one stage: each step is made of two of half its length.",
            flowmaps.shortcut,
            flowmaps.ShortcutOptions,
        ),
        Method(
            "meanflow",
            "MeanFlow",
            "flow map",
            ("samples",),
            "any",
            ("geng2025mean",),
            "Any number of passes; of the teacher's velocity, or of the data's (`--from-data`).",
            flowmaps.meanflow,
            flowmaps.MeanFlowOptions,
        ),
        Method(
            "rectified-meanflow",
            "rectified MeanFlow",
            "flow map",
            ("trajectories",),
            "any",
            ("zhang2025flow", "geng2025mean"),
            "Any number of passes from stored trajectories, whose pairs are nearly straight; the teacher is not asked.",
            rectified.rectified_meanflow,
            rectified.RectifiedOptions,
            batch=256,
        ),
        Method(
            "direct",
            "direct flow map matching",
            "flow map",
            ("data",),
            "any",
            ("boffi2025flow",),
            "A flow map of the data, the teacher not asked, to compare with: distillation learns faster.",
            flowmaps.direct,
            flowmaps.DirectOptions,
        ),
    )
}
"""The methods by name."""
