"""What the reference results say about the original's four conclusions."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pandas as pd

from cifar10lab.comparison.evidence import OPEN, Evidence, combined, difference, interval, verdict
from cifar10lab.comparison.runs import Runs, config_of_row, names_of, values
from cifar10lab.results.reference import MODELSET, NOT_COMPARED, settings_in_use

CONCLUSIONS = (
    "The choice of model matters more than tuning parameters",
    "ResNet beats LeNet in accuracy and in training efficiency",
    "Regularisation helps against overfitting, and may cost a little accuracy",
    "Training in parallel on several GPUs speeds training up considerably",
)
TRIAL_EPOCHS = 5  # as many as the shortest experiment has: with fewer, a run is a trial and no evidence
THRESHOLDS = (60, 65, 70, 73)  # per cent; LeNet's very best is just above the last
CONSIDERABLE = 1 / 2  # of the speed that each further device could add
Groups = dict[str, pd.DataFrame]  # the runs of each setting by its short name, highest best epoch first


def judge_all(runs: Runs) -> list[tuple[str, list[Evidence]]]:
    """A verdict and its evidence for each of CONCLUSIONS, from the finished runs on CIFAR-10."""
    table = runs.table[~runs.table["unfinished"] & (runs.table["dataset"] == "cifar10")]
    table = table[(table["epochs_trained"] >= TRIAL_EPOCHS) & (table["validation_images"] == 0)]
    for accuracy in THRESHOLDS:
        logs = [log_epochs_to(runs.epochs[runs.epochs["run"] == run], accuracy) for run in table.index]
        table = table.assign(**{f"log_epochs_to_{accuracy}": logs})
    names, models = names_of(runs, table["key"]), {}
    for model in ("LeNet", "ResNet18"):
        groups = {names[key]: group for key, group in table[table["model"] == model].groupby("key")}
        models[model] = dict(sorted(groups.items(), key=lambda pair: -values(pair[1], "best_on_test").mean()))
    lenets, resnets = models.values()
    both = lenets and resnets
    judged = [judge(table, lenets, resnets) if both else [] for judge in (model_choice, efficiency)]
    judged += [regularisation(runs.part(table), lenets), several_devices()]
    return [(combined([line.verdict for line in lines if line.claim]), lines) for lines in judged]


def line(claim: str, compared_with: str, value: float, error: float, *groups: pd.DataFrame) -> Evidence:
    """A difference of percentages between groups, with the verdict on its claim if there is one."""
    seeds, around = ", ".join(str(group["seed"].nunique()) for group in groups), f" ± {error:.2f}" * (error == error)
    return Evidence(claim, compared_with, f"{value:+.2f}{around} points", seeds, verdict(value, error) if claim else "")


def model_choice(table: pd.DataFrame, lenets: Groups, resnets: Groups) -> list[Evidence]:
    """Best ResNet-18 less best LeNet, against what settings of plain LeNet, which differ by tuning alone, differ by."""
    against = ("weight_decay", "dropout", "label_smoothing", "augment")  # overfitting
    plain = [group for group in lenets.values() if not any(group.iloc[0][name] for name in against)]
    if len(plain) < 2:
        return []
    (resnet_name, resnet), (lenet_name, lenet) = next(iter(resnets.items())), next(iter(lenets.items()))
    best, last, pairs = plain[0], plain[-1], math.comb(len(plain), 2)
    model = difference(table, "best_on_test", [resnet], [lenet], len(resnets) * len(lenets))
    tuning = difference(table, "best_on_test", [best], [last], pairs)
    more = difference(table, "best_on_test", [resnet, last], [lenet, best], pairs)
    return [
        line("", f"best epoch of {resnet_name}, less {lenet_name}", *model, resnet, lenet),
        line("", f"best less worst of {len(plain)} settings of plain LeNet", *tuning, best, last),
        line("the model: more", "settings", *more, resnet, lenet, best, last),
    ]


def efficiency(table: pd.DataFrame, lenets: Groups, resnets: Groups) -> list[Evidence]:
    """Accuracy, and the time to several accuracies, of ResNet-18 as its script states it, at any width."""
    (best_name, best), found = next(iter(lenets.items())), []
    for name, resnet in resnets.items():
        if resnet.iloc[0]["schedule"] == "cosine" and resnet.iloc[0]["lr"] == 0.005:
            more = difference(table, "best_on_test", [resnet], [best], len(lenets))
            found.append(line(f"{name}: best epoch more accurate", best_name, *more, resnet, best))
            found += [one for accuracy in THRESHOLDS for one in sooner(table, name, resnet, lenets, accuracy)]
    return found


def sooner(table: pd.DataFrame, name: str, resnet: pd.DataFrame, lenets: Groups, accuracy: int) -> list[Evidence]:
    """The time to `accuracy` of the LeNet that is there first, over ResNet-18's, on a machine that both ran on."""
    column = f"log_epochs_to_{accuracy}"
    lenets = {name: group for name, group in lenets.items() if group[column].notna().all()}
    found = []
    for lenet_name, lenet in lenets.items() if resnet[column].notna().all() else []:
        times = [(g["seconds"] / g["epochs_trained"]).groupby(g["machine"]).median() for g in (lenet, resnet)]
        epochs = [math.exp(values(group, column).mean()) for group in (lenet, resnet)]
        for machine in times[0].dropna().index.intersection(times[1].dropna().index):
            found.append((*(time[machine] * n for time, n in zip(times, epochs, strict=True)), lenet_name))
    if not found:
        return []
    lenet_seconds, resnet_seconds, lenet_name = min(found)
    lenet, value = lenets[lenet_name], math.log(lenet_seconds / resnet_seconds)
    error = difference(table, column, [lenet], [resnet], len(lenets))[1]
    low, high = (f"{math.exp(value + sign * min(error, 9)):.2g}" for sign in (-1, 1))
    ends = f"{low} to {high}" if error < math.log(100) else "too few seeds"
    compared = f"{lenet_name}, {lenet_seconds:.0f} s against {resnet_seconds:.0f} s"
    times = f"{math.exp(value):.2f} ({ends}) times as fast"
    return [line(f"{name}: sooner at {accuracy} %", compared, value, error, resnet, lenet)._replace(difference=times)]


