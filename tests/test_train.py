"""Training is a function of its configuration: resumed, split or averaged, the numbers are the same."""

import copy
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from dsno.checkpoint import digest, read_json, read_tensors, seal, write_json, write_tensors
from dsno.snapshots import changes_of, latest
from dsno.train import TrainConfig, learning_rate, quiet, stage_progress, train

CONFIG = TrainConfig(steps=20, lr=1e-2, warmup=3, ema=0.9, checkpoint_every=5, log_every=1)


class Reverse:
    """Learn to reverse four numbers. `split` cuts each batch into as many smaller ones."""

    def __init__(self, split: int = 1, scale: float = 1.0) -> None:
        self.split, self.scale = split, scale

    def batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, Tensor]]:
        while True:
            step, part = divmod(start, self.split)
            x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
            yield {"x": x.chunk(self.split)[part], "step": step}
            start += 1

    def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return self.scale * (model(batch["x"]) - batch["x"].flip(1)).square().mean()


def network(dropout: float = 0.2) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Dropout(dropout), nn.Linear(16, 4))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def losses(out: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def environment() -> dict[str, str]:
    """For a process of its own that imports this file."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}


def stop_at(last: int, how: type[BaseException] | int):
    def progress(done: int, total: int, numbers: dict[str, float]) -> None:
        if done == last:
            if isinstance(how, int):
                os.kill(os.getpid(), how)
            else:
                raise how

    return progress


def test_the_loss_falls(tmp_path: Path) -> None:
    seen = []
    model = train(
        network(0.0),
        Reverse(),
        replace(CONFIG, steps=300, checkpoint_every=100),
        tmp_path,
        progress=lambda *a: seen.append(a),
    )
    log = losses(tmp_path)
    assert log[-1][1] < 0.05 * log[0][1]
    assert not model.training and [done for done, _, _ in seen] == [step for step, _ in log] == [*range(1, 301)]
    assert Reverse()(model, next(Reverse().batches(1000))).item() < 0.05 * log[0][1]
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["log.jsonl", "step-00000300"]
    assert latest(tmp_path) == tmp_path / "step-00000300" and latest(tmp_path / "none") is None


def test_the_log_has_the_mean_since_the_line_before(tmp_path: Path) -> None:
    train(network(), Reverse(), CONFIG, tmp_path / "every")
    train(network(), Reverse(), replace(CONFIG, log_every=8), tmp_path / "some")
    every = [loss for _, loss in losses(tmp_path / "every")]
    expected = [(n, sum(every[a:n]) / (n - a)) for a, n in [(0, 8), (8, 16), (16, 20)]]
    assert [step for step, _ in losses(tmp_path / "some")] == [8, 16, 20]
    assert [loss for _, loss in losses(tmp_path / "some")] == pytest.approx([loss for _, loss in expected])


@pytest.mark.parametrize("last, accumulate", [(3, 1), (10, 1), (13, 1), (13, 2)])
def test_an_interrupted_run_goes_on_bit_for_bit(last: int, accumulate: int, tmp_path: Path) -> None:
    config, task = replace(CONFIG, accumulate=accumulate), Reverse(accumulate)
    whole = train(network(), task, config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(network(), task, config, tmp_path / "cut", progress=stop_at(last, KeyboardInterrupt))
    torch.manual_seed(99)
    resumed = train(network(), task, config, tmp_path / "cut", resume=True)
    assert torch.equal(weights(resumed), weights(whole))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    for name in ("model", "average", "optimizer"):
        a, b = (read_tensors(tmp_path / run / f"step-00000020/{name}.safetensors") for run in ("whole", "cut"))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    code = (
        "import sys; from test_train import *; torch.set_num_threads(1); "
        "train(network(), Reverse(), CONFIG, Path(sys.argv[1]), progress=stop_at(13, signal.SIGKILL))"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "cut")], env=environment(), check=False)
    assert killed.returncode == -signal.SIGKILL
    # As a kill in the middle of a line and of a checkpoint would leave it.
    with (tmp_path / "cut" / "log.jsonl").open("a") as file:
        file.write('{"step": 14, "lo')
    (tmp_path / "cut" / ".step-00000015.tmp").mkdir()
    assert [p.name for p in (tmp_path / "cut").glob("step-*")] == ["step-00000010"]
    resumed = train(network(), Reverse(), CONFIG, tmp_path / "cut", resume=True)
    whole = train(network(), Reverse(), CONFIG, tmp_path / "whole")
    assert torch.equal(weights(resumed), weights(whole))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert not (tmp_path / "cut" / ".step-00000015.tmp").exists()


@pytest.mark.parametrize("last, log_every", [(12, 4), (11, 8), (17, 8)])
def test_the_log_of_a_resumed_run_is_that_of_an_uninterrupted_one(last: int, log_every: int, tmp_path: Path) -> None:
    config = replace(CONFIG, log_every=log_every)
    train(network(), Reverse(), config, tmp_path / "whole")

    class Stops(Reverse):
        def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            if batch["step"] == last:
                raise KeyboardInterrupt
            return super().__call__(model, batch)

    with pytest.raises(KeyboardInterrupt):
        train(network(), Stops(), config, tmp_path / "cut")
    with (tmp_path / "cut" / "log.jsonl").open("ab") as file:
        file.write(b'[]\n{"step": "x"}\n\xff\xfe\n{"step": 10, "lo')
    train(network(), Reverse(), config, tmp_path / "cut", resume=True)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_a_run_that_diverged_goes_on_with_another_rate_which_is_noted(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="lower learning rate"):
        train(network(), Diverges(12), CONFIG, tmp_path)
    train(network(), Reverse(), replace(CONFIG, lr=1e-3, clip=0.5, steps=15), tmp_path, resume=True)
    train(network(), Reverse(), replace(CONFIG, lr=1e-4, clip=0.5), tmp_path, resume=True)
    first = {"step": 10, "lr": [0.01, 0.001], "clip": [1.0, 0.5]}
    assert changes_of(tmp_path) == [first, {"step": 15, "lr": [0.001, 0.0001]}]
    assert [step for step, _ in losses(tmp_path)] == [*range(1, 21)]


def broken_moments(path: Path, how: str) -> None:
    """Damage a checkpoint as version 0.1 wrote it, which has no digests and no seal."""
    state, moments = read_json(path / "state.json"), read_tensors(path / "optimizer.safetensors")
    write_json(path / "state.json", {key: state[key] for key in ("step", "config", "settings")})
    name = "0.exp_avg"
    changed = {
        "shape": {**moments, name: torch.zeros(1)},
        "missing": {key: value for key, value in moments.items() if key != name},
        "foreign": {**moments, "99.exp_avg": torch.zeros(1)},
        "unnamed": {**moments, "moment": torch.zeros(1)},
        "empty": {},
    }
    write_tensors(path / "optimizer.safetensors", changed[how])


@pytest.mark.parametrize("how", ["shape", "missing", "foreign", "unnamed", "empty"])
def test_moments_that_are_not_of_the_model_are_refused_by_name(how: str, tmp_path: Path) -> None:
    train(network(), Reverse(), replace(CONFIG, steps=5), tmp_path)
    broken_moments(tmp_path / "step-00000005", how)
    with pytest.raises(ValueError, match=r"step-00000005/optimizer\.safetensors (holds|is damaged)"):
        train(network(), Reverse(), CONFIG, tmp_path, resume=True)


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first = train(network(), Reverse(), CONFIG, tmp_path)
    again = train(network(), Reverse(), CONFIG, tmp_path, resume=True, progress=stop_at(21, KeyboardInterrupt))
    assert torch.equal(weights(first), weights(again))
    longer = train(network(), Reverse(), replace(CONFIG, decay="cosine", steps=25), tmp_path, resume=True)
    assert not torch.equal(weights(first), weights(longer))
    assert [step for step, _ in losses(tmp_path)] == [*range(1, 26)]


def test_resuming_from_nothing_starts(tmp_path: Path) -> None:
    assert torch.equal(
        weights(train(network(), Reverse(), CONFIG, tmp_path / "a", resume=True)),
        weights(train(network(), Reverse(), CONFIG, tmp_path / "b")),
    )


def test_what_decides_the_updates_may_not_change(tmp_path: Path) -> None:
    train(network(), Reverse(), replace(CONFIG, steps=5), tmp_path)
    with pytest.raises(ValueError, match=r"was trained with ema = 0\.9, now 0\.5: resume alike"):
        train(network(), Reverse(), replace(CONFIG, ema=0.5), tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"step-00000005 is behind the 3 steps of this run: ask for 5 or more"):
        train(network(), Reverse(), replace(CONFIG, steps=3), tmp_path, resume=True)
    with pytest.raises(ValueError, match="holds another architecture"):
        train(nn.Linear(4, 4), Reverse(), CONFIG, tmp_path, resume=True)
    settings = {"kind": "v", "widths": (4, 4)}
    train(network(), Reverse(), replace(CONFIG, steps=5), tmp_path, overwrite=True, settings=settings)
    train(network(), Reverse(), replace(CONFIG, steps=6), tmp_path, resume=True, settings=settings)
    with pytest.raises(ValueError, match=r"was trained with widths = \[4, 4\], now \[4, 8\]: resume alike"):
        train(network(), Reverse(), CONFIG, tmp_path, resume=True, settings={"kind": "v", "widths": (4, 8)})


class Diverges(Reverse):
    """Not finite in one step: the loss of one micro-batch, or only its gradient."""

    def __init__(self, step: int, gradient: bool = False, split: int = 1) -> None:
        super().__init__(split)
        self.step, self.gradient = step, gradient

    def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        loss = super().__call__(model, batch)
        if batch["step"] == self.step and bool(
            batch["x"][0, 0] == next(self.batches(self.step * self.split))["x"][0, 0]
        ):
            return loss + (0 * loss).sqrt() if self.gradient else loss * float("nan")
        return loss


@pytest.mark.parametrize("split", [1, 2])
def test_a_loss_that_is_not_finite_stops_the_run(split: int, tmp_path: Path) -> None:
    config = replace(CONFIG, accumulate=split)
    with pytest.raises(FloatingPointError, match=r"the loss of step 12 is nan: .* checkpoint is .*step-00000010"):
        train(network(), Diverges(12, split=split), config, tmp_path)
    assert [p.name for p in tmp_path.glob("step-*")] == ["step-00000010"]
    # What is kept is good: with the cause gone, it goes on.
    train(network(), Reverse(split), config, tmp_path, resume=True)


def test_so_does_one_in_the_very_first_step(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"the loss of step 0 is nan.*none \(none was due yet\)"):
        train(network(), Diverges(0), CONFIG, tmp_path)


def test_weights_that_are_not_finite_do_not_replace_a_good_checkpoint(tmp_path: Path) -> None:
    # Step 9 has a finite loss, gradients that are not, and is followed by a checkpoint.
    with pytest.raises(FloatingPointError, match=r"weights 0\.weight are not finite after step 9.*step-00000005"):
        train(network(), Diverges(9, gradient=True), CONFIG, tmp_path)
    assert [p.name for p in tmp_path.glob("step-*")] == ["step-00000005"]


def test_the_average_moves_and_is_what_is_saved_and_returned(tmp_path: Path) -> None:
    model = network()
    expected, path = weights(model), []

    def follow(done: int, total: int, numbers: dict[str, float]) -> None:
        beta = min(CONFIG.ema, done / (9 + done))
        expected.lerp_(weights(model), 1 - beta)
        path.append(weights(model))

    averaged = train(model, Reverse(), CONFIG, tmp_path, progress=follow)
    assert torch.allclose(weights(averaged), expected, atol=1e-6)
    assert not torch.equal(weights(averaged), path[-1]) and not torch.equal(weights(averaged), path[0])
    saved = read_tensors(tmp_path / "step-00000020/average.safetensors")
    assert all(torch.equal(saved[name], p) for name, p in averaged.named_parameters())
    raw = read_tensors(tmp_path / "step-00000020/model.safetensors")
    assert torch.equal(torch.cat([raw[name].flatten() for name, _ in model.named_parameters()]), path[-1])


def test_the_ramp_says_what_the_average_forgets(tmp_path: Path) -> None:
    path = [weights(network())]
    config = replace(CONFIG, ema=0.999, ramp=2)
    averaged = train(
        model := network(), Reverse(), config, tmp_path, progress=lambda *_: path.append(weights(model).clone())
    )
    torch.testing.assert_close(weights(averaged), torch.stack(path).mean(0))
    with pytest.raises(ValueError, match=r"was trained with ramp = 2, now 10: resume alike"):
        train(network(), Reverse(), replace(config, ramp=10), tmp_path, resume=True)


def test_the_average_is_float32_whatever_the_weights_are(tmp_path: Path) -> None:
    model = network(0.0).to(torch.bfloat16)

    class Half(Reverse):
        def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            return super().__call__(model, {"x": batch["x"].bfloat16()})

    # In bfloat16 a step of a thousandth is rounded away; steps of the average must not be.
    train(model, Half(), replace(CONFIG, ema=0.999, steps=40), tmp_path)
    saved = read_tensors(tmp_path / "step-00000040/average.safetensors")
    assert {v.dtype for v in saved.values()} == {torch.float32}
    assert any(not torch.equal(v, v.bfloat16().float()) for v in saved.values())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_accumulated_small_batches_are_one_big_batch(tmp_path: Path) -> None:
    big = train(network(0.0), Reverse(), CONFIG, tmp_path / "big")
    small = train(network(0.0), Reverse(4), replace(CONFIG, accumulate=4), tmp_path / "small")
    assert torch.allclose(weights(small), weights(big), atol=1e-5)
    assert [loss for _, loss in losses(tmp_path / "small")] == pytest.approx(
        [loss for _, loss in losses(tmp_path / "big")], rel=1e-4
    )


def test_an_accelerator_of_ones_own_is_told_the_accumulation(tmp_path: Path) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    train(network(0.0), Reverse(), replace(CONFIG, steps=5), tmp_path / "a", accelerator=accelerator)
    # Five batches later, the next run's accumulation starts from zero again.
    config = replace(CONFIG, accumulate=4)
    small = train(network(0.0), Reverse(4), config, tmp_path / "small", accelerator=accelerator)
    big = train(network(0.0), Reverse(), CONFIG, tmp_path / "big")
    assert torch.allclose(weights(small), weights(big), atol=1e-5)


@pytest.mark.parametrize("clip", [1e-3, None])
def test_gradients_are_clipped(clip: float | None, tmp_path: Path) -> None:
    norms = []

    def record(optimizer: torch.optim.Optimizer, *_: object) -> None:
        held = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack([g.norm() for g in held]).norm()))

    handle = register_optimizer_step_pre_hook(record)
    try:
        train(network(), Reverse(4), replace(CONFIG, clip=clip, accumulate=4), tmp_path)
    finally:
        handle.remove()
    assert len(norms) == CONFIG.steps
    assert max(norms) > 0.1 if clip is None else norms == pytest.approx([clip] * len(norms), rel=1e-3)


def test_mixed_precision_trains_and_leaves_no_trace(tmp_path: Path) -> None:
    model, seen = network(0.0), []
    handle = model[0].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    # A run that failed in another precision first: accelerate alone refuses a second one in the same process.
    with pytest.raises(KeyboardInterrupt):
        config = replace(CONFIG, precision="bf16")
        train(model, Reverse(), config, tmp_path / "failed", progress=stop_at(1, KeyboardInterrupt))
    train(model, Reverse(), replace(CONFIG, steps=2), tmp_path / "full")
    assert seen == [torch.bfloat16] + [torch.float32] * 2
    train(model, Reverse(), replace(CONFIG, steps=150, checkpoint_every=150, precision="bf16"), tmp_path / "half")
    assert seen[3:] == [torch.bfloat16] * 150
    log = losses(tmp_path / "half")
    assert log[-1][1] < 0.5 * log[0][1]
    x = torch.randn(3, 4)
    output = model(x)
    assert seen[-1] == torch.float32 and {p.dtype for p in model.parameters()} == {torch.float32}
    handle.remove()
    fresh = network(0.0)
    assert model.__dict__.keys() == fresh.__dict__.keys()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), output)


def test_frozen_weights_stay(tmp_path: Path) -> None:
    def frozen() -> nn.Module:
        model = network()
        model[0].requires_grad_(False)
        return model

    model = train(frozen(), Reverse(), CONFIG, tmp_path / "whole")
    assert torch.equal(model[0].weight, network()[0].weight) and not torch.equal(model[3].weight, network()[3].weight)
    last = tmp_path / "whole" / "step-00000020"
    assert read_tensors(last / "average.safetensors").keys() == {"3.weight", "3.bias"}
    assert read_tensors(last / "model.safetensors").keys() == model.state_dict().keys()
    assert {name[0] for name in read_tensors(last / "optimizer.safetensors")} == {"0", "1"}
    with pytest.raises(KeyboardInterrupt):
        train(frozen(), Reverse(), CONFIG, tmp_path / "cut", progress=stop_at(13, KeyboardInterrupt))
    assert torch.equal(weights(train(frozen(), Reverse(), CONFIG, tmp_path / "cut", resume=True)), weights(model))
    with pytest.raises(ValueError, match="no parameter of the model has requires_grad set: nothing to train"):
        train(network().requires_grad_(False), Reverse(), CONFIG, tmp_path / "none")


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")], ids=["dp", "compiled"])
def test_a_run_goes_on_with_or_without_wrappers(wrap: Any, tmp_path: Path) -> None:
    whole = weights(train(network(), Reverse(), CONFIG, tmp_path / "whole"))
    for first, then in ((wrap, nn.Identity()), (nn.Identity(), wrap)):
        out = tmp_path / type(then(network())).__name__
        with pytest.raises(KeyboardInterrupt):
            train(first(network()), Reverse(), CONFIG, out, progress=stop_at(13, KeyboardInterrupt))
        names = read_tensors(latest(out) / "average.safetensors").keys()
        assert names == dict(network().named_parameters()).keys()
        assert torch.equal(weights(train(then(network()), Reverse(), CONFIG, out, resume=True)), whole)


def test_a_model_that_cannot_be_saved_is_refused_before_the_first_step(tmp_path: Path) -> None:
    model = network()
    model.register_buffer("sparse", torch.eye(2).to_sparse())
    with pytest.raises(ValueError, match="the state of a Sequential cannot be written: 'sparse' is a tensor of layout"):
        train(model, Reverse(), CONFIG, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_tied_weights_are_trained_saved_and_go_on(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 4))
        nn.init.eye_(model[0].weight)
        model[2].weight = model[0].weight
        return model.requires_grad_()

    torch.manual_seed(0)
    first = tied()
    state = copy.deepcopy(first.state_dict())
    model = train(first, Reverse(), CONFIG, tmp_path / "whole")
    again = tied()
    again.load_state_dict(state)
    with pytest.raises(KeyboardInterrupt):
        train(again, Reverse(), CONFIG, tmp_path / "cut", progress=stop_at(13, KeyboardInterrupt))
    resumed = train(tied(), Reverse(), CONFIG, tmp_path / "cut", resume=True)
    assert resumed[2].weight is resumed[0].weight and torch.equal(weights(resumed), weights(model))


def scaling() -> Any:
    """An accelerator with a loss scale that moves, on the CPU; it makes one for GPUs only."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3)
    return accelerator


def test_the_loss_scale_is_part_of_a_checkpoint(tmp_path: Path) -> None:
    whole = train(network(), Reverse(), CONFIG, tmp_path / "whole", accelerator=scaling())
    with pytest.raises(KeyboardInterrupt):
        stop = stop_at(13, KeyboardInterrupt)
        train(network(), Reverse(), CONFIG, tmp_path / "cut", accelerator=scaling(), progress=stop)
    assert read_json(tmp_path / "cut/step-00000010/state.json")["scaler"]["scale"] == 64 * 2**3
    accelerator = scaling()
    resumed = train(network(), Reverse(), CONFIG, tmp_path / "cut", resume=True, accelerator=accelerator)
    assert (
        accelerator.scaler.state_dict()["scale"] == 64 * 2**6
        and accelerator.scaler.state_dict()["_growth_tracker"] == 2
    )
    assert torch.equal(weights(resumed), weights(whole))


def test_what_accelerate_is_configured_for_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = replace(CONFIG, steps=5)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    train(network(0.0), Reverse(4), config, tmp_path / "found")
    found = read_json(tmp_path / "found/step-00000005/state.json")["config"]
    assert (found["accumulate"], found["precision"]) == (4, "bf16")
    with pytest.raises(ValueError, match="accumulate is 2, but 4 in accelerate's configuration: set one of them"):
        train(network(), Reverse(), replace(config, accumulate=2), tmp_path / "other")
    monkeypatch.undo()
    train(network(0.0), Reverse(4), replace(config, accumulate=4, precision="bf16"), tmp_path / "given")
    assert losses(tmp_path / "found") == losses(tmp_path / "given")
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    with pytest.raises(ValueError, match="precision is bf16, but no in accelerate's configuration"):
        train(
            network(), Reverse(), replace(config, precision="bf16"), tmp_path / "o", accelerator=Accelerator(cpu=True)
        )


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
def test_a_precision_the_machine_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="precision fp16 needs a GPU, this is a cpu: use bf16 or no"):
        train(network(), Reverse(), replace(CONFIG, precision="fp16"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Blur(Reverse):
    """Learn to blur images."""

    def batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, Tensor]]:
        for batch in super().batches(start):
            yield {"x": batch["x"].reshape(4, 4, 2, 2)}

    def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        self.last_first = batch["x"].is_contiguous(memory_format=torch.channels_last)
        self.weights_last_first = model[0].weight.is_contiguous(memory_format=torch.channels_last)
        return (model(batch["x"]) - batch["x"].mean((2, 3), keepdim=True)).square().mean()


