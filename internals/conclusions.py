"""What saved runs say about the original's four conclusions.

A difference between means comes with its standard error, and decides nothing within twice that.
"""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass

from internals.original import original_run, percent, settings_in_use
from internals.runs import Group, device_count, first_reached, machine
from internals.speedups import TIME_DEVIATION, Speedup, whole_run_speedups

HOLDS, CONTRADICTED, PARTLY = "holds", "is contradicted", "holds in part"
UNCERTAIN, OPEN = "is too uncertain to tell", "can't be judged"
# Assumed of accuracies and gaps, in points, where there are fewer than three seeds to tell: LeNet's accuracy
# moves by about a point from one seed to the next.
SEED_DEVIATION = 1.0
TRIAL_EPOCHS = 5  # as many as the shortest experiment has: with fewer, a run is a trial and tells nothing of accuracies
RULES = (
    "A difference is given ± its standard error, from the standard deviations of the seeds; with fewer than three "
    f"seeds the deviation is taken to be at least {SEED_DEVIATION:g} point, that of times and speeds always at least "
    f"{100 * TIME_DEVIATION:g} %, which holds for one day on one machine: from one day to another the same run's time "
    "has differed by more than half. What is within twice the standard error decides nothing, nor does the accuracy of "
    f"a run of fewer than {TRIAL_EPOCHS} epochs."
)


@dataclass(frozen=True)
class Judgement:
    verdict: str
    details: list[str]  # the evidence, in sentences
    headline: str  # what was found, in a few words
    caveat: str = ""  # " (rests on single runs)"

    @property
    def evidence(self) -> str:
        return " ".join(self.details)


# --- Differences and their errors -------------------------------------------------------------


def standard_error(group: Group, name: str) -> float:
    """Of the mean over the group's seeds, in the result's unit."""
    enough = group.seeds >= 3
    return max(group.deviation(name), 0 if enough else SEED_DEVIATION) / math.sqrt(group.seeds)


def difference(name: str, plus: list[Group], minus: list[Group]) -> tuple[float, float]:
    """The sum of the means of `plus` less that of `minus`, and its standard error; a group may be in it twice."""
    weights: dict[int, tuple[Group, int]] = {}
    for sign, group in [*((1, group) for group in plus), *((-1, group) for group in minus)]:
        weights[id(group)] = group, weights.get(id(group), (group, 0))[1] + sign
    value = sum(weight * group.mean(name) for group, weight in weights.values())
    return value, math.hypot(*(weight * standard_error(group, name) for group, weight in weights.values()))


def sign(value: float, error: float) -> int:
    """1 or -1 where `value` differs from 0 by more than twice its error, otherwise 0."""
    return 0 if abs(value) <= 2 * error else 1 if value > 0 else -1


def combined(signs: list[int]) -> str:
    """The verdict on a claim from the signs of the differences that should all be positive."""
    if all(one > 0 for one in signs):
        return HOLDS
    if any(one > 0 for one in signs):
        return PARTLY
    return UNCERTAIN if 0 in signs else CONTRADICTED


def caveat(groups: list[Group]) -> str:
    """What a verdict on these groups has to say beside itself, if there are single runs among them."""
    single = [group.seeds == 1 for group in groups]
    return f" (rests {'partly ' * (not all(single))}on single runs)" if any(single) else ""


def count_of(group: Group) -> str:
    return "a single run" if group.seeds == 1 else f"{group.seeds} seeds"


# --- Choosing groups --------------------------------------------------------------------------


def by_settings(groups: list[Group]) -> list[Group]:
    """For accuracies: of groups that differ by their devices alone, the one with the most seeds."""
    chosen: list[Group] = []
    for group in sorted(groups, key=lambda group: -group.seeds):
        if not any(settings_in_use(group.config) == settings_in_use(other.config) for other in chosen):
            chosen.append(group)
    return [group for group in groups if any(group is one for one in chosen)]


