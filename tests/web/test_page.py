"""The page in a real browser: its numbers are Python's, its pictures its numbers, and it asks nobody else."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import planned
from browsing import Opened, levels, opened, same
from dsno.denoise import Guided
from dsno.grids import even
from dsno.report.pictures import slerp
from dsno.runs.shipped import shipped
from dsno.seeds import noise, seed_range
from dsno.solvers.named import SOLVERS
from dsno.solvers.run import SolverSampler
from dsno.students.files import load_student
from dsno.students.operator import TrajectoryStudent
from dsno.students.samplers import OnePass, sampler_of
from dsno.teachers.load import load_teacher
from dsno.trajectory import Trajectory
from dsno.web.serve import served

pytestmark = pytest.mark.browser

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def student() -> TrajectoryStudent:
    made = load_student(shipped() / "student")
    assert isinstance(made, TrajectoryStudent)
    return made


@pytest.fixture(scope="module")
def url(site: Path) -> Iterator[str]:
    with served(site) as address:
        yield address


@pytest.fixture(scope="module")
def shared(browser: Any, url: str) -> Iterator[Opened]:
    """The page, which took so long to load that all look at the one."""
    with opened(browser, url) as made:
        yield made.loaded()


OPEN = """
    const {openNetworks} = await import("/networks.js");
    const {runPasses, runSteps} = await import("/samplers.js");
    const {noise} = await import("/seeds.js");
    const model = await (await fetch("/model.json")).json();
    const size = model.shape.reduce((product, n) => product * n);
    globalThis.asked ??= openNetworks(["student", "wall", "teacher"], threads);
    const ask = await globalThis.asked;