def log_epochs_to(epochs: pd.DataFrame, accuracy: float) -> float:
    """The logarithm of a run's epochs to that test accuracy, between epochs interpolated; NaN if it never got there."""
    reached = np.array([10.0, *epochs["test_accuracy"]])  # 10 % by guessing
    above = np.flatnonzero(reached >= accuracy)
    if not len(above):
        return math.nan
    low, high = reached[above[0] - 1 : above[0] + 1]
    return math.log(above[0] - 1 + (accuracy - low) / (high - low))


def regularisation(runs: Runs, lenets: Groups) -> list[Evidence]:
    """The gap between training and test accuracy, and test accuracy, with and without, all else the same."""
    found, kinds = [], (("weight_decay", "L2"), ("dropout", "dropout"))
    for (name, what), without, other in itertools.product(kinds, lenets.values(), lenets.values()):
        one, two = (group.iloc[0] for group in (without, other))
        same = [settings_in_use(config_of_row(runs, row), (name, *NOT_COMPARED)) for row in (one, two)]
        if two[name] and not one[name] and same[0] == same[1]:
            gap = difference(runs.table, "gap", [without], [other])
            cost = difference(runs.table, "test_accuracy", [other], [without])
            claim, epochs = f"{what}: a smaller gap between training and test accuracy", f"{one['epochs']} epochs"
            found.append(line(claim, f"without, {epochs}", *gap, without, other))
            found.append(line("", f"{what}: test accuracy at the end, {epochs}", *cost, without, other))
    return found


def several_devices() -> list[Evidence]:
    """The speed-ups that benchmarks/scaling.py measured, over half of what the further devices could add."""
    path = MODELSET.parent / "benchmarks" / "scaling.json"
    if not path.is_file():
        return []
    scaling = json.loads(path.read_text(encoding="utf-8"))
    unit, measured = scaling["devices"], pd.DataFrame([one for case in scaling["cases"] for one in case["measured"]])
    found = []
    for count, speedups in measured[measured["devices"] > 1].groupby("devices")["speedup"]:
        mean, least, cases = speedups.mean(), 1 + CONSIDERABLE * (count - 1), len(speedups)
        error = interval(speedups.var() / cases, cases - 1) if cases > 1 else math.nan
        compared = f"half of what more {unit} could add, {least:g} times"
        more, claim = f"{mean - least:+.2f} ± {error:.2f} times", f"{count} {unit} are {mean:.2f} times as fast as one"
        found.append(Evidence(claim, compared, more, f"{cases} cases", verdict(mean - least, error)))
    return found if unit == "GPUs" else [*found, Evidence("on several GPUs", "", "not measured", "", OPEN)]
