"""Differences between runs with their errors. One rule everywhere: 95 %, two-sided, Student's t."""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

import pandas as pd
from scipy.special import stdtrit

from cifar10lab.comparison.runs import values

HOLDS, CONTRADICTED, PARTLY = "holds", "is contradicted", "holds in part"
UNDECIDED, OPEN = "undecided", "can't be judged"


class Evidence(NamedTuple):
    """One line of the evidence for a conclusion; without a claim, it is there to be read only."""

    claim: str  # what should be positive
    compared_with: str
    difference: str  # with its error
    seeds: str
    verdict: str


def pooled_variance(table: pd.DataFrame, model: str, column: str) -> tuple[float, int]:
    """The variance of a column from seed to seed, pooled over all of the model's settings; its degrees of freedom."""
    of_seeds = [values(group, column) for _, group in table[table["model"] == model].groupby("key")]
    freedom = sum(len(one) - 1 for one in of_seeds if len(one) > 1)
    return sum(one.var() * (len(one) - 1) for one in of_seeds if len(one) > 1) / (freedom or math.nan), freedom


def difference(
    table: pd.DataFrame, column: str, plus: list[pd.DataFrame], minus: list[pd.DataFrame], pairs: int = 1
) -> tuple[float, float]:
    """The means of `plus` less those of `minus`, and the half-width of their 95 % confidence interval.

    Each is the runs of one setting; one may be in it twice. Welch and Satterthwaite's degrees of freedom where models
    differ. `pairs` is the number of pairs of which these were chosen for their results (Bonferroni). NaN for the error
    where no setting of a model has two seeds.
    """
    weights: Counter[str] = Counter(group["key"].iloc[0] for group in plus)
    weights.subtract(group["key"].iloc[0] for group in minus)
    value, shares = 0.0, {}
    for key, weight in weights.items():
        group = table[table["key"] == key]
        value += weight * values(group, column).mean()
        model = group["model"].iloc[0]
        shares[model] = shares.get(model, 0.0) + weight**2 / len(values(group, column))
    pooled = {model: pooled_variance(table, model, column) for model in shares}
    if not all(freedom for _, freedom in pooled.values()):
        return value, math.nan
    parts = [(pooled[model][0] * share, pooled[model][1]) for model, share in shares.items()]
    total = sum(variance for variance, _ in parts)
    freedom = total**2 / sum(variance**2 / freedom for variance, freedom in parts) if total else 1
    return value, interval(total, freedom, pairs)


def interval(variance: float, freedom: float, pairs: int = 1) -> float:
    """The half-width of the 95 % confidence interval of a mean with that variance."""
    return float(stdtrit(freedom, 1 - 0.025 / pairs)) * math.sqrt(variance)


def verdict(value: float, error: float) -> str:
    """On the claim that `value` is positive; NaN for the error decides nothing."""
    undecided = OPEN if math.isnan(error) else UNDECIDED
    return HOLDS if value > error else CONTRADICTED if value < -error else undecided


def combined(verdicts: list[str]) -> str:
    """The verdict on a conclusion from those on its parts."""
    if HOLDS in verdicts:
        return HOLDS if set(verdicts) == {HOLDS} else PARTLY
    return next((one for one in (UNDECIDED, CONTRADICTED) if one in verdicts), OPEN)
