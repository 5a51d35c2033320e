"""Inverse problems: samples that agree with what was measured of them, from a teacher that never saw the problem."""

from dsno.inverse.backprop import DPS, PiGDM
from dsno.inverse.blind import ClassicEM, FastEM, PlainMAP
from dsno.inverse.blur import Blur
from dsno.inverse.constrained import Constrained
from dsno.inverse.decoded import Decoded
from dsno.inverse.named import RESTORERS
from dsno.inverse.operators import Composition, Downsample, Function, Grey, Mask
from dsno.inverse.problem import Problem
from dsno.inverse.projected import MPGD, DiffPIR, Replacement
from dsno.inverse.restore import Restored, Restorer
from dsno.inverse.start import LearnedStart, OneJump
from dsno.inverse.start_loss import Shares
from dsno.inverse.start_net import NoisePredictor, load_start, save_start, start_grid

__all__ = [
    "DPS",
    "MPGD",
    "RESTORERS",
    "Blur",
    "ClassicEM",
    "Composition",
    "Constrained",
    "Decoded",
    "DiffPIR",
    "Downsample",
    "FastEM",
    "Function",
    "Grey",
    "LearnedStart",
    "Mask",
    "NoisePredictor",
    "OneJump",
    "PiGDM",
    "PlainMAP",
    "Problem",
    "Replacement",
    "Restored",
    "Restorer",
    "Shares",
    "load_start",
    "save_start",
    "start_grid",
]
