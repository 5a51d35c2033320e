"""The solvers by name, as recipes and the command line call them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from dsno.solvers.first_order import DDIM, Ancestral
from dsno.solvers.heun import Heun
from dsno.solvers.multistep import DPMSolverPP, UniPC
from dsno.solvers.step import Step

__all__ = ["SOLVERS", "ODESolver"]

ODESolver = Literal["ddim", "heun", "dpm1", "dpm2", "dpm3", "unipc2", "unipc3"]
"""Those without noise of their own, which solve the probability-flow ODE."""

SOLVERS: dict[str, Callable[[], Step]] = {
    "ddim": DDIM,
    "heun": Heun,
    "dpm1": lambda: DPMSolverPP(1),
    "dpm2": lambda: DPMSolverPP(2),
    "dpm3": lambda: DPMSolverPP(3),
    "unipc2": UniPC,
    "unipc3": lambda: UniPC(3),
    "ancestral": Ancestral,
}
"""How to make each solver; a digit is its order. All evaluate the denoiser once a step but `heun`, which does so twice;
`ancestral` alone is stochastic."""
