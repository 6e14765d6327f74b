"""The fast model: what its network starts as, its optimizer, and that its runs are like all others."""

import dataclasses
import os
import signal
from pathlib import Path

import common
from common import Execution

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_image_folder, read_run, same_losses, same_weights, small_data, wait_for, weights_of

from fast_model import SETTINGS, FastNet

ALONE = Execution(torch.device("cpu"), "fp32", "none")
SCRIPT = ("fast_model", "--batch-size", 33, "--lr", 0.1)


def prepared(folder: Path, **changes: object) -> common.Training:
    settings = dataclasses.replace(SETTINGS, batch_size=10, **changes)
    model, data = common.build_model(settings), small_data()
    model.initialise(data.train_images)
    return common.ready_to_train(common.Training(settings, ALONE, data, model, folder))


def test_network_is_that_of_the_paper() -> None:
    model = FastNet()
    trained = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    channels = {"conv1": (64, 24), "conv2": (64, 64)}, {"conv1": (256, 64), "conv2": (256, 256)}
    expected = {"linear.weight": (10, 256), "whiten.bias": (24,)}
    for number, group in enumerate((*channels, {"conv1": (256, 256), "conv2": (256, 256)})):
        for name, shape in group.items():
            norm = f"groups.{number}.bn{name[-1]}.bias"
            expected |= {f"groups.{number}.{name}.weight": (*shape, 3, 3), norm: shape[:1]}
    assert trained == expected
    model(torch.randn(8, 3, 32, 32)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and not p.grad.any()] == []


def test_width_widens_all_groups() -> None:
    shapes = {name: tuple(p.shape) for name, p in FastNet(8).named_parameters()}
    assert shapes["groups.0.conv1.weight"] == (8, 24, 3, 3) and shapes["groups.2.conv2.weight"] == (32, 32, 3, 3)
    assert FastNet(8)(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(common.WrongOption, match="--width 0: width must be a whole number of at least 1"):
        common.build_model(dataclasses.replace(SETTINGS, options={"width": 0}))


def test_first_layer_whitens_the_training_images() -> None:
    model, images = FastNet(), small_data(500).train_images
    model.initialise(images)
    with torch.no_grad():
        assert not model.whiten.bias.any()
        outputs = model.whiten(common.model_input(images, common.interface_of(model))).transpose(0, 1).flatten(1)
    assert torch.equal(outputs[:12], -outputs[12:])
    moments = (outputs[:12] @ outputs[:12].T / outputs.shape[1]).double()
    assert torch.allclose(moments - moments.diag().diag(), torch.zeros(12, 12, dtype=torch.float64), atol=1e-3)
    assert moments.diag().max() <= 1.001 and moments.diag()[-1] > 0.99  # less only where there is next to nothing


def test_first_layer_sees_images_of_all_classes() -> None:
    model, bright = FastNet(), small_data(500).train_images
    dark = torch.zeros_like(bright)
    model.initialise(torch.cat([dark.repeat(10, 1, 1, 1), bright.repeat(10, 1, 1, 1)]))  # in order, as from a folder
    images = common.model_input(torch.cat([dark, bright]), common.interface_of(model))
    with torch.no_grad():
        outputs = model.whiten(images).transpose(0, 1).flatten(1)
    assert outputs[11].square().mean().item() == pytest.approx(1, abs=0.1)  # of the largest component, the brightness


def test_convolutions_start_as_the_identity() -> None:
    group = FastNet().groups[0]
    x = torch.randn(2, 24, 6, 6)
    assert torch.allclose(group.conv1(x)[:, :24], x, atol=1e-6)
    x = torch.randn(2, 64, 6, 6)
    assert torch.allclose(group.conv2(x), x, atol=1e-6)


def test_biases_learn_faster_and_decay_as_much(tmp_path: Path) -> None:
    run = prepared(tmp_path)
    batches, sizes, rates = next(common.epoch_chunks(run, 3, 0))
    common.train_chunk(run, batches, sizes, rates)
    weights, biases = run.optimizer.param_groups
    assert (weights["lr"], biases["lr"]) == (rates[-1], 64 * rates[-1])
    assert biases["lr"] * biases["weight_decay"] == pytest.approx(weights["lr"] * weights["weight_decay"])
    assert [len(parameter) for parameter in biases["params"]] == [64, 64, 256, 256, 256, 256]
    assert len(weights["params"]) == 8
    assert all(group["nesterov"] and group["momentum"] == 0.85 for group in run.optimizer.param_groups)


def test_every_fifth_step_ends_between_the_weights_and_their_average(tmp_path: Path) -> None:
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
    run = prepared(tmp_path, lr=0.0, epochs=2)
    before = run.model.linear.weight.clone()
    common.train(run, common.State())  # eight steps
    assert torch.equal(run.model.linear.weight, before)


def test_interrupted_it_goes_on_bit_for_bit(start, run, tmp_path: Path) -> None:
    """Two chunks of two steps an epoch: the average is taken in the fifth and the tenth step."""
    script, data = ("fast_model", "--epochs", 3, "--batch-size", 100), make_image_folder(tmp_path / "data", 40, 4)
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run(*script, "--output", whole, data_dir=data).code == 0
    interrupted = start(*script, "--output", out, data_dir=data)
    wait_for(out / "checkpoint.pth")  # of the first epoch's end
    os.kill(interrupted.process.pid, signal.SIGTERM)
    assert interrupted.finish().code == -signal.SIGTERM
    state = torch.load(out / "checkpoint.pth", weights_only=True)
    assert state["optimizer"]["param_groups"][0]["steps"] == 4 * (state["epoch"] - 1) + state["step"] < 12
    assert run(*script, "--output", out, "--resume", data_dir=data).code == 0
    assert same_losses(out, whole) and same_weights(out / "model.pth", whole / "model.pth")
    results = [read_run(folder)["result"]["mirrored_test_accuracy"] for folder in (out, whole)]
    assert results[0] == results[1]


def test_several_processes_train_the_single_processs_model(run, together, tmp_path: Path) -> None:
    script = (*SCRIPT, "--epochs", 1, "--precision", "fp32")
    assert run(*script, "--output", tmp_path / "one").code == 0
    done = together(2, *script, "--output", tmp_path / "two")
    assert done.code == 0, done.err
    one, two = (read_run(tmp_path / name) for name in ("one", "two"))
    assert two["history"]["train_loss"] == pytest.approx(one["history"]["train_loss"], rel=1e-3)
    assert two["result"]["mirrored_test_accuracy"] == one["result"]["mirrored_test_accuracy"]
    weights, others = (weights_of(tmp_path / name / "model.pth") for name in ("one", "two"))
    assert np.array_equal(weights["whiten.weight"], others["whiten.weight"])
    for name in weights:
        assert np.allclose(weights[name], others[name], rtol=1e-2, atol=1e-3), name


def test_mirrored_accuracy_is_that_of_the_mean_logits(tmp_path: Path) -> None:
    run = prepared(tmp_path, epochs=1)
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
    without = prepared(tmp_path, epochs=1, augment=False)
    assert "mirrored_test_accuracy" not in common.run_record(without, common.train(without, common.State()))["result"]
