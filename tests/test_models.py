import common

import pytest
import torch


def test_lenet_has_the_tutorials_parameters() -> None:
    model = common.LeNet()
    assert sum(p.numel() for p in model.parameters()) == 62_006
    layers = ("conv1", "conv2", "fc1", "fc2", "fc3")
    assert list(model.state_dict()) == [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]


def test_resnet18_has_the_usual_parameters() -> None:
    model = common.ResNet18()
    assert sum(p.numel() for p in model.parameters()) == 11_173_962
    expected = ["conv1.weight", "bn1.weight", "bn1.bias"]
    for stage in range(1, 5):
        for block in range(2):
            parts = ["conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "bn2.weight", "bn2.bias"]
            if stage > 1 and block == 0:
                parts += ["shortcut.0.weight", "shortcut.1.weight", "shortcut.1.bias"]
            expected += [f"layer{stage}.{block}.{part}" for part in parts]
    assert [name for name, _ in model.named_parameters()] == [*expected, "linear.weight", "linear.bias"]


@pytest.mark.parametrize("model", [common.LeNet(0.5), common.ResNet18(8)], ids=["LeNet", "ResNet18"])
def test_gradients_reach_every_parameter(model: torch.nn.Module) -> None:
    torch.manual_seed(0)
    logits = model(torch.randn(8, 3, 32, 32))
    assert logits.shape == (8, 10)
    logits.square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
