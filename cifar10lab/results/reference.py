"""The results that come with the repository, and the original's own: how a run compares with them."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

from cifar10lab.results.rows import NOT_COMPARED, REFERENCE, model_code, row_groups, row_key, settings_in_use

ORIGINAL_RESULTS = ("last", "best", "best_epoch", "train_accuracy", "total_seconds", "hardware", "reported_only")


def original_run(config: dict[str, object]) -> dict[str, object] | None:
    """The original's run with the model, settings and global batch size of `config`, a config of loss.json, or None.

    The answer is an entry of "runs" in original.json, which explains its keys: "last" and "best" are test accuracies in
    per cent, null if not known.
    """
    path = REFERENCE / "original.json"
    if not path.is_file():  # somebody has emptied modelset/
        return None
    runs, wanted = json.loads(path.read_text(encoding="utf-8"))["runs"], settings_in_use(config)
    return next((run for run in runs if settings_in_use(run, (*NOT_COMPARED, *ORIGINAL_RESULTS)) == wanted), None)


def original_accuracy(config: dict[str, object]) -> str:
    """The original's test accuracy at the end, as in "64.99", or at best, as in "65.75 at best"; "" if not known."""
    run = original_run(config) or {}
    if run.get("last") is None:
        return f"{run['best']:.2f} at best" if run.get("best") is not None else ""
    return str(run["last"]) if isinstance(run["last"], int) else f"{run['last']:.2f}"


def reference_runs() -> dict[Path, dict]:
    """The loss.json of every run that comes with the repository, by its path."""
    return {path: json.loads(path.read_text(encoding="utf-8")) for path in sorted(REFERENCE.rglob("loss.json"))}


def reference_accuracies(runs: dict[Path, dict], run: dict) -> list[float]:
    """Test accuracies at the end, in per cent, of the row of the reference's `runs` that `run` would belong to."""
    key, code = row_key(run), model_code(run)
    same = {path: other for path, other in runs.items() if row_key(other) == key}
    same = {path: other for path, other in same.items() if not code or model_code(other) in ("", code)}
    rows = [row for group in row_groups(same) for row in group]
    row = max(rows, key=len, default=[])  # the same seed again on one core, say, is a row of its own
    return [same[path]["result"]["final_test_accuracy"] for path in row]


def mean_text(values: list[float]) -> str:
    """As in "61.51 ± 1.30", the mean and the standard deviation; of a single value itself, of none nothing."""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}" if values else ""


def beside_reference(run: dict[str, object]) -> str:
    """As in " (reference: 61.51 ± 1.30 over 3 seeds; the original: 60 %)"; "" if there is nothing to compare with.

    `run` is what loss.json holds.
    """
    try:
        values, original = reference_accuracies(reference_runs(), run), original_accuracy(run["config"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:  # the run itself is done and saved
        print(f"warning: {REFERENCE} can't be read: {type(error).__name__}: {error}", file=sys.stderr)
        return ""
    seeds = f" over {len(values)} seeds" if len(values) > 1 else ""
    texts = [f"reference: {mean_text(values)}{seeds}"] if values else []
    if original and run["dataset"]["name"] == "cifar10":
        texts.append(f"the original: {original} %")
    return f" ({'; '.join(texts)})" if texts else ""
