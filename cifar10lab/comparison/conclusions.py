"""The reference's page and picture: its results, and its verdicts on the original's conclusions."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pandas as pd

from cifar10lab.comparison.curves import COLOURS, DPI, WIDTH
from cifar10lab.comparison.differences import INTERVAL, difference
from cifar10lab.comparison.runs import first_reached, values, without_seed
from cifar10lab.comparison.table import notes, span, table_rows
from cifar10lab.results.reference import mean_text, original_run

NOTE = """Written by `python compare_results.py --conclusions`: don't edit. Images: an image-folder copy of CIFAR-10,
pixel-exact but for 98 of the 60,000. A row is the runs that differ by their seed alone: mean ± standard deviation.
`best (epoch)`, in per cent: chosen on test or, where there are any, validation images. `gap`: training less test
accuracy, in points. `seconds`: of training, shortest to longest. The original's: single runs, [here](original.json)."""
RULES = f"""What is compared was named beforehand, not chosen by its result. {INTERVAL}.
Within it a difference is undecided, without one it can't be judged. A time is the epochs to an accuracy by the seconds
that `benchmarks/throughput.py` measured for both side by side; it is decided where all seeds agree. A speed-up is
considerable if it is more than half of what the further devices could add."""
MARKDOWN = {"index": False, "disable_numparse": True}  # numbers as they are
HOLDS, PARTLY, CONTRADICTED = "holds", "holds in part", "is contradicted"
UNDECIDED, OPEN = "undecided", "can't be judged"
RESNET, LENET, TUNED = "ResNet-18, 25 epochs", "LeNet, 50 epochs", "tuned LeNet"
NAMED = {  # by their folders in modelset/reference/; the first six are in the picture
    "LeNet, 5 epochs": "original_version_model",
    LENET: "original_version_model_multiGPU/epochs=50",
    "LeNet + L2, 50 epochs": "L2_regularization_model/epochs=50",
    "LeNet + dropout, 50 epochs": "Dropout_regularization/epochs=50",
    RESNET: "Resnet",
    "fast model, 12 epochs": "Fast",
    "LeNet, 200 epochs": "original_version_model_multiGPU",
    "LeNet + L2, 200 epochs": "L2_regularization_model",
    "LeNet + dropout, 200 epochs": "Dropout_regularization",
    TUNED: "original_version_model_multiGPU/"
    "lr=0.05,momentum=0.9,weight_decay=0.0002,augment=True,schedule=one-cycle,nesterov=True",
}
MEASURED = {  # by their commands in benchmarks/throughput.json
    RESNET: "resnet_model.py",
    LENET: "original_version_model_multigpu.py --epochs 50",
    TUNED: "original_version_model_multigpu.py --augment --lr 0.05 --momentum 0.9 --nesterov --schedule one-cycle "
    "--weight-decay 2e-4",
}
Evidence = tuple[str, str, str, str]  # claim, what was measured, of which seeds, verdict: "" for a line to be read only


def page(runs: pd.DataFrame) -> str:
    """The README of the reference results, which are on CIFAR-10."""
    rows, benchmarks = named_rows(runs), Path(__file__).resolve().parents[2] / "benchmarks"
    throughput, scaling = (json.loads((benchmarks / f"{name}.json").read_bytes()) for name in ("throughput", "scaling"))
    evidence = {
        "The choice of model matters more than tuning parameters": model_choice(rows),
        "ResNet beats LeNet in accuracy and in training efficiency": efficiency(runs, rows, throughput),
        "Regularisation helps against overfitting, and may cost a little accuracy": regularisation(rows),
        "Training in parallel on several GPUs speeds training up considerably": several_devices(scaling),
    }
    parts = ["# Reference results", NOTE, table_rows(runs, None, None).to_markdown(**MARKDOWN)]
    parts += ["\n".join(f"- {note}" for note in notes(runs))]
    parts += ["![Test accuracies of the scripts, and what regularisation does](results.png)", "## Conclusions", RULES]
    for number, (conclusion, lines) in enumerate(evidence.items(), 1):
        table = pd.DataFrame(lines, columns=["claim", "measured", "of", "verdict"])
        parts += [f"{number}. {conclusion}: **{combined([*table['verdict']])}**", table.to_markdown(**MARKDOWN)]
    return "\n\n".join(parts) + "\n"


