"""How much faster several devices are than one: from whole runs, and from what benchmarks/scaling.py measured."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from internals.original import settings_in_use
from internals.runs import Group, device_count, machine
from terminal.errors import UserError

SCALING = Path(__file__).resolve().parent.parent / "benchmarks" / "scaling.json"
# At least assumed of every time and speed, as a part of it: on an idle machine one day's seeds differ by 1 to 3 %, one
# launch of several processes and the next by more. Days differ by much more (19,192 images/s in modelset/, 11,624 on a
# slow day): compare what was trained together.
TIME_DEVIATION = 0.05


@dataclass(frozen=True)
class Speedup:
    """The same training on one device and on several of its kind."""

    what: str  # "LeNet, batch size 128"
    device: str  # "cpu" or the GPU's name, as in loss.json
    machine: str  # its processor, or "" if not recorded
    parallel: str  # "DistributedDataParallel" or "DataParallel"
    speeds: dict[int, float]  # images/s by the number of devices, 1 among them
    ratios: dict[int, float]  # the same over those on one device
    error: float  # standard error of the speed-up on the most devices
    source: str  # "scaling.py", or of which whole runs

    @property
    def devices(self) -> int:
        return max(self.speeds)

    @property
    def ratio(self) -> float:
        """The speed-up on the most devices."""
        return self.ratios[self.devices]

    @property
    def hardware(self) -> str:
        return self.device if self.device != "cpu" else self.machine or "processor not recorded"


def relative_error(group: Group) -> float:
    """Of the mean speed of the group's runs, as a part of it."""
    speeds = group.results("images_per_second")
    own = group.deviation("images_per_second") / statistics.mean(speeds)
    return max(own, TIME_DEVIATION) / math.sqrt(len(speeds))


def whole_run_speedups(groups: list[Group]) -> list[Speedup]:
    """Groups of data-parallel runs, each beside those on one device of the same machine."""
    found = []
    for one, several in itertools.permutations(groups, 2):
        parallel = several.runs[0]["environment"]["parallel"]
        if parallel == "none" or settings_in_use(one.config) != settings_in_use(several.config):
            continue
        for where in sorted({machine(run) for run in one.runs} & {machine(run) for run in several.runs}):
            pair = one.on(where), several.on(where)
            single, count = (device_count(group.runs[0]) for group in pair)
            if single != 1 or count == 1:
                continue
            speeds = [group.mean("images_per_second") for group in pair]
            error = speeds[1] / speeds[0] * math.hypot(*map(relative_error, pair))
            what = work_text(several.config)
            counts = [group.seeds for group in pair]
            source = "single whole runs" if counts == [1, 1] else f"whole runs of {counts[0]} and {counts[1]} seeds"
            ratios = {1: 1.0, count: speeds[1] / speeds[0]}
            found.append(Speedup(what, *where[:2], parallel, {1: speeds[0], count: speeds[1]}, ratios, error, source))
    return found


def work_text(config: dict) -> str:
    """As in "ResNet18, width 32, batch size 128"; widths where the model has one."""
    width = f", width {config['width']}" if config.get("width") else ""
    return f"{config['model']}{width}, batch size {config['batch_size']}"


def read_scaling(path: Path = SCALING) -> list[Speedup]:
    """What benchmarks/scaling.py measured, if it has been run; UserError if the file is of another form."""
    if not path.is_file():
        return []
    try:
        scaling = json.loads(path.read_text(encoding="utf-8"))
        where = ("cpu", scaling["device"]) if scaling["devices"] == "CPU cores" else (scaling["device"], "")
        return [speedup for case in scaling["cases"] for speedup in case_speedups(case, where)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} is not what benchmarks/scaling.py writes ({problem}): run it again") from error


def case_speedups(case: dict, where: tuple[str, str]) -> list[Speedup]:
    """One of scaling.json's cases, for each kind of parallel training that it was measured with."""
    found = []
    measured = case["measured"]
    (one,) = (entry for entry in measured if entry["devices"] == 1 and entry["parallel"] == "none")
    for parallel in sorted({entry["parallel"] for entry in measured} - {"none"}):
        entries = [one, *(entry for entry in measured if entry["parallel"] == parallel and entry["devices"] > 1)]
        speeds = {entry["devices"]: float(entry["images_per_second"]) for entry in entries}
        ratios = {entry["devices"]: float(entry["speedup"]) for entry in entries}
        error = ratios[max(ratios)] * math.hypot(TIME_DEVIATION, TIME_DEVIATION)
        if len(speeds) > 1:
            found.append(Speedup(work_text(case), *where, parallel, speeds, ratios, error, "scaling.py"))
    return found
