"""A run's state: returned and not changed in place, and the same on disk."""

import dataclasses
from pathlib import Path

import common

import torch
from conftest import in_processes
from test_training import ALONE, small_data

from cifar10lab.devices.processes import all_reduce
from original_version_model import SETTINGS as LENET


def input_and_sum(rank: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.tensor([1.0, rank])
    return values, all_reduce(values)[:2]


def test_an_all_reduce_leaves_what_it_sums(tmp_path: Path) -> None:
    for rank, (values, result) in enumerate(in_processes(2, tmp_path, input_and_sum)):
        assert values.tolist() == [1, rank] and result.tolist() == [2, 1]


def prepared(folder: Path) -> common.Training:
    settings = dataclasses.replace(LENET, epochs=2, batch_size=10)
    return common.ready_to_train(
        common.Training(settings, ALONE, small_data(300), common.build_model(settings), folder)
    )


def test_an_epochs_states_follow_each_other_and_stay_as_they_were(tmp_path: Path) -> None:
    start = common.State()
    states = list(common.train_epoch(prepared(tmp_path), start))
    assert start == common.State(losses=start.losses) and len(start.losses) == 0
    assert [state.step for state in states] == [25, 30, 30]  # chunks of 256 images, and the epoch's end
    assert [len(state.losses) for state in states] == [25, 30, 30]
    assert torch.equal(states[0].losses, states[2].losses[:25])
    assert 0 < states[0].seconds < states[2].seconds


def test_what_is_saved_within_an_epoch_is_read_as_it_was(tmp_path: Path) -> None:
    run = prepared(tmp_path)
    state = next(common.train_epoch(run, common.State()))
    state = dataclasses.replace(state, history=state.history | {"seconds": [1.5]}, best_model={"a": torch.ones(2)})
    common.save_state(run, state)
    again = prepared(tmp_path)
    read = common.continue_from(again, common.read_checkpoint(tmp_path / "checkpoint.pth"))
    assert torch.equal(read.losses, state.losses) and torch.equal(read.best_model["a"], torch.ones(2))
    same = {"losses": state.losses, "best_model": state.best_model}
    assert dataclasses.replace(read, **same) == state
    assert all(map(torch.equal, again.model.parameters(), run.model.parameters()))


def test_a_signal_during_the_evaluation_costs_and_doubles_no_loss(tmp_path: Path) -> None:
    """Resumed from a state whose epoch has all its steps but no evaluation yet."""
    this = prepared(tmp_path)
    *_, state = common.train_epoch(this, common.State())
    common.save_state(this, state)
    again = prepared(tmp_path)
    resumed = common.train(again, common.continue_from(again, common.read_checkpoint(tmp_path / "checkpoint.pth")))
    whole = common.train(prepared(tmp_path), common.State())
    assert resumed.steps == whole.steps
    assert resumed.history["train_loss"] == whole.history["train_loss"]
    assert all(map(torch.equal, resumed.best_model.values(), whole.best_model.values()))
