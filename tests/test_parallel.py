"""Several processes: real `torchrun`, with Gloo on the CPU, against the single process."""

import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, environment, read_run, run_command, weights_of

# 100 images: batches of 33 leave one of a single image, which two of three processes get nothing of.
SCRIPTS = {
    "LeNet": ("original_version_model_multigpu", "--epochs", 2, "--lr", 0.01, "--batch-size", 33),
    "ResNet18": ("resnet_model", "--epochs", 1, "--lr", 0.001, "--batch-size", 33, "--width", 4, "--precision", "fp32"),
}


def torchrun(processes: int, script: str, *arguments: object, options: tuple = (), **more: object):
    start = ("torchrun", "--standalone", f"--nproc-per-node={processes}", *options, ROOT / f"{script}.py")
    return run_command(*start, *arguments, "--device", "cpu", **more)


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> dict[str, Path]:
    """The single process's results."""
    folders = {}
    for model, (script, *arguments) in SCRIPTS.items():
        folders[model] = tmp_path_factory.mktemp(model)
        command = ("python", ROOT / f"{script}.py", *arguments, "--device", "cpu", "--output", folders[model])
        assert run_command(*command, data_dir=data_dir).code == 0
    return folders


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("model", SCRIPTS)
def test_losses_and_weights_are_the_single_processs(single, data_dir: Path, tmp_path: Path, model, processes) -> None:
    done = torchrun(processes, *SCRIPTS[model], "--output", tmp_path, data_dir=data_dir)
    assert done.code == 0, done.err
    assert done.out.count("epoch   1/") == 1  # rank 0 alone prints
    record, expected = read_run(tmp_path), read_run(single[model])
    assert record["environment"]["parallel"] == "DistributedDataParallel"
    assert record["environment"]["world_size"] == processes
    for name in ("train_loss", "test_loss", "train_accuracy", "test_accuracy"):
        assert record["history"][name] == pytest.approx(expected["history"][name], rel=1e-4), name
    assert record["steps"]["train_loss"] == pytest.approx(expected["steps"]["train_loss"], rel=1e-4)
    weights, expected_weights = weights_of(tmp_path / "model.pth"), weights_of(single[model] / "model.pth")
    assert weights.keys() == expected_weights.keys()
    for name in weights:
        assert np.allclose(weights[name], expected_weights[name], rtol=1e-3, atol=1e-5), name


def test_a_run_goes_on_in_another_number_of_processes(start, tmp_path: Path, data_dir: Path, run) -> None:
    script, *arguments = "original_version_model_multigpu", "--epochs", 4, "--batch-size", 2
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run(script, *arguments, "--output", whole).code == 0
    interrupted = start(script, *arguments, "--output", out)
    while not (out / "checkpoint.pth").exists():
        time.sleep(0.01)
    os.kill(interrupted.process.pid, signal.SIGTERM)
    assert interrupted.finish().code == 143
    done = torchrun(2, script, *arguments, "--output", out, "--resume", data_dir=data_dir)
    assert done.code == 0 and "resuming at epoch" in done.out, done.err
    assert read_run(out)["history"]["test_loss"] == pytest.approx(read_run(whole)["history"]["test_loss"], rel=1e-4)


def test_the_error_of_rank_0_ends_every_process(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = torchrun(2, "original_version_model", "--output", tmp_path / "file" / "out", data_dir=data_dir)
    assert done.code == 1
    assert f"error: {tmp_path}/file/out can't be written" in done.err


def start_torchrun(script: str, *arguments: object, log: Path, data_dir: Path, options: tuple = ()) -> subprocess.Popen:
    command = ["torchrun", "--standalone", "--nproc-per-node=2", *options, ROOT / f"{script}.py", *arguments]
    with open(log, "w") as file:
        return subprocess.Popen([str(word) for word in command], env=environment(data_dir), stdout=file, stderr=file)


def workers(of: int) -> list[int]:
    """The process ids of a torchrun's workers."""
    return [int(pid) for pid in Path(f"/proc/{of}/task/{of}/children").read_text().split()]


def test_a_killed_worker_is_started_again_and_goes_on(tmp_path: Path, data_dir: Path, run) -> None:
    script, *arguments = "original_version_model", "--epochs", 20
    whole, out, log = tmp_path / "whole", tmp_path / "out", tmp_path / "log"
    assert run(script, *arguments, "--output", whole).code == 0
    running = start_torchrun(
        script, *arguments, "--output", out, log=log, data_dir=data_dir, options=("--max-restarts=3",)
    )
    while not (out / "checkpoint.pth").exists():
        assert running.poll() is None, log.read_text()
        time.sleep(0.01)
    os.kill(workers(running.pid)[-1], signal.SIGKILL)
    assert running.wait(100) == 0, log.read_text()
    assert "resuming at epoch" in log.read_text()
    assert read_run(out)["history"]["epoch"] == list(range(1, 21))
    assert read_run(out)["history"]["test_loss"] == pytest.approx(read_run(whole)["history"]["test_loss"], rel=1e-3)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_torchrun_saves(tmp_path: Path, data_dir: Path, run, number: int) -> None:
    script, *arguments = "original_version_model", "--epochs", 400
    out, log = tmp_path / "out", tmp_path / "log"
    running = start_torchrun(script, *arguments, "--output", out, log=log, data_dir=data_dir)
    while not (out / "checkpoint.pth").exists():
        assert running.poll() is None, log.read_text()
        time.sleep(0.01)
    running.send_signal(number)
    running.wait(60)
    assert "stopped by signal" in log.read_text()
    done = run(script, "--epochs", 400, "--lr", 1, "--output", out, "--resume")
    assert "lr 0.001 -> 1.0" in done.err  # the checkpoint is whole
