"""Fast sampling of diffusion models: learn the whole trajectory, emit it in one forward pass."""

from dsno.cost import Meter
from dsno.denoise import Denoiser, Guided, Prediction
from dsno.parallel import SRDS, ParaTAA, Picard, Receding, Replicas, Speculative
from dsno.schedule import VE, Cosine, RectifiedFlow, Schedule, Tabulated, VPLinear, linear_beta
from dsno.solvers.chain import Chain
from dsno.solvers.first_order import DDIM, Ancestral
from dsno.solvers.heun import Heun
from dsno.solvers.multistep import DPMSolverPP, UniPC
from dsno.solvers.run import SolverSampler
from dsno.students.files import load_student, save_student
from dsno.students.lift import lift
from dsno.students.operator import TrajectoryStudent, student_from_teacher
from dsno.students.samplers import MultiPass, OnePass
from dsno.teachers.closed import Gaussian, GaussianMixture
from dsno.teachers.load import load_teacher
from dsno.teachers.native import save_teacher
from dsno.trajectory import Sampler, Trajectory

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
