"""What is exported is the student's sampler, or it is not written."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dsno.app.export import CUDAGraphSampler, export_onnx, export_program, load_program
from dsno.checkpoint import temporary_name, version_of
from dsno.denoise import Prediction
from dsno.nets.unet import UNet
from dsno.schedule import VE, Cosine
from dsno.students.flowmap import flow_map_from_teacher
from dsno.students.heads import decoder_from_teacher
from dsno.students.lift import lift
from dsno.students.operator import TrajectoryStudent, student_from_teacher
from dsno.students.samplers import OnePass


def student(kind: str = "v", classes: int | None = 3, guidance: bool = True, told: str = "input") -> TrajectoryStudent:
    torch.manual_seed(0)
    net = UNet(1, 4, (4, 8), attention=(), classes=classes)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    schedule = VE(80.0) if kind == "edm" else Cosine()
    teacher = Prediction(net, schedule, kind, data_std=0.5)
    made = student_from_teacher(teacher, [0.5, 0.0], once=told == "input", told=told, guidance=guidance)
    for p in made.net.added().parameters():
        nn.init.normal_(p, std=0.2)
    return made.eval()


def condition(rows: int) -> dict[str, Tensor]:
    return {"label": torch.arange(rows) % 3, "weight": torch.linspace(0, 3, rows)}


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 2, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return torch.tanh(self.conv(x) + cond[:, :, None] * t[:, None, None])


def own() -> TrajectoryStudent:
    torch.manual_seed(0)
    example = (torch.zeros(1, 2, 6), torch.ones(1), torch.zeros(1, 2))
    net = lift(Own(), example, ["conv"], 2, where="every", init="normal")
    return TrajectoryStudent(net, Cosine(), [0.5, 0.0], shape=(2, 6)).eval()


def test_a_program_is_the_sampler_for_any_batch(tmp_path: Path) -> None:
    made = student()
    path = export_program(made, tmp_path / "deep" / "sampler.pt2")
    assert sorted(p.name for p in path.parent.iterdir()) == ["sampler.pt2", "sampler.pt2.json"]
    loaded = load_program(path)
    for rows in (1, 4, 7):
        z, cond = torch.randn(rows, 1, 4, 4), condition(rows)
        torch.testing.assert_close(loaded(z, cond), made.sample(z, cond), rtol=1e-5, atol=1e-5)
    about = loaded.metadata
    assert loaded.shape == (1, 4, 4) and about["times"] == [0.5, 0.0] and about["batch"] is None
    label, weight = {"shape": [], "dtype": "int64"}, {"shape": [], "dtype": "float32"}
    assert about["cond"] == {"label": label, "weight": weight} and about["dsno"] == version_of("dsno")
    assert 0 <= about["error"] < 1e-5 and about["kind"] == "v" and about["schedule"]["name"] == "Cosine"
    with pytest.raises(ValueError, match="this program is told label, weight, got label"):
        loaded(z, {"label": cond["label"]})


def test_a_program_of_one_batch_size_without_a_condition(tmp_path: Path) -> None:
    made = student("edm", None, guidance=False)
    modes = {name: n % 3 > 0 for n, (name, _) in enumerate(made.named_modules())}
    for name, module in made.named_modules():
        module.training = modes[name]
    path = export_program(made, tmp_path / "sampler.pt2", batch=3, dynamic=False)
    assert {name: module.training for name, module in made.named_modules()} == modes
    loaded, z = load_program(path), torch.randn(3, 1, 4, 4)
    torch.testing.assert_close(loaded(z), made.eval().sample(z), rtol=1e-5, atol=1e-4)
    assert loaded.metadata["batch"] == 3


def test_onnx_is_the_sampler(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    made = student()
    others = {tmp_path / name: f'{{"mine": "{name}"}}' for name in ("sampler.json", "sampler.pt2.json")}
    for other, text in others.items():
        other.write_text(text)
    path = export_onnx(made, tmp_path / "sampler.onnx")
    assert sorted(p.name for p in tmp_path.iterdir())[1:3] == ["sampler.onnx", "sampler.onnx.json"]
    assert {other: other.read_text() for other in others} == others
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    z, cond = torch.randn(5, 1, 4, 4), condition(5)
    (x,) = session.run(["x"], {"z": z.numpy(), **{name: c.numpy() for name, c in cond.items()}})
    torch.testing.assert_close(torch.from_numpy(x), made.sample(z, cond), rtol=1e-4, atol=1e-4)
    assert json.loads(path.with_name("sampler.onnx.json").read_text())["inputs"] == ["z", "label", "weight"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_onnx_of_a_dtype_that_onnxruntime_lacks_is_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    made = student().to(dtype)
    with pytest.raises(ValueError, match=f"the student is in {str(dtype)[6:]}, which .*: export student.float()"):
        export_onnx(made, tmp_path / "sampler.onnx")
    assert not list(tmp_path.iterdir()) and next(made.parameters()).dtype == dtype


def test_one_row_is_enough_for_any_batch(tmp_path: Path) -> None:
    made, z = student("v", None, guidance=False), torch.randn(3, 1, 4, 4)
    path = export_program(made, tmp_path / "sampler.pt2", batch=1)
    torch.testing.assert_close(load_program(path)(z), made.sample(z), rtol=1e-5, atol=1e-5)
    alone = load_program(export_program(made, tmp_path / "alone.pt2", batch=1, dynamic=False))
    assert alone.metadata["batch"] == 1 and alone(z[:1]).shape == (1, 1, 4, 4)


def test_onnx_traced_with_one_row_takes_any_batch_in_either_order(tmp_path: Path) -> None:
    """Behind a program as before one: each has a description of its own."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    made, z = own(), torch.randn(3, 2, 6)
    exports = {"pt2": export_program, "onnx": export_onnx}
    for order in (("pt2", "onnx"), ("onnx", "pt2")):
        name = tmp_path / order[0]
        for form in order:
            exports[form](made, name.with_suffix(f".{form}"), batch=1, cond=torch.ones(1, 2))
        expected = made.sample(z, torch.ones(3, 2))
        program = load_program(name.with_suffix(".pt2"))
        torch.testing.assert_close(program(z, torch.ones(3, 2)), expected, rtol=1e-5, atol=1e-5)
        session = onnxruntime.InferenceSession(str(name.with_suffix(".onnx")), providers=["CPUExecutionProvider"])
        (x,) = session.run(None, {"z": z.numpy(), "cond": torch.ones(3, 2).numpy()})
        torch.testing.assert_close(torch.from_numpy(x), expected, rtol=1e-4, atol=1e-4)


