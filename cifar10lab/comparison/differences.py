"""The difference between two rows of runs, with its interval: one rule everywhere, fixed before any result.

Runs with the same seed start from the same weights and see the images in the same order: two rows with three or more
seeds in common are compared seed by seed. Other rows have an interval (Welch's) if each has three or more seeds.
"""

import math
import warnings
from typing import NamedTuple

import pandas as pd

from cifar10lab.comparison.runs import values

SEEDS_FOR_INTERVAL = 3  # at least
SEEDS_LISTED = 5  # at most, with the difference of each
INTERVAL = "±: 95 % confidence interval, by Student's t of paired seeds, otherwise by Welch's"


class Difference(NamedTuple):
    """A difference of two means; in words "+1.09 ± 0.49"."""

    value: float
    error: float  # half-width of the 95 % confidence interval, NaN without one
    seeds: str  # "3 paired seeds", or "3 and 4 seeds" where they aren't
    by_seed: str  # ": +0.99, +0.97, +1.32" if both rows have the same few seeds, or ""

    def __str__(self) -> str:
        return f"{self.value:+.2f}" + ("" if math.isnan(self.error) else f" ± {self.error:.2f}")


def difference(first: pd.Series, second: pd.Series) -> Difference:
    """The mean of `second` minus that of `first`, each a value per seed; of the shared seeds if these are enough."""
    shared, error = first.index.intersection(second.index), math.nan
    if paired := len(shared) >= SEEDS_FOR_INTERVAL:
        first, second = first[shared], second[shared]
    seeds = f"{len(shared)} paired seeds" if paired else f"{len(second)} and {len(first)} seeds"
    if min(len(first), len(second)) >= SEEDS_FOR_INTERVAL:
        from scipy.stats import ttest_ind, ttest_rel  # takes half a second: only if it is used

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # if all differences are the same
            test = ttest_rel(second, first) if paired else ttest_ind(second, first, equal_var=False)
            low, high = test.confidence_interval()
        error = (high - low) / 2
    listed = first.index.equals(second.index) and 1 < len(first) <= SEEDS_LISTED
    by_seed = f": {', '.join(f'{single:+.2f}' for single in second - first)}" if listed else ""
    return Difference(second.mean() - first.mean(), error, seeds, by_seed)


def time_ratio(first: pd.DataFrame, second: pd.DataFrame) -> str:
    """The second row's seconds of training over the first's, as "0.53"; "" if the rows aren't from one machine."""
    machine, *others = {*first["machine"], *second["machine"]}
    if others or not machine or "not recorded" in machine or ", then " in machine:
        return ""
    return f"{second['train_seconds'].mean() / first['train_seconds'].mean():.2f}"


def difference_line(first: pd.DataFrame, second: pd.DataFrame) -> str:
    """The second row of runs minus the first, in words: test accuracy, gap, and the ratio of their times."""
    texts = []
    for name in ("test_accuracy", "gap"):
        found = difference(values(first, name), values(second, name))
        texts.append(f"{name.replace('_', ' ')} {found} points ({found.seeds}{found.by_seed})")
    if ratio := time_ratio(first, second):
        texts.append(f"{ratio} times the seconds, on {first.iloc[0]['machine']}")
    line = f"{second.iloc[0]['name']}, less {first.iloc[0]['name']}: {'; '.join(texts)}"
    return f"{line}. {INTERVAL}" if "±" in line else line