def of_model(groups: list[Group], model: str) -> list[Group]:
    """The model's groups, best mean of best test accuracies first."""
    chosen = [group for group in groups if group.config["model"] == model]
    return sorted(chosen, key=lambda group: -group.mean("best_test_accuracy"))


def plain(groups: list[Group]) -> list[Group]:
    """Those with nothing against overfitting, so that they differ by tuning parameters alone."""
    against = ("weight_decay", "dropout", "label_smoothing", "augment")
    return [group for group in groups if not any(group.config.get(name) for name in against)]


def chosen_how(group: Group) -> str:
    """In words that can't be misread."""
    return {
        "test": "accuracies are those of the best epoch on the test set",
        "validation": "accuracies are test accuracies in the epoch chosen on validation images",
    }[group.chosen_on]


# --- The four conclusions ---------------------------------------------------------------------


def judge_model_choice(groups: list[Group]) -> Judgement:
    """Best ResNet-18 minus best LeNet, against the spread between plain LeNet's settings."""
    name, groups = "best_test_accuracy", by_settings(groups)
    resnets, lenets = of_model(groups, "ResNet18"), of_model(groups, "LeNet")
    settings = plain(lenets)
    if not resnets or len(settings) < 2:
        missing = "a ResNet-18 run (resnet_model.py)" if not resnets else "a second setting of plain LeNet (--lr, say)"
        return Judgement(OPEN, [f"Missing: {missing}."], OPEN)
    resnet, lenet, best, last = resnets[0], lenets[0], settings[0], settings[-1]
    choice, tuning = difference(name, [resnet], [lenet]), difference(name, [best], [last])
    value, error = difference(name, [resnet, last], [lenet, best])
    evidence = (
        f"The best ResNet-18 reached {resnet.show(name)} % ({count_of(resnet)}), the best LeNet {lenet.show(name)} % "
        f"({lenet.label}; {count_of(lenet)}): {choice[0]:.2f} ± {choice[1]:.2f} points. The {len(settings)} settings "
        f"of plain LeNet lie {tuning[0]:.2f} ± {tuning[1]:.2f} points apart ({last.show(name)} %, {count_of(last)}, to "
        f"{best.show(name)} %, {count_of(best)}). The former is {value:.2f} ± {error:.2f} points more; "
        f"{chosen_how(resnet)}."
    )
    span = f"{last.mean(name):.1f} to {best.mean(name):.1f} %"
    headline = f"ResNet-18 {resnet.mean(name):.1f} %, plain LeNet's {len(settings)} settings {span}"
    return Judgement(combined([sign(value, error)]), [evidence], headline, caveat([resnet, lenet, best, last]))


def mean_time_to(group: Group, accuracy: float) -> tuple[float, float] | None:
    """Seconds of training to that test accuracy, and their standard error; None if one of the runs never got there."""
    reached = [first_reached(run, accuracy) for run in group.runs]
    if None in reached:
        return None
    seconds = [when[1] for when in reached]
    spread = statistics.stdev(seconds) if len(seconds) > 1 else 0.0
    mean = statistics.mean(seconds)
    return mean, max(spread, TIME_DEVIATION * mean) / math.sqrt(len(seconds))


def same_place(groups: list[Group], others: list[Group]) -> tuple[Group, Group] | None:
    """The first pair of runs from as many devices of one machine."""
    for one, other in itertools.product(groups, others):
        for where in sorted({machine(run) for run in one.runs} & {machine(run) for run in other.runs}, reverse=True):
            pair = one.on(where), other.on(where)
            if len({device_count(group.runs[0]) for group in pair}) == 1:
                return pair
    return None


