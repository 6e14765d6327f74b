"""Nothing is lost: signals, kills, restarts, full disks, damaged files, two runs at once, finished ones."""

import dataclasses
import functools
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import common

import pytest
import torch
from conftest import (
    ROOT,
    Command,
    at,
    prepared,
    read_run,
    same_losses,
    same_weights,
    small_data,
    wait_for,
    wait_until,
    without_times,
)

from cifar10lab.files.locks import locked
from dropout_regularization import SETTINGS as DROPOUT
from original_version_model import SETTINGS as LENET
from resnet_model import SETTINGS as RESNET

SCRIPT = ("original_version_model", "--epochs", 2, "--batch-size", 20)  # 5 steps an epoch
WITH_DROPOUT = ("dropout_regularization", *SCRIPT[1:])
OF_RESNET = ("resnet_model", "--epochs", 2, "--batch-size", 20, "--width", 4)


def same_run(a: Path, b: Path) -> bool:
    """Whether two runs left the same weights and, but for times, the same records."""
    same = all(same_weights(a / name, b / name) for name in ("model.pth", "best_model.pth"))
    return same and without_times(a) == without_times(b)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def finished(reference, tmp_path: Path) -> Path:
    return shutil.copytree(reference(*SCRIPT), tmp_path / "finished")


# --- Signals and kills


@pytest.mark.parametrize(
    ("script", "number", "moment", "epochs"),
    [
        (WITH_DROPOUT, signal.SIGINT, ("written", 1), 3),  # between two epochs; resumed for more
        (OF_RESNET, signal.SIGTERM, ("step", 7), 2),  # within the second
        (WITH_DROPOUT, signal.SIGHUP, ("step", 2), 3),
    ],
    ids=["SIGINT", "SIGTERM", "SIGHUP"],
)
def test_a_signal_saves_and_resuming_gives_the_uninterrupted_run(
    run, reference, tmp_path: Path, script: tuple, number: int, moment: tuple, epochs: int
) -> None:
    done = run(*script, "--output", tmp_path, "--resume", moment=at(*moment, number))
    assert done.code == -number and "there is no checkpoint" in done.out  # by the signal, which ends a shell's loop
    assert "--resume" in done.err.splitlines()[-1] and "Traceback" not in done.err
    saved = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    longer = (*script, "--epochs", epochs)
    done = run(*longer, "--output", tmp_path, "--resume")
    assert done.code == 0 and "resuming at epoch" in done.out, done.err
    assert same_run(tmp_path, reference(*longer))
    assert not (tmp_path / "checkpoint.pth").exists()
    # What was done before the last start is in all times, once.
    record = read_run(tmp_path)
    result, seconds, before = record["result"], record["history"]["seconds"], saved["history"]["seconds"]
    assert seconds[: len(before)] == before and min(seconds) > 0 and seconds[len(before)] >= saved["seconds"]
    assert result["train_seconds"] == pytest.approx(sum(seconds))
    assert result["total_seconds"] > max(saved["total_seconds"], result["train_seconds"])
    assert result["images_per_second"] == pytest.approx(epochs * 100 / result["train_seconds"])


# The files that a run writes, in order.
WRITTEN = ("checkpoint.pth", "checkpoint.pth", "best_model.pth", "model.pth", "loss.json", "loss.png")


