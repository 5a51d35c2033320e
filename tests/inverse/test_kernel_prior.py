"""Priors take noise off kernels, and the learned one is trained in steps of made kernels and kept in sealed files."""

from pathlib import Path

import pytest
import torch

from dsno.inverse.kernel_prior import (
    KernelDenoiser,
    Shrink,
    load_kernel_denoiser,
    save_kernel_denoiser,
    train_kernel_denoiser,
)
from dsno.inverse.kernels import gaussian, motion
from dsno.nets.features import load_feature_net
from dsno.seeds import seed_range


def test_shrinking_is_the_proximal_map_of_the_sum_of_magnitudes() -> None:
    k, level = torch.linspace(0, 0.2, 11, dtype=torch.float64)[None, None], 0.2
    z = Shrink()(k, level)
    grid = torch.linspace(0, 0.2, 2001, dtype=torch.float64)
    value = (k[0, 0, :, None] - grid).square() / 2 + level**2 * grid
    torch.testing.assert_close(z[0, 0], grid[value.argmin(1)], rtol=0, atol=1e-4)


def test_an_untrained_network_changes_nothing_and_takes_any_size() -> None:
    net = KernelDenoiser()
    for size in ((5, 5), (9, 4)):
        k = motion(size, [1, 2])
        assert torch.equal(net(k, 0.1), k) and net(k, 0.1).dtype == k.dtype
    with pytest.raises(ValueError, match=r"kernels of pictures \(B, 1, h, w\), got \(2, 1, 9\)"):
        net(motion((9,), [1, 2]), 0.1)
    with pytest.raises(ValueError, match="a channel and two layers or more"):
        KernelDenoiser(0, 5)


def test_a_short_training_takes_noise_off_kernels_it_has_not_seen(tmp_path: Path) -> None:
    heard = []
    net = train_kernel_denoiser(
        tmp_path / "kernels", 100, batch=12, sizes=(5,), report=lambda *said: heard.append(said[0])
    )
    clean = torch.cat([motion((5, 5), seed_range(10**6, 60)), gaussian((5, 5), 1.2)[None, None]]).float()
    noisy = clean + 0.05 * torch.randn_like(clean)
    assert (net(noisy, 0.05) - clean).square().mean() < 0.8 * (noisy - clean).square().mean()
    # It is told the level: with little noise it changes little.
    assert (net(clean, 1e-3) - clean).abs().max() < 0.3 * (net(noisy, 0.1) - noisy).abs().max()
    assert "kernels" in heard
    again = load_kernel_denoiser(tmp_path / "kernels")
    assert torch.equal(again(noisy, 0.05), net(noisy, 0.05)) and not any(p.requires_grad for p in again.parameters())
    resumed = train_kernel_denoiser(tmp_path / "kernels", 100, batch=12, sizes=(5,))
    assert torch.equal(resumed(noisy, 0.05), net(noisy, 0.05))


def test_files_are_sealed_and_of_their_own_kind(tmp_path: Path) -> None:
    save_kernel_denoiser(tmp_path / "kernels", KernelDenoiser(8, 3), steps=0)
    assert load_kernel_denoiser(tmp_path / "kernels").config == {"width": 8, "layers": 3}
    with pytest.raises(ValueError, match="holds a kernel denoiser, expected a features"):
        load_feature_net(tmp_path / "kernels")
    config = tmp_path / "kernels" / "config.json"
    config.write_text(config.read_text().replace('"steps": 0', '"steps": 9'))
    with pytest.raises(ValueError, match="was changed after it was written"):
        load_kernel_denoiser(tmp_path / "kernels")


def test_a_batch_without_a_gaussian_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 4"):
        train_kernel_denoiser(tmp_path, batch=3)
