"""Problems on the page are those of `dsno.inverse`, and a restorer there makes the same of them: tried in node."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dsno.web
from dsno.denoise import Prediction
from dsno.grids import uniform
from dsno.inverse.blur import Blur
from dsno.inverse.kernels import gaussian
from dsno.inverse.operators import Downsample, Mask
from dsno.inverse.problem import Problem, check_problem, posterior_mean
from dsno.inverse.projected import DiffPIR
from dsno.schedule import Cosine
from dsno.seeds import noise
from dsno.web.plans import restoring_planned

SHAPES = ((1, 8, 8), (3, 6, 10))

MADE = """
import * as problems from "./problems.js";
import { runRestoring } from "./samplers.js";
import { noise } from "./seeds.js";

const chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
const given = JSON.parse(Buffer.concat(chunks).toString());
const made = [];
for (const { shape, kind, option, x, y, z, delta, restoring } of given) {
    const problem = problems[kind](shape, option);
    if (!restoring) {
        const mean = problem.mean(Float32Array.from(z), Float32Array.from(y), delta);
        made.push([problem.shape, [...problem.A(Float32Array.from(x))], [...mean]]);
        continue;
    }
    const ask = async (_, { x, t }) => ({ F: x.data.map((value) => Math.tanh(value - t.data[0])), milliseconds: 1 });
    const draw = (stream) => noise(7n, x.length, stream);
    const options = { ...restoring, clip: 1, empty: null, shape, told: {}, ask, draw, stale: () => false };
    const restored = await runRestoring({ ...options, problem, y: Float32Array.from(y) });
    made.push([restored.milliseconds, [...restored.x]]);
}
console.log(JSON.stringify(made));
"""


class Bent(nn.Module):
    """A network that JavaScript has, too."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x - t.reshape(-1, 1, 1, 1))


def problems(shape: tuple[int, ...], tau: float) -> dict[tuple[str, Any], Problem]:
    """The same on both sides, by name and option there."""
    keep = noise([3], shape[1:])[0] > 0
    made: dict[tuple[str, Any], Problem] = {
        ("masked", tuple(keep.flatten().int().tolist())): Mask(keep, tau),
        ("halved", None): Downsample(2, noise=tau),
    }
    for std, reach in ((0.5, 2), (1.0, min(3, (min(shape[1:]) - 1) // 2)), (2.0, (min(shape[1:]) - 1) // 2)):
        kernel = gaussian((2 * reach + 1, 2 * reach + 1), std)
        made["blurred", std] = Blur(kernel, noise=tau)
    return made


CASES = [(shape, tau, *case) for shape in SHAPES for tau in (0.0, 0.1) for case in problems(shape, tau).items()]


def told(shape: tuple[int, ...], tau: float, name: tuple[str, Any], problem: Problem) -> dict[str, Any]:
    """A case in JSON's words: a picture, what was measured of it, a mean before that and r^2 of 0.25."""
    x, z = noise([0, 1], shape).tanh().double()
    y = problem.A(x[None])[0]
    given = {"shape": shape, "kind": name[0], "option": name[1], "delta": tau**2 / 0.25}
    return given | {key: value.flatten().tolist() for key, value in (("x", x), ("y", y), ("z", z))}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What node makes of every case, a mean and a restoration."""
    if (node := shutil.which("node")) is None:
        pytest.skip("needs node: apt-get install nodejs; the browser tests try the same on the page")
    folder = tmp_path_factory.mktemp("page")
    for source in (Path(dsno.web.__file__).parent / "page").glob("*.js"):
        shutil.copyfile(source, folder / source.name)
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "tried.js").write_text(MADE)
    teacher = taught()
    sigma = teacher.schedule.at(1.0)[1]
    plan = [asdict(step) for step in restoring_planned(teacher, 6)]
    given = [told(*case) for case in CASES]
    options = [{"restoring": {"sigma": sigma, "plan": plan, "tau": tau}} for _, tau, *_ in CASES]
    restored = [case | option for case, option in zip(given, options, strict=True)]
    ran = subprocess.run(
        [node, "tried.js"], cwd=folder, input=json.dumps(given + restored), capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def taught() -> Prediction:
    return Prediction(Bent(), Cosine(), "v", clip=1.0)


@pytest.mark.parametrize("place", range(len(CASES)))
def test_what_is_measured_and_the_mean_given_that_are_the_librarys(place: int, made: list[Any]) -> None:
    shape, tau, name, problem = CASES[place]
    given = told(*CASES[place])
    x, z = (torch.tensor(given[key], dtype=torch.float64).reshape(1, *shape) for key in "xz")
    y = problem.A(x)
    measured, Ax, mean = made[place]
    assert tuple(measured) == check_problem(problem, shape)
    torch.testing.assert_close(torch.tensor(Ax).reshape(y.shape), y.float(), rtol=0, atol=1e-6)
    # In float64 Python keeps what is left of less than 3e-4 of a blur.
    if tau > 0 or name[0] != "blurred":
        expected = posterior_mean(problem, z, y, 0.25).float()
        torch.testing.assert_close(torch.tensor(mean).reshape(expected.shape), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("place", range(len(CASES)))
def test_a_restoration_is_the_librarys(place: int, made: list[Any]) -> None:
    shape, _, _, problem = CASES[place]
    y = torch.tensor(told(*CASES[place])["y"]).reshape(1, *check_problem(problem, shape))
    calls, x = made[len(CASES) + place]
    z = noise([7], shape)
    expected = DiffPIR(uniform(6))(taught(), Cosine(), problem, y, z, seeds=[7]).x
    assert calls == 6
    torch.testing.assert_close(torch.tensor(x).reshape(expected.shape), expected, rtol=0, atol=1e-4)