@pytest.mark.parametrize(("event", "count"), [("step", 7), *(("writing", n) for n in (1, 2, 3, 5, 6)), ("written", 6)])
def test_killed_at_any_moment_its_files_are_whole_and_its_end_the_same(
    run, reference, tmp_path: Path, event: str, count: int
) -> None:
    assert run(*SCRIPT, "--output", tmp_path / "out", moment=at(event, count, signal.SIGKILL)).code == -signal.SIGKILL
    files = {path.name: path for path in (tmp_path / "out").glob("[a-z]*")}  # all but hidden ones
    before = {"step": count // 5, "writing": count - 1, "written": count}[event]
    assert files.keys() == set(WRITTEN[:before])
    for path in files.values():
        if path.suffix == ".pth":
            torch.load(path, weights_only=True)
        elif path.suffix == ".json":
            read_run(path.parent)
    assert len(list((tmp_path / "out").glob(".*.tmp"))) == (event == "writing")
    done = run(*SCRIPT, "--output", tmp_path / "out", "--resume")
    assert done.code == 0, done.err
    assert same_run(tmp_path / "out", reference(*SCRIPT))
    assert list((tmp_path / "out").glob(".*.tmp")) == []


def test_ctrl_c_before_training_ends_by_it_and_no_traceback(start, tmp_path: Path) -> None:
    (tmp_path / "data" / "train").mkdir(parents=True)
    # The data folder is in use, so that the script waits for it.
    with locked(tmp_path / "data"):
        waiting = start("original_version_model", data_dir=tmp_path / "data")
        wait_until(lambda: "waiting for another process" in waiting.text("err"), "the script waits")
        os.kill(waiting.process.pid, signal.SIGINT)
        done = waiting.finish()
    assert done.code == -signal.SIGINT and "Traceback" not in done.err


def test_two_runs_in_one_folder_the_second_stops_at_once(start, run, tmp_path: Path) -> None:
    held = at("written", 1, functools.partial(wait_for, tmp_path / "never"))
    first = start(*SCRIPT, "--output", tmp_path, moment=held)
    wait_for(tmp_path / "checkpoint.pth")
    second = run(*SCRIPT, "--output", tmp_path)
    assert second.code == 1 and len(second.err.splitlines()) == 1, second.err
    assert f"{tmp_path} is in use by another process" in second.err
    first.process.kill()
    first.process.join()
    assert run(*SCRIPT, "--output", tmp_path).code == 0


# --- Files that can't be written


def test_failing_at_the_last_writes_the_results_are_completed(run, reference, tmp_path: Path) -> None:
    """A folder in its place makes a file's write fail; the picture's is a warning."""
    (tmp_path / "loss.png" / "in the way").mkdir(parents=True)
    for missing in ("best_model.pth", "model.pth", "loss.json"):
        (tmp_path / missing / "in the way").mkdir(parents=True)
        failed = run(*SCRIPT, "--output", tmp_path, "--resume")
        assert failed.code == 1 and missing in failed.err and len(failed.err.splitlines()) == 1, failed.err
        assert (tmp_path / "checkpoint.pth").is_file()
        shutil.rmtree(tmp_path / missing)
    done = run(*SCRIPT, "--output", tmp_path, "--resume")
    assert done.code == 0 and "epoch   2/2" not in done.out, done.err
    assert "warning" in done.err and "loss.png" in done.err
    assert same_run(tmp_path, reference(*SCRIPT)) and not (tmp_path / "checkpoint.pth").exists()


def test_a_full_disk_is_one_line_that_names_the_file_and_leaves_the_old_one(run, tmp_path: Path) -> None:
    """After the first checkpoint, there is only room for 100 kB: the second one's write fails after its beginning."""
    full = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (100_000, 100_000))
    done = run(*SCRIPT, "--output", tmp_path, moment=at("written", 1, full))
    assert done.code == 1
    assert len(done.err.splitlines()) == 1 and "checkpoint.pth can't be written: File too large" in done.err, done.err
    assert torch.load(tmp_path / "checkpoint.pth", weights_only=True)["history"]["epoch"] == [1]
    assert list(tmp_path.glob(".*.tmp")) == []


def keep_open() -> None:
    """What Windows does while another program has the checkpoint open: it can be neither replaced nor removed."""

    def refuse(event: str, arguments: tuple) -> None:
        for path in arguments:
            if event in ("os.rename", "os.remove") and Path(str(path)).name == "checkpoint.pth":
                raise PermissionError(13, "it is open", path)

    sys.addaudithook(refuse)


def test_an_open_checkpoint_ends_no_run(run, reference, tmp_path: Path) -> None:
    done = run(*SCRIPT, "--output", tmp_path, moment=at("written", 1, keep_open))
    assert done.code == 0 and "Traceback" not in done.err, done.err
    assert "checkpoint.pth can't be replaced: it is open; another program may" in done.err
    assert "checkpoint.pth can't be removed: it is open" in done.err
    assert torch.load(tmp_path / "checkpoint.pth", weights_only=True)["history"]["epoch"] == [1]
    assert list(tmp_path.glob(".*.tmp")) == []
    assert same_losses(tmp_path, reference(*SCRIPT))
    again = run(*SCRIPT, "--output", tmp_path, "--resume")
    assert again.code == 0 and same_losses(tmp_path, reference(*SCRIPT)), again.err


# --- Other settings, other runs' files


def test_a_finished_run_is_returned_and_stays(run, together, finished: Path, data_dir: Path) -> None:
    before = contents(finished)
    done = together(2, *SCRIPT, "--output", finished, "--resume")
    assert done.code == 0 and done.out.count("has finished") == 1 and "epoch   1/2" not in done.out, done.err
    done = run(*SCRIPT, "--epochs", 3, "--output", finished, "--resume")
    assert done.code == 1 and "epochs 2 -> 3" in done.err and len(done.err.splitlines()) == 1, done.err
    settings = dataclasses.replace(LENET, epochs=2, batch_size=20, data_dir=data_dir, output=finished, resume=True)
    assert common.run(settings) == read_run(finished)
    assert contents(finished) == before


NARROW = dataclasses.replace(RESNET, options={"width": 4})


