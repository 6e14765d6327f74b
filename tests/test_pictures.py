"""What the pictures show: their lines, bars, images, labels and positions."""

import dataclasses
from pathlib import Path

import common

import numpy as np
import pytest
import torch
from PIL import Image

from cifar10lab.data.loading import CLASSES, load_cifar10
from cifar10lab.files.pictures import png
from cifar10lab.results.history import draw_losses
from original_version_model import SETTINGS

# A LeNet that tells some classes apart.
TRAINED = ("original_version_model_multigpu", "--epochs", 6, "--lr", 0.03, "--batch-size", 10)


@pytest.fixture
def inspect_here(inspect, figures):
    """Runs inspect_weights.py in this process; the figures that it draws."""

    def inspect_here(*arguments: object) -> list:
        code, _, err = inspect(*arguments)
        assert code == 0, err
        return figures

    return inspect_here


def logits_of(run: Path, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return common.load(run)(images)


def texts(artists: object) -> list[str]:
    return [artist.get_text() for artist in artists]


# --- loss.png


def curves(axes: object) -> dict[str, tuple[list, list]]:
    """The points of each line, by its name in the legend."""
    lines = {line.get_label(): tuple(map(list, line.get_data())) for line in axes.lines}
    assert texts(axes.get_legend().get_texts()) == list(lines)
    return lines


def test_the_losses_of_a_run(figures, data_dir: Path, tmp_path: Path) -> None:
    changes = {"epochs": 3, "batch_size": 10, "label_smoothing": 0.1, "validation_images": 30}
    record = common.run(dataclasses.replace(SETTINGS, **changes, data_dir=data_dir, output=tmp_path))
    history, steps = record["history"], record["steps"]
    (figure,) = figures
    left, right = figure.axes
    epochs, names = [1, 2, 3], {"training": "train", "test": "test", "validation": "validation"}
    losses = {"training, within the epochs": (steps["epoch"], steps["train_loss"])}
    # A mean over an epoch belongs at its middle.
    losses["training (with label smoothing)"] = ([0.5, 1.5, 2.5], history["train_loss"])
    losses |= {name: (epochs, history[f"{name}_loss"]) for name in ("test", "validation")}
    assert curves(left) == losses
    assert curves(right) == {name: (epochs, history[f"{key}_accuracy"]) for name, key in names.items()}
    assert (left.get_xlabel(), left.get_ylabel()) == ("epoch", "loss (cross-entropy)")
    assert (right.get_xlabel(), right.get_ylabel()) == ("epoch", "accuracy (%)")
    title, settings = figure.get_suptitle().split("\n", 1)
    assert title.startswith("original_version_model: ")
    assert f"{record['result']['final_test_accuracy']:.2f} % at the end" in title
    assert set(settings.split(", ")) == {f"{name}={value}" for name, value in changes.items()}, "not the stated ones"
    png(draw_losses, record | {"dataset": record["dataset"] | {"name": "synthetic"}}, "")
    assert figures[1].get_suptitle().startswith("original_version_model on SYNTHETIC data, not CIFAR-10: ")


# --- weights.png


def bars(axes: object) -> dict[str, list[float]]:
    """The lengths of each set of bars, by its name, from the top."""
    return {container.get_label(): [bar.get_width() for bar in container] for container in axes.containers}


def test_filters_and_a_bar_for_each_layer(inspect_here, lenet: Path) -> None:
    (figure,) = inspect_here(lenet)
    tensors = torch.load(lenet / "model.pth", weights_only=True)
    layers = {name: tensor.numpy() for name, tensor in tensors.items() if tensor.ndim > 1}
    filters, norms = figure.axes
    assert figure.get_suptitle() == str(lenet)
    assert filters.get_title() == "filters of the first convolution (6, as RGB, all on one scale)"
    drawn, expected = filters.images[0].get_array()[1:, 1:], layers["conv1.weight"]
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    assert drawn.shape == (6, 6 * 6, 3)
    for i, kernel in enumerate(expected):
        assert np.allclose(drawn[:5, 6 * i : 6 * i + 5], kernel.transpose(1, 2, 0), atol=1e-6), i
    assert texts(norms.get_yticklabels()) == [f"{name} ({weights.size:,})" for name, weights in layers.items()]
    assert norms.yaxis_inverted(), "the first layer is at the top"
    (lengths,) = bars(norms).values()
    assert lengths == pytest.approx([np.sqrt((weights**2).mean()) for weights in layers.values()], rel=1e-4)


def test_two_files_have_bars_beside_each_other(inspect_here, lenet: Path, tmp_path: Path) -> None:
    weights, other = torch.load(lenet / "model.pth", weights_only=True), tmp_path / "half.pth"
    torch.save({name: tensor / 2 for name, tensor in weights.items()}, other)
    (figure,) = inspect_here(lenet, "--against", other)
    assert figure.get_suptitle() == f"{lenet} against {other}"
    assert texts(figure.legends[0].get_texts()) == [str(lenet), str(other)]
    ours, theirs = bars(figure.axes[1]).values()
    assert theirs == pytest.approx([length / 2 for length in ours])


# --- confusion.png and mistakes.png


def test_the_confusion_matrix_and_the_worst_mistakes(inspect_here, reference, data_dir: Path, tmp_path: Path) -> None:
    run, data = reference(*TRAINED), load_cifar10(data_dir)
    _, confusion, mistakes = inspect_here(run, "--evaluate", "--output", tmp_path)
    probabilities, labels = logits_of(run, data.test_images).softmax(1), data.test_labels.tolist()
    sure, predicted = (values.tolist() for values in probabilities.max(1))

    axes = confusion.axes[0]
    accuracy = 100 * np.mean(np.equal(predicted, labels))
    assert axes.get_title() == f"{str(run)[-60:]}: test accuracy {accuracy:.2f} %" and len(set(predicted)) > 3
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    assert texts(axes.get_xticklabels()) == texts(axes.get_yticklabels()) == list(CLASSES)
    shares = np.zeros((10, 10))
    for label, prediction in zip(labels, predicted, strict=True):
        shares[label, prediction] += 100 / 4  # of four images of each class
    assert np.array_equal(axes.images[0].get_array(), shares)
    drawn = {text.get_position(): text.get_text() for text in axes.texts}
    assert drawn == {(x, y): f"{shares[y, x]:.0f}" for x in range(10) for y in range(10)}

    worst = sorted((i for i in range(40) if predicted[i] != labels[i]), key=lambda i: -sure[i])
    shown = [axes for axes in mistakes.axes if axes.images]
    assert len(shown) == min(32, len(worst))
    assert f"{len(shown)} of {len(worst)} mistakes in 40 test images" in mistakes.get_suptitle()
    for axes, i in zip(shown, worst, strict=False):
        names = f"true: {CLASSES[labels[i]]}\npredicted: {CLASSES[predicted[i]]}"
        assert axes.get_title() == f"{names}\n({100 * sure[i]:.1f} % sure)"
        assert np.array_equal(axes.images[0].get_array(), data.test_images[i].permute(1, 2, 0))


# --- classified.png


def test_classified_photos_are_beside_their_pixels_and_probabilities(inspect_here, reference, tmp_path: Path) -> None:
    run, sizes = reference(*TRAINED), {"high.png": (90, 50, 3), "a $wide$ one.png": (64, 96, 3)}
    for name, size in sizes.items():
        Image.fromarray(np.random.default_rng(0).integers(0, 256, size, np.uint8)).save(tmp_path / name)
    (figure,) = inspect_here(run, "--output", tmp_path, "--classify", *(tmp_path / name for name in sizes))
    assert len(figure.axes) == 6
    for row, name in enumerate(sizes):
        left, middle, right = figure.axes[3 * row : 3 * row + 3]
        assert left.get_title() == name and middle.get_title() == "what the network saw"
        assert left.images[0].get_array().shape == sizes[name]
        seen = torch.from_numpy(np.array(middle.images[0].get_array()))
        assert seen.shape == (32, 32, 3)
        expected = 100 * logits_of(run, seen.permute(2, 0, 1)[None])[0].softmax(0)
        bars = right.containers[0]
        assert [bar.get_width() for bar in bars] == pytest.approx(expected.tolist(), abs=0.01)
        assert texts(right.get_yticklabels()) == list(CLASSES) and right.yaxis_inverted()
        assert texts(right.texts) == [f"{bar.get_width():.1f}" for bar in bars]
        colours = [bar.get_facecolor() for bar in bars]
        assert [colours.count(colour) for colour in colours] == [1 if i == expected.argmax() else 9 for i in range(10)]
        assert right.get_title() == "probability (%)"
