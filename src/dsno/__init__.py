"""Fast sampling of diffusion models: learn the whole trajectory, emit it in one forward pass."""

from dsno.denoise import Denoiser, Gaussian, GaussianMixture, Guided, Meter, Prediction
from dsno.parallel import SRDS, ParaTAA, Picard, Receding, Replicas, Speculative
from dsno.schedule import VE, Cosine, RectifiedFlow, Schedule, Tabulated, VPLinear, linear_beta
from dsno.solve import DDIM, Ancestral, Chain, DPMSolverPP, Heun, Sampler, SolverSampler, UniPC
from dsno.students.flowmap import (
    MultiPass,
    OnePass,
    TrajectoryStudent,
    load_student,
    save_student,
    student_from_teacher,
)
from dsno.students.lift import lift
from dsno.teachers.load import load_teacher
from dsno.teachers.native import save_teacher
from dsno.trajectory import Trajectory

__version__ = "0.1.0"

__all__ = [
    "DDIM",
    "SRDS",
    "VE",
    "Ancestral",
    "Chain",
    "Cosine",
    "DPMSolverPP",
    "Denoiser",
    "Gaussian",
    "GaussianMixture",
    "Guided",
    "Heun",
    "Meter",
    "MultiPass",
    "OnePass",
    "ParaTAA",
    "Picard",
    "Prediction",
    "Receding",
    "RectifiedFlow",
    "Replicas",
    "Sampler",
    "Schedule",
    "SolverSampler",
    "Speculative",
    "Tabulated",
    "Trajectory",
    "TrajectoryStudent",
    "UniPC",
    "VPLinear",
    "lift",
    "linear_beta",
    "load_student",
    "load_teacher",
    "save_student",
    "save_teacher",
    "student_from_teacher",
]