@pytest.mark.parametrize(
    ("stated", "changes", "named"),
    [
        (DROPOUT, {"lr": 0.5}, "lr 0.001 -> 0.5"),
        (DROPOUT, {"batch_size": 5}, "batch_size 128 -> 5"),
        (DROPOUT, {"epochs": 1}, "epochs 200 -> 1"),
        (DROPOUT, {"options": {"dropout": 0.1}}, "dropout 0.5 -> 0.1"),
        (DROPOUT, {"model": common.ResNet18, "options": {"width": 4}}, "model LeNet -> ResNet18"),
        (DROPOUT, {"checksum": "another"}, "other images or in another order: test -> test"),
        (NARROW, {"epochs": 30}, "epochs 25 -> 30"),  # annealed
        (dataclasses.replace(NARROW, schedule="constant", resolutions="16,32"), {"epochs": 30}, "epochs 25 -> 30"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_resuming_with_other_settings_lists_what_differs(tmp_path: Path, stated, changes: dict, named: str) -> None:
    data = small_data()
    common.save_state(prepared(stated, data, tmp_path), common.State())
    before, changes = contents(tmp_path), dict(changes)
    data = dataclasses.replace(data, checksum=changes.pop("checksum", ""))
    with pytest.raises(common.UserError, match=rf"checkpoint\.pth is of other settings .*{named}.*: give the same"):
        common.saved_run(prepared(stated, data, tmp_path, resume=True, **changes))
    assert contents(tmp_path) == before


DAMAGED = {
    "empty": b"",
    "a pickle": pickle.dumps(Command("touch executed")),
    "JSON cut short": b"{",
    "foreign JSON": b"{}",
    "a list in JSON": b"[]",
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_file_is_one_line_and_never_executed(tmp_path: Path, monkeypatch, what: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / ("loss.json" if "JSON" in what else "checkpoint.pth")
    path.write_bytes(DAMAGED[what])
    with pytest.raises(common.UserError, match=rf"^[^\n]*{path.name}[^\n]*$"):
        common.read_saved(path)
    assert contents(tmp_path) == {path.name: DAMAGED[what]}


def test_without_resume_a_checkpoint_is_set_aside_and_can_still_be_continued(run, reference, tmp_path: Path) -> None:
    assert run(*SCRIPT, "--output", tmp_path, moment=at("step", 7, signal.SIGTERM)).code == -signal.SIGTERM
    first = (tmp_path / "checkpoint.pth").read_bytes()
    done = run(*SCRIPT, "--lr", 0.1, "--output", tmp_path)
    assert done.code == 0 and "earlier-1: starting afresh" in done.out, done.err
    (tmp_path / "checkpoint.pth").write_bytes(b"damaged")
    done = run(*SCRIPT, "--output", tmp_path)
    assert done.code == 0 and "earlier-2: starting afresh" in done.out, done.err
    assert (tmp_path / "earlier-1" / "checkpoint.pth").read_bytes() == first
    (tmp_path / "earlier-1" / "checkpoint.pth").rename(tmp_path / "checkpoint.pth")
    assert run(*SCRIPT, "--output", tmp_path, "--resume").code == 0
    assert same_losses(tmp_path, reference(*SCRIPT))
    ignored = ["git", "check-ignore", "modelset/reference/Fast/earlier-12/checkpoint.pth"]
    assert subprocess.run(ignored, cwd=ROOT).returncode == 0


@pytest.mark.parametrize("what", ["environment", "code"])
def test_parts_elsewhere_and_by_other_code_are_told_apart(run, tmp_path: Path, what: str) -> None:
    arguments = (*SCRIPT, "--epochs", 3, "--output", tmp_path)
    assert run(*arguments, moment=at("step", 10, signal.SIGTERM)).code == -signal.SIGTERM
    checkpoint = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    (before,) = checkpoint["parts"]
    if what == "environment":
        before["environment"] |= {"processor": "another", "precision": "bf16"}
    else:
        before["code"] = checkpoint["code"] = {"commit": "0" * 40, "changed": False, "model_code": "0" * 12}
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    done, precision = run(*arguments, "--resume"), before["environment"]["precision"]
    assert done.code == 0 and f"resuming at epoch 2, step 5 in {precision}" in done.out, done.err
    assert ("note: the code has changed since" in done.out) == (what == "code")
    record = read_run(tmp_path)
    first, second = record["parts"]
    assert first == before and first["images"] == 200 and second["images"] == 100
    assert (second["environment"], second["code"]) == (record["environment"], record["code"])
    assert second["environment"]["precision"] == precision and record["config"]["precision"] == "auto"
    assert first["seconds"] + second["seconds"] == pytest.approx(record["result"]["train_seconds"])
    assert record["result"]["images_per_second"] == pytest.approx(100 / second["seconds"])
    assert record["started"] == checkpoint["started"] and datetime.fromisoformat(record["started"]).tzinfo


# --- Processes that torchrun starts again


@pytest.mark.parametrize(("steps", "expected"), [(3, "there is no checkpoint"), (7, "resuming at epoch 2")])
def test_a_restart_continues_its_own_run_and_no_older_one(together, reference, finished: Path, steps, expected) -> None:
    """In a folder with an older run's results and another one's checkpoint; an epoch has 5 steps."""
    common.save_state(prepared(LENET, small_data(), finished, lr=1.0), common.State())
    script = (2, *SCRIPT, "--output", finished)
    done = together(*script, moment=at("step", steps, signal.SIGKILL))
    assert done.code == -signal.SIGKILL and "earlier-1" in done.out
    done = together(*script, restarts=1)
    assert done.code == 0 and expected in done.out, done.err
    record, single = read_run(finished), read_run(reference(*SCRIPT))
    assert record["history"]["test_loss"] == pytest.approx(single["history"]["test_loss"], rel=1e-4)
    assert record["environment"]["world_size"] == 2 and "parts" not in record
