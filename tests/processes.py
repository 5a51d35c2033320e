"""Several processes, as tests start them, and a student that is small enough for them.

The processes are real ones, with a real process group (gloo) where they work together. They are forked from a server
that has the imports done, which takes a tenth of a second where `accelerate launch` takes ten.
"""

import multiprocessing
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsno import Cosine, Prediction, student_from_teacher
from dsno.grids import quadratic
from dsno.nets.unet import UNet

EXAMPLES = Path(__file__).parents[1] / "examples"
SHAPE, TIMES = (1, 8, 8), quadratic(4)

# What a process of a group would otherwise import for seconds.
GROUP = [
    "accelerate",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torchmetrics.image.fid",
    "torchmetrics.image.kid",
    "dsno.train",
    "dsno.measure.evaluate",
]

SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
"""What processes are told by `accelerate launch --config_file examples/fsdp2.yaml`."""


def forked(imports: list[str]) -> Any:
    """The context of processes whose server has done these imports, unless it was started for others."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(imports)
    return context


def spawn(work: Callable[..., None], *args: Any, world: int = 2) -> list[tuple[int, str]]:
    """Exit code and error of each of `world` processes that call `work(*args)` as a group; none may hang."""
    context = forked(GROUP)
    folder = Path(args[0])
    folder.mkdir(parents=True, exist_ok=True)
    meeting = folder.with_name(f"{folder.name}.{len(list(folder.parent.glob(folder.name + '.*')))}")
    meeting.mkdir()
    processes = [context.Process(target=_child, args=(work, rank, world, meeting, args)) for rank in range(world)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(120)
            assert process.exitcode is not None, "a process hangs"
    finally:
        for process in processes:
            process.kill()
    errors = [meeting / f"error-{rank}" for rank in range(world)]
    return [(p.exitcode or 0, e.read_text() if e.exists() else "") for p, e in zip(processes, errors, strict=True)]


def _child(work: Callable[..., None], rank: int, world: int, meeting: Path, args: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    try:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{meeting / 'meeting'}", rank=rank, world_size=world
        )
        work(*args)
        torch.distributed.destroy_process_group()
    except BaseException:
        (meeting / f"error-{rank}").write_text(traceback.format_exc())
        raise SystemExit(1) from None


def succeed(work: Callable[..., None], *args: Any, world: int = 2) -> None:
    """As `spawn`, and all of them end well."""
    ended = spawn(work, *args, world=world)
    assert [code for code, _ in ended] == [0] * world, "\n".join(error for _, error in ended)


def environment(**more: str) -> dict[str, str]:
    """The variables of a process that imports what this one does."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def launch(*work: object, **more: str) -> subprocess.CompletedProcess[str]:
    """Two processes of one machine that share the weights, as `examples/fsdp2.yaml` says but for precision, through the
    launcher: of a script and its arguments, or of `-m`, a module and its arguments; `more` are variables of their
    environment."""
    command = _launcher("fsdp2.yaml", 0, *work)
    return subprocess.run(command, env=environment(**more), text=True, capture_output=True, timeout=300, check=False)


def launch_on_two_machines(*work: object, at: Path) -> list[tuple[int, str]]:
    """Exit code and output of two launchers of one process each, in the folder `at`, as `examples/fsdp2_nodes.yaml`
    says but for precision."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machines = [
        subprocess.Popen(
            _launcher("fsdp2_nodes.yaml", port, "--machine_rank", rank, "--main_process_ip", "127.0.0.1", *work),
            env=environment(),
            cwd=at,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in (0, 1)
    ]
    try:
        said = [machine.communicate(timeout=300)[0] for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    return [(machine.returncode, text) for machine, text in zip(machines, said, strict=True)]


def _launcher(file: str, port: int, *work: object) -> list[str]:
    told = ["--config_file", EXAMPLES / file, "--num_processes", 2, "--main_process_port", port]
    return [sys.executable, "-m", "accelerate.commands.launch", *map(str, (*told, "--mixed_precision", "no", *work))]


def network() -> UNet:
    """A network that answers something."""
    # In float64, so that Adam does not make much of the rounding of gradients that are zero.
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return stirred(UNet(1, 8, (4, 4), blocks=1, attention=())).double()


def stirred(net: nn.Module) -> Any:
    """The network with weights that are away from zero."""
    for p in net.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return net


def student(frozen: bool = False) -> Any:
    """A student of it; of a `frozen` one only the temporal layers are trained."""
    made = student_from_teacher(Prediction(network(), Cosine(), "v"), TIMES[1:])
    if frozen:
        made.requires_grad_(False)
        for layer in made.net.temporal_layers().values():
            layer.requires_grad_(True)
    return made
