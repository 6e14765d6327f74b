"""Which runs differ by nothing but their seed: they are one row of a comparison, and one figure of the reference."""

from pathlib import Path

MODELSET = Path(__file__).resolve().parents[2] / "modelset"
REFERENCE = (MODELSET / "reference").resolve()  # also where modelset/ is a link
AUGMENTATION = ("crop_padding", "padding_mode", "flips", "cutout")  # settings that do nothing without `augment`
UNRECORDED = {"optimizer": "sgd"}  # the value where a file lacks the setting; any other is off then
NOT_COMPARED = ("seed", "precision")  # the precision used is compared, not the one asked for


def settings_in_use(config: dict[str, object]) -> dict[str, object]:
    """A config without NOT_COMPARED, and without settings that are 0 or off, or do nothing."""
    without = NOT_COMPARED if config.get("augment") else (*NOT_COMPARED, *AUGMENTATION)
    return {name: value for name, value in (UNRECORDED | config).items() if name not in without and value}


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