def test_an_example_of_no_rows_is_refused(tmp_path: Path) -> None:
    for batch in (0, -1):
        with pytest.raises(ValueError, match=f"batch must be at least 1, got {batch}"):
            export_program(own(), tmp_path / "own.pt2", batch=batch, cond=torch.ones(1, 2))
    with pytest.raises(ValueError, match="the condition is an example of no rows: give at least one"):
        export_program(own(), tmp_path / "own.pt2", cond=torch.ones(0, 2))


def test_what_differs_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="differs from the student by .* was not written"):
        export_program(own(), tmp_path / "a.pt2", cond=torch.randn(1, 2), dynamic=False, tolerance=-1.0)
    assert not list(tmp_path.iterdir())


def test_what_is_no_program_is_explained(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no sampler\.pt2\.json"):
        load_program(tmp_path / "sampler.pt2")
    (tmp_path / "sampler.json").write_text('{"format": "onnx"}')
    with pytest.raises(ValueError, match="describes no torch.export program"):
        load_program(tmp_path / "sampler.pt2")
    (tmp_path / "sampler.json").write_text('{"format": "torch.export"}')
    with pytest.raises(FileNotFoundError, match="export it again"):
        load_program(tmp_path / "sampler.pt2")


def test_a_description_of_something_else_is_kept(tmp_path: Path) -> None:
    beside = tmp_path / "sampler.pt2.json"
    for text in ('{"mine": 1}', '{"format": "mine"}', "[]", "{"):
        beside.write_text(text)
        for export in (export_program, export_onnx):
            path = tmp_path / "sampler.pt2"
            with pytest.raises(FileExistsError, match=r"sampler\.pt2\.json describes no export and would be replaced"):
                export(own(), path, cond=torch.randn(1, 2))
        assert beside.read_text() == text and not path.exists()


def test_programs_of_version_0_1_are_described_by_their_stem(tmp_path: Path) -> None:
    path = export_program(own(), tmp_path / "own.pt2", cond=torch.randn(1, 2), dynamic=False)
    (tmp_path / "own.pt2.json").rename(tmp_path / "own.json")
    assert load_program(path).metadata["format"] == "torch.export"


def test_what_a_killed_export_left_is_swept_by_the_next(tmp_path: Path) -> None:
    left = [tmp_path / temporary_name(name) for name in ("own.pt2", "other.pt2")]
    for folder in left:
        folder.mkdir()
        (folder / "weights").write_text("")
    export_program(own(), tmp_path / "own.pt2", cond=torch.randn(1, 2), dynamic=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([left[1].name, "own.pt2", "own.pt2.json"])


@pytest.mark.skipif(os.name != "posix", reason="limits of posix")
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        # torch's own writer would end the process here.
        with pytest.raises(OSError, match=r"cannot write .*own\.pt2 \(File too large\)"):
            export_program(own(), tmp_path / "own.pt2", cond=torch.randn(1, 2), dynamic=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_users_module_with_a_condition_of_its_own(tmp_path: Path) -> None:
    made = own()
    path = export_program(made, tmp_path / "own.pt2", cond=torch.randn(1, 2))
    z, cond = torch.randn(4, 2, 6), torch.randn(4, 2)
    torch.testing.assert_close(load_program(path)(z, cond), made.sample(z, cond), rtol=1e-5, atol=1e-5)


def test_a_program_is_a_flow_maps_one_pass(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = flow_map_from_teacher(Prediction(UNet(1, 4, (4,), blocks=0, attention=()), Cosine(), "v"))
    for p in made.parameters():
        nn.init.normal_(p, std=0.2)
    path = export_program(made, tmp_path / "map.pt2", dynamic=False)
    loaded, z = load_program(path), torch.randn(2, 1, 4, 4)
    torch.testing.assert_close(loaded(z), made.sample(z), rtol=1e-5, atol=1e-5)
    assert loaded.metadata["times"] == [0.0] and "target" not in loaded.metadata
    made.way, made.steps = "grid", 2
    with pytest.raises(ValueError, match=r"trained for the grid of 2 step\(s\) alone"):
        export_program(made, tmp_path / "grid.pt2", cond=torch.zeros(1))


def test_a_program_is_a_decoders_one_pass_for_any_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = decoder_from_teacher(Prediction(UNet(1, 4, (4,), blocks=0, attention=()), Cosine(), "v"), 4)
    for p in made.parameters():
        nn.init.normal_(p, std=0.2)
    loaded, z = load_program(export_program(made, tmp_path / "decoder.pt2")), torch.randn(3, 1, 4, 4)
    torch.testing.assert_close(loaded(z), made.sample(z), rtol=1e-5, atol=1e-5)
    assert loaded.metadata["times"] == [0.0] and "target" not in loaded.metadata
    with pytest.raises(ValueError, match=r"this decoder makes 2, 4 pass\(es\), got 1"):
        export_program(made.trained_for(1, 2), tmp_path / "short.pt2")


def test_graphs_need_cuda() -> None:
    with pytest.raises(ValueError, match="CUDA graphs need a CUDA device, the student is on cpu: use OnePass"):
        CUDAGraphSampler(student(), 4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(("kind", "told"), [("v", "input"), ("edm", "input"), ("v", "output")])
def test_a_cuda_graph_is_the_sampler(kind: str, told: str) -> None:
    made = student(kind, told=told).cuda()
    graph = CUDAGraphSampler(made, 4)
    for rows in (4, 3, 9):
        z, cond = torch.randn(rows, 1, 4, 4, device="cuda"), {k: v.cuda() for k, v in condition(rows).items()}
        torch.testing.assert_close(graph.sample(z, cond), made.sample(z, cond), rtol=1e-4, atol=1e-4)
        expected = OnePass(made, whole=False)(z, cond)
        torch.testing.assert_close(graph(z, cond).x, expected.x, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="this graph is told"):
        graph.sample(z, {"label": cond["label"]})
