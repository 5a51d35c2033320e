"""The tab of restorations in a real browser: it shows what `DiffPIR` makes, of pictures that people draw."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import planned
from browsing import Opened, levels, opened, same
from dsno.data.load import load_data
from dsno.denoise import Guided
from dsno.grids import uniform
from dsno.inverse import Blur, DiffPIR, Downsample, Mask
from dsno.inverse.kernels import gaussian
from dsno.inverse.problem import Problem
from dsno.runs.shipped import shipped
from dsno.seeds import noise, seed_range
from dsno.students.files import load_student
from dsno.students.samplers import sampler_of
from dsno.teachers.load import load_teacher
from dsno.web.serve import served

pytestmark = pytest.mark.browser

SHAPE, SEEDS = (1, 8, 8), seed_range(0, 4)


@pytest.fixture(scope="module")
def shared(browser: Any, site: Path) -> Iterator[Opened]:
    with served(site) as url, opened(browser, url) as made:
        yield made.loaded()


GO = """(view) => new Promise((there) => {
    addEventListener("hashchange", there, {once: true});
    // What nobody reads makes it another address than the last.
    location.hash = `${view}&n=${performance.now()}`;
})"""


def see(made: Opened, view: str = "") -> None:
    """Go to a view of the tab, and wait until all of it is drawn."""
    made.page.evaluate(GO, f"tab=restore&{view}")
    settle(made)


def settle(made: Opened) -> None:
    made.page.locator("#student[aria-busy=false]").wait_for(state="attached")
    made.page.locator("#restorations[aria-busy=false]").wait_for()


def sample() -> Tensor:
    """The sample of seed 7, as a picture file has it."""
    x = load_student(shipped() / "student").sample(noise([7], SHAPE))
    return levels(x[0])[None, None] / 127.5 - 1


def restored(problem: Problem, y: Tensor, steps: int = 20) -> Tensor:
    teacher = load_teacher(shipped() / "teacher")
    z = noise(SEEDS, SHAPE)
    return DiffPIR(uniform(steps))(teacher, teacher.schedule, problem, y.expand(4, -1, -1, -1), z, seeds=SEEDS).x


def shown(made: Opened) -> list[Tensor]:
    """The levels of the restorations."""
    for n, canvas in enumerate(made.page.locator("#restorations canvas").all()):
        canvas.evaluate(f"(canvas) => (canvas.id = 'restored-{n}')")
    return [made.pixels(f"restored-{n}") for n in range(4)]


MADE = """async ([kind, option, y, tau, steps, seeds]) => {
    const {openNetworks} = await import("/networks.js");
    const problems = await import("/problems.js");
    const {runRestoring} = await import("/samplers.js");
    const {noise} = await import("/seeds.js");
    const {shape, teacher} = await (await fetch("/model.json")).json();
    globalThis.teacherAsked ??= openNetworks(["teacher"]);
    const ask = await globalThis.teacherAsked;
    const problem = problems[kind](shape, option);
    const {sigma, clip, restoring} = teacher;
    const given = {name: "teacher", plan: restoring[steps], sigma, clip, empty: null, shape, told: {}, tau, problem};
    const made = [];
    for (const seed of seeds) {
        const draw = (stream) => noise(BigInt(seed), shape.reduce((size, n) => size * n), stream);
        const options = {...given, y: Float32Array.from(y), draw, ask, stale: () => false};
        made.push([...(await runRestoring(options)).x]);
    }
    return made;
}"""


@pytest.mark.parametrize("tau", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["masked", "blurred", "halved"])
def test_restorations_are_those_of_python(kind: str, tau: float, shared: Opened) -> None:
    problems: dict[str, tuple[Problem, Any]] = {
        "masked": (Mask.box(SHAPE, noise=tau), Mask.box(SHAPE).keep.flatten().int().tolist()),
        "blurred": (Blur(gaussian((7, 7), 1.0), noise=tau), 1.0),
        "halved": (Downsample(2, noise=tau), None),
    }
    problem, option = problems[kind]
    y = problem.A(load_data("digits").x[:1])
    y = y + tau * problem.A(noise([5], SHAPE))
    found = shared.page.evaluate(MADE, [kind, option, y.flatten().tolist(), tau, 20, [str(int(s)) for s in SEEDS]])
    made = torch.tensor(found).reshape(4, *SHAPE)
    # Of some pictures, as of the shipped student's, a rounding grows beyond that in twenty steps.
    torch.testing.assert_close(made, restored(problem, y), rtol=0, atol=1e-4)
    if kind == "masked" and tau == 0:
        # A thirtieth of a level: the shipped teacher's schedule ends at a sigma of 4.5e-5.
        torch.testing.assert_close(problem.A(made), y.expand(4, -1, -1, -1), rtol=0, atol=2.5e-4)


@pytest.mark.parametrize(
    "view",
    ["", "noise=0.1&restoring=5&first=0", "problem=blur&noise=0.05", "problem=blur&blur=0.75", "problem=means&seed=8"],
)
def test_what_is_shown_is_what_the_code_beside_it_makes_in_python(view: str, shared: Opened) -> None:
    see(shared, view)
    code = shared.page.locator("#python").text_content()
    made: dict[str, Any] = {}
    exec(code.replace("TEACHER", str(shipped() / "teacher")), made)
    found = shown(shared)
    for seed in range(4):
        same(found[seed], levels(made["made"][seed]))
    if view == "":
        y = Mask.box(SHAPE).A(sample())
        torch.testing.assert_close(made["made"], restored(Mask.box(SHAPE), y), rtol=0, atol=1e-6)
        shared.text("restored-time", r"^80 calls, \d+\sms$")
        shared.text("restored-fit", "^They differ by 0.000 from what was measured, by")


def test_a_picture_is_drawn_hidden_and_given_by_its_link(shared: Opened) -> None:
    page = shared.page
    see(shared)
    page.locator("#paper-clear").click()
    page.locator("#mask-none").click()
    page.locator("[data-tool=draw]").click()
    box = page.locator("#paper").bounding_box()
    across = [(box["x"] + box["width"] * (j + 0.5) / 8, box["y"] + box["height"] * 2.5 / 8) for j in (1, 6)]
    page.mouse.move(*across[0])
    page.mouse.down()
    page.mouse.move(*across[1])
    page.mouse.up()
    page.locator("[data-tool=hide]").click()
    page.locator("#paper").focus()
    for key in ("ArrowUp", "ArrowLeft", "Space"):
        page.keyboard.press(key)
    drawn, hidden = torch.zeros(8, 8, dtype=torch.int64), torch.zeros(8, 8, dtype=torch.bool)
    drawn[2, 1:7], hidden[3, 3] = 255, True
    shared.text("paper-said", "^Row 4, column 4$")
    page.wait_for_url(re.compile(f"picture={bytes(drawn.flatten().tolist()).hex()}&mask=0000001000000000$"))
    link = page.evaluate("location.hash")
    settle(shared)
    expected = restored(Mask(~hidden), Mask(~hidden).A(drawn[None, None] / 127.5 - 1))
    for found, x in zip(shown(shared), expected, strict=True):
        same(found, levels(x))
        assert bool((found[~hidden] == drawn[~hidden]).all()), "what was seen is kept"
    see(shared)
    shared.text("paper-what", "^the student's sample$")
    see(shared, link.partition("&")[2])
    shared.text("paper-what", "^yours$")
    same(shown(shared)[3], levels(expected[3]))


def test_a_picture_is_opened_from_a_file_and_a_restoration_saved(shared: Opened) -> None:
    page = shared.page
    see(shared)
    picture = io.BytesIO()
    Image.fromarray(np.repeat(np.repeat(np.eye(8, dtype=np.uint8) * 255, 4, 0), 4, 1)).save(picture, "png")
    page.locator("#mask-none").click()
    page.set_input_files("#paper-file", {"name": "x.png", "mimeType": "image/png", "buffer": picture.getvalue()})
    shared.text("paper-what", "^yours$")
    settle(shared)
    same(shown(shared)[0], 255 * torch.eye(8, dtype=torch.int64))
    page.locator("#restore-title").click()
    with page.expect_download() as download:
        page.keyboard.press("s")
    assert download.value.suggested_filename == "digits-restored.png"
    page.set_input_files("#paper-file", {"name": "x.png", "mimeType": "image/png", "buffer": b"none"})
    shared.text("said", "^This file is no picture")


def test_seeds_are_led_by_keys_and_the_tabs_lead_back(shared: Opened) -> None:
    page = shared.page
    see(shared, "first=3")
    page.locator("[data-tab=restore]").first.focus()
    page.keyboard.press("ArrowRight")
    settle(shared)
    assert page.locator("#first").input_value() == "4" and page.locator("#seed").input_value() == "7"
    assert not page.locator("#wall").is_visible() and page.locator("#paper").is_visible()
    page.locator("button[data-tab=sample]").click()
    assert page.locator("#wall").is_visible() and not page.locator("#paper").is_visible()
    assert "load_student" in page.locator("#python").text_content()


def test_class_and_guidance_restore_what_they_name(browser: Any, told: Path) -> None:
    student, teacher = planned.told()
    with served(told) as url, opened(browser, f"{url}#tab=restore&label=2&guidance=1.5&restoring=5") as made:
        made.text("restored-time", "^40 calls")
        cond = {"label": torch.tensor([2]), "weight": torch.tensor([1.5])}
        x = levels(sampler_of(student, 1)(noise([7], student.shape), cond).sample[0])[None, None] / 127.5 - 1
        problem, z = Mask.box(student.shape), noise(SEEDS, student.shape)
        cond = {name: value.expand(4) for name, value in cond.items()}
        guided = Guided(teacher, {"label": torch.tensor(3)})
        y = problem.A(x).expand(4, -1, -1, -1)
        expected = DiffPIR(uniform(5))(guided, teacher.schedule, problem, y, z, cond, SEEDS).x
        settle(made)
        for found, one in zip(shown(made), expected, strict=True):
            same(found, levels(one))
        assert 'Guided(teacher, {"label": torch.tensor(3)})' in made.page.locator("#python").text_content()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width, height", [(390, 844), (1280, 900)])
def test_it_fits_phones_and_desks_by_day_and_night(
    width: int, height: int, scheme: str, shared: Opened, tmp_path: Path
) -> None:
    page, folder = shared.page, Path(os.environ.get("DSNO_SCREENSHOTS") or tmp_path)
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme=scheme)
    see(shared)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    heights = [b.bounding_box()["height"] for b in page.locator("button:visible").all()]
    assert min(heights) >= 36, "a finger finds it"
    page.screenshot(path=folder / f"web-restore-{width}-{scheme}.png", full_page=True)
