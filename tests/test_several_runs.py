"""Several runs of one experiment: seeds as one command, and runs of other code in one folder."""

import functools
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import common

import pytest
from conftest import ROOT, at, read_run

from cifar10lab.models import source as code
from original_version_model import SETTINGS


def test_seeds_are_runs_one_after_another(run, together, tmp_path: Path) -> None:
    arguments = ("original_version_model_multigpu", "--epochs", 1, "--seeds", "0,3", "--output", tmp_path / "out")
    done = together(2, *arguments)
    assert done.code == 0 and "Warning" not in done.err, done.err
    records = [read_run(tmp_path / "out" / f"seed={seed}") for seed in (0, 3)]
    assert [record["config"]["seed"] for record in records] == [0, 3]
    low, high = (record["result"]["final_test_accuracy"] for record in records)
    mean, deviation = (low + high) / 2, abs(high - low) / 2**0.5
    last = f"seeds 0, 3: test accuracy {mean:.2f} ± {deviation:.2f} % at the end"
    assert f"\n{last}" in done.out  # torch 2.9 says after it who is connected
    again = run(*arguments, "--resume")
    assert again.out.count("this run has finished") == 2 and again.out.splitlines()[-1].startswith(last)


def test_a_number_of_seeds_begins_with_0(main, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--seeds", "2", "--local-rank=0"]  # the second as torch.distributed.launch says it
    monkeypatch.setattr(sys, "argv", ["original_version_model.py", *words])
    settings = common.parse_arguments(SETTINGS, "")
    assert [one.seed for one in settings] == [0, 1] and {one.output for one in settings} == {None}
    done = main(SETTINGS, "--seed", 1, "--seeds", 2)
    assert done.code == 2 and "not allowed with" in done.err


def test_a_signal_while_results_are_written_completes_them_and_begins_no_further_run(run, tmp_path: Path) -> None:
    words, stopped = ("--epochs", 1, "--seeds", 2, "--output", tmp_path), at("written", 3, signal.SIGINT)
    assert run("original_version_model", *words, moment=stopped).code == -signal.SIGINT
    assert read_run(tmp_path / "seed=0")["history"]["epoch"] == [1] and not (tmp_path / "seed=1").exists()


# --- Other code


def change(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def test_results_of_another_run_are_kept_and_of_the_same_one_replaced(run, copied: Path, data_dir: Path) -> None:
    script, out = copied / "original_version_model.py", copied / "out"
    train = ("--epochs", 1, "--data-dir", data_dir, "--output", out)
    assert run(script, *train).code == 0
    first, files = read_run(out), {path.name for path in out.glob("[a-z]*")}
    done = run(script, *train, "--lr", 0.1)
    assert done.code == 0 and "are of another run: they are now in" in done.out, done.err
    assert read_run(out / "earlier-1") == first
    assert {path.name for path in (out / "earlier-1").iterdir()} == files
    assert run(script, *train, "--lr", 0.1).code == 0 and not (out / "earlier-2").exists()
    change(copied / "cifar10lab/models/lenet.py", "F.relu(self.fc2(x))", "F.gelu(self.fc2(x))")
    done = run(script, *train, "--lr", 0.1, "--resume")
    assert done.code == 1 and "its script or model's file has changed" in done.err, done.err
    assert run(script, *train, "--lr", 0.1).code == 0
    assert read_run(out)["code"]["model_code"] != read_run(out / "earlier-2")["code"]["model_code"]


def test_only_what_python_executes_is_other_code(tmp_path: Path) -> None:
    texts = [(ROOT / "cifar10lab/models/lenet.py").read_text()]
    texts += [texts[0].replace('"""LeNet of', '"""The LeNet of') + "# a comment\n", texts[0].replace("relu", "gelu")]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.py").write_text(text)
    same, documented, other = (code.syntax(tmp_path / f"{number}.py") for number in range(3))
    assert texts[0] != texts[1] and same == documented != other


def test_the_commit_and_what_has_changed_since_are_recorded(monkeypatch: pytest.MonkeyPatch, copied: Path) -> None:
    def git(*words: str) -> str:
        names = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(("git", *names, *words), cwd=copied, check=True, capture_output=True, text=True).stdout

    def record(of: Callable = code.code_record.__wrapped__) -> dict:  # as another process would make it
        return of(SETTINGS.experiment, SETTINGS.model)

    monkeypatch.setattr(code, "HERE", copied)
    kept = functools.cache(code.code_record.__wrapped__)
    before = record(kept)
    assert (before["commit"], before["changed"]) == (None, None) and len(before["model_code"]) == 12
    git("init", "-q")
    assert record() == before, "somebody else's repository"
    git("add", "*.py")
    git("commit", "-qm", "x")
    commit = git("rev-parse", "HEAD").strip()
    assert record() == before | {"commit": commit, "changed": False}
    change(copied / "common.py", "TRAIN_EVALUATION_IMAGES = 10_000", "TRAIN_EVALUATION_IMAGES = 20")
    once = record()["changed"]
    change(copied / "common.py", "TRAIN_EVALUATION_IMAGES = 20", "TRAIN_EVALUATION_IMAGES = 30")
    assert once and record()["changed"] not in (once, False)
    change(copied / "original_version_model.py", "lr=0.001", "lr=0.002")
    assert record()["model_code"] != before["model_code"]
    assert record(kept) == before, "this process still runs the first code"