def judge_efficiency(groups: list[Group]) -> Judgement:
    """Accuracy, and the training time to the best LeNet's accuracy, on the same machine."""
    name = "best_test_accuracy"
    resnets, lenets = of_model(groups, "ResNet18"), of_model(groups, "LeNet")
    pair = same_place(resnets, lenets)
    if pair is None:
        both = "ResNet-18 and LeNet on the same machine"
        missing = both if resnets and lenets else "LeNet" if resnets else "ResNet-18"
        return Judgement(OPEN, [f"Missing: {missing}."], OPEN)
    resnet, lenet = pair
    value, error = difference(name, [resnet], [lenet])
    # That of the worst seed, so that each of LeNet's runs got there.
    target = min(max(run["history"]["test_accuracy"]) for run in lenet.runs)
    evidence = (
        f"ResNet-18 reached {resnet.show(name)} % ({count_of(resnet)}), the best LeNet on the same machine "
        f"{lenet.show(name)} % ({lenet.label}; {count_of(lenet)}): {value:.2f} ± {error:.2f} points; "
        f"{chosen_how(resnet)}. "
    )
    better, slow, fast = sign(value, error), mean_time_to(lenet, target), mean_time_to(resnet, target)
    if fast is None:
        evidence += f"ResNet-18 did not always reach LeNet's {target:.2f} %."
        headline = f"ResNet-18 does not always reach LeNet's {target:.1f} %"
        return Judgement(combined([better, min(better, 0)]), [evidence], headline, caveat([resnet, lenet]))
    evidence += (
        f"To LeNet's {target:.2f} %, ResNet-18 needed {fast[0]:.0f} ± {fast[1]:.0f} s of training, LeNet "
        f"{slow[0]:.0f} ± {slow[1]:.0f} s."
    )
    signs = [better, sign(slow[0] - fast[0], math.hypot(slow[1], fast[1]))]
    both = f"{resnet.mean(name):.1f} % against {lenet.mean(name):.1f} %"
    headline = f"{both}; to {target:.1f} % in {fast[0]:.0f} s against {slow[0]:.0f} s"
    return Judgement(combined(signs), [evidence], headline, caveat([resnet, lenet]))


REGULARISERS = {"weight_decay": "L2", "dropout": "dropout"}


def regularised(groups: list[Group], name: str) -> list[tuple[Group, Group]]:
    """Pairs of LeNets without and with that regulariser, all else the same, fewest epochs first."""
    pairs = [
        (without, other)
        for without, other in itertools.permutations(of_model(by_settings(groups), "LeNet"), 2)
        if other.config.get(name) and not without.config.get(name)
        and settings_in_use(without.config, (name,)) == settings_in_use(other.config, (name,))
    ]
    return sorted(pairs, key=lambda pair: pair[0].config["epochs"])


def describe_pair(what: str, without: Group, other: Group) -> str:
    """One sentence of evidence: the gap and the accuracy after the last epoch, without and with."""
    gap, gap_error = difference("gap", [without], [other])
    cost, cost_error = difference("final_test_accuracy", [without], [other])
    change, direction = "costs" if cost > 0 else "gains", "less" if gap > 0 else "more"
    held_out = without.config.get("validation_images")
    epochs = f"{without.config['epochs']} epochs" + (f", {held_out} validation images" if held_out else "")
    text = (
        f"{what}, {epochs} ({count_of(without)} without, {count_of(other)} with): gap {without.show('gap')} -> "
        f"{other.show('gap')} points, {abs(gap):.2f} ± {gap_error:.2f} {direction}; test accuracy after the last epoch "
        f"{without.show('final_test_accuracy')} -> {other.show('final_test_accuracy')} % "
        f"({change} {abs(cost):.2f} ± {cost_error:.2f})"
    )
    theirs = [original_run(group.config) for group in (without, other)]
    if all(run and run["last"] is not None for run in theirs):
        text += f"; the original, single runs: {' -> '.join(percent(run['last']) for run in theirs)} %"
    return f"{text}."


def judge_regularisation(groups: list[Group]) -> Judgement:
    """The gap between training and test accuracy with and without, all else the same."""
    signs, evidence, missing, used = [], [], [], []
    for name, what in REGULARISERS.items():
        pairs = regularised(groups, name)
        if not pairs:
            missing.append(f"LeNet with {what} and without, all else the same ({what.lower()}_regularization.py)")
        for without, other in pairs:
            signs.append(sign(*difference("gap", [without], [other])))
            evidence.append(describe_pair(what, without, other))
            used += [without, other]
    if missing:
        return Judgement(OPEN, [f"Missing: {'; '.join(missing)}.", *evidence], OPEN)
    return Judgement(combined(signs), evidence, gaps_in_short(groups), caveat(used))


