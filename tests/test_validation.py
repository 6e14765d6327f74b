"""--validation-images: an epoch chosen without looking at the test images."""

import dataclasses
import signal
from pathlib import Path

import common

import pytest
import torch
from conftest import at, read_run, same_weights, without_times

from cifar10lab.data.loading import Data, hold_out, load_cifar10
from original_version_model import SETTINGS as LENET

SCRIPT = ("original_version_model", "--epochs", 4, "--lr", 0.01, "--validation-images", 30)


def test_the_parts_are_disjoint_complete_balanced_and_the_same_for_every_seed() -> None:
    images = torch.arange(1000)  # numbers in their place
    labels = torch.randperm(1000, generator=torch.Generator().manual_seed(1)) % 10
    data = Data(images, labels, images[:10], labels[:10], "cifar10", "test")
    parts = hold_out(data, 200)
    trained, held = parts.train_images, parts.validation_images
    assert len(held) == 200 and torch.equal(torch.cat([trained, held]).msort(), images)
    assert torch.bincount(parts.validation_labels).tolist() == [20] * 10
    assert torch.equal(parts.train_labels, labels[trained]) and torch.equal(parts.validation_labels, labels[held])
    assert torch.equal(parts.test_images, data.test_images)
    torch.manual_seed(7)
    assert torch.equal(hold_out(data, 200).validation_images, held)


@pytest.mark.parametrize("count", [5, 100])
def test_an_impossible_number_is_refused_before_anything_is_written(data_dir: Path, tmp_path: Path, count: int) -> None:
    settings = dataclasses.replace(LENET, validation_images=count, data_dir=data_dir, output=tmp_path / "out")
    with pytest.raises(common.UserError, match=f"--validation-images {count} can't be had: .* multiple of 10 up to 90"):
        common.run(settings)
    assert not (tmp_path / "out").exists()


def test_the_best_epoch_goes_by_validation_accuracy(reference, data_dir: Path) -> None:
    folder = reference(*SCRIPT)
    record = read_run(folder)
    history, result = record["history"], record["result"]
    counts = {"train_images": 70, "validation_images": 30, "test_images": 40}
    assert record["dataset"].items() >= counts.items()
    assert record["config"]["validation_images"] == 30
    assert len(history["validation_loss"]) == len(history["validation_accuracy"]) == 4
    best = history["validation_accuracy"].index(max(history["validation_accuracy"]))
    assert result["best_epoch"] == history["epoch"][best] and result["best_epoch_chosen_on"] == "validation"
    assert result["best_test_accuracy"] == history["test_accuracy"][best]
    assert f"in epoch {best + 1}, chosen on validation images" in (folder.parent / "log.out").read_text()
    model = common.LeNet()
    model.load_state_dict(torch.load(folder / "best_model.pth", weights_only=True))
    held = hold_out(load_cifar10(data_dir), 30)
    logits = model(common.model_input(held.validation_images, common.interface_of(model)))
    accuracy = 100 * logits.argmax(1).eq(held.validation_labels).float().mean().item()
    assert accuracy == pytest.approx(history["validation_accuracy"][best], abs=1e-4), "best_model.pth is another's"


def test_the_same_images_are_held_out_after_resuming(run, reference, tmp_path: Path) -> None:
    whole, stopped = reference(*SCRIPT), at("step", 30, signal.SIGTERM)  # of 18 an epoch
    assert run(*SCRIPT, "--output", tmp_path, moment=stopped).code == -signal.SIGTERM
    assert run(*SCRIPT, "--output", tmp_path, "--resume").code == 0
    assert without_times(tmp_path) == without_times(whole)
    assert same_weights(tmp_path / "best_model.pth", whole / "best_model.pth")


def test_the_same_images_are_held_out_in_several_processes(together, reference, tmp_path: Path) -> None:
    done = together(2, *SCRIPT, "--output", tmp_path / "several")
    assert done.code == 0, done.err
    several, alone = (read_run(folder)["history"] for folder in (tmp_path / "several", reference(*SCRIPT)))
    for name in ("validation_loss", "test_loss"):
        assert several[name] == pytest.approx(alone[name], rel=1e-3), name
