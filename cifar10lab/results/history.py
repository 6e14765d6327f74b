"""What a run keeps of its epochs and steps, in words and as the picture `loss.png`."""

import textwrap

import numpy as np

HISTORY = ("epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate", "seconds")
# As Okabe and Ito chose them, so that colour-blind readers can tell them apart.
LINES = {"train": ("--", "#D55E00"), "test": ("-", "#0072B2"), "validation": (":", "#000000")}


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


def describe_epoch(history: dict[str, list[float]], epochs: int, images: int) -> str:
    """The history's last epoch on one line; `images` is how many it trained on."""
    row = {name: values[-1] for name, values in history.items()}
    validation = f"  validation accuracy {row['validation_accuracy']:.2f} %" if "validation_accuracy" in row else ""
    return (
        f"epoch {row['epoch']:3}/{epochs}  train loss {row['train_loss']:.4f}  test loss {row['test_loss']:.4f}  "
        f"train accuracy {row['train_accuracy']:.2f} %{validation}  test accuracy {row['test_accuracy']:.2f} %  "
        f"{row['seconds']:.1f} s  {images / row['seconds']:.0f} images/s"
    )


def describe_result(result: dict) -> str:
    """A run's accuracies in words that say which images chose its best epoch."""
    last, best, epoch = (result[name] for name in ("final_test_accuracy", "best_test_accuracy", "best_epoch"))
    mirrored = f" ({result['mirrored_test_accuracy']:.2f} % mirrored)" if "mirrored_test_accuracy" in result else ""
    end = f"test accuracy {last:.2f} % at the end{mirrored}"
    if result["best_epoch_chosen_on"] == "validation":
        return f"{end}, {best:.2f} % in epoch {epoch}, chosen on validation images"
    return f"{end}, {best:.2f} % at best (epoch {epoch})"


def draw_losses(figure: object, run: dict, changed: str) -> None:
    """`loss.png` of what `loss.json` holds; `changed` names what differs from the stated settings, as "epochs=50"."""
    history = run["history"]
    figure.set(size_inches=(11, 4.5), dpi=110)
    left, right = figure.subplots(1, 2)
    smoothed = " (with label smoothing)" if run["config"]["label_smoothing"] else ""
    labels = {"train_loss": f"training{smoothed}", "train_accuracy": "training"}
    left.plot(run["steps"]["epoch"], run["steps"]["train_loss"], color="#BBBBBB", label="training, within the epochs")
    marker = "o" if len(history["epoch"]) <= 30 else ""
    for axes, what, unit in ((left, "loss", "cross-entropy"), (right, "accuracy", "%")):
        for part, (line, colour) in LINES.items():
            name = f"{part}_{what}"
            if name in history:
                # A mean over an epoch's steps belongs at the middle of the epoch; all else is measured at its end.
                epochs = [epoch - 0.5 * (name == "train_loss") for epoch in history["epoch"]]
                axes.plot(epochs, history[name], f"{marker}{line}", color=colour, ms=4, label=labels.get(name, part))
        axes.set(xlabel="epoch", ylabel=f"{what} ({unit})")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    stand_in = "" if run["dataset"]["name"] == "cifar10" else " on SYNTHETIC data, not CIFAR-10"
    title = f"{run['experiment']}{stand_in}: {describe_result(run['result'])}"
    settings = textwrap.fill(changed.replace(",", ", ") or "the stated settings", 120)
    figure.suptitle(f"{title}\n{settings}", fontsize=10)
