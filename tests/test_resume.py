"""Nothing is lost: resuming, signals, kills, full disks, two runs at once, hostile checkpoints."""

import functools
import os
import pickle
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import At, Command, at, read_run, same_weights, wait_for, wait_until, without_times

from cifar10lab.files.locks import locked
from cifar10lab.files.tensors import write_torch
from cifar10lab.terminal.errors import UserError

DROPOUT = ("dropout_regularization", "--epochs", 4, "--batch-size", 4)  # 25 steps an epoch
RESNET = ("resnet_model", "--epochs", 3, "--batch-size", 5, "--width", 4)  # 20


def same_run(a: Path, b: Path) -> bool:
    """Whether two runs left the same weights and, but for times, the same records."""
    same = all(same_weights(a / name, b / name) for name in ("model.pth", "best_model.pth"))
    return same and without_times(a) == without_times(b)


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, ("written", 1)),  # between two epochs
        (signal.SIGTERM, ("step", 27)),  # within the second
        (signal.SIGHUP, ("written", 2)),
    ],
    ids=["SIGINT", "SIGTERM", "SIGHUP"],
)
@pytest.mark.parametrize("script", [DROPOUT, RESNET], ids=lambda script: script[0])
def test_a_signal_saves_and_resuming_gives_the_uninterrupted_run(
    run, reference, tmp_path: Path, script: tuple, number: int, moment: tuple
) -> None:
    out = tmp_path / "out"
    done = run(*script, "--output", out, moment=at(*moment, number))
    assert done.code == -number  # so that a shell's loop ends, too
    assert "--resume" in done.err.splitlines()[-1] and "Traceback" not in done.err
    resumed = run(*script, "--output", out, "--resume")
    assert resumed.code == 0, resumed.err
    assert "resuming at epoch" in resumed.out
    assert same_run(out, reference(*script))
    assert not (out / "checkpoint.pth").exists()


def test_a_signal_within_an_epoch_costs_none_of_its_steps(run, larger_data_dir: Path, tmp_path: Path) -> None:
    script = ("dropout_regularization", "--epochs", 1, "--batch-size", 2)  # 300 steps, in chunks of 128
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run(*script, "--output", whole, data_dir=larger_data_dir).code == 0
    done = run(*script, "--output", out, data_dir=larger_data_dir, moment=at("step", 100, signal.SIGTERM))
    assert done.code == -signal.SIGTERM
    state = torch.load(out / "checkpoint.pth", weights_only=True)
    assert state["epoch"] == 1 and len(state["losses"]) == state["step"] == 128
    assert run(*script, "--output", out, "--resume", data_dir=larger_data_dir).code == 0
    assert same_run(out, whole)


def test_a_resumed_runs_record_counts_all_its_parts(run, tmp_path: Path) -> None:
    for moment in (at("step", 60, signal.SIGTERM), at("step", 20, signal.SIGTERM)):  # in epoch 3, and in epoch 4
        assert run(*DROPOUT, "--output", tmp_path, "--resume", moment=moment).code == -signal.SIGTERM
    state = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    assert run(*DROPOUT, "--output", tmp_path, "--resume").code == 0
    record = read_run(tmp_path)
    history, steps, result = record["history"], record["steps"], record["result"]
    assert {name: len(values) for name, values in history.items()} == dict.fromkeys(history, 4)
    assert history["epoch"] == [1, 2, 3, 4]
    assert steps["epoch"] == sorted(set(steps["epoch"])) and len(steps["epoch"]) == len(steps["train_loss"]) == 48
    assert steps["epoch"][11::12] == [1, 2, 3, 4]
    # What was done before the last start is in all times, once.
    assert history["seconds"][:3] == state["history"]["seconds"] and min(history["seconds"]) > 0
    assert history["seconds"][3] >= state["seconds"] > 0
    assert result["train_seconds"] == pytest.approx(sum(history["seconds"]))
    assert result["total_seconds"] > max(state["total_seconds"], result["train_seconds"])
    assert result["images_per_second"] == pytest.approx(4 * 100 / result["train_seconds"])


# The files that a run of three epochs writes, in order.
WRITTEN = ("checkpoint.pth", "checkpoint.pth", "checkpoint.pth", "best_model.pth", "model.pth", "loss.json", "loss.png")
MOMENTS = [("step", 10), ("step", 60), *(("writing", i) for i in range(1, 8)), ("written", 7)]


