"""Which runs differ by nothing but their seed, and how they stand beside the reference's and the original's own."""

import json
import statistics
import sys
from pathlib import Path

MODELSET = Path(__file__).resolve().parents[2] / "modelset"
REFERENCE = (MODELSET / "reference").resolve()  # also where modelset/ is a link
AUGMENTATION = ("crop_padding", "padding_mode", "flips", "cutout")  # settings that do nothing without `augment`
UNRECORDED = {"optimizer": "sgd"}  # the value where a file lacks the setting; any other is off then
NOT_COMPARED = ("seed", "precision")  # the precision used is compared, not the one asked for


def settings_in_use(config: dict[str, object]) -> dict[str, object]:
    """A config without NOT_COMPARED, and without settings that are 0 or off, or do nothing."""
    without = NOT_COMPARED if config.get("augment") else (*NOT_COMPARED, *AUGMENTATION)
    settings = (UNRECORDED | config).items()
    return {name: value for name, value in settings if name not in without and (value or value is None)}


def recorded(run: dict, record: str, name: str) -> str:
    """An entry `name` of a run's "environment" or "code"; "" if it lacks it; "1, then 2" if it changed on resuming."""
    parts = [part.get(record) or run.get(record) or {} for part in run.get("parts") or [run]]
    return ", then ".join(dict.fromkeys(str(part[name]) for part in parts if part.get(name) is not None))


def row_key(run: dict) -> dict[str, object]:
    """What the runs of a row have in common, besides their code; `run` is what loss.json or checkpoint.pth holds.

    Images are taken for the same if there are as many of them; all CPUs are one kind of device.
    """
    dataset = run["dataset"]
    return {
        "settings": settings_in_use(run["config"]),
        "data": [dataset["name"], dataset["train_images"], dataset["test_images"]],
        "precision": recorded(run, "environment", "precision"),
        "device": recorded(run, "environment", "device"),
        "processes": recorded(run, "environment", "world_size"),
        "unfinished": "result" not in run,
    }


def is_repeated(path: Path, run: dict) -> bool:
    """Whether the loss.json at `path` is of the same seed, settings, data, devices and code as `run`."""
    try:
        runs = [json.loads(path.read_text(encoding="utf-8")), run]
        first, second = ([row_key(it), it["config"]["seed"], it["code"], it["dataset"]["checksum"]] for it in runs)
        return first == second
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # of something else
        return False


def original_run(config: dict[str, object]) -> dict[str, object]:
    """The original's run with the model, settings and global batch size of `config`, a config of loss.json, or {}.

    It is an entry of "runs" in original.json: "last" and "best" are test accuracies in per cent, null if not known.
    """
    path = REFERENCE / "original.json"
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.is_file() else ()  # modelset/ may be empty
    for run in runs:
        settings = {name: run[name] for name in run.keys() & config.keys()}  # without its results
        if settings_in_use(settings) == settings_in_use(config):
            return run
    return {}


def original_accuracy(config: dict[str, object]) -> str:
    """The original's test accuracy at the end, as in "64.99", or at best, as in "65.75 at best"; "" if not known."""
    run = original_run(config)
    if run.get("last") is None:
        return f"{run['best']:.2f} at best" if run.get("best") is not None else ""
    return str(run["last"]) if isinstance(run["last"], int) else f"{run['last']:.2f}"


def reference_runs() -> dict[Path, dict]:
    """The loss.json of every run that comes with the repository, by its path."""
    return {path: json.loads(path.read_text(encoding="utf-8")) for path in sorted(REFERENCE.rglob("loss.json"))}


def reference_accuracies(runs: dict[Path, dict], run: dict) -> list[float]:
    """Test accuracies at the end, in per cent, of the reference's `runs` that differ from `run` by their seed alone.

    Of several with the same seed the first is taken: the same again on one core, say, is in a folder further down.
    """
    key, code, accuracies = row_key(run), recorded(run, "code", "model_code"), {}
    for other in runs.values():
        matches = not code or recorded(other, "code", "model_code") in ("", code)  # "": not recorded
        if matches and row_key(other) == key and other["result"]["parameters"] == run["result"]["parameters"]:
            accuracies.setdefault(other["config"]["seed"], other["result"]["final_test_accuracy"])
    return list(accuracies.values())


def mean_text(values: list[float]) -> str:
    """As in "61.51 ± 1.30", the mean and the standard deviation; of a single value itself, of none nothing."""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}" if values else ""


def beside_reference(run: dict[str, object]) -> str:
    """Of what loss.json holds: " (reference: 61.51 ± 1.30 over 3 seeds; the original: 60 %)", say, or ""."""
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
