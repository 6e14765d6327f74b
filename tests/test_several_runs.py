"""Several runs of one experiment: seeds as one command, and runs of other code in one folder."""

import signal
import subprocess
from datetime import datetime
from pathlib import Path

import pytest
import torch
from conftest import at, read_run

ONE_EPOCH = ("original_version_model_multigpu", "--epochs", 1)


@pytest.mark.parametrize("processes", [1, 2])
def test_seeds_are_runs_one_after_another(run, together, tmp_path: Path, processes: int) -> None:
    arguments = (*ONE_EPOCH, "--seeds", "0,3", "--output", tmp_path / "out")
    done = run(*arguments) if processes == 1 else together(2, *arguments)
    assert done.code == 0, done.err
    records = [read_run(tmp_path / "out" / f"seed={seed}") for seed in (0, 3)]
    assert [record["config"]["seed"] for record in records] == [0, 3]
    low, high = (record["result"]["final_test_accuracy"] for record in records)
    mean, deviation = (low + high) / 2, abs(high - low) / 2**0.5
    last = f"seeds 0, 3: test accuracy {mean:.2f} ± {deviation:.2f} % at the end"
    assert done.out.splitlines()[-1].startswith(last)
    again = run(*arguments, "--resume") if processes == 1 else together(2, *arguments, "--resume")
    assert again.out.count("this run has finished") == 2 and last in again.out


def test_a_number_of_seeds_begins_with_0_and_each_has_the_folder_of_its_seed(run, copied: Path, data_dir: Path) -> None:
    script = copied / "original_version_model.py"
    assert run(script, "--epochs", 1, "--seeds", 2, "--data-dir", data_dir).code == 0
    folders = sorted(path.name for path in (copied / "modelset" / "original_version_model").iterdir())
    assert folders == ["epochs=1", "epochs=1,seed=1"]


def test_seed_and_seeds_exclude_each_other(run, tmp_path: Path) -> None:
    done = run(*ONE_EPOCH, "--seed", 1, "--seeds", 2, "--output", tmp_path / "out")
    assert done.code == 2 and "not allowed with" in done.err and len(done.err.splitlines()) == 1


def change(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


CHANGES = {  # a file, what is replaced in it, and whether that is other code
    "the model": ("cifar10lab/models/lenet.py", "F.relu(self.fc2(x))", "F.gelu(self.fc2(x))", True),
    "a docstring of the model": ("cifar10lab/models/lenet.py", '"""LeNet of', '"""The LeNet of', False),
    "the script's settings": ("original_version_model.py", "lr=0.001", "lr=0.0011 - 0.0001", True),
}


@pytest.mark.parametrize("what", CHANGES)
def test_results_of_other_code_are_kept(run, copied: Path, data_dir: Path, what: str) -> None:
    file, before, after, other = CHANGES[what]
    train = (copied / "original_version_model.py", "--epochs", 1, "--data-dir", data_dir, "--output", copied / "out")
    assert run(*train).code == 0
    first = read_run(copied / "out")
    change(copied / file, before, after)
    done = run(*train)
    now = read_run(copied / "out")
    assert (now["code"]["model_code"] != first["code"]["model_code"]) == other
    assert ("are of other code: they are now in" in done.out) == other
    assert (copied / "out" / "earlier-1").is_dir() == other
    if other:
        assert read_run(copied / "out" / "earlier-1") == first
        assert sorted(path.name for path in (copied / "out" / "earlier-1").iterdir()) == sorted(
            path.name for path in (copied / "out").iterdir() if path.is_file() and path.name[0] != "."
        )


def test_a_run_records_the_commit_and_whether_files_have_changed_since(run, copied: Path, data_dir: Path) -> None:
    def git(*words: str) -> str:
        names = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(("git", *names, *words), cwd=copied, check=True, capture_output=True, text=True).stdout

    def code() -> dict:
        train = ("--epochs", 1, "--data-dir", data_dir, "--output", copied / "out")
        assert run(copied / "original_version_model.py", *train).code == 0
        return read_run(copied / "out")["code"]

    assert code() == {"commit": None, "changed": None, "model_code": code()["model_code"]}
    git("init", "-q")
    git("add", "*.py")
    git("commit", "-qm", "x")
    assert (code()["commit"], code()["changed"]) == (git("rev-parse", "HEAD").strip(), False)
    change(copied / "common.py", "TRAIN_EVALUATION_IMAGES = 10_000", "TRAIN_EVALUATION_IMAGES = 20")
    once = code()["changed"]
    change(copied / "common.py", "TRAIN_EVALUATION_IMAGES = 20", "TRAIN_EVALUATION_IMAGES = 30")
    assert once and code()["changed"] not in (once, False)


def test_a_run_goes_on_by_other_code_and_says_which_part_is_of_which(run, tmp_path: Path) -> None:
    train = (*ONE_EPOCH[:2], 2, "--output", tmp_path)
    assert run(*train, moment=at("written", 1, signal.SIGINT)).code == -signal.SIGINT
    checkpoint = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    before = {"commit": "0" * 40, "changed": False, "model_code": "0" * 12}
    checkpoint["parts"][-1]["code"] = checkpoint["code"] = before
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    done = run(*train, "--resume")
    assert done.code == 0 and "note: the code has changed since" in done.out
    record = read_run(tmp_path)
    assert [part["code"] for part in record["parts"]] == [before, record["code"]]
    assert record["started"] == checkpoint["started"] and datetime.fromisoformat(record["started"]).tzinfo
