"""The picture of one run, `loss.png`."""

import textwrap

from cifar10lab.files.pictures import default_style, png
from cifar10lab.results.history import describe_result

TEST, TRAIN = "#0072B2", "#D55E00"  # of Okabe and Ito's colours, which colour-blind readers can tell apart


@default_style()
def draw_losses(run: dict, changed: str) -> bytes:
    """`loss.png` of what `loss.json` holds; `changed` names what differs from the stated settings, as "epochs=50"."""
    from matplotlib.figure import Figure  # takes half a second: only when there is something to draw

    history = run["history"]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    smoothed = " (with label smoothing)" if run["config"]["label_smoothing"] else ""
    left.plot(run["steps"]["epoch"], run["steps"]["train_loss"], color="#BBBBBB", label="training, within the epochs")
    marker = "o" if len(history["epoch"]) <= 30 else ""
    for axes, what, unit in ((left, "loss", "cross-entropy"), (right, "accuracy", "%")):
        # A mean over an epoch's steps belongs at the middle of the epoch; all else is measured at its end.
        shift, label = (0.5, f"training{smoothed}") if what == "loss" else (0, "training")
        epochs = [epoch - shift for epoch in history["epoch"]]
        axes.plot(epochs, history[f"train_{what}"], f"{marker}--", color=TRAIN, ms=4, label=label)
        axes.plot(history["epoch"], history[f"test_{what}"], f"{marker}-", color=TEST, ms=4, label="test")
        if f"validation_{what}" in history:
            values = history[f"validation_{what}"]
            axes.plot(history["epoch"], values, f"{marker}:", color="#000000", ms=4, label="validation")
        axes.set(xlabel="epoch", ylabel=f"{what} ({unit})")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    stand_in = "" if run["dataset"]["name"] == "cifar10" else " on SYNTHETIC data, not CIFAR-10"
    title = f"{run['experiment']}{stand_in}: {describe_result(run['result'])}"
    settings = textwrap.fill(changed.replace(",", ", ") or "the stated settings", 120)
    figure.suptitle(f"{title}\n{settings}", fontsize=10)
    return png(figure, 110)