@pytest.mark.parametrize(("event", "count"), MOMENTS)
def test_killed_at_any_moment_its_files_are_whole_and_its_end_the_same(
    run, reference, tmp_path: Path, event: str, count: int
) -> None:
    script = (*DROPOUT[:2], 3, *DROPOUT[3:])
    assert run(*script, "--output", tmp_path / "out", moment=at(event, count, signal.SIGKILL)).code == -signal.SIGKILL
    files = {path.name: path for path in (tmp_path / "out").glob("[a-z]*")}  # all but hidden ones
    before = {"step": count // 25, "writing": count - 1, "written": count}[event]
    assert files.keys() == set(WRITTEN[:before])
    for path in files.values():
        if path.suffix == ".pth":
            torch.load(path, weights_only=True)
        elif path.suffix == ".json":
            read_run(path.parent)
    assert len(list((tmp_path / "out").glob(".*.tmp"))) == (event == "writing")
    done = run(*script, "--output", tmp_path / "out", "--resume")
    assert done.code == 0, done.err
    assert same_run(tmp_path / "out", reference(*script))
    assert list((tmp_path / "out").glob(".*.tmp")) == []


def test_failing_at_the_last_writes_the_results_are_completed(run, reference, tmp_path: Path) -> None:
    script, out = ("original_version_model", "--epochs", 2), tmp_path / "out"
    for missing in ("best_model.pth", "model.pth", "loss.json"):
        # A folder in its place makes the write fail.
        (out / missing / "in the way").mkdir(parents=True)
        failed = run(*script, "--output", out)
        assert failed.code == 1 and missing in failed.err and len(failed.err.splitlines()) == 1, failed.err
        assert (out / "checkpoint.pth").is_file()
        shutil.rmtree(out / missing)
        done = run(*script, "--output", out, "--resume")
        assert done.code == 0 and "epoch   2/2" not in done.out, done.err
        assert same_run(out, reference(*script))
        shutil.rmtree(out)


def test_resuming_without_a_checkpoint_begins_at_the_beginning(run, tmp_path: Path) -> None:
    done = run("original_version_model", "--epochs", 1, "--output", tmp_path, "--resume")
    assert done.code == 0 and "no checkpoint" in done.out


@pytest.fixture
def unfinished(run, tmp_path: Path) -> Path:
    """A folder with the checkpoint of a killed run."""
    out = tmp_path / "unfinished"
    assert run(*DROPOUT, "--output", out, moment=at("written", 1, signal.SIGKILL)).code == -signal.SIGKILL
    return out


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (("--lr", 0.5), "lr 0.001 -> 0.5"),
        (("--batch-size", 5), "batch_size 4 -> 5"),
        (("--seed", 7), "seed 0 -> 7"),
        (("--dataset", "synthetic"), "other images or in another order: image folder -> synthetic.py"),
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


def test_a_constant_rate_run_may_be_resumed_for_more_epochs(run, reference, unfinished: Path) -> None:
    longer = (*DROPOUT[:2], 6, *DROPOUT[3:])
    assert run(*longer, "--output", unfinished, "--resume").code == 0
    assert same_run(unfinished, reference(*longer))


@pytest.mark.parametrize("settings", [(), ("--schedule", "constant", "--resolutions", "16,32")], ids=" ".join)
def test_an_annealed_run_may_not_nor_one_of_several_sizes(run, tmp_path: Path, settings: tuple) -> None:
    run(*RESNET, *settings, "--output", tmp_path / "out", moment=at("written", 1, signal.SIGKILL))
    done = run(*RESNET[:2], 9, *RESNET[3:], *settings, "--output", tmp_path / "out", "--resume")
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
    assert done.code == 0 and "Starting afresh" in done.out
    assert not (tmp_path / "executed").exists()


def test_two_runs_in_one_folder_the_second_stops_at_once(start, run, tmp_path: Path) -> None:
    held = At("written", 1, functools.partial(wait_for, tmp_path / "never"))
    first = start("original_version_model", "--epochs", 2, "--output", tmp_path, moment=held)
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
    write_torch(path, {"a": torch.ones(3)})
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(UserError, match=r"model\.pth can't be written: File too large"):
            write_torch(path, {"a": torch.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.pth"]


def test_ctrl_c_before_training_ends_by_it_and_no_traceback(start, tmp_path: Path) -> None:
    (tmp_path / "data" / "train").mkdir(parents=True)
    # The data folder is in use, so that the script waits for it.
    with locked(tmp_path / "data"):
        waiting = start("original_version_model", data_dir=tmp_path / "data")
        wait_until(lambda: "waiting for another process" in waiting.text("err"), "the script waits")
        os.kill(waiting.process.pid, signal.SIGINT)
        done = waiting.finish()
    assert done.code == -signal.SIGINT and "Traceback" not in done.err
