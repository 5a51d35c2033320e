"""One machine or many: several processes take the steps of one, and any of them may be killed."""

import json
import os
import random
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dsno import Cosine, Gaussian, SolverSampler
from dsno.checkpoint import read_tensors
from dsno.distillation.denoising import Denoising
from dsno.distillation.matching import Pair
from dsno.distillation.regression import TrajectoryDistillation
from dsno.train import TrainConfig, train
from dsno.trajectories.sets import TrajectorySet
from dsno.trajectories.store import store
from processes import GROUP, SHAPE, SHARDED, TIMES, forked, launch, network, spawn, student, succeed

CONFIG = TrainConfig(steps=8, lr=1e-3, warmup=2, ema=0.9, checkpoint_every=3, log_every=1)
BATCH = 8


class Double:
    """An objective in float64, taken in smaller batches where accumulated; dies at a step of a rank if told to."""

    def __init__(self, objective: Any, parts: int = 1, dies: tuple[int, int] | None = None) -> None:
        self.objective, self.parts, self.dies = objective, parts, dies

    def batches(self, start: int, rank: int, world: int) -> Iterator[dict[str, Any]]:
        # Part j of a step are the j-th rows of every rank's share, as if each rank had cut its batch.
        stream = self.objective.batches(start // self.parts, rank, world)
        for step, batch in enumerate(stream, start // self.parts):
            if self.dies == (step, rank):
                os.kill(os.getpid(), signal.SIGKILL)
            for part in range(start % self.parts, self.parts):
                yield {k: v.chunk(self.parts)[part] if isinstance(v, Tensor) else v for k, v in batch.items()}
            start = 0

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        self.held = {type(p).__name__ for p in model.parameters()}
        double = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in batch.items()}
        return self.objective(model, double)


def distillation(data: Path, model: nn.Module, **options: Any) -> Any:
    return TrajectoryDistillation(TrajectorySet(data), model, batch=BATCH, seed=3, **options)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mean = torch.linspace(-0.5, 0.5, 64).reshape(SHAPE)
    sampler = SolverSampler(Gaussian(Cosine(), mean, 0.3), Cosine(), TIMES, keep=TIMES)
    folder = tmp_path_factory.mktemp("data") / "set"
    store(sampler, SHAPE, folder, 40, targets=("x0", "state"))
    return folder


def distil(out: Path, data: Path, config: TrainConfig, options: dict[str, Any]) -> None:
    """A run of the tests; `options` are those of `train`, of the objective and of the model."""
    given = dict(options)
    model = student(given.pop("frozen", False))
    if sharded := given.pop("sharded", False):
        os.environ |= SHARDED
    parts, dies, resume = given.pop("parts", 1), given.pop("dies", None), given.pop("resume", False)
    objective = Double(distillation(data, model, **given), parts, dies)
    trained = train(model, objective, config, out, resume)
    assert objective.held == ({"DTensor", "Parameter"} if sharded else {"Parameter"})
    # What train returns is a plain model, whole on every rank, and it can be saved as any other.
    assert trained is model and {type(p) for p in trained.parameters()} == {nn.Parameter}
    last = read_tensors(out / f"step-{config.steps:08d}" / "average.safetensors")
    own = dict(trained.named_parameters())
    assert all(torch.equal(own[n].float(), v) for n, v in last.items())


def teach(out: Path, config: TrainConfig) -> None:
    x = torch.linspace(-1, 1, 40 * 64).reshape(40, *SHAPE)
    train(network(), Double(Denoising(x, Cosine(), batch=BATCH, seed=3)), config, out)


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


def alike(a: Path, b: Path, atol: float = 0.0, step: int = CONFIG.steps) -> None:
    """Two runs ended alike: log, weights, average and moments."""
    assert losses(a) == (losses(b) if atol == 0 else pytest.approx(losses(b), rel=1e-5))
    for name in ("model", "average", "optimizer"):
        x, y = (read_tensors(run / f"step-{step:08d}" / f"{name}.safetensors") for run in (a, b))
        assert x.keys() == y.keys()
        for key, value in x.items():
            assert torch.allclose(value.double(), y[key].double(), atol=atol, rtol=0), f"{name}: {key}"


def same(a: Path, b: Path, atol: float = 0.0, step: int = CONFIG.steps) -> None:
    """Two runs ended alike, and were runs of the student."""
    alike(a, b, atol, step)
    x = read_tensors(a / f"step-{step:08d}" / "average.safetensors")
    before = dict(student().named_parameters())
    assert any(not torch.allclose(v, before[k].float(), atol=1e-4) for k, v in x.items()), "nothing was learned"


@pytest.mark.parametrize("options", [{}, {"others": 0.5, "inner_starts": 0.5}, {"frozen": True}], ids=str)
def test_two_processes_take_the_steps_of_one(options: dict[str, Any], data: Path, tmp_path: Path) -> None:
    distil(tmp_path / "one", data, CONFIG, options)
    succeed(distil, tmp_path / "two", data, CONFIG, options)
    same(tmp_path / "one", tmp_path / "two", atol=1e-7)


def test_so_they_do_for_a_teacher(tmp_path: Path) -> None:
    teach(tmp_path / "one", CONFIG)
    succeed(teach, tmp_path / "two", CONFIG)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    one, two = (read_tensors(tmp_path / run / "step-00000008/average.safetensors") for run in ("one", "two"))
    assert all(torch.allclose(v, two[k], atol=1e-7) for k, v in one.items())


class Partly(nn.Module):
    """A network with a part that no loss reaches, and two blocks, of which a batch goes through one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(2))
        self.label = nn.Embedding(4, 4)

    def forward(self, x: Tensor, which: list[int]) -> Tensor:
        h = self.first(x)
        for k in which:
            h = h.tanh() + self.blocks[k](h)
        return self.last(h)


class Turns:
    """A loss of some calls of the network, each through the blocks that `calls[step]` says, by turns."""

    def __init__(self, *calls: list[list[int]]) -> None:
        self.calls = calls

    def batches(self, start: int, rank: int, world: int) -> Iterator[dict[str, Any]]:
        for step in count(start):
            x = torch.randn(BATCH, 1, 4, 4, generator=torch.Generator().manual_seed(step)).double()
            yield {"x": x.chunk(world)[rank], "calls": self.calls[step % len(self.calls)]}

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        x = batch["x"]
        return torch.stack([(model(x, which) - x).square().mean() for which in batch["calls"]]).sum()


def take_turns(out: Path, calls: list[list[list[int]]]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = Partly().double()
    train(model, Turns(*calls), CONFIG, out)


@pytest.mark.parametrize("calls", [[[[]]], [[[0]], [[1]]], [[[0, 1], [1]], [[], [0]]], [[[0], [1]], [[1]]]], ids=str)
def test_parameters_that_a_loss_does_not_reach_are_let_alone(calls: list[list[list[int]]], tmp_path: Path) -> None:
    take_turns(tmp_path / "one", calls)
    succeed(take_turns, tmp_path / "two", calls)
    alike(tmp_path / "one", tmp_path / "two", atol=1e-7)


def test_the_shares_of_a_batch_are_the_batch() -> None:
    x = torch.randn(20, 1, 2, 2)
    objective = Denoising(x, Cosine(), labels=torch.arange(20), batch=6, seed=1)
    (whole,) = islice(objective.batches(4), 1)
    shares = [next(objective.batches(4, rank, 3)) for rank in range(3)]
    assert all(torch.equal(torch.cat([s[k] for s in shares]), v) for k, v in whole.items())
    with pytest.raises(ValueError, match="a batch of 6 cannot be shared evenly by 4 processes: use a multiple"):
        next(objective.batches(0, 0, 4))


@pytest.mark.parametrize("world", [1, 2])
def test_accumulated_halves_are_the_whole(world: int, data: Path, tmp_path: Path) -> None:
    distil(tmp_path / "one", data, CONFIG, {})
    halves = replace(CONFIG, accumulate=2)
    if world == 1:
        distil(tmp_path / "halves", data, halves, {"parts": 2})
    else:
        succeed(distil, tmp_path / "halves", data, halves, {"parts": 2})
    same(tmp_path / "one", tmp_path / "halves", atol=1e-7)


@pytest.mark.parametrize("sharded", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["replicated", "sharded"])
def test_a_run_of_which_a_rank_was_killed_goes_on_bit_for_bit(sharded: bool, data: Path, tmp_path: Path) -> None:
    options = {"sharded": sharded}
    succeed(distil, tmp_path / "whole", data, CONFIG, options)
    (first, error), (second, _) = spawn(distil, tmp_path / "cut", data, CONFIG, {**options, "dies": (5, 1)})
    assert second == -signal.SIGKILL and first == 1 and "RuntimeError" in error
    assert [p.name for p in (tmp_path / "cut").glob("step-*")] == ["step-00000003"]
    succeed(distil, tmp_path / "cut", data, CONFIG, {**options, "resume": True})
    same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize(
    "options", [{"frozen": True}, *(pytest.param(o, marks=pytest.mark.slow) for o in ({}, {"parts": 2}))], ids=str
)
def test_sharded_weights_take_the_same_steps(options: dict[str, Any], data: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, accumulate=options.get("parts", 1))
    distil(tmp_path / "one", data, config, options)
    succeed(distil, tmp_path / "two", data, config, {**options, "sharded": True})
    same(tmp_path / "one", tmp_path / "two", atol=1e-7)
    files = [read_tensors(tmp_path / run / "step-00000008/average.safetensors") for run in ("one", "two")]
    assert {v.dtype for v in files[1].values()} == {torch.float32}
    if "frozen" in options:
        assert all("temporal" in name for name in files[0]) and files[0].keys() == files[1].keys()
        raw = read_tensors(tmp_path / "two/step-00000008/model.safetensors")
        before = student().state_dict()
        assert all(torch.equal(raw[k], v) for k, v in before.items() if "temporal" not in k)


@pytest.mark.slow
def test_a_run_changes_its_number_of_processes_and_how_weights_are_held(data: Path, tmp_path: Path) -> None:
    distil(tmp_path / "one", data, CONFIG, {})
    short = [replace(CONFIG, steps=n, decay="constant") for n in (2, 4, 6)]
    whole = replace(CONFIG, decay="constant")
    out = tmp_path / "mixed"
    succeed(distil, out, data, short[0], {"sharded": True})
    distil(out, data, short[1], {"resume": True})
    succeed(distil, out, data, short[2], {"resume": True}, world=4)
    succeed(distil, out, data, whole, {"resume": True, "sharded": True})
    distil(tmp_path / "constant", data, whole, {})
    same(tmp_path / "constant", out, atol=1e-7)


def contradict(out: Path, data: Path) -> None:
    model = student()
    objective = Double(distillation(data, model))
    for told, config, match in (
        ({}, replace(CONFIG, channels_last=True), "channels_last does not go with FSDP"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, CONFIG, "which renames the weights: leave it out, and call"),
        ({"FSDP_VERSION": "1", "FSDP_RESHARD_AFTER_FORWARD": "FULL_SHARD"}, CONFIG, "or FSDP with fsdp_version: 2"),
    ):
        os.environ |= {**SHARDED, **told}
        with pytest.raises(ValueError, match=match):
            train(model, objective, config, out / "a")
        for name in told:
            del os.environ[name]
    assert not (out / "a").exists()
    os.environ |= {**SHARDED, "FSDP_TRANSFORMER_CLS_TO_WRAP": "Block"}
    pair = Pair(model, network().double())
    with pytest.raises(
        ValueError, match="Paced calls a network with other weights .* leave out fsdp_transformer_layer"
    ):
        train(pair, objective, CONFIG, out / "b")


def test_what_does_not_go_together_is_refused(data: Path, tmp_path: Path) -> None:
    succeed(contradict, tmp_path / "run", data, world=1)


def apart(out: Path, data: Path) -> None:
    distil(out, data, replace(CONFIG, steps=2, decay="constant"), {})
    own = out if os.environ["RANK"] == "0" else out / "elsewhere"
    with pytest.raises(ValueError, match="would go on from the steps 2, 0: .* a folder that all of them see"):
        distil(own, data, replace(CONFIG, decay="constant"), {"resume": True})


def test_processes_that_see_different_folders_do_not_go_on(data: Path, tmp_path: Path) -> None:
    succeed(apart, tmp_path / "run", data)


class Diverges(Double):
    """The loss of one rank is not finite in one step."""

    def batches(self, start: int, rank: int, world: int) -> Iterator[dict[str, Any]]:
        for step, batch in enumerate(super().batches(start, rank, world), start):
            yield {**batch, "noise": batch["noise"] * (float("nan") if (step, rank) == (4, 1) else 1)}


def diverge(out: Path, data: Path) -> None:
    model = student()
    train(model, Diverges(distillation(data, model)), CONFIG, out)


def test_all_processes_stop_when_one_diverges(data: Path, tmp_path: Path) -> None:
    ended = spawn(diverge, tmp_path / "run", data)
    assert [code for code, _ in ended] == [1, 1]
    for _, error in ended:
        assert "FloatingPointError: the loss of step 4 is nan" in error and "step-00000003" in error


LAUNCHED = """
import sys
from pathlib import Path
from test_train_processes import *
torch.set_num_threads(1)
data, out, how = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
how = {"dies": (5, 1)} if how == "dies" else {"resume": True, "parts": 2}
distil(out, data, CONFIG, {**how, "sharded": True})
"""


@pytest.mark.slow
def test_under_the_launcher(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.py").write_text(LAUNCHED)
    script, out = tmp_path / "run.py", tmp_path / "out"
    died = launch(script, data, out, "dies")
    assert died.returncode != 0 and "SIGKILL" in died.stderr, died.stderr
    assert [p.name for p in out.glob("step-*")] == ["step-00000003"]
    # Gradient accumulation as accelerate is told it (the launcher's own flag is for DeepSpeed); there was none so far.
    accumulate = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"}
    with monkeypatch.context() as told:
        told.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
        with pytest.raises(ValueError, match="was trained with accumulate = 1, now 2: resume alike"):
            distil(out, data, CONFIG, {"resume": True, "parts": 2})
    out.rename(tmp_path / "old")
    done = launch(script, data, out, "resumes", **accumulate)
    assert done.returncode == 0, done.stderr
    distil(tmp_path / "one", data, CONFIG, {})
    same(tmp_path / "one", out, atol=1e-7)


# Killed wherever a file is touched


def killed(out: Path, moment: int) -> None:
    """Train in `out`, whatever is there, and kill this process when it touches the folder for the `moment`-th time."""
    torch.set_num_threads(1)
    touched = 0

    def kill(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal touched
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.scandir"):
            touched += str(out) in str(arguments[0])
            if touched == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(kill)
    small(out)


def small(out: Path) -> Tensor:
    denoising = Denoising(torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)), Cosine(), "v", batch=4)
    net = network().float()
    return parameters(train(net, denoising, replace(CONFIG, steps=4, checkpoint_every=1), out, resume=True))


def parameters(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_killed_anywhere_it_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole, draw = small(tmp_path / "whole"), random.Random(7)
    for _ in range(3):
        process = forked(GROUP).Process(target=killed, args=(tmp_path / "cut", draw.randrange(5, 90)))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
    assert torch.equal(small(tmp_path / "cut"), whole)
    found = []
    for run in (tmp_path / "whole", tmp_path / "cut"):
        logged = [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]
        found.append((logged, sorted(str(p.relative_to(run)) for p in run.rglob("*"))))
    assert found[0] == found[1]
