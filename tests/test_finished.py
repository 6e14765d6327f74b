"""Runs that have ended, are started again, go on elsewhere, or can't write a file."""

import dataclasses
import json
import shutil
import signal
import subprocess
from pathlib import Path

import common

import pytest
import torch
import torch.distributed as dist
from conftest import At, at, prepared, read_run, same_losses, same_weights, small_data, without_times

from cifar10lab.files.writing import FileInUse
from original_version_model import SETTINGS as LENET

SCRIPT = ("original_version_model", "--epochs", 2, "--batch-size", 20)  # 5 steps an epoch


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def finished(reference, tmp_path: Path) -> Path:
    return shutil.copytree(reference(*SCRIPT), tmp_path / "finished")


# --- Runs that have finished


def test_resuming_a_finished_run_says_so_and_leaves_it(run, finished: Path) -> None:
    before = contents(finished)
    done = run(*SCRIPT, "--output", finished, "--resume")
    assert done.code == 0 and "has finished" in done.out and "epoch   1/2" not in done.out, done.err
    assert contents(finished) == before


def test_in_python_it_returns_the_record(finished: Path, data_dir: Path) -> None:
    settings = dataclasses.replace(LENET, epochs=2, batch_size=20, data_dir=data_dir, output=finished, resume=True)
    assert common.run(settings) == read_run(finished)


@pytest.mark.parametrize(("changes", "named"), [(("--lr", 1), "lr 0.001 -> 1.0"), (("--epochs", 3), "epochs 2 -> 3")])
def test_a_finished_run_of_other_settings_stays(run, finished: Path, changes: tuple, named: str) -> None:
    before = contents(finished)
    done = run(*SCRIPT, *changes, "--output", finished, "--resume")
    assert done.code == 1 and named in done.err and len(done.err.splitlines()) == 1, done.err
    assert contents(finished) == before


def test_in_several_processes_a_finished_run_ends_them_all(together, finished: Path) -> None:
    done = together(2, *SCRIPT, "--output", finished, "--resume")
    assert done.code == 0 and done.out.count("has finished") == 1, done.err


@pytest.mark.parametrize("text", ["{", "{}", "[]"])
def test_a_foreign_result_is_one_line(run, finished: Path, text: str) -> None:
    (finished / "loss.json").write_text(text)
    done = run(*SCRIPT, "--output", finished, "--resume")
    assert done.code == 1 and "loss.json" in done.err and len(done.err.splitlines()) == 1, done.err


# --- An interrupted run, started again without --resume


