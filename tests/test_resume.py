"""Nothing is lost: resuming, signals, kills, full disks, two runs at once, hostile checkpoints."""

import os
import pickle
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Command, environment, read_run, same_losses, same_weights, wait_for

from files import writing
from files.locks import locked
from terminal.errors import UserError

DROPOUT = ("dropout_regularization", "--epochs", 4, "--batch-size", 4)
RESNET = ("resnet_model", "--epochs", 3, "--batch-size", 5, "--width", 4)


def same_run(a: Path, b: Path) -> bool:
    names = ("model.pth", "best_model.pth")
    return same_losses(a, b) and all(same_weights(a / name, b / name) for name in names)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("script", [DROPOUT, RESNET], ids=lambda script: script[0])
def test_a_signal_saves_and_resuming_gives_the_uninterrupted_run(start, run, tmp_path, script, number, code) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run(*script, "--output", whole).code == 0
    interrupted = start(*script, "--output", out)
    wait_for(out / "checkpoint.pth")
    os.kill(interrupted.process.pid, number)
    done = interrupted.finish()
    assert done.code == code
    assert "--resume" in done.err.splitlines()[-1] and "Traceback" not in done.err
    resumed = run(*script, "--output", out, "--resume")
    assert resumed.code == 0, resumed.err
    assert "resuming at epoch" in resumed.out
    assert same_run(out, whole)
    assert not (out / "checkpoint.pth").exists()


def test_a_signal_within_an_epoch_costs_none_of_its_steps(start, run, tmp_path: Path) -> None:
    script = ("resnet_model", "--epochs", 1, "--batch-size", 1, "--width", 16)
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run(*script, "--output", whole).code == 0
    interrupted = start(*script, "--output", out)
    while "on cifar10" not in interrupted.text("out"):
        time.sleep(0.01)
    time.sleep(0.3)
    os.kill(interrupted.process.pid, signal.SIGTERM)
    assert interrupted.finish().code == 143
    state = torch.load(out / "checkpoint.pth", weights_only=True)
    assert state["epoch"] == 1 and len(state["losses"]) == state["step"] > 0
    assert run(*script, "--output", out, "--resume").code == 0
    assert same_run(out, whole)


def test_killed_at_any_moment_its_files_are_whole_and_its_end_the_same(start, run, tmp_path: Path) -> None:
    script = ("dropout_regularization", "--epochs", 5, "--batch-size", 2)
    whole = tmp_path / "whole"
    began = time.monotonic()
    assert run(*script, "--output", whole).code == 0
    life = time.monotonic() - began
    moments = 24
    caught = set()
    for i in range(moments):
        out = tmp_path / f"out{i}"
        killed = start(*script, "--output", out)
        killed.process.join((i + 1) / moments * life * 1.05)
        killed.process.kill()
        killed.process.join()
        for path in out.glob("[a-z]*"):  # all but hidden files
            if path.suffix == ".pth":
                torch.load(path, weights_only=True)
            elif path.suffix == ".json":
                read_run(out)
        names = frozenset(path.name for path in out.glob("[a-z]*"))
        caught.add(names)
        if not {"loss.png"} <= names or "checkpoint.pth" in names:
            done = run(*script, "--output", out, "--resume")
            assert done.code == 0, done.err
        assert same_run(out, whole), f"killed at moment {i} with {sorted(names)}"
        assert list(out.glob(".*.tmp")) == []
    assert frozenset() in caught and frozenset({"checkpoint.pth"}) in caught


def test_killed_between_the_last_writes_the_results_are_completed(run, tmp_path: Path) -> None:
    script = ("original_version_model", "--epochs", 2)
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run(*script, "--output", whole).code == 0
    for missing in ("best_model.pth", "model.pth", "loss.json", "loss.png"):
        # What a kill just before that write leaves: the directory in its place makes the write fail.
        (out / missing / "in the way").mkdir(parents=True)
        failed = run(*script, "--output", out)
        assert failed.code == 1 and missing in failed.err and len(failed.err.splitlines()) == 1, failed.err
        assert (out / "checkpoint.pth").is_file()
        shutil.rmtree(out / missing)
        done = run(*script, "--output", out, "--resume")
        assert done.code == 0 and "epoch   2/2" not in done.out, done.err
        assert same_run(out, whole)
        shutil.rmtree(out)


def test_resuming_without_a_checkpoint_begins_at_the_beginning(run, tmp_path: Path) -> None:
    done = run("original_version_model", "--epochs", 1, "--output", tmp_path, "--resume")
    assert done.code == 0 and "no checkpoint" in done.out


@pytest.fixture
def unfinished(start, tmp_path: Path) -> Path:
    """A folder with the checkpoint of an interrupted run."""
    out = tmp_path / "unfinished"
    script = start(*DROPOUT, "--output", out)
    wait_for(out / "checkpoint.pth")
    script.process.kill()
    script.process.join()
    return out


