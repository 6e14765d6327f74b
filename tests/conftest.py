"""Small data sets that the tests make, and the ways in which they start the scripts."""

import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ.pop("CIFAR10_DIR", None)  # the tests' data sets are their own
os.environ.pop("COLUMNS", None)  # pytest-xdist's workers have one of 80
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: two workers of pytest-xdist share two cores

import numpy as np
import pytest
import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from PIL import Image
from torch.optim.optimizer import register_optimizer_step_post_hook

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import common

import inspect_weights
from cifar10lab.data import loading, synthetic
from cifar10lab.devices.execution import Execution
from cifar10lab.devices.processes import leave_processes

EXPERIMENTS = ("original_version_model", "original_version_model_multigpu", "l2_regularization")
EXPERIMENTS += ("dropout_regularization", "resnet_model", "fast_model")
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests were started in the background
FORKSERVER = multiprocessing.get_context("forkserver")
PRELOADED = ["common", "torchvision.datasets", "matplotlib.figure", "matplotlib.backends.backend_agg", "pytest"]
FORKSERVER.set_forkserver_preload(PRELOADED)

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


@functools.cache
def synthetic_images() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The stand-in, which takes a second to draw: once in each process. Nobody may change its arrays."""
    return synthetic.synthetic_images()


def small_data(images: int = 40) -> loading.Data:
    """The first so many training and test images of the stand-in."""
    return loading.Data(*(torch.from_numpy(array[:images]) for array in synthetic_images()), "synthetic", "test")


def make_image_folder(folder: Path, train: int, test: int) -> Path:
    """`train` and `test` images per class, of the synthetic stand-in, as PNG files."""
    arrays = synthetic_images()
    for split, images, labels, count in (("train", *arrays[:2], train), ("test", *arrays[2:], test)):
        for label, name in enumerate(loading.CLASSES):
            (folder / split / name).mkdir(parents=True)
            for i, image in enumerate(images[labels == label][:count]):
                Image.fromarray(image.transpose(1, 2, 0)).save(folder / split / name / f"{i:04}.png")
    return folder


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 training and 40 test images, and their cache, so that all scripts write the same files."""
    folder = make_image_folder(tmp_path_factory.mktemp("data"), 10, 4)
    loading.load_cifar10(folder)
    return folder


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
    shutil.copytree(ROOT / "cifar10lab", folder / "cifar10lab", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


class Command:
    """Runs a shell command when unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


class Finished(NamedTuple):
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
    options = {"env": environment(data_dir), "cwd": cwd, "capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run([str(word) for word in command], **options)
    return Finished(done.returncode, done.stdout, done.stderr)


def at(event: str, count: int, action: int | Callable[[], object]) -> Callable[[], None]:
    """A `moment` for `start`: its process sends itself the signal `action`, or calls it, at the `count`-th such event.

    By the clock, it would come at another moment in each run. The events: "step", a training step is done; "writing",
    a file is half written; "written", it is in its place.
    """
    action = action if callable(action) else functools.partial(signal.raise_signal, action)
    return functools.partial(_prepare, event, count, action)


def _prepare(event: str, count: int, action: Callable[[], object]) -> None:
    """Wait for the event in this process."""
    events = itertools.count(1)

    def come() -> bool:
        return next(events) == count

    def replace_file(source: Path, target: Path, *, replace: Callable = os.replace) -> None:
        if event == "writing" and come():
            os.truncate(source, os.path.getsize(source) // 2)
            action()
        replace(source, target)
        if event == "written" and come():
            action()

    if event == "step":
        register_optimizer_step_post_hook(lambda *_: action() if come() else None)
    else:
        os.replace = replace_file


def _child(script: Path, arguments: list[str], log: Path, env: dict[str, str], moment: Callable | None) -> None:
    os.environ.update(env)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests were started with nohup
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.stdout, sys.stderr = (open(n, "w", closefd=False) for n in (1, 2))  # noqa: SIM115
    sys.argv = [str(script), *arguments]
    torch.set_num_threads(1)
    if moment:
        moment()
    if script.parent != ROOT:  # a copy, which has its own common.py
        for name in [name for name in sys.modules if name.split(".")[0] in ("common", "cifar10lab")]:
            del sys.modules[name]
        sys.path[:] = [str(script.parent), *(path for path in sys.path if path != str(ROOT))]
    runpy.run_path(sys.argv[0], run_name="__main__")


class Script:
    """A script in a process of its own, forked from one that has imported torch already."""

    def __init__(self, script: Path, *arguments, log: Path, data_dir: Path, moment=None, env=()) -> None:
        self.log = log
        words = [str(word) for word in arguments]
        arguments = (script, words, log, environment(data_dir) | dict(env), moment)
        self.process = FORKSERVER.Process(target=_child, args=arguments)
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

    def start(script: str | Path, *arguments: object, data_dir: Path = data_dir, **options: object) -> Script:
        if isinstance(script, str):
            script, arguments = ROOT / f"{script}.py", (*arguments, "--data-dir", data_dir)
        log = tmp_path / f"log{len(scripts)}"
        scripts.append(Script(script, *arguments, data_dir=data_dir, log=log, **options))
        return scripts[-1]

    yield start
    for script in scripts:
        script.process.kill()


@pytest.fixture
def run(start):
    """Runs what `start` starts, to its end."""
    return lambda *arguments, **options: start(*arguments, **options).finish()


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Calls a script's `main` in this process, with these arguments; how it ended."""

    def call(main: Callable[[], None], *arguments: object) -> Finished:
        code = 0
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [f"{main.__module__}.py", *map(str, arguments)])
            for name in ("stdout", "stderr"):
                patch.setattr(sys, name, getattr(sys, name))  # a script puts others in their place
            try:
                main()
            except SystemExit as end:
                code = end.code or 0
        out, err = capsys.readouterr()
        return Finished(1, out, f"{err}{code}\n") if isinstance(code, str) else Finished(code, out, err)

    return call


