"""The loop and what surrounds it, in this process."""

import dataclasses
import json
from pathlib import Path

import common
from common import Execution

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ALONE, ROOT, prepared, small_data

from fast_model import SETTINGS as FAST
from original_version_model import SETTINGS as LENET
from resnet_model import SETTINGS as RESNET


@pytest.mark.parametrize(
    ("stated", "changes"),
    [
        (LENET, {"epochs": 100, "batch_size": 10, "lr": 0.02}),
        (RESNET, {"epochs": 20, "batch_size": 10, "lr": 0.02, "options": {"width": 8}, "augment": False}),
    ],
    ids=["LeNet", "ResNet18"],
)
def test_a_tiny_set_is_learnt_by_heart(stated: common.Settings, changes: dict) -> None:
    run = prepared(stated, small_data(20), **changes)
    for epoch in range(1, run.settings.epochs + 1):
        for chunk in common.epoch_chunks(run, epoch, 0):
            common.train_chunk(run, *chunk)
    assert common.evaluate(run, run.data.train_images, run.data.train_labels)[1] == 100


def test_history_and_steps_describe_every_epoch(tmp_path: Path) -> None:
    state = common.train(prepared(LENET, small_data(99), tmp_path, epochs=2), common.State())
    assert {name: len(values) for name, values in state.history.items()} == dict.fromkeys(common.HISTORY, 2)
    assert json.loads(json.dumps([state.history, state.steps])) == [state.history, state.steps]
    assert len(state.steps["epoch"]) == len(state.steps["train_loss"]) == 24
    assert state.steps["epoch"][11] == 1 and state.steps["epoch"][23] == 2
    # The parts' means, weighted by their images, make the epoch's.
    ends = np.array([0, *state.steps["epoch"][:12]])
    whole = np.dot(np.diff(ends), state.steps["train_loss"][:12])
    assert whole == pytest.approx(state.history["train_loss"][0], rel=1e-4)


def test_every_image_is_used_once_an_epoch_in_another_order_each_time() -> None:
    data = dataclasses.replace(small_data(50), train_labels=torch.arange(50))  # so that labels name images
    run, orders = prepared(LENET, data, batch_size=4), []
    for epoch in (1, 2):
        chunks = list(common.epoch_chunks(run, epoch, 0))
        labels = [labels for batches, *_ in chunks for _, labels in batches]
        assert [len(part) for part in labels] == [4] * 12 + [2]
        orders.append(torch.cat(labels).tolist())
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(50))
    assert orders[0] != orders[1]


def images_of(run: common.Training, epoch: int) -> torch.Tensor:
    """As they are trained on in that epoch."""
    return torch.cat([images for batches, *_ in common.epoch_chunks(run, epoch, 0) for images, _ in batches])


@pytest.mark.parametrize(("world_size", "settings"), [(2, LENET), (3, dataclasses.replace(FAST, resolutions="24"))])
def test_processes_share_out_the_same_batches(world_size: int, settings: common.Settings) -> None:
    def batches(execution: Execution) -> list[tuple[torch.Tensor, torch.Tensor]]:
        run = prepared(settings, small_data(50), execution=execution, batch_size=7)
        return [pair for part, *_ in common.epoch_chunks(run, 3, 0) for pair in part]

    ranks = [Execution(ALONE.device, "fp32", "none", rank, world_size) for rank in range(world_size)]
    shares = zip(*(batches(rank) for rank in ranks), strict=True)
    for (images, labels), parts in zip(batches(ALONE), shares, strict=True):
        assert torch.equal(images, torch.cat([part for part, _ in parts]))
        assert torch.equal(labels, torch.cat([part for _, part in parts]))


def flipped(run: common.Training, epoch: int) -> dict[int, bool]:
    """Whether each image, by its label, is flipped in that epoch: the right half of each is black."""
    pairs = [pair for part, *_ in common.epoch_chunks(run, epoch, 0) for pair in part]
    images, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    right, left = images[..., 16:].sum((1, 2, 3)), images[..., :16].sum((1, 2, 3))
    return dict(zip(labels.tolist(), (right > left).tolist(), strict=True))


@pytest.mark.parametrize("flips", ["alternating", "random"])
def test_alternating_flips_mirror_each_image_in_every_other_epoch(flips: str) -> None:
    half = torch.full((64, 3, 32, 32), 255, dtype=torch.uint8)
    half[..., 16:] = 0
    data = dataclasses.replace(small_data(), train_images=half, train_labels=torch.arange(64))
    run = prepared(LENET, data, augment=True, flips=flips, crop_padding=0)
    first, second, third = (flipped(run, epoch) for epoch in (1, 2, 3))
    assert 16 < sum(first.values()) < 48
    turned = {image: not value for image, value in first.items()}
    assert (second == turned and third == first) == (flips == "alternating")