"""
WALL = f"""async ([first, count, threads]) => {{
    {OPEN}
    const {{sigma, rows, wall}} = model.student;
    const samples = [];
    for (let done = 0; done < count; done += rows) {{
        const seeds = [...Array(rows).keys()].map((row) => BigInt(first) + BigInt(done + row));
        const draw = (stream) => Float32Array.from(seeds.flatMap((seed) => [...noise(seed, size, stream)]));
        const given = {{name: "wall", plan: wall[1], sigma, shape: model.shape, rows, draw, told: {{}}, ask}};
        samples.push(...(await runPasses(given)).states.at(-1));
    }}
    return samples.slice(0, count * size);
}}"""
PATH = f"""async ([seed, threads]) => {{
    {OPEN}
    const {{sigma, passes}} = model.student;
    const draw = (stream) => noise(BigInt(seed), size, stream);
    const given = {{name: "student", plan: passes[1], sigma, shape: model.shape, rows: 1, draw, told: {{}}, ask}};
    const {{states, predictions, times}} = await runPasses(given);
    return [times, states.map((x) => [...x]), predictions.slice(1).map((x) => [...x])];
}}"""
STEPS = f"""async ([seed, solver, steps, threads]) => {{
    {OPEN}
    const {{sigma, clip, solvers}} = model.teacher;
    const draw = (stream) => noise(BigInt(seed), size, stream);
    const plan = solvers.find(({{name}}) => name === solver).steps[steps];
    const given = {{name: "teacher", plan, sigma, clip, shape: model.shape, rows: 1, draw, told: {{}}, ask}};
    const {{states, times}} = await runSteps({{...given, stale: () => false}});
    return [times, states.map((x) => [...x])];
}}"""


def test_a_hundred_seeds_are_the_students_in_python(shared: Opened, student: TrajectoryStudent) -> None:
    for first, count in ((0, 100), (2**40, 16)):
        found = torch.tensor(shared.page.evaluate(WALL, [str(first), count, 1])).reshape(count, *SHAPE)
        expected = student.sample(noise(seed_range(first, count), SHAPE))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_all_frames_of_the_pass_are_the_trajectory(shared: Opened, student: TrajectoryStudent) -> None:
    for seed in (7, 2**62 + 1):
        times, states, predictions = shared.page.evaluate(PATH, [str(seed), 1])
        expected = OnePass(student, whole=True)(noise([seed], SHAPE))
        assert times == expected.t.tolist() and expected.x0 is not None
        torch.testing.assert_close(torch.tensor(states).reshape(5, *SHAPE), expected.x[0], rtol=0, atol=1e-4)
        found = torch.tensor(predictions).reshape(4, *SHAPE)
        torch.testing.assert_close(found, expected.x0[0, 1:], rtol=0, atol=1e-4)


def taught(seed: int, solver: str, steps: int) -> Trajectory:
    teacher = load_teacher(shipped() / "teacher")
    grid = even(teacher.schedule, steps)
    return SolverSampler(teacher, teacher.schedule, grid, SOLVERS[solver](), keep=grid)(noise([seed], SHAPE))


@pytest.mark.parametrize("solver", ["ddim", "dpm2"])
def test_the_teachers_steps_are_those_of_python(solver: str, shared: Opened) -> None:
    for steps in (1, 7, 64):
        times, states = shared.page.evaluate(STEPS, ["7", solver, steps, 1])
        expected = taught(7, solver, steps)
        torch.testing.assert_close(torch.tensor(times, dtype=torch.float64), expected.t, rtol=0, atol=1e-9)
        found = torch.tensor(states).reshape(steps + 1, *SHAPE)
        torch.testing.assert_close(found, expected.x[0], rtol=0, atol=1e-4)


def test_the_page_is_isolated_and_says_what_it_shows(shared: Opened) -> None:
    assert shared.page.evaluate("crossOriginIsolated") is True
    assert shared.page.title() == "Digits, in one pass" and not shared.page.locator("#status").is_visible()
    assert shared.text("student-calls", r"pass") == "1 pass"
    shared.text("path-time", r"^all 4 frames in [\d.]+\sms$")
    assert shared.text("teacher-calls", r"step") == "16 steps"
    shared.text("student-time", r"^[\d.]+\sms$")
    shared.text("teacher-time", r"^[\d.]+\sms$")
    shared.text("wall-time", r"^\d+ samples a second$")
    shared.text("wall-seeds", r"^seeds 0 to 63, \d+\sms$")
    assert 'load_student("STUDENT")\nz = noise([7], student.shape)' in shared.page.locator("#python").text_content()


def test_the_scrubber_shows_the_frames_of_the_pass(shared: Opened, student: TrajectoryStudent) -> None:
    x, teacher = OnePass(student, whole=True)(noise([7], SHAPE)), taught(7, "ddim", 16)
    shared.sees("seed=7")
    shared.text("frame-value", "^4 of 4, sample$")
    same(shared.pixels("student"), levels(x.x[0, -1]))
    for frame in (0, 2, 3):
        shared.page.locator("#frame").fill(str(frame))
        shared.text("frame-value", rf"^{frame} of 4")
        same(shared.pixels("student"), levels(x.x[0, frame]))
        nearest = int((teacher.t - x.t[frame]).abs().argmin())
        same(shared.pixels("teacher"), levels(teacher.x[0, nearest]))
    shared.page.locator("#strips .states button").nth(1).click()
    shared.text("frame-value", "^1 of 4, t 0.56$")
    shared.page.keyboard.press("p")
    shared.text("frame-value", "^0 of 4, noise$")
    shared.text("frame-value", "^4 of 4, sample$")


def test_a_link_reproduces_the_view(shared: Opened, student: TrajectoryStudent) -> None:
    z = slerp(*noise([12, 40], SHAPE), 5)[1][None]
    page = shared.page
    shared.sees("seed=12&to=40&mix=0.25&frame=2&solver=dpm2&steps=5")
    shared.text("teacher-calls", "5 steps")
    same(shared.pixels("student"), levels(OnePass(student, whole=True)(z).x[0, 2]))
    shown = [page.locator(f"#{name}").input_value() for name in ("seed", "to", "mix", "frame", "solver")]
    assert shown == ["12", "40", "0.25", "2", "dpm2"]
    page.locator("#steps").fill("0")
    shared.text("teacher-calls", "^1 step$")
    page.wait_for_url(re.compile(r"#seed=12&to=40&mix=0\.25&frame=2&solver=dpm2&steps=1$"))
    page.locator("#seed").fill("nonsense")
    assert page.locator("#seed").get_attribute("aria-invalid") == "true"
    page.locator("#mix").focus()
    shared.sees("seed=-4&mix=2&steps=3000&solver=none&frame=x")
    shared.text("teacher-calls", "16 steps")
    assert page.locator("#seed").input_value() == "7" and page.locator("#solver").input_value() == "ddim"


def test_the_picture_follows_the_slider_from_seed_to_seed(shared: Opened, student: TrajectoryStudent) -> None:
    shared.sees("seed=7&to=11")
    expected = student.sample(slerp(*noise([7, 11], SHAPE), 5))
    for step, x in enumerate(expected):
        shared.page.locator("#mix").fill(str(step / 4))
        shared.page.locator("#student[aria-busy=false]").wait_for()
        same(shared.pixels("student"), levels(x))


def test_keys_and_the_wall_lead_from_seed_to_seed(shared: Opened, student: TrajectoryStudent) -> None:
    page, x = shared.page, student.sample(noise(seed_range(0, 128), SHAPE))
    shared.sees("seed=63")
    shared.text("wall-seeds", "^seeds 0 to 63,")
    wall = shared.pixels("wall")
    for place in (0, 9, 63):
        line, column = divmod(place, 8)
        same(wall[9 * line : 9 * line + 8, 9 * column : 9 * column + 8], levels(x[place]))
    page.locator("#play").focus()
    page.keyboard.press("ArrowRight")
    shared.text("wall-seeds", "^seeds 64 to 127,")
    same(shared.pixels("wall")[:8, :8], levels(x[64]))
    same(shared.pixels("student"), levels(x[64]))
    box = page.locator("#wall").bounding_box()
    page.locator("#wall").click(position={"x": box["width"] * 2.5 / 8, "y": box["height"] * 1.5 / 8})
    assert page.locator("#seed").input_value() == str(64 + 10)
    page.keyboard.press("w")
    # It goes on by itself, and faster than a test looks.
    shared.text("wall-seeds", r"^seeds (192|2\d\d|[3-9]\d\d|\d{4,}) to")
    page.keyboard.press("w")
    assert page.locator("#wall-run").get_attribute("aria-pressed") == "false"


def test_a_picture_is_saved_with_its_pixels_enlarged(shared: Opened, student: TrajectoryStudent) -> None:
    shared.sees("seed=9")
    shared.page.locator("#student[aria-label$='seed 9']").wait_for()
    with shared.page.expect_download() as download:
        shared.page.locator("#save").click()
    assert download.value.suggested_filename == "digits-seed-9.png"
    saved = np.asarray(Image.open(io.BytesIO(Path(download.value.path()).read_bytes())).convert("L"))
    assert saved.shape == (512, 512)
    same(torch.tensor(saved[::64, ::64].astype(np.int64)), levels(student.sample(noise([9], SHAPE))[0]))
    with shared.page.expect_download() as download:
        shared.page.locator("#save-wall").click()
    assert download.value.suggested_filename == "digits-seeds-from-0.png"


@pytest.mark.parametrize("scheme, paper", [("light", "rgb(255, 255, 255)"), ("dark", "rgb(24, 25, 27)")])
@pytest.mark.parametrize("width, height", [(390, 844), (1280, 900)])
def test_it_fits_phones_and_desks_by_day_and_night(
    width: int, height: int, scheme: str, paper: str, shared: Opened, tmp_path: Path
) -> None:
    page, folder = shared.page, Path(os.environ.get("DSNO_SCREENSHOTS") or tmp_path)
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme=scheme)
    shared.sees("seed=7")
    shared.text("wall-seeds", "^seeds 0 to 63,")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == paper
    heights = [b.bounding_box()["height"] for b in page.locator("button:visible:not(.thumbs *)").all()]
    assert min(heights) >= 36, "a finger finds it"
    page.screenshot(path=folder / f"web-{width}-{scheme}.png", full_page=True)
    assert (folder / f"web-{width}-{scheme}.png").stat().st_size > 10_000


THREADS = 'import("/networks.js").then(({threadsFor}) => [1e6, 1e12].map((flops) => threadsFor({flops})))'


def test_class_guidance_and_passes_change_all_that_is_shown(browser: Any, told: Path) -> None:
    student, teacher = planned.told()
    z = noise([7], student.shape)
    with served(told) as url, opened(browser, f"{url}#steps=4&frame=1") as made:
        made.loaded()
        for label, weight, passes in ((0, 0.0, 1), (2, 0.0, 1), (2, 1.5, 1), (2, 1.5, 3)):
            made.page.locator("#label button").nth(label).click()
            made.page.locator("#guidance").fill(str(weight))
            made.page.locator("#passes").select_option(str(passes))
            made.text("student-calls", rf"^{passes} pass(es)?$")
            made.page.locator("#student[aria-busy=false]").wait_for()
            made.page.locator("#teacher[aria-busy=false]").wait_for()
            cond = {"label": torch.tensor([label]), "weight": torch.tensor([weight])}
            expected = sampler_of(student, passes, whole=True)(z, cond)
            same(made.pixels("student"), levels(expected.x[0, 1]))
            guided = Guided(teacher, {"label": torch.tensor(3)})
            grid = even(teacher.schedule, 4)
            taught = SolverSampler(guided, teacher.schedule, grid, keep=grid)(z, cond)
            nearest = int((taught.t - expected.t[1]).abs().argmin())
            same(made.pixels("teacher"), levels(taught.x[0, nearest]))
        assert 'cond = {"label"' in made.page.locator("#python").text_content()


def test_any_host_of_files_will_do_and_then_there_is_one_thread(
    browser: Any, site: Path, student: TrajectoryStudent
) -> None:
    class Plain(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Plain, directory=str(site))) as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        with opened(browser, f"http://127.0.0.1:{server.server_port}/seeds.js") as made:
            assert made.page.evaluate("crossOriginIsolated") is False and made.page.evaluate(THREADS) == [1, 1]
            found = torch.tensor(made.page.evaluate(WALL, ["0", 16, 1])).reshape(16, *SHAPE)
        server.shutdown()
    torch.testing.assert_close(found, student.sample(noise(seed_range(0, 16), SHAPE)), rtol=0, atol=1e-4)


def test_threads_make_the_same_samples(browser: Any, url: str, student: TrajectoryStudent) -> None:
    with opened(browser, f"{url}seeds.js") as made:
        assert made.page.evaluate(THREADS) == [1, min(4, os.cpu_count() or 1)]
        found = torch.tensor(made.page.evaluate(WALL, ["0", 16, 2])).reshape(16, *SHAPE)
    torch.testing.assert_close(found, student.sample(noise(seed_range(0, 16), SHAPE)), rtol=0, atol=1e-4)


def test_a_page_that_lacks_a_file_says_so(browser: Any, url: str) -> None:
    made = Opened(browser, "about:blank")
    made.page.route("**/weights.bin", lambda route: route.fulfill(status=404, body=""))
    made.page.goto(url)
    assert made.text("status", "does not run") == "This page does not run here: weights.bin: 404 Not Found"
    made.page.close()
