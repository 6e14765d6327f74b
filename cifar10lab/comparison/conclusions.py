"""What the reference results say about the original's four conclusions, by settings named before any result."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from pathlib import Path

import pandas as pd

from cifar10lab.comparison.differences import difference
from cifar10lab.comparison.runs import Runs, values
from cifar10lab.comparison.table import span
from cifar10lab.results.rows import without_seed

CONCLUSIONS = (
    "The choice of model matters more than tuning parameters",
    "ResNet beats LeNet in accuracy and in training efficiency",
    "Regularisation helps against overfitting, and may cost a little accuracy",
    "Training in parallel on several GPUs speeds training up considerably",
)
HOLDS, CONTRADICTED, PARTLY = "holds", "is contradicted", "holds in part"
UNDECIDED, OPEN = "undecided", "can't be judged"
RESNET, LENET, TUNED = "ResNet-18, 25 epochs", "LeNet, 50 epochs", "tuned LeNet"
NAMED = {  # by their folders in modelset/reference/
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
EVIDENCE = ("claim", "measured", "of", "verdict")  # "of": the seeds; without a verdict a line is there to be read only
Evidence = tuple[str, str, str, str]
Rows = dict[str, pd.DataFrame]  # the runs of each settings in NAMED, none where there are none


def named_rows(runs: Runs) -> Rows:
    """The rows of NAMED, of the device with the most seeds."""
    found, folders = {}, runs.table["folder"].map(lambda path: without_seed(Path(path)).as_posix())
    for name, folder in NAMED.items():
        nearest = folders[folders.str.endswith(f"/{folder}")].sort_values(key=lambda paths: paths.str.len())
        rows = [runs.table[runs.table["row"] == row] for row in runs.table["row"][nearest.index]]
        found[name] = max(rows, key=len, default=runs.table.iloc[:0])
    return found


def judge_all(runs: Runs) -> list[tuple[str, list[Evidence]]]:
    """A verdict and its evidence for each of CONCLUSIONS."""
    benchmarks, rows = Path(__file__).resolve().parents[2] / "benchmarks", named_rows(runs)
    throughput, scaling = (json.loads((benchmarks / f"{name}.json").read_text()) for name in ("throughput", "scaling"))
    judged = [model_choice(rows), efficiency(runs, rows, throughput), regularisation(rows), several_devices(scaling)]
    return [(combined([line[-1] for line in lines if line[-1]]), lines) for lines in judged]


def compared(claim: str, less: pd.Series, more: pd.Series, judged: bool = True) -> Evidence:
    """What `more` has more than `less`, each per cent by seed; with the verdict on that if it is `judged`."""
    if less.empty or more.empty:
        return claim, "not trained", "", OPEN
    found = difference(less, more)
    outcome = HOLDS if found.value > found.error else CONTRADICTED if found.value < -found.error else UNDECIDED
    outcome = OPEN if math.isnan(found.error) else outcome
    return claim, f"{found} points", found.seeds + found.by_seed, outcome if judged else ""


def model_choice(rows: Rows) -> list[Evidence]:
    """What ResNet-18 is better by than tuned LeNet, against what tuning makes of plain LeNet."""
    resnet, lenet, tuned = (values(rows[name], "test_accuracy") for name in (RESNET, LENET, TUNED))
    return [
        compared(f"{RESNET}, less {TUNED}", tuned, resnet, judged=False),
        compared(f"{TUNED}, less {LENET}", lenet, tuned, judged=False),
        compared("the first less the second", (tuned - lenet).dropna(), (resnet - tuned).dropna()),  # seed by seed
    ]


def efficiency(runs: Runs, rows: Rows, throughput: list[dict]) -> list[Evidence]:
    """ResNet-18's accuracy less LeNet's, and the time of each to 60 and 65 %: its epochs, by the seconds measured."""
    cases, found = {case["experiment"]: case for case in throughput if case["device"] == "cpu"}, []
    for name in (LENET, TUNED):
        accuracies = [values(rows[one], "test_accuracy") for one in (name, RESNET)]
        found.append(compared(f"{RESNET}: more accurate than {name}", *accuracies))
        for accuracy in (60, 65) if {MEASURED[name], MEASURED[RESNET]} <= cases.keys() else ():
            times = []
            for one in (RESNET, name):
                epochs = runs.part(rows[one]).epochs
                reached = epochs["epoch"].where(epochs["test_accuracy"] >= accuracy, math.inf)
                rate = statistics.median(cases[MEASURED[one]]["pipeline_images_per_second"])
                times.append(reached.groupby(epochs["run"]).min() * 50_000 / rate)
            resnet, lenet = times
            outcome = HOLDS if resnet.max() < lenet.min() else UNDECIDED
            outcome = CONTRADICTED if resnet.min() > lenet.max() else outcome
            texts = ["never" if math.inf in set(one) else f"{span(one)} s" for one in times]
            claim, of = f"{RESNET}: sooner at {accuracy} % than {name}", f"{len(resnet)} and {len(lenet)} seeds"
            found.append((claim, " against ".join(texts), of, outcome))
    return found


def regularisation(rows: Rows) -> list[Evidence]:
    """The gap between training and test accuracy, and test accuracy, with and without, all else the same."""
    found = []
    for epochs, what in itertools.product((50, 200), ("L2", "dropout")):
        plain, regularised = rows[f"LeNet, {epochs} epochs"], rows[f"LeNet + {what}, {epochs} epochs"]
        gaps, accuracies = ([values(row, name) for row in (plain, regularised)] for name in ("gap", "test_accuracy"))
        found.append(compared(f"{what}, {epochs} epochs: gap narrower by", *reversed(gaps)))
        found.append(compared(f"{what}, {epochs} epochs: test accuracy higher by", *accuracies, judged=False))
    return found


def several_devices(scaling: dict) -> list[Evidence]:
    """Each speed-up measured: considerable if it is more than half of what the further devices could add."""
    found, unit = [], scaling["devices"]
    for case in scaling["cases"]:
        for measured in [one for one in case["measured"] if one["devices"] > 1]:
            count, speedup = measured["devices"], measured["speedup"]
            claim = f"{case['model']}, batch size {case['batch_size']}: {count} {unit} ({measured['parallel']})"
            outcome = HOLDS if speedup > (count + 1) / 2 else CONTRADICTED
            found.append((claim, f"{speedup:.2f} times as fast as one", "", outcome))
    return found if unit == "GPUs" else [*found, ("several GPUs", "not measured", "", OPEN)]


def combined(verdicts: list[str]) -> str:
    """The verdict on a conclusion from those on its parts."""
    if HOLDS in verdicts:
        return HOLDS if set(verdicts) == {HOLDS} else PARTLY
    return next((one for one in (UNDECIDED, CONTRADICTED) if one in verdicts), OPEN)
