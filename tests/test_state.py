"""A run's state, returned and not changed in place, and the same on disk; and that of the process that it runs in."""

import dataclasses
import functools
import random
import signal
import threading
from pathlib import Path

import common

import numpy as np
import pytest
import torch
from conftest import prepared, read_run, same_losses, same_weights, small_data, weights_of
from torch.optim.optimizer import register_optimizer_step_post_hook

from original_version_model import SETTINGS as LENET


def at_step(count: int, action):
    """Does it once so many steps have been made in this process, within the context that this returns."""
    steps = iter([None] * (count - 1) + [action])
    return register_optimizer_step_post_hook(lambda *_: (next(steps, None) or (lambda: None))())


def thirty_steps(folder: Path) -> common.Training:
    settings = {"epochs": 2, "batch_size": 10, "options": {"dropout": 0.5}, "augment": True}
    return prepared(LENET, small_data(300), folder, **settings)


def test_an_epochs_states_follow_each_other_and_stay_as_they_were(tmp_path: Path) -> None:
    start, training = common.State(), thirty_steps(tmp_path)
    stop = at_step(10, lambda: training.signals.append(signal.SIGTERM))
    first = common.train_epoch(training, start)
    stop.remove()
    training.signals.clear()
    second = common.train_epoch(training, first)
    assert start == common.State(losses=start.losses) and len(start.losses) == 0
    assert [state.step for state in (first, second)] == [25, 30]  # chunks of 256 images, and the epoch's end
    assert [len(state.losses) for state in (first, second)] == [25, 30]
    assert torch.equal(first.losses, second.losses[:25])
    assert 0 < first.seconds < second.seconds


@pytest.mark.parametrize(("step", "saved"), [(10, 25), (28, 30), (50, 25)])  # within epochs, or during an evaluation
def test_a_signal_costs_and_doubles_no_step(tmp_path: Path, step: int, saved: int) -> None:
    whole = common.train(thirty_steps(tmp_path), common.State())
    training = thirty_steps(tmp_path)
    stop = at_step(step, lambda: training.signals.append(signal.SIGTERM))
    with stop, pytest.raises(common.Interrupted):
        common.train(training, common.State())
    again, checkpoint = thirty_steps(tmp_path), common.read_saved(tmp_path / "checkpoint.pth")
    state = common.continue_from(again, checkpoint)
    assert state.step == len(state.losses) == saved and state.total_seconds > state.seconds > 0
    assert all(map(torch.equal, again.model.parameters(), training.model.parameters()))
    resumed = common.train(again, state)
    assert resumed.steps == whole.steps and resumed.history["seconds"][state.epoch - 1] > state.seconds
    whole.history.pop("seconds"), resumed.history.pop("seconds")
    assert resumed.history == whole.history
    assert all(map(torch.equal, resumed.best_model.values(), whole.best_model.values()))


