"""What a run keeps of its epochs and steps."""

from __future__ import annotations

import numpy as np

HISTORY = ("epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate", "seconds")


def finer_losses(steps: dict, losses: np.ndarray, epoch: int, batch_size: int, images: int) -> dict[str, list[float]]:
    """`steps` with the training loss of each twelfth of the epoch, placed at its end.

    `losses` are those of the epoch's steps, each summed over its images; `images` is how many the epoch has.
    """
    edges = np.linspace(0, len(losses), min(len(losses), 12) + 1).round().astype(int)
    sums = np.add.reduceat(losses.astype(float), edges[:-1])
    ends = np.minimum(edges * batch_size, images)
    epochs = (epoch - 1 + ends[1:] / images).round(4)
    means = sums / np.diff(ends)
    return {"epoch": steps["epoch"] + epochs.tolist(), "train_loss": steps["train_loss"] + means.tolist()}


def best_epoch(history: dict[str, list[float]]) -> tuple[int, str]:
    """The first epoch with the best accuracy, and whether "validation" or "test" images chose it."""
    images = "validation" if "validation_accuracy" in history else "test"
    return history["epoch"][int(np.argmax(history[f"{images}_accuracy"]))], images
