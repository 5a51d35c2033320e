"""The solvers by name, as recipes and the command line call them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from dsno.denoise import Denoiser
from dsno.solvers.adams import PLMS
from dsno.solvers.first_order import DDIM, Ancestral
from dsno.solvers.heun import Heun
from dsno.solvers.multistep import DPMSolverPP, UniPC
from dsno.solvers.splitting import LTSP, STSP, Strang2
from dsno.solvers.step import Step
from dsno.steer import Steered

__all__ = ["SOLVERS", "SPLITTINGS", "ODESolver", "Splitting", "calls_of", "solver_named"]

ODESolver = Literal["ddim", "heun", "dpm1", "dpm2", "dpm3", "unipc2", "unipc3", "plms2", "plms3", "plms4"]
"""Those without noise of their own, which solve the probability-flow ODE."""

SOLVERS: dict[str, Callable[[], Step]] = {
    "ddim": DDIM,
    "heun": Heun,
    "dpm1": lambda: DPMSolverPP(1),
    "dpm2": lambda: DPMSolverPP(2),
    "dpm3": lambda: DPMSolverPP(3),
    "unipc2": UniPC,
    "unipc3": lambda: UniPC(3),
    "plms2": lambda: PLMS(2),
    "plms3": lambda: PLMS(3),
    "plms4": PLMS,
    "ancestral": Ancestral,
}
"""How to make each solver; a digit is its order. All evaluate the denoiser once a step but `heun`, which does so twice;
`ancestral` alone is stochastic."""

Splitting = Literal["ltsp1", "ltsp2", "ltsp3", "ltsp4", "stsp1", "stsp2", "stsp3", "stsp4", "strang2"]
"""Those that split a guide off, which solve the probability-flow ODE of a steered denoiser and of no other."""

SPLITTINGS: dict[str, Callable[[], Step]] = {
    "ltsp1": lambda: LTSP(1),
    "ltsp2": lambda: LTSP(2),
    "ltsp3": lambda: LTSP(3),
    "ltsp4": LTSP,
    "stsp1": lambda: STSP(1),
    "stsp2": lambda: STSP(2),
    "stsp3": lambda: STSP(3),
    "stsp4": STSP,
    "strang2": Strang2,
}
"""How to make each of them; a digit is the order of the denoiser's half, of `strang2` that of the whole."""


def calls_of(name: str, steps: int) -> int:
    """The network calls of a solver by its name: one a step; two of Heun's but for its last, which is Euler's."""
    return 2 * steps - 1 if name == "heun" else steps


def solver_named(name: str, denoiser: Denoiser) -> Step:
    """A solver by its name that can solve a denoiser.

    Raises:
        ValueError: for an unknown name, or a splitting of a denoiser that no guide steers.
    """
    known = {**SOLVERS, **SPLITTINGS}
    if name not in known:
        raise ValueError(f"unknown solver {name!r}: expected one of {', '.join(known)}")
    if name in SPLITTINGS and not isinstance(denoiser, Steered):
        raise ValueError(
            f"the solver {name} splits a guide off, and this teacher has none: steer it, "
            f"Steered(teacher, guide, scale), or take one of {', '.join(SOLVERS)}"
        )
    return known[name]()
