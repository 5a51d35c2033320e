"""Checkpoints in the layout that I2SB's and DDBM's authors publish are read, and what is none is explained."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dsno.bridge.coefficients import DDBMVE, DDBMVP, I2SB
from dsno.bridge.files import load_bridge, save_bridge
from dsno.bridge.published import load_published
from dsno.nets.guided import GuidedUNet

SMALL: dict[str, Any] = {
    "image_size": 8,
    "channels": 8,
    "in_channels": 3,
    "out_channels": 3,
    "ch_mult": (0.5, 1, 2),
    "blocks": 1,
    "attention": (4, 2),
    "head_dim": 4,
}


def net(**options: Any) -> GuidedUNet:
    torch.manual_seed(0)
    made = GuidedUNet(**{**SMALL, **options})
    for p in made.parameters():
        p.data = 0.2 * torch.randn_like(p)
    return made.eval()


def test_ddbms_weights_are_read_with_what_they_say_of_themselves(tmp_path: Path) -> None:
    for project, bridge, span in (("ddbm-vp", DDBMVP(), 1.0), ("ddbm-ve", DDBMVE(80.0), 80.0)):
        for options in ({}, {"updown": False, "scale_shift": False, "blocks": 2}):
            expected = net(**options, span=span)
            torch.save(expected.state_dict(), tmp_path / "ema.pt")
            made = load_published(tmp_path / "ema.pt", project, 8, head_dim=4)
            assert made.net.config == expected.config and made.bridge == bridge and made.kind == "ddbm"
            x, start, t = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8), torch.tensor([0.3, 1.0])
            assert torch.equal(made.net(x, t, {"start": start}), expected(x, t, {"start": start}))
    # DDBM's preconditioning with sigma_data = 0.5 and half of its square as the covariance.
    assert made.moments == (0.5, 0.5, 0.125) and made.clip == 1.0


def test_i2sbs_weights_are_their_averages_unless_others_are_asked_for(tmp_path: Path) -> None:
    expected = net(paired=False, clock="steps")
    state = {f"diffusion_model.{name}": value for name, value in expected.state_dict().items()}
    averages = [value + 1 for value in state.values()]
    torch.save({"net": state, "ema": {"decay": 0.99, "shadow_params": averages}, "sched": None}, tmp_path / "latest.pt")
    plain = load_published(tmp_path / "latest.pt", "i2sb", 8, head_dim=4, average=False)
    assert plain.kind == "i2sb" and plain.bridge == I2SB() and plain.net.config == expected.config
    averaged = load_published(tmp_path / "latest.pt", "i2sb", 8, head_dim=4, bridge=I2SB(0.1, 1.0))
    assert averaged.bridge == I2SB(0.1, 1.0)
    for a, b, c in zip(plain.parameters(), averaged.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, c) and torch.equal(b, c + 1)
    save_bridge(tmp_path / "own", averaged)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(load_bridge(tmp_path / "own")(x, 0.5, {"start": x}), averaged(x, 0.5, {"start": x}))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code ran",)


@pytest.mark.parametrize(
    "held, message",
    [
        ([1.0], "holds a list, expected the weights of a bridge by name"),
        ({"a": 1}, "holds a, expected the weights of a bridge by name"),
        ({"a": torch.zeros(1)}, "has no time_embed.0.weight: expected a U-Net of guided diffusion"),
        ({"net": {"a": torch.zeros(1)}, "ema": {"shadow_params": []}}, "averages of 0 weights and 1 weights"),
        (Evil(), "is damaged, or holds more than tensors"),
    ],
)
def test_what_is_no_bridge_is_explained_and_not_run(
    held: object, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(held, tmp_path / "file.pt")
    with pytest.raises(ValueError, match=message):
        load_published(tmp_path / "file.pt", "i2sb", 8)
    assert "code ran" not in capsys.readouterr().out


def test_another_architecture_says_where_it_differs(tmp_path: Path) -> None:
    state = net().state_dict()
    torch.save({**state, "middle_block.0.skip_connection.weight": torch.zeros(1)}, tmp_path / "file.pt")
    with pytest.raises(ValueError, match="middle_block.0.skip_connection.weight is not part of the model"):
        load_published(tmp_path / "file.pt", "ddbm-vp", 8, head_dim=4)
    with pytest.raises(ValueError, match="unknown project 'ddim': expected one of i2sb, ddbm-vp, ddbm-ve"):
        load_published(tmp_path / "file.pt", "ddim", 8)
    with pytest.raises(FileNotFoundError, match="no file"):
        load_published(tmp_path / "nowhere.pt", "i2sb", 8)