def gaps_in_short(groups: list[Group]) -> str:
    """Without and with each regulariser, at the fewest epochs that it was trained for."""
    texts = []
    for name, what in REGULARISERS.items():
        without, other = regularised(groups, name)[0]
        epochs, gaps = other.config["epochs"], (without.mean("gap"), other.mean("gap"))
        texts.append(f"{gaps[0]:.1f} to {gaps[1]:.1f} points with {what} ({epochs} epochs)")
    return f"gap {', '.join(texts)}"


# Of the speed that each further device could add, what deserves to be called considerable.
CONSIDERABLE = 1 / 2


def judge_parallel(groups: list[Group], measured: list[Speedup]) -> Judgement:
    """images/s on one device and on several; `measured` are benchmarks/scaling.py's figures.

    GPUs, which the conclusion is about, come before CPU cores.
    """
    speedups = [*whole_run_speedups(groups), *measured]
    on_gpus = [speedup for speedup in speedups if speedup.device != "cpu"]
    speedups = on_gpus or speedups
    if not speedups:
        missing = "the same run on one device and on several (torchrun), or python benchmarks/scaling.py"
        return Judgement(OPEN, [f"Missing: {missing}."], OPEN)
    signs = [sign(s.ratio - (1 + CONSIDERABLE * (s.devices - 1)), s.error) for s in speedups]
    unit = "GPUs" if on_gpus else "CPU cores"
    first = "" if on_gpus else "Several GPUs have not been measured: here CPU cores are the devices. "
    evidence = [
        f"{first}Considerably faster means at least 1.5 times as fast on two, 2.5 times on four: half of what the "
        f"further {unit} could add."
    ]
    for s in speedups:
        evidence.append(
            f"{s.what} ({s.source}): {s.speeds[1]:.0f} images/s on one, {s.speeds[s.devices]:.0f} on {s.devices} "
            f"{unit} ({s.hardware}, {s.parallel}), {s.ratio:.2f} ± {s.error:.2f} times as fast."
        )
    ratios = sorted({f"{s.ratio:.2f}" for s in speedups}, key=float)
    counts = sorted({s.devices for s in speedups})
    headline = f"{' to '.join(dict.fromkeys([ratios[0], ratios[-1]]))} times as fast"
    return Judgement(combined(signs), evidence, f"{headline} on {' or '.join(map(str, counts))} {unit}")


# --- All four ---------------------------------------------------------------------------------

CONCLUSIONS = (
    ("The choice of model matters more than tuning parameters", "Model over tuning"),
    ("ResNet beats LeNet in accuracy and in training efficiency", "ResNet over LeNet"),
    ("Regularisation helps against overfitting, and may cost a little accuracy", "Regularisation"),
    ("Training in parallel on several GPUs speeds training up considerably", "Several devices"),
)


def judge_all(groups: list[Group], measured: list[Speedup]) -> list[Judgement]:
    """One judgement for each of CONCLUSIONS."""
    longer = [group for group in groups if group.config.get("epochs", TRIAL_EPOCHS) >= TRIAL_EPOCHS]
    # Best epochs that were chosen on the test set and on validation images are different things: the first two
    # conclusions go by one kind, the original's if it suffices.
    kinds = [[g for g in longer if g.chosen_on == kind] for kind in ("test", "validation")]
    judgements = []
    for judge in (judge_model_choice, judge_efficiency):
        by_kind = [judge(kind) for kind in kinds]
        judgements.append(next((one for one in by_kind if one.verdict != OPEN), by_kind[0]))
    return [*judgements, judge_regularisation(longer), judge_parallel(groups, measured)]