def named_rows(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The runs of each settings in NAMED, of the device with the most seeds; none where there are none."""
    found, folders = {}, runs["folder"].map(lambda path: without_seed(Path(path)).as_posix())
    for name, folder in NAMED.items():
        nearest = folders[folders.str.endswith(f"/{folder}")].sort_values(key=lambda paths: paths.str.len())
        rows = [runs[runs["row"] == row] for row in runs["row"][nearest.index]]
        found[name] = max(rows, key=len, default=runs.iloc[:0])
    return found


def compared(claim: str, less: pd.Series, more: pd.Series, judged: bool = True) -> Evidence:
    """What `more` has more than `less`, each per cent by seed; with the verdict on that if it is `judged`."""
    if less.empty or more.empty:
        return claim, "not trained", "", OPEN
    value, error, seeds, by_seed = found = difference(less, more)
    outcome = HOLDS if value > error else CONTRADICTED if value < -error else OPEN if math.isnan(error) else UNDECIDED
    return claim, f"{found} points", seeds + by_seed, outcome if judged else ""


def model_choice(rows: dict[str, pd.DataFrame]) -> Iterator[Evidence]:
    """What tuning makes of plain LeNet, and what ResNet-18 is better by than tuned LeNet, less that."""
    resnet, lenet, tuned = (values(rows[name], "test_accuracy") for name in (RESNET, LENET, TUNED))
    yield compared(f"{TUNED}, less {LENET}", lenet, tuned, judged=False)
    yield compared(f"{RESNET}, less {TUNED}, less that", (tuned - lenet).dropna(), (resnet - tuned).dropna())


def efficiency(runs: pd.DataFrame, rows: dict[str, pd.DataFrame], throughput: list[dict]) -> Iterator[Evidence]:
    """ResNet-18's accuracy less LeNet's, and the time of each to 60 and 65 %: its epochs, by the seconds measured."""
    seconds = {case["experiment"]: 50_000 / median(case["pipeline_images_per_second"]) for case in throughput}
    for both in ((RESNET, LENET), (RESNET, TUNED)):
        more, less = (values(rows[name], "test_accuracy") for name in both)
        yield compared(f"{RESNET}: more accurate than {both[1]}", less, more)
        for accuracy in (60, 65):
            reached = first_reached(runs, accuracy)["epoch"]
            epochs = [reached.reindex(rows[name].index, fill_value=math.inf) for name in both]
            resnet, lenet = times = [one * seconds[MEASURED[name]] for one, name in zip(epochs, both, strict=True)]
            outcome = HOLDS if resnet.max() < lenet.min() else CONTRADICTED if resnet.min() > lenet.max() else UNDECIDED
            measured = " against ".join("never" if math.inf in set(one) else f"{span(one)} s" for one in times)
            claim, seeds = f"{RESNET}: sooner at {accuracy} % than {both[1]}", f"{len(resnet)} and {len(lenet)} seeds"
            yield claim, measured, seeds, outcome


def regularisation(rows: dict[str, pd.DataFrame]) -> Iterator[Evidence]:
    """The gap between training and test accuracy, and test accuracy, with and without, all else the same."""
    for what, epochs in (("L2", 50), ("dropout", 50), ("L2", 200), ("dropout", 200)):
        plain, regularised = rows[f"LeNet, {epochs} epochs"], rows[f"LeNet + {what}, {epochs} epochs"]
        gaps, accuracies = ([values(row, name) for row in (plain, regularised)] for name in ("gap", "test_accuracy"))
        yield compared(f"{what}, {epochs} epochs: gap narrower by", *reversed(gaps))
        yield compared(f"{what}, {epochs} epochs: test accuracy higher by", *accuracies, judged=False)


def several_devices(scaling: dict) -> Iterator[Evidence]:
    """Each speed-up measured: considerable if it is more than half of what the further devices could add."""
    for case in scaling["cases"]:
        for several in case["measured"][1:]:
            devices, speedup = several["devices"], several["speedup"]
            claim = f"{case['model']}, batch size {case['batch_size']}: {devices} {scaling['devices']}"
            outcome = HOLDS if speedup > (devices + 1) / 2 else CONTRADICTED
            yield f"{claim} ({several['parallel']})", f"{speedup:.2f} times as fast as one", "", outcome
    if scaling["devices"] != "GPUs":
        yield "several GPUs", "not measured", "", OPEN


def combined(verdicts: list[str]) -> str:
    """The verdict on a conclusion from those on its parts, where "" is none."""
    judged = set(verdicts) - {""}
    if HOLDS in judged:
        return HOLDS if judged == {HOLDS} else PARTLY
    return next((one for one in (UNDECIDED, CONTRADICTED) if one in judged), OPEN)


def draw_results(figure: object, runs: pd.DataFrame) -> None:
    """Left, scripts' test accuracies at the end, a dot a seed; right, mean training and test accuracy of LeNets."""
    rows = named_rows(runs)
    figure.set(size_inches=(WIDTH, 4.5), dpi=DPI)
    left, right = figure.subplots(1, 2, width_ratios=[5, 4])
    scripts = [name for name in list(NAMED)[:6] if len(rows[name])]
    for place, name in enumerate(scripts):
        accuracies, device = values(rows[name], "test_accuracy"), rows[name].iloc[0]["device"]
        left.plot(accuracies, [place] * len(accuracies), "o", color=COLOURS[place], markersize=6, alpha=0.75)
        original = original_run(rows[name].iloc[0]["record"]["config"]).get("last") or math.nan
        left.plot(original, place - 0.2, "*", ms=10, markerfacecolor="none", markeredgecolor="black")
        left.text(102, place, f"{mean_text(accuracies.tolist())} % ({len(accuracies)})", va="center", clip_on=False)
        scripts[place] = name if device == "cpu" else f"{name}\n{device}"
    left.set_yticks(range(len(scripts)), scripts)
    left.set(xlim=(55, 101), ylim=(len(scripts) - 0.5, -0.5), xlabel="test accuracy after the last epoch (%)")
    left.set_title("● a seed   ☆ the original   right: mean (seeds)")
    left.grid(alpha=0.3, axis="x")
    lenets = dict(zip(("plain", "L2", "dropout"), [rows[name] for name in list(NAMED)[6:9]], strict=True))
    for shift, column, colour in ((-0.2, "train_accuracy", COLOURS[1]), (0.2, "test_accuracy", COLOURS[0])):
        places, means = [place + shift for place in range(3)], [row[column].mean() for row in lenets.values()]
        right.bar_label(right.bar(places, means, 0.38, color=colour), fmt="%.1f", padding=2)
    right.set_xticks(range(3), [f"{name}\ngap {row['gap'].mean():.0f}" for name, row in lenets.items()])
    right.set(ylim=(0, 118), ylabel="mean accuracy after the last epoch (%)", title="LeNet, 200 epochs")
    right.legend(["training", "test"], ncols=2)
