"""The fast model: what its network starts as, its optimizer, and that its runs are like all others."""

import dataclasses
import signal
from pathlib import Path

import common

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import at, prepared, read_run, same_losses, same_weights, small_data, weights_of

from fast_model import SETTINGS, FastNet

SMALL = dataclasses.replace(SETTINGS, options={"width": 8}, batch_size=10, epochs=1)
SCRIPT = ("fast_model", "--batch-size", 33, "--lr", 0.1, "--epochs", 2, "--width", 8, "--precision", "fp32")


@pytest.mark.parametrize("width", [8, 64])
def test_network_is_that_of_the_paper_at_any_width(width: int) -> None:
    model, wide = FastNet(width), 4 * width
    expected = {"linear.weight": (10, wide), "whiten.bias": (24,)}
    for number, (first, last) in enumerate(((24, width), (width, wide), (wide, wide))):
        for name, shape in (("1", (last, first, 3, 3)), ("2", (last, last, 3, 3))):
            expected |= {f"groups.{number}.conv{name}.weight": shape, f"groups.{number}.bn{name}.bias": (last,)}
    assert {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad} == expected
    logits = model(torch.randn(8, 3, 32, 32))
    assert logits.shape == (8, 10)
    logits.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and not p.grad.any()] == []


def whitened(images: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """The first layer's outputs (24, N) for `images`, set up with the training images `of`."""
    model = FastNet()
    model.initialise(of)
    with torch.no_grad():
        assert not model.whiten.bias.any()
        return model.whiten(common.model_input(images, common.interface_of(model))).transpose(0, 1).flatten(1)


def test_first_layer_whitens_the_training_images_of_all_classes() -> None:
    images = small_data(500).train_images
    outputs = whitened(images, of=images)
    assert torch.equal(outputs[:12], -outputs[12:])
    moments = (outputs[:12] @ outputs[:12].T / outputs.shape[1]).double()
    assert torch.allclose(moments - moments.diag().diag(), torch.zeros(12, 12, dtype=torch.float64), atol=1e-3)
    assert moments.diag().max() <= 1.001 and moments.diag()[-1] > 0.99  # less only where there is next to nothing
    dark = torch.zeros_like(images)
    in_order = torch.cat([dark.repeat(10, 1, 1, 1), images.repeat(10, 1, 1, 1)])  # of two classes, as from a folder
    largest = whitened(torch.cat([dark, images]), of=in_order)[11]  # of the components: the brightness
    assert largest.square().mean().item() == pytest.approx(1, abs=0.1)


def test_convolutions_start_as_the_identity() -> None:
    group = FastNet().groups[0]
    x = torch.randn(2, 24, 6, 6)
    assert torch.allclose(group.conv1(x)[:, :24], x, atol=1e-6)
    x = torch.randn(2, 64, 6, 6)
    assert torch.allclose(group.conv2(x), x, atol=1e-6)


def test_biases_learn_faster_and_decay_as_much() -> None:
    run = prepared(SETTINGS, small_data(), batch_size=10)
    batches, sizes, rates = next(common.epoch_chunks(run, 3, 0))
    common.train_chunk(run, batches, sizes, rates)
    weights, biases = run.optimizer.param_groups
    assert (weights["lr"], biases["lr"]) == (rates[-1], 64 * rates[-1])
    assert biases["lr"] * biases["weight_decay"] == pytest.approx(weights["lr"] * weights["weight_decay"])
    assert [len(parameter) for parameter in biases["params"]] == [64, 64, 256, 256, 256, 256]
    assert len(weights["params"]) == 8
    assert all(group["nesterov"] and group["momentum"] == 0.85 for group in run.optimizer.param_groups)


def test_every_fifth_step_ends_between_the_weights_and_their_average() -> None:
    """By hand, for a weight with a gradient of 1 all the time, without momentum."""
    model = FastNet()
    optimizer = model.optimizer(dataclasses.replace(SETTINGS, lr=0.5, momentum=0.0, nesterov=False, weight_decay=0.0))
    weight = model.linear.weight
    weight.grad = torch.ones_like(weight)
    first, moved = weight[0, 0].item(), 0.0
    for rate, kept in ((0.2, 0), (0.3, 0), (0.1, 0.95**5 * (1 - 0.77 * 0.2) ** 3)):  # none while the rate rises
        for group in optimizer.param_groups:
            group["lr"] = rate
        for _ in range(4):
            optimizer.step()
        assert weight[0, 0].item() == pytest.approx(first - moved - 4 * rate, abs=1e-5)
        optimizer.step()
        moved += (1 - kept) * 5 * rate
        assert weight[0, 0].item() == pytest.approx(first - moved, abs=1e-5)
        assert torch.equal(optimizer.state[weight]["slow"], weight)


def test_a_learning_rate_of_0_trains_nothing(tmp_path: Path) -> None:
    run = prepared(SMALL, small_data(), tmp_path, lr=0.0, epochs=2)
    before = run.model.linear.weight.clone()
    common.train(run, common.State())  # eight steps
    assert torch.equal(run.model.linear.weight, before)


def test_interrupted_it_goes_on_bit_for_bit(run, reference, tmp_path: Path) -> None:
    """After eight of twelve steps: the average is taken in the fifth and the tenth."""
    script = (*SCRIPT, "--epochs", 3)
    whole = reference(*script)
    assert run(*script, "--output", tmp_path, moment=at("step", 6, signal.SIGTERM)).code == -signal.SIGTERM
    state = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    assert state["optimizer"]["param_groups"][0]["steps"] == 4 * (state["epoch"] - 1) + state["step"] == 8
    assert run(*script, "--output", tmp_path, "--resume").code == 0
    assert same_losses(tmp_path, whole) and same_weights(tmp_path / "model.pth", whole / "model.pth")
    results = [read_run(folder)["result"]["mirrored_test_accuracy"] for folder in (tmp_path, whole)]
    assert results[0] == results[1]


def test_several_processes_train_the_single_processs_model(reference, together, tmp_path: Path) -> None:
    done = together(2, *SCRIPT, "--output", tmp_path)
    assert done.code == 0, done.err
    one, two = read_run(reference(*SCRIPT)), read_run(tmp_path)
    assert two["history"]["train_loss"] == pytest.approx(one["history"]["train_loss"], rel=1e-3)
    assert two["result"]["mirrored_test_accuracy"] == one["result"]["mirrored_test_accuracy"]
    weights, others = (weights_of(folder / "model.pth") for folder in (reference(*SCRIPT), tmp_path))
    assert np.array_equal(weights["whiten.weight"], others["whiten.weight"])
    for name in weights:
        assert np.allclose(weights[name], others[name], rtol=1e-2, atol=1e-3), name


def test_mirrored_accuracy_is_that_of_the_mean_logits(tmp_path: Path) -> None:
    run = prepared(SMALL, small_data(), tmp_path)
    state = common.train(run, common.State())
    images, labels = run.data.test_images, run.data.test_labels
    run.model.eval()
    with torch.inference_mode():
        interface = common.interface_of(run.model)
        views = (run.model(common.model_input(view, interface)) for view in (images, images.flip(3)))
        logits = sum(views) / 2
    result = common.run_record(run, state)["result"]
    assert result["mirrored_test_accuracy"] == pytest.approx(100 * logits.argmax(1).eq(labels).float().mean().item())
    loss, _ = common.evaluate(run, images, labels, mirrored=True)
    assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4)
    without = prepared(SMALL, small_data(), tmp_path, augment=False)
    assert "mirrored_test_accuracy" not in common.run_record(without, common.train(without, common.State()))["result"]
