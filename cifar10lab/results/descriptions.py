"""Epochs and results in words."""

from __future__ import annotations

from cifar10lab.results.reference import mean_text


def describe_result(result: dict) -> str:
    """A run's accuracies in words that say which images chose its best epoch."""
    last, best, epoch = (result[name] for name in ("final_test_accuracy", "best_test_accuracy", "best_epoch"))
    mirrored = f" ({result['mirrored_test_accuracy']:.2f} % mirrored)" if "mirrored_test_accuracy" in result else ""
    end = f"test accuracy {last:.2f} % at the end{mirrored}"
    if result["best_epoch_chosen_on"] == "validation":
        return f"{end}, {best:.2f} % in epoch {epoch}, chosen on validation images"
    return f"{end}, {best:.2f} % at best (epoch {epoch})"


def describe_seeds(records: list[dict]) -> str:
    """Runs that differ by their seed, in words: "seeds 0, 1, 2: test accuracy 61.51 ± 1.30 % at the end"."""
    seeds = ", ".join(str(record["config"]["seed"]) for record in records)
    accuracies = [record["result"]["final_test_accuracy"] for record in records]
    return f"seeds {seeds}: test accuracy {mean_text(accuracies)} % at the end"


def describe_epoch(row: dict[str, float], epochs: int, images: int) -> str:
    """An ended epoch on one line: `row` is its part of the history, `images` is how many it trained on."""
    validation = f"  validation accuracy {row['validation_accuracy']:.2f} %" if "validation_accuracy" in row else ""
    return (
        f"epoch {row['epoch']:3}/{epochs}  train loss {row['train_loss']:.4f}  test loss {row['test_loss']:.4f}  "
        f"train accuracy {row['train_accuracy']:.2f} %{validation}  test accuracy {row['test_accuracy']:.2f} %  "
        f"{row['seconds']:.1f} s  {images / row['seconds']:.0f} images/s"
    )