@pytest.mark.parametrize("padding", [0, 2, 4])
def test_crops_are_shifted_as_far_as_the_padding(padding: int) -> None:
    data = small_data(300)
    point = torch.zeros_like(data.train_images)
    point[:, :, 15, 10] = 255
    run = prepared(LENET, dataclasses.replace(data, train_images=point), augment=True, crop_padding=padding)
    rows = images_of(run, 1).amax((1, 3)).argmax(1)
    assert sorted(set(rows.tolist())) == list(range(15 - padding, 15 + padding + 1))


def test_cutout_sets_a_square_to_the_mean_and_changes_nothing_else() -> None:
    plain, cut = (prepared(LENET, small_data(300), augment=True, cutout=size) for size in (0, 8))
    images, holes = images_of(cut, 1), (images_of(cut, 1) == 0).all(1)
    assert torch.equal(images_of(plain, 1).masked_fill(holes[:, None], 0), images)
    assert not torch.equal(holes, (images_of(cut, 2) == 0).all(1))
    rows, columns = holes.any(2).sum(1), holes.any(1).sum(1)
    assert torch.equal(holes.sum((1, 2)), rows * columns)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 8, 4, 8)


def test_augmentation_crops_and_flips_each_image_for_itself() -> None:
    images = torch.randint(1, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shifts = torch.tensor([[4, 0, 8], [4, 4, 7]])
    flips = torch.tensor([False, False, True])
    same, down, flipped = common.augment(images, 4, "constant", shifts, flips)
    assert torch.equal(same, images[0])
    assert not down[:, :4].any() and torch.equal(down[:, 4:], images[1, :, :28])
    expected = torch.zeros(3, 32, 32, dtype=torch.uint8)
    expected[:, :28, :29] = images[2, :, 4:, 3:]
    assert torch.equal(flipped, expected.flip(2))


@pytest.mark.parametrize("padding", [0, 2, 31])
def test_reflected_padding_is_that_of_pytorch(padding: int) -> None:
    images = small_data(9).train_images
    padded = F.pad(images.float(), (padding,) * 4, mode="reflect").byte()
    places = torch.tensor([0, padding, 2 * padding])  # windows from there hold every padded pixel
    shifts = torch.cartesian_prod(places, places)
    crops = common.augment(images, padding, "reflect", shifts.T, torch.zeros(9, dtype=torch.bool))
    for crop, image, (down, right) in zip(crops, padded, shifts, strict=True):
        assert torch.equal(crop, image[:, down : down + 32, right : right + 32])


def test_normalisation_is_that_of_the_model() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 3, 32, 32)
    lenet = common.model_input(images, common.interface_of(common.LeNet()))
    assert lenet[0].unique().tolist() == [-1] and lenet[1].unique().tolist() == [1]
    resnet = common.model_input(images, common.interface_of(common.ResNet18(4)))[1, :, 0, 0]
    assert resnet.tolist() == pytest.approx([(1 - 0.4914) / 0.2470, (1 - 0.4822) / 0.2435, (1 - 0.4465) / 0.2616])


def test_schedules_fall_from_lr_to_zero_over_the_runs_own_epochs() -> None:
    rates = [common.learning_rate(RESNET, epoch) for epoch in range(1, 26)]
    assert rates[0] == 0.005 and rates == sorted(rates, reverse=True) and 0 < rates[-1] < 0.005 / 100
    assert {common.learning_rate(LENET, epoch) for epoch in range(1, 6)} == {0.001}
    linear = dataclasses.replace(LENET, schedule="linear", lr=0.5, epochs=4)
    assert [common.learning_rate(linear, epoch, done) for epoch in (1, 4) for done in (0, 1)] == [0.5, 0.375, 0.125, 0]


@pytest.mark.parametrize(
    ("resolutions", "expected"),
    [("24,28,32", [24] * 3 + [28] * 3 + [32] * 2), ("28,24", [28] * 2 + [24]), ("", [32] * 2)],
)
def test_each_resolution_has_an_equal_part_of_the_epochs(resolutions: str, expected: list[int]) -> None:
    settings = dataclasses.replace(RESNET, epochs=len(expected), resolutions=resolutions)
    assert [common.resolution(settings, epoch) for epoch in range(1, settings.epochs + 1)] == expected


def test_images_are_scaled_after_augmentation_and_tested_at_full_size(tmp_path: Path) -> None:
    changes = {"epochs": 2, "batch_size": 20, "options": {"width": 4}}
    small, full = (prepared(RESNET, small_data(), tmp_path, **changes, resolutions=sizes) for sizes in ("16,32", ""))
    # Half the size, bilinearly: the mean of four pixels.
    assert torch.allclose(images_of(small, 1), F.avg_pool2d(images_of(full, 1), 2), atol=1e-6)
    assert torch.equal(images_of(small, 2), images_of(full, 2))
    seen = []
    small.model.register_forward_pre_hook(lambda model, inputs: seen.append((model.training, inputs[0].shape[2])))
    common.train(small, common.State())
    assert {size for training, size in seen if not training} == {32}
    assert {size for training, size in seen if training} == {16, 32}