def convolutions() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 4, 3, padding=1))


def test_channels_last_changes_the_layout_alone(tmp_path: Path) -> None:
    task, config = Blur(), replace(CONFIG, channels_last=True)
    plain = train(convolutions(), Blur(), CONFIG, tmp_path / "plain")
    other = train(convolutions(), task, config, tmp_path / "last")
    assert task.last_first and task.weights_last_first
    assert torch.allclose(weights(other), weights(plain), atol=1e-4)
    assert all(p.is_contiguous() for p in other.parameters())
    with pytest.raises(KeyboardInterrupt):
        train(convolutions(), task, config, tmp_path / "cut", progress=stop_at(13, KeyboardInterrupt))
    resumed = train(convolutions(), task, config, tmp_path / "cut", resume=True)
    assert torch.equal(weights(resumed), weights(other))


class Net(nn.Module):
    """A module of one's own: what torch.nn has is left uncompiled when it is the outermost."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network(0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_compiled_training_is_the_same_and_leaves_no_trace(tmp_path: Path) -> None:
    calls: list[int] = []

    def counting(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        calls.append(len(inputs))
        return graph.forward

    config = replace(CONFIG, steps=6, compile=True)
    model, compiler = Net(), torch.compile
    with pytest.MonkeyPatch.context() as patch:
        # Inductor itself takes a minute of a core; what is tested is where the compiled call comes and goes.
        patch.setattr(torch, "compile", lambda fn, **options: compiler(fn, backend=counting, **options))
        train(model, Reverse(), config, tmp_path / "compiled")
    assert calls
    plain = train(Net(), Reverse(), replace(config, compile=False), tmp_path / "plain")
    assert torch.allclose(weights(model), weights(plain), atol=1e-6)
    assert model.__dict__.keys() == Net().__dict__.keys()
    assert read_tensors(tmp_path / "compiled/step-00000006/model.safetensors").keys() == plain.state_dict().keys()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_on_a_gpu(precision: Any, tmp_path: Path) -> None:
    config = replace(CONFIG, precision=precision, channels_last=True, compile=True, log_every=5)
    whole = train(convolutions(), Blur(), config, tmp_path / "whole")
    assert {p.device.type for p in whole.parameters()} == {"cuda"}
    with pytest.raises(KeyboardInterrupt):
        train(convolutions(), Blur(), config, tmp_path / "cut", progress=stop_at(15, KeyboardInterrupt))
    resumed = train(convolutions(), Blur(), config, tmp_path / "cut", resume=True)
    assert torch.allclose(weights(resumed), weights(whole), atol=1e-3)
    assert losses(tmp_path / "whole")[-1][1] < losses(tmp_path / "whole")[0][1]


class Waits(Reverse):
    """Raises where the host would wait for the GPU, from the second step to the one before the checkpoint."""

    def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        step = int(batch["step"])
        torch.cuda.set_sync_debug_mode("error" if 2 <= step < 8 else "default")
        return super().__call__(model, batch)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_the_host_does_not_wait_between_log_lines(tmp_path: Path) -> None:
    try:
        config = replace(CONFIG, precision="bf16", log_every=10, checkpoint_every=10, steps=10)
        train(network().cuda(), Waits(), config, tmp_path)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_learning_rate(tmp_path: Path) -> None:
    config = TrainConfig(steps=110, warmup=10, lr=1.0)
    assert [learning_rate(config, s) for s in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert [learning_rate(config, s) for s in (10, 60, 110)] == pytest.approx([1.0, 0.5, 0.0])
    constant = replace(config, decay="constant")
    assert [learning_rate(constant, s) for s in (4, 10, 109)] == pytest.approx([0.5, 1.0, 1.0])
    halved = replace(constant, halve_at=(20, 30))
    assert [learning_rate(halved, s) for s in (4, 19, 20, 30, 109)] == pytest.approx([0.5, 1.0, 0.5, 0.25, 0.25])
    assert learning_rate(replace(config, warmup=0), 0) == 1.0
    assert all(learning_rate(replace(config, steps=5), s) > 0 for s in range(5))
    train(network(), Reverse(), CONFIG, tmp_path)
    logged = [json.loads(line)["lr"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert logged == [learning_rate(CONFIG, s) for s in range(20)]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"accumulate": 0}, "accumulate must be at least 1"),
        ({"warmup": -1}, "warmup must be at least 0, got -1"),
        ({"halve_at": (5, -1)}, r"halve_at are steps from 0 on, got \(5, -1\)"),
        ({"precision": "fp32"}, "unknown precision 'fp32': expected no, bf16, fp16 or auto"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": float("nan")}, "lr must be positive and finite, got nan"),
        ({"clip": float("inf")}, "clip must be positive and finite, got inf"),
        ({"ema": float("nan")}, r"ema must be in \[0, 1\), got nan"),
        ({"clip": -1.0}, "clip must be positive"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\)"),
        ({"ramp": 1}, "ramp must be at least 2, got 1"),
        ({"decay": "linear"}, "unknown decay 'linear': expected constant or cosine"),
    ],
)
def test_a_wrong_configuration_is_explained(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**wrong)


def test_a_folder_with_something_in_it_is_not_touched(tmp_path: Path) -> None:
    train(network(), Reverse(), replace(CONFIG, steps=5), tmp_path / "out")
    with pytest.raises(FileExistsError, match="exists already: pass resume=True to continue it or overwrite=True"):
        train(network(), Reverse(), CONFIG, tmp_path / "out")
    assert losses(tmp_path / "out")[-1][0] == 5
    train(network(), Reverse(), CONFIG, tmp_path / "out", overwrite=True)
    assert [step for step, _ in losses(tmp_path / "out")] == [*range(1, 21)]


def test_a_folder_that_cannot_be_written_is_an_error_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionError, match="cannot write to"):
        train(network(), Reverse(), CONFIG, tmp_path / "file" / "out", progress=stop_at(1, KeyboardInterrupt))


def test_a_checkpoint_records_its_configuration(tmp_path: Path) -> None:
    train(network(), Reverse(), CONFIG, tmp_path)
    described = {"config": {**asdict(CONFIG), "halve_at": []}, "settings": {}}
    digests = {
        name: digest(read_tensors(tmp_path / "step-00000020" / f"{name}.safetensors"))
        for name in ("model", "average", "optimizer")
    }
    said = {"step": 20, **described, "digests": digests}
    assert read_json(tmp_path / "step-00000020" / "state.json") == {**said, "sha256": seal(said)}


def test_a_stage_reports_its_loss(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told: list[tuple[str, int, int, str]] = []
    train(network(), Reverse(), CONFIG, tmp_path, progress=stage_progress("teach", lambda *line: told.append(line)))
    assert told == [("teach", step, 20, f"loss {loss:.4f}") for step, loss in losses(tmp_path)]
    with caplog.at_level("DEBUG", "dsno.train"):
        quiet(*told[-1])
    assert caplog.messages == [f"teach 20/20 {told[-1][3]}"]


def test_a_tracker_of_accelerates_writes(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(network(), Reverse(), replace(CONFIG, tracker="tensorboard", clip=None), tmp_path)
    assert sum(p.stat().st_size for p in tmp_path.rglob("events.out.tfevents*")) > 0
