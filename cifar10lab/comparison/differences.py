"""The difference between two rows of runs, with its interval: one rule everywhere, fixed before any result.

Runs with the same seed start from the same weights and see the images in the same order: with three or more seeds in
common they are compared seed by seed. Otherwise it takes three seeds each (Welch), or there is no interval.
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import pandas as pd

from cifar10lab.comparison.runs import values

ENOUGH = 3  # seeds for an interval
SHOWN = 5  # seeds whose single differences are printed
INTERVAL = "±: 95 % confidence interval, by Student's t of paired seeds, otherwise by Welch's"


class Difference(NamedTuple):
    """A difference of two means, NaN for `error` if it has no interval."""

    value: float
    error: float  # the half-width of the 95 % confidence interval
    seeds: str  # as in "3 paired seeds" or, unpaired, "3 and 4 seeds"
    singles: str  # of a few seeds that both have, as in ": +0.99, +0.97, +1.32"

    def __str__(self) -> str:
        """As in "+1.09 ± 0.49"."""
        return f"{self.value:+.2f}" + ("" if math.isnan(self.error) else f" ± {self.error:.2f}")


def difference(first: pd.Series, second: pd.Series) -> Difference:
    """The mean of `second` less that of `first`, each a value per seed; of the shared seeds where there are enough."""
    shared = first.index.intersection(second.index)
    paired = len(shared) >= ENOUGH
    if paired:
        first, second = first[shared], second[shared]
    value, error = second.mean() - first.mean(), math.nan
    seeds = f"{len(shared)} paired seeds" if paired else f"{len(second)} and {len(first)} seeds"
    if min(len(first), len(second)) >= ENOUGH:
        from scipy.stats import ttest_ind, ttest_rel  # takes half a second: only where there are seeds

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # where all differences are the same: no interval
            test = ttest_rel(second, first) if paired else ttest_ind(second, first, equal_var=False)
            low, high = test.confidence_interval()
        error = (high - low) / 2
    singles = first.index.equals(second.index) and 1 < len(first) <= SHOWN
    texts = ", ".join(f"{single:+.2f}" for single in second - first) if singles else ""
    return Difference(value, error, seeds, f": {texts}" if texts else "")


def time_ratio(first: pd.DataFrame, second: pd.DataFrame) -> str:
    """The second row's seconds of training over the first's, as in "0.53"; "" if they aren't of one machine."""
    machine, *others = {*first["machine"], *second["machine"]}
    if others or not machine or "not recorded" in machine or ", then " in machine:
        return ""
    return f"{second['train_seconds'].mean() / first['train_seconds'].mean():.2f}"


def difference_line(first: pd.DataFrame, second: pd.DataFrame, names: dict[object, str]) -> str:
    """What the second row of runs has less than the first, in words."""
    texts = []
    for name in ("test_accuracy", "gap"):
        one = difference(values(first, name), values(second, name))
        texts.append(f"{name.replace('_', ' ')} {one} points ({one.seeds}{one.singles})")
    if ratio := time_ratio(first, second):
        texts.append(f"{ratio} times the seconds, on {first.iloc[0]['machine']}")
    line = f"{names[second.iloc[0]['row']]}, less {names[first.iloc[0]['row']]}: {'; '.join(texts)}"
    return f"{line}. {INTERVAL}" if "±" in line else line
