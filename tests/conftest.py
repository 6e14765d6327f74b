"""Small data sets that the tests make, and the ways in which they start the scripts."""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cifar10.loading import CLASSES
from cifar10.synthetic import synthetic_images

EXPERIMENTS = (
    "original_version_model",
    "original_version_model_multigpu",
    "l2_regularization",
    "dropout_regularization",
    "resnet_model",
    "fast_model",
)
ROOMS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))  # the folders that the scripts need
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["common", "torchvision.datasets", "matplotlib.figure", "PIL.Image"])


def make_image_folder(folder: Path, train: int, test: int) -> Path:
    """`train` and `test` images per class, of the synthetic stand-in, as PNG files."""
    train_images, train_labels, test_images, test_labels = synthetic_images()
    for split, images, labels, count in (
        ("train", train_images, train_labels, train),
        ("test", test_images, test_labels, test),
    ):
        for label, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for i, image in enumerate(images[labels == label][:count]):
                Image.fromarray(image.transpose(1, 2, 0)).save(folder / split / name / f"{i:04}.png")
    return folder


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 training and 40 test images."""
    return make_image_folder(tmp_path_factory.mktemp("data"), 10, 4)


@pytest.fixture
def own_data_dir(tmp_path: Path) -> Path:
    """20 training and 10 test images that a test may spoil."""
    return make_image_folder(tmp_path / "data", 2, 1)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The scripts in a folder of their own, so that their data/ and modelset/, which is empty, are the test's."""
    folder = tmp_path / "a copy"
    (folder / "modelset").mkdir(parents=True)
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


class Command:
    """Runs a shell command when unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str


def environment(data_dir: Path | None) -> dict[str, str]:
    """This interpreter's python and torchrun, one thread, no way to the network, and the data set to use."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    nowhere = "http://127.0.0.1:9"
    changes = {"PATH": path, "OMP_NUM_THREADS": "1", "http_proxy": nowhere, "https_proxy": nowhere, "no_proxy": ""}
    if data_dir is not None:
        changes["CIFAR10_DIR"] = str(data_dir)
    return {**os.environ, **changes}


def run_command(*command: object, data_dir: Path | None = None, cwd: Path | None = None) -> Finished:
    """Run a command as its user would, to its end."""
    done = subprocess.run(
        [str(word) for word in command], env=environment(data_dir), cwd=cwd, capture_output=True, text=True, timeout=120
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def _child(script: Path, arguments: list[str], log: Path, env: dict[str, str]) -> None:
    os.environ.update(env)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests were started with nohup
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.stdout, sys.stderr = (open(n, "w", closefd=False) for n in (1, 2))  # noqa: SIM115
    sys.argv = [str(script), *arguments]
    import torch

    torch.set_num_threads(1)
    if script.parent == ROOT:
        from cifar10 import loading

        loading.DATA_DIR = Path(env["CIFAR10_DIR"])
    else:  # a copy, which has its own common.py
        for name in [name for name in sys.modules if name.split(".")[0] in ("common", *ROOMS)]:
            del sys.modules[name]
        sys.path[:] = [str(script.parent), *(path for path in sys.path if path != str(ROOT))]
    runpy.run_path(sys.argv[0], run_name="__main__")


class Script:
    """A script in a process of its own, forked from one that has imported torch already."""

    def __init__(self, script: Path, *arguments: object, log: Path, data_dir: Path) -> None:
        self.log = log
        words = [str(word) for word in arguments]
        self.process = FORKSERVER.Process(target=_child, args=(script, words, log, environment(data_dir)))
        self.process.start()

    def finish(self) -> Finished:
        self.process.join(100)
        assert self.process.exitcode is not None, "the script did not end"
        return Finished(self.process.exitcode, self.text("out"), self.text("err"))

    def text(self, stream: str) -> str:
        path = Path(f"{self.log}.{stream}")
        return path.read_text() if path.is_file() else ""


@pytest.fixture
def start(tmp_path: Path, data_dir: Path):
    """Starts an experiment, or any script by its path, on the small data set, in the background."""
    scripts = []

    def start(script: str | Path, *arguments: object, data_dir: Path = data_dir) -> Script:
        if isinstance(script, str):
            script, arguments = ROOT / f"{script}.py", (*arguments, "--data-dir", data_dir)
        scripts.append(Script(script, *arguments, data_dir=data_dir, log=tmp_path / f"log{len(scripts)}"))
        return scripts[-1]

    yield start
    for script in scripts:
        script.process.kill()


@pytest.fixture
def run(start):
    """Runs what `start` starts, to its end."""
    return lambda *arguments, **options: start(*arguments, **options).finish()


@pytest.fixture
def inspect(run):
    """Runs inspect_weights.py: exit code, standard output and error."""

    def inspect(*arguments: object) -> tuple[int, str, str]:
        done = run(ROOT / "inspect_weights.py", *arguments)
        return done.code, done.out, done.err

    return inspect


@pytest.fixture
def lenet(run, tmp_path: Path) -> Path:
    """The folder of a run of one epoch."""
    out = tmp_path / "LeNet"
    assert run("dropout_regularization", "--epochs", 1, "--output", out).code == 0
    return out


def wait_for(path: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.002)


def read_run(folder: Path) -> dict:
    return json.loads((folder / "loss.json").read_text())


def same_losses(a: Path, b: Path) -> bool:
    """Whether two runs' losses and accuracies are the same to the last bit (their times never are)."""
    first, second = read_run(a), read_run(b)
    for run in (first, second):
        del run["history"]["seconds"]
    return first["history"] == second["history"] and first["steps"] == second["steps"]


def weights_of(path: Path) -> dict[str, np.ndarray]:
    import torch

    return {name: tensor.float().numpy() for name, tensor in torch.load(path, weights_only=True).items()}


def same_weights(a: Path, b: Path) -> bool:
    first, second = weights_of(a), weights_of(b)
    return first.keys() == second.keys() and all(np.array_equal(first[k], second[k]) for k in first)