class InfiniteInWhite(common.LeNet):
    """Logits that are infinite for a white image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) / (images.amin((1, 2, 3)) < 1)[:, None]


def test_an_infinite_validation_loss_stops_at_its_epoch(tmp_path: Path) -> None:
    white = torch.full((10, 3, 32, 32), 255, dtype=torch.uint8)
    data = dataclasses.replace(small_data(), validation_images=white, validation_labels=torch.arange(10))
    with pytest.raises(common.UserError, match="no finite number any more at epoch 1, step 4"):
        common.train(prepared(LENET, data, tmp_path, model=InfiniteInWhite, batch_size=10), common.State())


def test_dropouts_masks_have_a_stream_of_their_own(tmp_path: Path) -> None:
    run = prepared(LENET, small_data(), tmp_path, options={"dropout": 0.5}, seed=3)
    for epoch in (1, 2):
        next(common.epoch_chunks(run, epoch, 0))
        drawn = torch.rand(40)
        order = torch.rand(40, generator=torch.Generator().manual_seed(common.mixed_seed(3, epoch)))
        assert not torch.isin(drawn, order).any()


# --- The process


def settings_for(data_dir: Path, output: Path, stated: common.Settings = LENET, **changes: object) -> common.Settings:
    return dataclasses.replace(
        stated, **{"epochs": 2, "data_dir": data_dir, "output": output, "device": "cpu"} | changes
    )


def interrupted(settings: common.Settings) -> common.Settings:
    """What continues their run, which has been stopped in its second epoch."""
    stop = at_step(30, lambda: signal.raise_signal(signal.SIGINT))  # of 25 an epoch
    with stop, pytest.raises(common.Interrupted, match="signal 2 and saved"):
        common.run(settings)
    return dataclasses.replace(settings, resume=True)


@torch.inference_mode()
def test_however_a_run_ends_it_leaves_the_process_as_it_was(
    request: pytest.FixtureRequest, reference, data_dir: Path, tmp_path: Path
) -> None:
    """Other parts of which have another default type, and have switched off gradients."""

    def state() -> tuple:
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        flags = torch.is_inference_mode_enabled(), torch.backends.mkldnn.enabled, torch.get_default_dtype()
        return *handlers, *flags, torch.get_num_threads(), torch.get_rng_state().tolist()

    request.addfinalizer(functools.partial(torch.set_default_dtype, torch.float32))
    torch.set_default_dtype(torch.float64)
    before, settings = state(), settings_for(data_dir, tmp_path)
    with pytest.raises(common.UserError, match="lr"):
        common.run(dataclasses.replace(settings, lr=1e9))
    assert state() == before
    settings = interrupted(settings)
    assert state() == before
    record = common.run(settings)
    assert record == read_run(tmp_path)
    assert same_losses(tmp_path, reference("original_version_model", "--epochs", 2))
    assert state() == before


class DrawsFromAll(common.LeNet):
    """Whose weights at first, and whose logits, depend on Python's and NumPy's generators."""

    def __init__(self) -> None:
        super().__init__()
        self.fc3.bias.data += random.random() + np.random.rand()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) * (random.random() + np.random.rand())


def test_all_generators_are_seeded_and_the_callers_put_back(data_dir: Path, tmp_path: Path) -> None:
    settings = settings_for(data_dir, tmp_path / "a", model=DrawsFromAll, batch_size=5, validation_images=20)
    random.seed(1), np.random.seed(1)
    record = common.run(settings)
    assert record["result"]["train_accuracy_images"] == record["dataset"]["train_images"] == 80
    assert (random.random(), np.random.rand()) == (random.Random(1).random(), np.random.RandomState(1).rand())
    common.run(interrupted(dataclasses.replace(settings, output=tmp_path / "b")))
    assert same_losses(tmp_path / "a", tmp_path / "b")


def test_a_run_in_another_thread_waits_for_the_first(data_dir: Path, tmp_path: Path) -> None:
    settings = [
        settings_for(data_dir, tmp_path / str(size), epochs=1, batch_size=size, options={"dropout": 0.5})
        for size in (4, 20)
    ]
    for alone in settings:
        common.run(dataclasses.replace(alone, output=alone.output / "alone"))
    second = threading.Thread(target=common.run, args=settings[1:])
    with at_step(1, lambda: (second.start(), second.join(1))):
        common.run(settings[0])
    second.join()
    assert all(same_losses(one.output, one.output / "alone") for one in settings)
    assert torch.backends.mkldnn.enabled


@pytest.mark.parametrize(("size", "threads"), [(4, 1), (5, 2)])
def test_the_threads_in_use_are_recorded(size: int, threads: int) -> None:
    before, run = torch.get_num_threads(), prepared(LENET, small_data(), batch_size=size)
    try:
        torch.set_num_threads(2)
        (part,) = common.parts_so_far(run, common.State(step=1))
    finally:
        torch.set_num_threads(before)
    assert part["environment"]["threads"] == threads and part["images"] == size


# --- The optimizer


class Modes(torch.optim.SGD):
    """Halves the weights for evaluation: which ones are tested and saved can be seen to the last bit."""

    def switch(self, mode: str, factor: float) -> None:
        if self.param_groups[0].setdefault("mode", "train") != mode:
            self.param_groups[0]["mode"] = mode
            for parameter in self.param_groups[0]["params"]:
                parameter.data *= factor

    def train(self) -> None:
        self.switch("train", 2)

    def eval(self) -> None:
        self.switch("eval", 0.5)


class InModes(common.LeNet):
    def cifar10_interface(self) -> common.Interface:
        optimizer = Modes(self.parameters(), lr=0.001, momentum=0.9, fused=True)
        return dataclasses.replace(common.LeNet.cifar10_interface, optimizer=lambda settings: optimizer)


def test_an_optimizer_with_modes_is_told_which_it_is(reference, data_dir: Path, tmp_path: Path) -> None:
    settings = settings_for(data_dir, tmp_path / "a", model=InModes)
    record = common.run(settings)
    plain = reference("original_version_model", "--epochs", 2)
    assert record["history"]["train_loss"] == read_run(plain)["history"]["train_loss"]
    halved = {name: values / 2 for name, values in weights_of(plain / "model.pth").items()}
    assert all(np.array_equal(halved[name], values) for name, values in weights_of(tmp_path / "a/model.pth").items())
    common.run(interrupted(dataclasses.replace(settings, output=tmp_path / "b")))
    assert same_losses(tmp_path / "a", tmp_path / "b")
    for name in ("model.pth", "best_model.pth"):
        assert same_weights(tmp_path / "a" / name, tmp_path / "b" / name)


class TwoRates(common.LeNet):
    """A frozen body, and a head that learns ten times as fast as `--lr` says."""

    def cifar10_interface(self) -> common.Interface:
        return common.Interface(optimizer=self.optimizer)

    def optimizer(self, settings: common.Settings) -> torch.optim.Optimizer:
        body = {"params": self.conv2.parameters(), "lr": 0}
        return torch.optim.SGD([body, {"params": self.fc3.parameters(), "lr": 10 * settings.lr}])


@pytest.mark.parametrize("rate", [0.25, 0])
def test_groups_keep_their_ratio_to_the_rate(rate: float) -> None:
    changes = {"model": TwoRates, "lr": rate, "schedule": "one-cycle", "epochs": 2, "batch_size": 10}
    run = prepared(LENET, small_data(), **changes)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    for epoch in (1, 2):
        for batches, sizes, rates in common.epoch_chunks(run, epoch, 0):
            common.train_chunk(run, batches, sizes, rates)
            assert [group["lr"] for group in run.optimizer.param_groups] == [0, 10 * rates[-1]]
    moved = [name for name, value in run.model.state_dict().items() if not torch.equal(value, before[name])]
    assert moved == (["fc3.weight", "fc3.bias"] if rate else [])
