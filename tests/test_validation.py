"""--validation-images: an epoch chosen without looking at the test images."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, read_run, run_command, same_losses, same_weights

from cifar10.loading import Data, hold_out, load_cifar10
from terminal.errors import UserError

SCRIPT = ("original_version_model", "--epochs", 4, "--lr", 0.01, "--validation-images", 30)


def numbered(images: int) -> Data:
    """Training images that each hold their own number, of ten classes in an irregular order."""
    numbers = torch.arange(images, dtype=torch.int32)
    pixels = numbers.view(torch.uint8).view(images, 4, 1, 1).expand(images, 4, 32, 32)[:, :3]
    labels = torch.randperm(images, generator=torch.Generator().manual_seed(1)) % 10
    return Data(pixels.contiguous(), labels, pixels[:10], labels[:10], "cifar10", "test")


def numbers_of(images: torch.Tensor) -> list[int]:
    return (images[:, 0, 0, 0].int() + 256 * images[:, 1, 0, 0].int()).tolist()


def test_the_parts_are_disjoint_complete_and_balanced() -> None:
    data = numbered(1000)
    parts = hold_out(data, 200)
    trained, held = numbers_of(parts.train_images), numbers_of(parts.validation_images)
    assert sorted(trained + held) == list(range(1000)) and len(held) == 200
    assert torch.bincount(parts.validation_labels).tolist() == [20] * 10
    for numbers, labels in ((trained, parts.train_labels), (held, parts.validation_labels)):
        assert torch.equal(data.train_labels[numbers], labels)
    assert torch.equal(parts.test_images, data.test_images)


def test_no_seed_changes_which_images_are_held_out() -> None:
    held = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        held.append(numbers_of(hold_out(numbered(1000), 200).validation_images))
    assert held[0] == held[1]
    assert hold_out(numbered(100), 0).validation_images.shape == (0, 3, 32, 32)


@pytest.mark.parametrize("count", [5, 100, 200])
def test_an_impossible_number_is_an_error_that_says_what_is_possible(count: int) -> None:
    with pytest.raises(UserError, match=rf"--validation-images {count} .* multiple of 10 up to 90"):
        hold_out(numbered(100), count)


def test_the_best_epoch_goes_by_validation_accuracy(run, tmp_path: Path) -> None:
    done = run(*SCRIPT, "--output", tmp_path)
    assert done.code == 0, done.err
    record = read_run(tmp_path)
    history, result = record["history"], record["result"]
    counts = {"train_images": 70, "validation_images": 30, "test_images": 40}
    assert record["dataset"] == {"name": "cifar10", "source": "image folder", **counts}
    assert record["config"]["validation_images"] == 30
    assert len(history["validation_loss"]) == len(history["validation_accuracy"]) == 4
    best = history["validation_accuracy"].index(max(history["validation_accuracy"]))
    assert result["best_epoch"] == history["epoch"][best] and result["best_epoch_chosen_on"] == "validation"
    assert result["best_test_accuracy"] == history["test_accuracy"][best]
    assert f"in epoch {best + 1}, chosen on validation images" in done.out


def test_best_model_is_of_the_chosen_epoch(run, tmp_path: Path, data_dir: Path) -> None:
    import common

    assert run(*SCRIPT, "--output", tmp_path).code == 0
    record, weights = read_run(tmp_path), torch.load(tmp_path / "best_model.pth", weights_only=True)
    model = common.LeNet()
    model.load_state_dict(weights)
    held = hold_out(load_cifar10(data_dir), 30)
    logits = model(common.model_input(held.validation_images, common.interface_of(model)))
    accuracy = 100 * logits.argmax(1).eq(held.validation_labels).float().mean().item()
    assert accuracy == pytest.approx(max(record["history"]["validation_accuracy"]), abs=1e-4)


def test_the_same_images_are_held_out_after_resuming(run, start, tmp_path: Path) -> None:
    script = ("original_version_model", "--epochs", 30, "--validation-images", 30)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert run(*script, "--output", whole).code == 0
    interrupted = start(*script, "--output", resumed)
    while not (resumed / "checkpoint.pth").exists():
        time.sleep(0.002)
    os.kill(interrupted.process.pid, signal.SIGTERM)
    assert interrupted.finish().code == 143
    other = run(*script[:-1], 40, "--output", resumed, "--resume")
    assert other.code == 1 and "validation_images 30 -> 40" in other.err
    without = run(*script[:-2], "--output", resumed, "--resume")
    assert without.code == 1 and "validation_images 30 -> 0" in without.err
    assert run(*script, "--output", resumed, "--resume").code == 0
    assert same_losses(resumed, whole) and same_weights(resumed / "best_model.pth", whole / "best_model.pth")


def test_the_same_images_are_held_out_in_several_processes(run, tmp_path: Path, data_dir: Path) -> None:
    alone, several = tmp_path / "alone", tmp_path / "several"
    assert run(*SCRIPT, "--output", alone).code == 0
    command = ("torchrun", "--standalone", "--nproc-per-node=2", ROOT / f"{SCRIPT[0]}.py", *SCRIPT[1:])
    done = run_command(*command, "--output", several, data_dir=data_dir)
    assert done.code == 0, done.err
    for name in ("validation_loss", "test_loss"):
        assert read_run(several)["history"][name] == pytest.approx(read_run(alone)["history"][name], rel=1e-3), name


def test_a_small_folder_is_one_line(run, own_data_dir: Path, tmp_path: Path) -> None:
    done = run("original_version_model", "--validation-images", 20, "--output", tmp_path / "out", data_dir=own_data_dir)
    assert done.code == 1
    assert len(done.err.splitlines()) == 1 and "--validation-images 20" in done.err, done.err
    assert not (tmp_path / "out").exists()