def test_its_checkpoint_is_set_aside_and_can_still_be_continued(run, reference, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in (1, 2):
        assert run(*SCRIPT, "--output", out, moment=at("step", 7, signal.SIGTERM)).code == -signal.SIGTERM
        before = (out / "checkpoint.pth").read_bytes()
        done = run(*SCRIPT, "--lr", 0.1, "--output", out)
        assert done.code == 0 and f"earlier-{number}" in done.out, done.err
        assert (out / f"earlier-{number}" / "checkpoint.pth").read_bytes() == before
    (out / "earlier-1" / "checkpoint.pth").rename(out / "checkpoint.pth")
    assert run(*SCRIPT, "--output", out, "--resume").code == 0
    assert same_losses(out, reference(*SCRIPT))
    ignored = subprocess.run(
        ["git", "check-ignore", "modelset/reference/Fast/earlier-12/checkpoint.pth"], cwd=common.HERE
    )
    assert ignored.returncode == 0


# --- Files that can't be written


def test_a_picture_that_cannot_be_drawn_is_a_warning(run, reference, tmp_path: Path) -> None:
    (tmp_path / "loss.png" / "in the way").mkdir(parents=True)
    done = run(*SCRIPT, "--output", tmp_path)
    assert done.code == 0 and "warning" in done.err and "loss.png" in done.err, done.err
    assert same_weights(tmp_path / "model.pth", reference(*SCRIPT) / "model.pth")
    assert not (tmp_path / "checkpoint.pth").exists()


def refuse() -> None:
    """What Windows does while another program has the checkpoint open."""

    def replace_file(source: Path, target: Path) -> None:
        if Path(target).name == "checkpoint.pth":
            raise FileInUse(f"{target} can't be replaced: it is open")
        shutil.move(source, target)

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name == "checkpoint.pth":
            raise PermissionError(13, "it is open", str(path))
        path.exists() and shutil.os.remove(path)

    shutil.os.replace, Path.unlink = replace_file, unlink


def test_an_open_checkpoint_ends_no_run(run, reference, tmp_path: Path) -> None:
    done = run(*SCRIPT, "--output", tmp_path, moment=At("written", 1, refuse))
    assert done.code == 0, done.err
    assert "can't be replaced" in done.err and "can't be removed" in done.err and "Traceback" not in done.err
    assert same_losses(tmp_path, reference(*SCRIPT))
    again = run(*SCRIPT, "--output", tmp_path, "--resume")
    assert again.code == 0 and same_losses(tmp_path, reference(*SCRIPT)), again.err


# --- Losses


class InfiniteInWhite(torch.nn.Module):
    """Logits that are infinite for a white image."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        white = images.amin((1, 2, 3)) > 1.9
        return self.linear(images.mean((2, 3))) + torch.where(white, torch.inf, 0)[:, None] * torch.eye(10)[0].add(0.1)


def test_an_infinite_validation_loss_stops_at_its_epoch(tmp_path: Path) -> None:
    white = torch.full((10, 3, 32, 32), 255, dtype=torch.uint8)
    data = dataclasses.replace(small_data(), validation_images=white, validation_labels=torch.arange(10))
    with pytest.raises(common.UserError, match="no finite number any more at epoch 1, step 4"):
        common.train(prepared(LENET, data, tmp_path, model=InfiniteInWhite, batch_size=10), common.State())


# --- Precision, parts and threads


def resaved(folder: Path, **changes: object) -> None:
    """A checkpoint whose part so far was trained elsewhere."""
    checkpoint = torch.load(folder / "checkpoint.pth", weights_only=True)
    checkpoint["parts"][-1]["environment"] |= changes
    torch.save(checkpoint, folder / "checkpoint.pth")


@pytest.fixture
def interrupted(run, tmp_path: Path) -> Path:
    """In the second of three epochs, with 5 + 2 steps of 20 images."""
    arguments = (*SCRIPT[:2], 3, *SCRIPT[3:], "--output", tmp_path / "out")
    assert run(*arguments, moment=at("step", 5 + 5, signal.SIGTERM)).code == -signal.SIGTERM
    return tmp_path / "out"


RESUME = (*SCRIPT[:2], 3, *SCRIPT[3:], "--resume")


def test_a_resumed_run_keeps_the_precision_that_it_began_in(run, interrupted: Path) -> None:
    resaved(interrupted, precision="bf16")  # as of a processor that has it
    done = run(*RESUME, "--output", interrupted)
    assert done.code == 0 and "in bf16" in done.out, done.err
    record = read_run(interrupted)
    assert record["environment"]["precision"] == "bf16" and "parts" not in record
    assert record["config"]["precision"] == "auto"


def test_parts_in_several_environments_are_told_apart(run, interrupted: Path) -> None:
    resaved(interrupted, processor="another")
    before = torch.load(interrupted / "checkpoint.pth", weights_only=True)["parts"]
    assert run(*RESUME, "--output", interrupted).code == 0
    record = read_run(interrupted)
    first, second = record["parts"]
    assert [first] == before and first["environment"]["processor"] == "another" and first["images"] == 200
    assert second["environment"] == record["environment"] and second["images"] == 100
    assert first["seconds"] + second["seconds"] == pytest.approx(record["result"]["train_seconds"])
    assert record["result"]["images_per_second"] == pytest.approx(100 / second["seconds"])


def test_parts_in_one_environment_are_one(run, reference, interrupted: Path) -> None:
    assert run(*RESUME, "--output", interrupted).code == 0
    assert without_times(interrupted) == without_times(reference(*RESUME[:-1]))
    assert "parts" not in read_run(interrupted)


@pytest.mark.parametrize(("size", "threads"), [(4, 1), (5, 2)])
def test_the_threads_that_were_used_are_recorded(tmp_path: Path, data_dir: Path, size: int, threads: int) -> None:
    before = torch.get_num_threads()
    settings = dataclasses.replace(LENET, epochs=1, batch_size=size, data_dir=data_dir, output=tmp_path, device="cpu")
    try:
        torch.set_num_threads(2)
        assert common.run(settings)["environment"]["threads"] == threads
    finally:
        torch.set_num_threads(before)


def test_training_accuracy_says_on_how_many_images_it_is(run, tmp_path: Path) -> None:
    assert run(*SCRIPT, "--validation-images", 20, "--output", tmp_path).code == 0
    record = read_run(tmp_path)
    assert record["result"]["train_accuracy_images"] == record["dataset"]["train_images"] == 80


# --- Dropout's masks


def test_dropouts_masks_have_a_stream_of_their_own(tmp_path: Path) -> None:
    run = prepared(LENET, small_data(), tmp_path, options={"dropout": 0.5}, seed=3)
    for epoch in (1, 2):
        next(common.epoch_chunks(run, epoch, 0))
        drawn = torch.rand(40)
        order = torch.rand(40, generator=torch.Generator().manual_seed(common.mixed_seed(3, epoch)))
        assert not torch.isin(drawn, order).any()


# --- Processes that torchrun starts again


def killed(count: int) -> At:
    return at("step", count, signal.SIGKILL)


def test_a_launchs_restarts_continue_what_it_began_and_nothing_else(together, run, reference, tmp_path: Path) -> None:
    out, store = tmp_path / "out", dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    assert run(*SCRIPT, "--lr", 1, "--output", out, moment=at("step", 7, signal.SIGTERM)).code == -signal.SIGTERM
    done = together(2, *SCRIPT, "--output", out, store=store, moment=killed(3))  # before its first checkpoint
    assert done.code == -signal.SIGKILL and "earlier-1" in done.out
    done = together(2, *SCRIPT, "--output", out, store=store, moment=killed(7))
    assert done.code == -signal.SIGKILL and "resuming" not in done.out and (out / "checkpoint.pth").is_file()
    done = together(2, *SCRIPT, "--output", out, store=store)
    assert done.code == 0 and "resuming at epoch 2" in done.out, done.err
    history, expected = (read_run(folder)["history"] for folder in (out, reference(*SCRIPT)))
    assert history["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-4)
    done = together(2, *SCRIPT, "--output", out, store=store)
    assert done.code == 0 and "has finished" in done.out, done.err
    done = together(2, *SCRIPT, "--output", out)  # another launch
    assert done.code == 0 and "epoch   1/2" in done.out, done.err


def test_a_restart_continues_without_a_store_that_lasts(together, tmp_path: Path) -> None:
    """As with etcd, with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, or on another machine."""
    out = ("--output", tmp_path / "out")
    assert together(2, *SCRIPT, *out, moment=killed(3)).code == -signal.SIGKILL
    done = together(2, *SCRIPT, *out, restarts=1, moment=killed(7))
    assert f"there is no {tmp_path}/out/checkpoint.pth: starting at the beginning" in done.out
    done = together(2, *SCRIPT, *out, restarts=2)
    assert done.code == 0 and "resuming at epoch 2" in done.out, done.err


def test_a_restart_trains_on_over_an_older_runs_results(together, finished: Path) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    json_before = json.loads((finished / "loss.json").read_text())
    assert together(2, *SCRIPT, "--output", finished, store=store, moment=killed(3)).code == -signal.SIGKILL
    done = together(2, *SCRIPT, "--output", finished, store=store)
    assert done.code == 0 and "epoch   1/2" in done.out, done.err
    assert read_run(finished)["environment"] != json_before["environment"]
