"""All that only a GPU can say, in one go, in the order of its worth, until time is up.

    python benchmarks/on_gpu.py                    # what there is time for in 9 minutes
    python benchmarks/on_gpu.py --rival FILE       # and five trials of airbench94_muon.py, after fast_model.py
    python benchmarks/on_gpu.py --smoke            # on the CPU, one epoch and narrow networks, to try this program

The rival is of https://github.com/KellerJordan/cifar10-airbench; a copy is run that is evaluated with one view and with
both sides, as fast_model.py is; its clock is in its own table, rival.txt. Each part is a process of its own: one that
fails, or for which no time is left, is a line. After each, DIR/on_gpu.tar.gz has all that they have printed and written
so far, but for weights.
"""

import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from cifar10lab.data.loading import CLASSES, DATA_DIR, load_data
from cifar10lab.files.writing import expanded
from cifar10lab.terminal.arguments import ArgumentParser, HelpFormatter, number_within
from cifar10lab.terminal.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
ONE_CYCLE = "--lr 0.1 --momentum 0.9 --nesterov --schedule one-cycle --label-smoothing 0.1 --flips alternating"
LENET = ["original_version_model_multigpu.py", "--epochs", 50]
RIVALS_CHANGES = {"range(200)": "range(5)", "test_loader, tta_level=2": "test_loader, tta_level=1"}


def parts(work: Path, smoke: bool) -> list[tuple[str, list, int]]:
    """Each part's name, its command after `python`, and how many GPUs it needs."""
    device, narrow, seconds = ["--device", "cuda:0"], [], ["--seconds", 0.5]
    if smoke:
        device = ["--device", "cpu", "--epochs", 1, "--seeds", 2]
        narrow, seconds = ["--width", 4], ["--seconds", 0.01]
    results, resnet = work / "on_gpu", ["resnet_model.py", "--seeds", 3, *device, *narrow]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={torch.cuda.device_count()}"]
    return [
        ("tests", ["-m", "pytest", "-n", 0, "tests/test_gpu.py"], 1),
        ("resnet", [*resnet, "--output", results / "resnet"], 1),
        ("one-cycle", [*resnet, *ONE_CYCLE.split(), "--output", results / "one-cycle"], 1),
        ("fast", ["fast_model.py", "--seeds", 5, *device, *narrow, "--output", results / "fast"], 1),
        ("rival", [work / "rival.py"], 1),
        ("lenet", [*LENET, "--seeds", 3, *device, "--output", results / "lenet"], 1),
        ("throughput", ["benchmarks/throughput.py", *seconds, *narrow, "--save", results], 1),
        ("scaling", ["benchmarks/scaling.py", "--save", results], 2),
        ("data-parallel", [*LENET, "--output", results / "data-parallel"], 2),
        ("torchrun", [*torchrun, *LENET, "--output", results / "torchrun"], 2),
    ]


def write_rival(rival: Path, work: Path) -> None:
    """`rival` with `RIVALS_CHANGES` as work/rival.py, and the data as it expects them; UserError for another file."""
    text = rival.read_text(encoding="utf-8", errors="replace")
    for words, others in RIVALS_CHANGES.items():
        if words not in text:
            raise UserError(f"{rival} isn't airbench94_muon.py, which has {words!r}")
        text = text.replace(words, others)
    (work / "rival.py").write_text(text, encoding="utf-8")
    data, _ = load_data("cifar10", DATA_DIR)
    (work / "cifar10").mkdir()
    for split in ("train", "test"):
        images, labels = getattr(data, f"{split}_images").permute(0, 2, 3, 1), getattr(data, f"{split}_labels")
        # An image folder's images come class by class, and the rival takes the first 5,000 for all of them.
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        content = {"images": images[order].contiguous(), "labels": labels[order], "classes": list(CLASSES)}
        torch.save(content, work / "cifar10" / f"{split}.pt")


def run_part(command: list, cwd: Path, log: Path, seconds: float) -> str:
    """Run a part for so many seconds at most, with what it prints in `log`; how it ended."""
    with open(log, "wb") as file:
        words = [sys.executable, "-u", *map(str, command)]
        process = subprocess.Popen(words, cwd=cwd, stdout=file, stderr=subprocess.STDOUT)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return "stopped, since time was up"
    finally:
        process.terminate()  # it ends those that it has started
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
    return "done" if code == 0 else f"failed with exit code {code}, see {log.name}"


def main() -> None:
    """Exit codes: 0, also if parts failed; 1 if the archive can't be written; 2 for wrong arguments; 130; 143."""
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add, names = parser.add_argument, [name for name, *_ in parts(Path(), False)]
    add("--minutes", type=number_within(float, 0, 1440), default=9.0, help="until what still runs is stopped")
    add("--rival", type=expanded, metavar="FILE", help="a copy of airbench94_muon.py")
    add("--output", type=expanded, metavar="DIR", default=Path("on_gpu"), help="for the archive")
    add("--only", nargs="+", choices=names, default=names, metavar="PART", help=f"some of: {', '.join(names)}")
    add("--smoke", action="store_true", help="on the CPU, at tiny sizes")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    deadline, gpus = time.monotonic() + 60 * arguments.minutes, 1 if arguments.smoke else torch.cuda.device_count()
    summary = ""
    with tempfile.TemporaryDirectory() as folder:
        work, results = Path(folder), Path(folder) / "on_gpu"
        results.mkdir()
        for name, command, needed in parts(work, arguments.smoke):
            if name not in arguments.only or (name == "rival" and not arguments.rival):
                continue
            began, log = time.monotonic(), results / f"{name}.txt"
            try:
                if needed > gpus or began > deadline:
                    raise UserError(f"it needs {needed} GPUs" if needed > gpus else "time was up")
                if name == "rival":
                    write_rival(arguments.rival, work)
                how = run_part(command, work if name == "rival" else ROOT, log, deadline - began)
                said = ["nothing printed", *log.read_text(encoding="utf-8", errors="replace").splitlines()][-1]
                line = f"{name}: {how}, {time.monotonic() - began:.0f} s: {said}"
            except (OSError, UserError) as error:
                line = f"{name}: left out, since {error}"
            print(line, flush=True)
            summary += f"{line}\n"
            (results / "summary.txt").write_text(summary, encoding="utf-8")
            for weights in results.rglob("*.pth"):
                weights.unlink()
            try:
                shutil.make_archive(str(arguments.output / "on_gpu"), "gztar", work, "on_gpu")
            except OSError as error:
                sys.exit(f"error: {arguments.output} can't be written: {error.strerror}")


if __name__ == "__main__":
    main()