def test_an_unfinished_run_started_again_says_how_to_continue(run, unfinished: Path, tmp_path: Path) -> None:
    done = run(*DROPOUT, "--output", unfinished)
    assert done.code == 0
    assert "is a checkpoint of epoch " in done.out and "--resume" in done.out and "afresh" in done.out
    assert "epoch   1/4" in done.out


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (("--lr", 0.5), "lr 0.001 -> 0.5"),
        (("--batch-size", 5), "batch_size 4 -> 5"),
        (("--seed", 7), "seed 0 -> 7"),
        (("--dataset", "synthetic"), "name cifar10 -> synthetic"),
        (("--epochs", 1), "epochs 4 -> 1"),
        (("--dropout", 0.1), "dropout 0.5 -> 0.1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_resuming_with_other_settings_lists_what_differs(run, unfinished: Path, changes: tuple, named: str) -> None:
    before = (unfinished / "checkpoint.pth").read_bytes()
    done = run(*DROPOUT, *changes, "--output", unfinished, "--resume")
    assert done.code == 1
    assert named in done.err and len(done.err.splitlines()) == 1
    assert (unfinished / "checkpoint.pth").read_bytes() == before


def test_another_model_is_listed_too(run, unfinished: Path) -> None:
    done = run("resnet_model", "--width", 4, "--output", unfinished, "--resume")
    assert done.code == 1 and "model LeNet -> ResNet18" in done.err


def test_a_constant_rate_run_may_be_resumed_for_more_epochs(run, unfinished: Path, tmp_path: Path) -> None:
    longer = (*DROPOUT[:2], 6, *DROPOUT[3:])
    assert run(*longer, "--output", unfinished, "--resume").code == 0
    assert run(*longer, "--output", tmp_path / "whole").code == 0
    assert same_run(unfinished, tmp_path / "whole")


def test_an_annealed_run_may_not(start, run, tmp_path: Path) -> None:
    script = start(*RESNET, "--output", tmp_path / "out")
    wait_for(tmp_path / "out" / "checkpoint.pth")
    script.process.kill()
    script.process.join()
    done = run(*RESNET[:2], 9, *RESNET[3:], "--output", tmp_path / "out", "--resume")
    assert done.code == 1 and "epochs 3 -> 9" in done.err


@pytest.mark.parametrize("what", ["cut short", "foreign", "empty", "a pickle", "a torch file with a command"])
def test_a_bad_checkpoint_is_one_line_and_never_stops_a_fresh_start(run, unfinished: Path, tmp_path, what) -> None:
    path = unfinished / "checkpoint.pth"
    command = Command(f"touch {tmp_path}/executed")
    if what == "cut short":
        path.write_bytes(path.read_bytes()[:-1000])
    elif what == "foreign":
        torch.save({"weights": torch.zeros(3)}, path)
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "a pickle":
        path.write_bytes(pickle.dumps(command))
    else:
        torch.save({"config": command}, path)
    done = run(*DROPOUT, "--output", unfinished, "--resume")
    assert done.code == 1
    assert len(done.err.splitlines()) == 1 and "checkpoint.pth" in done.err, done.err
    done = run(*DROPOUT, "--output", unfinished)
    assert done.code == 0 and "Starting afresh" in done.err
    assert not (tmp_path / "executed").exists()


def test_two_runs_in_one_folder_the_second_stops_at_once(start, run, tmp_path: Path) -> None:
    first = start("original_version_model", "--epochs", 500, "--output", tmp_path)
    wait_for(tmp_path / "checkpoint.pth")
    second = run("original_version_model", "--epochs", 1, "--output", tmp_path)
    assert second.code == 1
    assert len(second.err.splitlines()) == 1
    assert str(tmp_path) in second.err and f"process {first.process.pid}" in second.err
    first.process.kill()
    first.process.join()
    assert run("original_version_model", "--epochs", 1, "--output", tmp_path).code == 0


# --- Full disks


@pytest.fixture
def small_disk(tmp_path: Path):
    """A disk of one megabyte."""
    disk = tmp_path / "small disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_is_one_line_that_names_the_file(run, small_disk: Path) -> None:
    # The checkpoint of LeNet takes three quarters of the disk, so that the second one doesn't fit beside it.
    done = run("original_version_model", "--epochs", 3, "--output", small_disk)
    assert done.code == 1
    assert len(done.err.splitlines()) == 1 and "checkpoint.pth" in done.err and "No space left" in done.err
    torch.load(small_disk / "checkpoint.pth", weights_only=True)
    assert list(small_disk.glob(".*.tmp")) == []


def test_a_cache_that_does_not_fit_costs_nothing_but_its_time(run, small_disk: Path, data_dir: Path, tmp_path) -> None:
    shutil.copytree(data_dir, small_disk / "data", ignore=shutil.ignore_patterns("*.npz"))
    (small_disk / "filler").write_bytes(bytes(200_000))
    done = run("original_version_model", "--epochs", 1, "--output", tmp_path / "out", data_dir=small_disk / "data")
    assert done.code == 0
    assert "going on without a cache" in done.err and "cifar10-cache.npz" in done.err
    assert list((small_disk / "data").glob("*.npz")) == list((small_disk / "data").glob(".*.tmp")) == []


@pytest.mark.parametrize("limit", [0, 1000, 100_000])
def test_a_failing_write_leaves_the_old_file(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "model.pth"
    writing.write_torch(path, {"a": torch.ones(3)})
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(UserError, match=r"model\.pth can't be written: File too large"):
            writing.write_torch(path, {"a": torch.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.pth"]


def test_a_failing_torch_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    writing.write_torch(path, {"a": torch.ones(3)})
    before = path.read_bytes()
    with pytest.raises((AttributeError, pickle.PicklingError)):
        writing.write_torch(path, {"a": torch.ones(3), "b": lambda: None})
    assert path.read_bytes() == before


def test_ctrl_c_before_training_ends_with_130_and_no_traceback(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "train").mkdir(parents=True)
    command = ["python", str(ROOT / "original_version_model.py"), "--data-dir", str(tmp_path / "data")]
    # The data folder is in use, so that the script waits for it.
    with locked(tmp_path / "data"):
        waiting = subprocess.Popen(command, env=environment(None), stderr=subprocess.PIPE, text=True)
        assert "waiting for process" in waiting.stderr.readline()
        waiting.send_signal(signal.SIGINT)
        _, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 130 and "Traceback" not in err
