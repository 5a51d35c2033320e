"""A network of two pictures answers like one of one, and looks at both."""

import pytest
import torch

from dsno.nets.backbone import Backbone, example, net_from_config
from dsno.nets.paired import PairedUNet, StartedUNet

NET = {"in_channels": 2, "image_size": 4, "channels": [8, 8], "attention": []}


def perturbed(**options: object) -> PairedUNet:
    torch.manual_seed(0)
    net = PairedUNet({**NET, **options})
    for p in net.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return net.eval()


def test_it_is_a_backbone_and_rebuilt_from_its_configuration() -> None:
    net = perturbed()
    assert isinstance(net, Backbone) and net.shape == (2, 4, 4) and net.tokens == {"start": (2, 4, 4)}
    again = net_from_config(net.config)
    again.load_state_dict(net.state_dict())
    x, t, start = example(net, torch.ones(1), rows=3)
    assert torch.equal(again.eval()(x, t, start), net(x, t, start)) and net(x, t, start).shape == (3, 2, 4, 4)


def test_the_start_is_told_bare_or_by_name_and_matters() -> None:
    net, x, t = perturbed(), torch.randn(3, 2, 4, 4), torch.rand(3)
    start = torch.randn_like(x)
    answer = net(x, t, {"start": start})
    assert torch.equal(net(x, t, start), answer)
    assert not torch.allclose(net(x, t, start.flip(0)), answer) and not torch.allclose(net(x.flip(0), t, start), answer)


def test_labels_stand_beside_the_start() -> None:
    net, x = perturbed(classes=3), torch.randn(2, 2, 4, 4)
    told, others = ({"start": x, "label": torch.tensor(labels)} for labels in ([0, 2], [1, 2]))
    assert net.classes == net.label_count == 3
    assert not torch.allclose(net(x, torch.ones(2), told), net(x, torch.ones(2), others))


@pytest.mark.parametrize("cond, found", [(None, "nothing"), ({}, "nothing"), (torch.zeros(3, 2), r"shape \(3, 2\)")])
def test_without_a_start_it_says_what_is_missing(cond: object, found: str) -> None:
    with pytest.raises(ValueError, match=f'told where it comes from: cond={{"start": x_T}} like x_t, got {found}'):
        perturbed()(torch.zeros(3, 2, 4, 4), torch.ones(3), cond)


def test_a_network_of_noise_is_shown_a_state_and_read_back() -> None:
    net = perturbed()
    made = StartedUNet(NET, 0.8, (0.9, 0.3, 2.0), (0.1, 0.2, 0.7)).eval()
    made.paired.load_state_dict(net.state_dict())
    z, start, t = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.rand(3)
    x = 0.9 * start + 0.3 * z
    expected = 0.1 * x + 0.2 * start + 0.7 * net(2.0 * x, 0.8 * t, start)
    torch.testing.assert_close(made(z, t, {"start": start}), expected)
    again = net_from_config(made.config)
    assert isinstance(made, Backbone) and again.config == made.config


def test_it_takes_any_batch_where_there_is_no_python() -> None:
    made = StartedUNet(NET, 0.8, (0.9, 0.3, 2.0), (0.1, 0.2, 0.7)).eval()
    rows = {0: torch.export.Dim("B", min=1)}
    exported = torch.export.export(made, example(made, torch.ones(1), rows=2), dynamic_shapes=(rows, rows, rows))
    given = torch.randn(5, 2, 4, 4), torch.rand(5), torch.randn(5, 2, 4, 4)
    torch.testing.assert_close(exported.module()(*given), made(*given))
