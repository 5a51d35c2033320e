"""Fast sampling of diffusion models: learn the whole trajectory, emit it in one forward pass.

What a user needs from a pretrained model to a measured, exported student is here by name; importing this module loads
torch and nothing else that is heavy, and what needs more is imported when it is first asked for.
"""

import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

_program = sys.argv[0] if sys.argv else ""
if Path(_program).name in ("dsno", "dsno.exe") or (_program == "-m" and {"dsno", "dsno.cli"} & {*sys.orig_argv}):
    # The command, which imports for seconds: until `cli.main` has words for an interrupt, it just ends.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from dsno.cost import Meter
from dsno.denoise import Denoiser, Guided, Prediction
from dsno.distillation.run import distill
from dsno.guidance import CleanClassifier, LossGuide, NoisyClassifier
from dsno.parallel import SRDS, ParaTAA, Picard, Receding, Replicas, Speculative
from dsno.schedule import VE, Cosine, RectifiedFlow, Schedule, Tabulated, VPLinear, linear_beta
from dsno.seeds import noise, seed_range
from dsno.solvers.adams import PLMS
from dsno.solvers.chain import Chain
from dsno.solvers.first_order import DDIM, Ancestral
from dsno.solvers.heun import Heun
from dsno.solvers.multistep import DPMSolverPP, UniPC
from dsno.solvers.run import SolverSampler
from dsno.solvers.splitting import LTSP, STSP
from dsno.steer import Steered
from dsno.students.files import load_student, save_student
from dsno.students.flowmap import FlowMap, flow_map_from_teacher
from dsno.students.heads import ParallelDecoder, decoder_from_teacher
from dsno.students.lift import lift
from dsno.students.operator import TrajectoryStudent, student_from_teacher
from dsno.students.samplers import DecoderSampler, FlowMapSampler, MultiPass, OnePass, sampler_of
from dsno.teachers.closed import Gaussian, GaussianMixture
from dsno.teachers.load import load_teacher
from dsno.teachers.native import save_teacher
from dsno.train import TrainConfig
from dsno.trajectories.generate import generate
from dsno.trajectories.sets import TrajectorySet
from dsno.trajectory import Sampler, Trajectory

if TYPE_CHECKING:
    from dsno.app.export import export_onnx, export_program
    from dsno.app.pipeline import DSNOPipeline
    from dsno.bridge.files import load_bridge, save_bridge
    from dsno.bridge.sampler import BridgeSampler
    from dsno.bridge.student import generate_crossings, student_from_bridge
    from dsno.data.load import load_data
    from dsno.data.pairs import load_pairs
    from dsno.measure.evaluate import evaluate
    from dsno.report.compare import compare
    from dsno.runs.bridge import teach_bridge
    from dsno.runs.classifier import train_classifier
    from dsno.runs.plan import plan
    from dsno.runs.recipes import RECIPES, Recipe
    from dsno.runs.shipped import shipped
    from dsno.runs.start import train_start
    from dsno.runs.teach import teach
    from dsno.teachers.check.run import check_teacher
    from dsno.trajectories.share import pull, push

__version__ = "0.1.0"

LATER = {
    "BridgeSampler": "dsno.bridge.sampler",
    "DSNOPipeline": "dsno.app.pipeline",
    "RECIPES": "dsno.runs.recipes",
    "Recipe": "dsno.runs.recipes",
    "check_teacher": "dsno.teachers.check.run",
    "compare": "dsno.report.compare",
    "evaluate": "dsno.measure.evaluate",
    "export_onnx": "dsno.app.export",
    "export_program": "dsno.app.export",
    "generate_crossings": "dsno.bridge.student",
    "load_bridge": "dsno.bridge.files",
    "load_data": "dsno.data.load",
    "load_pairs": "dsno.data.pairs",
    "plan": "dsno.runs.plan",
    "pull": "dsno.trajectories.share",
    "push": "dsno.trajectories.share",
    "save_bridge": "dsno.bridge.files",
    "shipped": "dsno.runs.shipped",
    "student_from_bridge": "dsno.bridge.student",
    "teach": "dsno.runs.teach",
    "train_classifier": "dsno.runs.classifier",
    "train_start": "dsno.runs.start",
    "teach_bridge": "dsno.runs.bridge",
}
"""Public names whose modules bring in more than torch, or are not on everybody's way: imported when first asked for."""


def __getattr__(name: str) -> Any:
    if name not in LATER:
        raise AttributeError(f"module 'dsno' has no attribute {name!r}")
    return getattr(import_module(LATER[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *LATER})


__all__ = [
    "DDIM",
    "LTSP",
    "PLMS",
    "RECIPES",
    "SRDS",
    "STSP",
    "VE",
    "Ancestral",
    "BridgeSampler",
    "Chain",
    "CleanClassifier",
    "Cosine",
    "DPMSolverPP",
    "DSNOPipeline",
    "DecoderSampler",
    "Denoiser",
    "FlowMap",
    "FlowMapSampler",
    "Gaussian",
    "GaussianMixture",
    "Guided",
    "Heun",
    "LossGuide",
    "Meter",
    "MultiPass",
    "NoisyClassifier",
    "OnePass",
    "ParaTAA",
    "ParallelDecoder",
    "Picard",
    "Prediction",
    "Receding",
    "Recipe",
    "RectifiedFlow",
    "Replicas",
    "Sampler",
    "Schedule",
    "SolverSampler",
    "Speculative",
    "Steered",
    "Tabulated",
    "TrainConfig",
    "Trajectory",
    "TrajectorySet",
    "TrajectoryStudent",
    "UniPC",
    "VPLinear",
    "check_teacher",
    "compare",
    "decoder_from_teacher",
    "distill",
    "evaluate",
    "export_onnx",
    "export_program",
    "flow_map_from_teacher",
    "generate",
    "generate_crossings",
    "lift",
    "linear_beta",
    "load_bridge",
    "load_data",
    "load_pairs",
    "load_student",
    "load_teacher",
    "noise",
    "plan",
    "pull",
    "push",
    "sampler_of",
    "save_bridge",
    "save_student",
    "save_teacher",
    "seed_range",
    "shipped",
    "student_from_bridge",
    "student_from_teacher",
    "teach",
    "teach_bridge",
    "train_classifier",
    "train_start",
]