@pytest.fixture
def main(call, data_dir: Path):
    """`call` of `common.main` with an experiment's settings, on the small data set and the CPU."""
    words = ("--data-dir", data_dir, "--device", "cpu")
    return lambda stated, *arguments: call(lambda: common.main(stated, ""), *words, *arguments)


@pytest.fixture
def together(start):
    """Runs a script in so many processes that meet as torchrun's do, without its start of several seconds.

    All their output and errors, and the first exit code that is not 0. With `restarts`, they are those that torchrun
    starts again.
    """

    def together(number: int, script: str | Path, *arguments, restarts: int = 0, **options) -> Finished:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        env = {"WORLD_SIZE": f"{number}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{store.port}"}
        env |= {"TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_RESTART_COUNT": f"{restarts}"}
        env |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
        ranks = [env | {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"} for rank in range(number)]
        scripts = [start(script, *arguments, "--device", "cpu", env=rank, **options) for rank in ranks]
        finished = [script.finish() for script in scripts]
        code = next((done.code for done in finished if done.code), 0)
        return Finished(code, "".join(done.out for done in finished), "".join(done.err for done in finished))

    return together


ALONE = Execution(torch.device("cpu"), "fp32", "none")


def prepared(
    stated: common.Settings, data: loading.Data, folder: Path = Path(), execution: Execution = ALONE, **changes: object
) -> common.Training:
    """A run that is ready to be trained in this process."""
    settings = dataclasses.replace(stated, **changes)
    model, head = common.build_model(settings), common.record_head(settings, data)
    return common.ready_to_train(common.Training(settings, execution, data, model, folder, head))


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, data_dir: Path):
    """The folder of an undisturbed run with these arguments, which is trained once and not to be changed."""

    @functools.cache
    def reference(script: str, *arguments: object) -> Path:
        folder = tmp_path_factory.mktemp(script)
        words = (*arguments, "--data-dir", data_dir, "--output", folder / "run")
        done = Script(ROOT / f"{script}.py", *words, data_dir=data_dir, log=folder / "log").finish()
        assert done.code == 0, done.err
        return folder / "run"

    return reference


@pytest.fixture
def inspect(call, data_dir: Path):
    """Runs inspect_weights.py in this process, on the small data set: exit code, standard output and error."""
    return functools.partial(call, inspect_weights.main, "--data-dir", data_dir)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """What this process has drawn: the figures that it has saved, in order."""
    saved, save = [], Figure.savefig

    def savefig(figure: Figure, *arguments: object, **options: object) -> None:
        saved.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


@pytest.fixture
def lenet(reference, tmp_path: Path) -> Path:
    """The folder of a run of one epoch."""
    return shutil.copytree(reference("dropout_regularization", "--epochs", 1), tmp_path / "LeNet")


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"in vain for {seconds} s: {what}"
        time.sleep(0.002)


def wait_for(path: Path) -> None:
    wait_until(path.exists, f"{path} appears")


def read_run(folder: Path) -> dict:
    return json.loads((folder / "loss.json").read_text())


def without_times(folder: Path) -> dict:
    """What `loss.json` says of a run but for times, which are never the same."""
    record = read_run(folder)
    del record["history"]["seconds"], record["started"]
    for name in ("train_seconds", "total_seconds", "images_per_second"):
        del record["result"][name]
    return record


def same_losses(a: Path, b: Path) -> bool:
    """Whether two runs' losses and accuracies are the same to the last bit."""
    first, second = without_times(a), without_times(b)
    return first["history"] == second["history"] and first["steps"] == second["steps"]


def weights_of(path: Path) -> dict[str, np.ndarray]:
    return {name: tensor.float().numpy() for name, tensor in torch.load(path, weights_only=True).items()}


def same_weights(a: Path, b: Path) -> bool:
    first, second = weights_of(a), weights_of(b)
    return first.keys() == second.keys() and all(np.array_equal(first[k], second[k]) for k in first)


def in_processes(number: int, folder: Path, work, *arguments: object) -> list:
    """What `work(rank, number, *arguments)` returns in each of so many processes that have met."""
    arguments = number, folder, work, arguments
    processes = [FORKSERVER.Process(target=_member, args=(rank, *arguments)) for rank in range(number)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    assert [process.exitcode for process in processes] == [0] * number
    return [torch.load(folder / f"{rank}.pt") for rank in range(number)]


def _member(rank: int, number: int, folder: Path, work, arguments: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=number)
    torch.save(work(rank, number, *arguments), folder / f"{rank}.pt")
    leave_processes()


def small_run(settings: common.Settings, execution: Execution) -> common.Training:
    images = torch.randint(0, 256, (128, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(128) % 10
    data = loading.Data(images, labels, images, labels, name="random", source="test")
    return prepared(settings, data, execution=execution)


@pytest.fixture
def perceptron(copied: Path) -> Path:
    """The README's script, in a copy of the repository."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.split("\n## Your own model\n")[1].split("\n## ")[0]
    path = copied / "perceptron.py"
    path.write_text(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1], encoding="utf-8")
    return path


def folder_of(perceptron: Path, name: str) -> Path:
    return perceptron.parent / "modelset" / "Perceptron" / name
