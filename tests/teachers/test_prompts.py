"""Prompts are embedded as the pipeline embeds them, and nothing as the model was taught what nothing is."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from dsno.denoise import Guided, Prediction
from dsno.nets.unet import UNet
from dsno.schedule import Cosine
from dsno.teachers.diffusers import load_diffusers
from dsno.teachers.prompts import encode_prompts, null_cond, null_of, under_guidance
from pipelines import diffusers, make_text_encoder, make_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_a_prompt_is_what_the_text_encoder_says_of_every_token(folders: dict[str, Path], tmp_path: Path) -> None:
    prompts = ["a cat", "two owls"]
    tokens = make_tokenizer(tmp_path)(prompts, padding="max_length", max_length=12, return_tensors="pt").input_ids
    cond = encode_prompts(folders["sd"], prompts)
    with torch.no_grad():
        assert [*cond] == ["text"] and torch.equal(cond["text"], make_text_encoder()(tokens)[0])
    # One prompt needs no list, and its row is that of any batch.
    torch.testing.assert_close(encode_prompts(folders["sd"], "two owls")["text"][0], cond["text"][1])


def test_the_third_stable_diffusion_is_told_pooled_texts_too(folders: dict[str, Path]) -> None:
    cond, null = encode_prompts(folders["sd3"], ["a cat", "two owls"]), null_cond(folders["sd3"])
    # Two of CLIP's encoders beside each other, and zeros for the 256 tokens of the T5 that is not there.
    assert {name: tuple(c.shape) for name, c in cond.items()} == {"text": (2, 12 + 256, 32), "pooled": (2, 32)}
    assert not cond["text"][:, 12:].any() and bool(cond["text"][:, :12].any(-1).all())
    assert isinstance(null, dict) and {name: c.shape for name, c in null.items()} == {
        name: c.shape[1:] for name, c in cond.items()
    }
    empty = encode_prompts(folders["sd3"], "")
    for name, c in null.items():
        torch.testing.assert_close(c, empty[name][0])
        assert not torch.allclose(c, cond[name][0], atol=1e-2)


def test_nothing_is_the_empty_prompt_or_the_label_behind_the_last(folders: dict[str, Path]) -> None:
    null = null_cond(folders["sd"])
    assert isinstance(null, torch.Tensor) and null.shape == (12, 16)
    torch.testing.assert_close(null, encode_prompts(folders["sd"], "")["text"][0])
    label = null_cond(folders["dit"])
    assert isinstance(label, torch.Tensor) and label.dtype == torch.int64 and label.shape == () and int(label) == 1000


def test_a_pipeline_without_texts_says_so(folders: dict[str, Path]) -> None:
    in_memory = diffusers.DDPMPipeline.from_pretrained(folders["ddpm"])
    for ref in (folders["ddpm"], in_memory):
        with pytest.raises(ValueError, match="the files of a UNet2DModel name no null label"):
            null_cond(ref)
        with pytest.raises(ValueError, match="unknown text pipeline DDPMPipeline: expected one of StableDiffusionPip"):
            encode_prompts(ref, "a cat")


@pytest.mark.parametrize("length", [10**30, None])
def test_a_tokenizer_without_a_length_has_its_encoders(
    folders: dict[str, Path], tmp_path: Path, length: int | None
) -> None:
    shutil.copytree(folders["sd"], tmp_path / "sd")
    file = tmp_path / "sd" / "tokenizer" / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": length}))
    expected = encode_prompts(folders["sd"], "a cat")["text"]
    assert load_diffusers(tmp_path / "sd").net.tokens == {"text": (12, 16)}
    assert torch.equal(encode_prompts(tmp_path / "sd", "a cat")["text"], expected)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "sd")
    before = pipe.tokenizer.model_max_length
    assert before > 12 and load_diffusers(pipe).net.tokens == {"text": (12, 16)}
    assert torch.equal(encode_prompts(pipe, "a cat")["text"], expected)
    assert pipe.tokenizer.model_max_length == before


def test_encoders_in_memory_are_used_without_wrappers_and_left_as_they_are(folders: dict[str, Path]) -> None:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folders["sd"])
    inner = pipe.text_encoder.train()
    pipe.text_encoder = torch.nn.DataParallel(torch.compile(inner, backend="eager"))
    wrapped = pipe.text_encoder
    assert torch.equal(encode_prompts(pipe, "a cat")["text"], encode_prompts(folders["sd"], "a cat")["text"])
    assert pipe.text_encoder is wrapped and inner.training


def test_encoders_of_no_variant_do_where_there_is_none_of_it(folders: dict[str, Path]) -> None:
    plain = encode_prompts(folders["sd"], "a cat")["text"]
    assert torch.equal(encode_prompts(folders["sd"], "a cat", variant="fp16")["text"], plain)
    assert isinstance(null_cond(folders["sd"], variant="fp16"), torch.Tensor)


def test_what_stands_for_no_condition_has_the_conditions_form() -> None:
    net = UNet(1, 8, (4, 8), attention=(), classes=10, null=True)
    told = Prediction(net, Cosine(), "v", classes=10)
    assert under_guidance("it", told, ()) is told
    fixed, free = under_guidance("it", told, (1.5,), null=10), under_guidance("it", told, (0, 3), null=10)
    assert isinstance(fixed, Guided) and fixed.weight == 1.5 and torch.equal(fixed.null, torch.tensor(10))
    assert isinstance(free, Guided) and free.weight is None
    assert {name: int(absent) for name, absent in free.null.items()} == {"label": 10}
    assert torch.equal(null_of("it", told, 7), torch.tensor(7))
    assert torch.equal(null_of("it", told, None), torch.tensor(10))
    told = Prediction(UNet(1, 8, (4, 8), attention=(), classes=10), Cosine(), "v", classes=10)
    with pytest.raises(ValueError, match="it does not say which label stands for none: give it, null=10, if"):
        null_of("it", told, None)
