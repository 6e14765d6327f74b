"""--validation-images: an epoch chosen without looking at the test images."""

import dataclasses
import signal
from pathlib import Path

import common

import pytest
import torch
from conftest import at, read_run, same_weights, without_times

from cifar10lab.data.loading import Data, hold_out, load_cifar10
from cifar10lab.terminal.errors import UserError
from original_version_model import SETTINGS as LENET

SCRIPT = ("original_version_model", "--epochs", 4, "--lr", 0.01, "--validation-images", 30)


def numbered(images: int) -> Data:
    """Training images that each hold their own number, of ten classes in an irregular order."""
    numbers = torch.arange(images, dtype=torch.int32)
    pixels = numbers.view(torch.uint8).view(images, 4, 1, 1).expand(images, 4, 32, 32)[:, :3]
    labels = torch.randperm(images, generator=torch.Generator().manual_seed(1)) % 10
    return Data(pixels.contiguous(), labels, pixels[:10], labels[:10], "cifar10", "test")


def numbers_of(images: torch.Tensor) -> list[int]:
    return (images[:, 0, 0, 0].int() + 256 * images[:, 1, 0, 0].int()).tolist()


def test_the_parts_are_disjoint_complete_balanced_and_the_same_for_every_seed() -> None:
    data = numbered(1000)
    parts = hold_out(data, 200)
    trained, held = numbers_of(parts.train_images), numbers_of(parts.validation_images)
    assert sorted(trained + held) == list(range(1000)) and len(held) == 200
    assert torch.bincount(parts.validation_labels).tolist() == [20] * 10
    for numbers, labels in ((trained, parts.train_labels), (held, parts.validation_labels)):
        assert torch.equal(data.train_labels[numbers], labels)
    assert torch.equal(parts.test_images, data.test_images)
    torch.manual_seed(7)
    assert numbers_of(hold_out(data, 200).validation_images) == held
    assert hold_out(data, 0).validation_images.shape == (0, 3, 32, 32)


@pytest.mark.parametrize("count", [5, 100, 200])
def test_an_impossible_number_is_an_error_that_says_what_is_possible(count: int) -> None:
    with pytest.raises(UserError, match=rf"--validation-images {count} .* multiple of 10 up to 90"):
        hold_out(numbered(100), count)


def test_the_best_epoch_goes_by_validation_accuracy(reference, data_dir: Path) -> None:
    folder = reference(*SCRIPT)
    record = read_run(folder)
    history, result = record["history"], record["result"]
    counts = {"train_images": 70, "validation_images": 30, "test_images": 40}
    assert record["dataset"].items() >= {"name": "cifar10", "source": "image folder", **counts}.items()
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


def test_the_same_images_are_held_out_after_resuming(run, reference, data_dir: Path, tmp_path: Path) -> None:
    whole, stopped = reference(*SCRIPT), at("step", 30, signal.SIGTERM)  # of 18 an epoch
    assert run(*SCRIPT, "--output", tmp_path, moment=stopped).code == -signal.SIGTERM
    settings = dataclasses.replace(LENET, epochs=4, lr=0.01, data_dir=data_dir, output=tmp_path, resume=True)
    for count in (40, 0):
        with pytest.raises(UserError, match=f"validation_images 30 -> {count}"):
            common.run(dataclasses.replace(settings, validation_images=count))
    assert run(*SCRIPT, "--output", tmp_path, "--resume").code == 0
    assert without_times(tmp_path) == without_times(whole)
    assert same_weights(tmp_path / "best_model.pth", whole / "best_model.pth")


def test_the_same_images_are_held_out_in_several_processes(together, reference, tmp_path: Path) -> None:
    done = together(2, *SCRIPT, "--output", tmp_path / "several")
    assert done.code == 0, done.err
    several, alone = (read_run(folder)["history"] for folder in (tmp_path / "several", reference(*SCRIPT)))
    for name in ("validation_loss", "test_loss"):
        assert several[name] == pytest.approx(alone[name], rel=1e-3), name


def test_a_folder_that_is_too_small_is_refused_before_anything_is_written(own_data_dir: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(LENET, validation_images=20, data_dir=own_data_dir, output=tmp_path / "out")
    with pytest.raises(UserError, match="--validation-images 20 can't be had"):
        common.run(settings)
    assert not (tmp_path / "out").exists()
