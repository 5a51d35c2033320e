"""Exact samples of the teacher's chain in few serial rounds, from any draft."""

from dsno.parallel.devices import Replicas
from dsno.parallel.picard import Picard
from dsno.parallel.receding import Receding
from dsno.parallel.rounds import Exact
from dsno.parallel.speculative import Speculative
from dsno.parallel.srds import SRDS
from dsno.parallel.taa import ParaTAA

__all__ = ["EXACT", "SRDS", "Exact", "ParaTAA", "Picard", "Receding", "Replicas", "Speculative"]

EXACT: dict[str, type[Exact]] = {
    "picard": Picard,
    "taa": ParaTAA,
    "srds": SRDS,
    "speculative": Speculative,
    "receding": Receding,
}
"""The exact samplers by the name that `dsno sample --exact` takes."""