def test_one_cycle_rises_and_falls_once_step_by_step(tmp_path: Path) -> None:
    run = prepared(LENET, small_data(39), tmp_path, schedule="one-cycle", lr=0.5, epochs=3, batch_size=4)
    rates = [rate for epoch in (1, 2, 3) for *_, rates in common.epoch_chunks(run, epoch, 0) for rate in rates]
    assert len(rates) == 30
    rises, falls = np.diff(rates[:7]), np.diff(rates[7:])  # the peak is at 23 % of the run's 30 steps
    assert rises.min() > 0 and rises.max() == pytest.approx(rises.min())
    assert falls.max() < 0 and falls.max() == pytest.approx(falls.min())
    assert 0.1 < rates[0] < 0.15 and 0.45 < max(rates) <= 0.5 and 0 < rates[-1] < 0.02
    later = [rate for *_, rates in common.epoch_chunks(run, 2, 7) for rate in rates]
    assert later == rates[17:20]
    state = common.train(run, common.State())
    assert state.history["learning_rate"] == [common.learning_rate(run.settings, epoch) for epoch in (1, 2, 3)]
    assert run.optimizer.param_groups[0]["lr"] == rates[-1]


def test_the_loss_includes_label_smoothing_and_the_test_loss_does_not(tmp_path: Path) -> None:
    data = small_data(20)
    run = prepared(LENET, data, tmp_path, label_smoothing=0.2, batch_size=20, lr=0.0)
    state = common.train(run, common.State())
    logits = run.model(common.model_input(data.train_images, common.interface_of(run.model)))
    smoothed = F.cross_entropy(logits, data.train_labels, label_smoothing=0.2)
    assert state.history["train_loss"][0] == pytest.approx(smoothed.item(), rel=1e-5)
    plain = common.evaluate(run, data.test_images, data.test_labels)[0]
    assert state.history["test_loss"][0] == plain


def test_adamw_takes_the_steps_of_pytorchs() -> None:
    data, model = small_data(), common.build_model(LENET)
    run = prepared(LENET, data, optimizer="adamw", momentum=0.8, weight_decay=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), LENET.lr, (0.8, 0.999), weight_decay=0.1, foreach=False)
    for _ in range(3):
        common.train_chunk(run, [(data.train_images / 255, data.train_labels)], [40], [LENET.lr])
        optimizer.zero_grad()
        F.cross_entropy(model(data.train_images / 255), data.train_labels).backward()
        optimizer.step()
    pairs = zip(run.model.parameters(), model.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


def test_evaluation_counts_every_image() -> None:
    data = small_data(301)
    run = prepared(LENET, data)
    loss, accuracy = common.evaluate(run, data.train_images, data.train_labels)
    logits = run.model(common.model_input(data.train_images, common.interface_of(run.model)))
    assert accuracy == pytest.approx(100 * logits.argmax(1).eq(data.train_labels).float().mean().item())
    assert loss == pytest.approx(F.cross_entropy(logits, data.train_labels).item(), rel=1e-5)


def test_bf16_stays_close_to_fp32() -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        execution = Execution(ALONE.device, precision, "none")
        run = prepared(RESNET, small_data(), execution=execution, options={"width": 16})
        losses.append(common.evaluate(run, run.data.train_images, run.data.train_labels)[0])
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[0] != losses[1]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"epochs": 15, "lr": 0.01, "optimizer": "adamw", "cutout": 8}, "lr=0.01,epochs=15,optimizer=adamw,cutout=8"),
        ({"weight_decay": 0.0, "seed": 3}, "weight_decay=0,seed=3"),
        ({"device": "cpu", "resume": True}, ""),
        ({"crop_padding": 2, "validation_images": 50}, "crop_padding=2,validation_images=50"),
    ],
)
def test_a_run_goes_where_its_differences_say(changes: dict, name: str) -> None:
    settings = dataclasses.replace(RESNET, **changes)
    assert common.run_folder(settings, RESNET, "cifar10") == (ROOT / "modelset" / "Resnet" / name, name)
    synthetic = ",".join(part for part in (name, "dataset=synthetic") if part)
    assert common.run_folder(settings, RESNET, "synthetic")[0].name == synthetic


def test_an_option_that_is_none_is_another_than_one_that_is_0_or_not_recorded() -> None:
    assert common.differences({"level": 0}, {"level": None}) == {"level": 0}
    assert common.differences({"level": None}, {"level": 0}) == {"level": None}
    assert common.differences({"level": 0}, {}) == {}


def test_data_parallel_is_left_out_without_several_gpus() -> None:
    execution = common.start_execution("cpu", "auto", False, data_parallel=True)
    assert execution.parallel == "none"
    model = common.LeNet()
    assert common.parallel_network(model, execution) is model
    wrapped = common.parallel_network(model, Execution(ALONE.device, "fp32", "DataParallel"))
    assert isinstance(wrapped, torch.nn.DataParallel) and wrapped.module is model
