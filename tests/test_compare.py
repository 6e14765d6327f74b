"""compare_results.py on runs that the tests train, and on invented ones whose figures are known."""

import csv
import functools
import json
import math
import os
import re
import shutil
import signal
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, run_command, wait_for

import compare_results
from cifar10lab.comparison import conclusions, curves, table
from cifar10lab.comparison.conclusions import CONTRADICTED, HOLDS, MEASURED, NAMED, OPEN, PARTLY, TUNED, UNDECIDED
from cifar10lab.comparison.conclusions import LENET as LENET_50
from cifar10lab.comparison.conclusions import RESNET as RESNET_18
from cifar10lab.comparison.differences import difference, time_ratio
from cifar10lab.comparison.runs import read_runs
from cifar10lab.files.pictures import png
from cifar10lab.files.tensors import write_torch
from cifar10lab.results import reference
from cifar10lab.settings.experiment import config_of

BASELINE, LENET, RESNET = "original_version_model", "original_version_model_multigpu", "resnet_model"
L2, DROPOUT = "l2_regularization", "dropout_regularization"


def invented(experiment: str, best: float = 60, gap: float = 10, seconds: float = 10, **changes: object) -> dict:
    """What is read of a loss.json, with `best` test accuracy in the last of five epochs; `changes` in any part."""
    environment = {"device": "cpu", "processor": "EPYC", "threads": 2, "parallel": "none", "world_size": 1}
    environment |= {"torch": "2.9", "precision": "fp32"}
    environment |= {key: changes.pop(key) for key in environment if key in changes}
    code = {key: changes.pop(key) for key in ("model_code", "commit") if key in changes}
    dataset = {"name": changes.pop("dataset", "cifar10"), "source": "image folder"}
    dataset |= {name: changes.pop(name, count) for name, count in (("train_images", 50000), ("test_images", 10000))}
    config = config_of(__import__(experiment).SETTINGS) | {"epochs": 5} | changes
    history = {
        "epoch": [1, 2, 3, 4, 5],
        "train_loss": [2.0, 1.5, 1.3, 1.2, 1.1],
        "train_accuracy": [best - 20, best - 10, best, best, best + gap],
        "test_loss": [2.1, 1.6, 1.5, 1.4, 1.3],
        "test_accuracy": [best - 20, best - 10, best - 3, best - 2, best],
        "seconds": [seconds] * 5,
    }
    head = {"experiment": experiment, "config": config, "dataset": dataset, "environment": environment}
    head |= {"code": {"commit": None, "changed": False, **code}} if code else {}
    return {**head, "history": history, "result": {"parameters": 62006}}


def put(folder: Path, *runs: dict) -> Path:
    """Each run's loss.json in a folder of its own beneath `folder`."""
    for run in runs:
        own = folder / f"run{len(list(folder.glob('*')))}"
        own.mkdir(parents=True)
        (own / "loss.json").write_text(json.dumps(run))
    return folder


@pytest.fixture
def tables(tmp_path: Path):
    """The tables of invented runs."""
    folders = iter(range(100))
    return lambda *runs: read_runs([put(tmp_path / f"of{next(folders)}", *runs)])


@pytest.fixture
def compare(call, tmp_path: Path, monkeypatch):
    """The command with these arguments in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return functools.partial(call, compare_results.main)


def rows_of(runs, **options: object) -> list[dict[str, str]]:
    return table.table_rows(runs, **{"epochs_to": None, "baseline": None} | options).to_dict("records")


def seeds(experiment: str, *bests: float, **changes: object) -> list[dict]:
    """A run for each of these accuracies, by seeds from 0."""
    return [invented(experiment, best=best, seed=seed, **changes) for seed, best in enumerate(bests)]


def three(experiment: str, best: float, **changes: object) -> list[dict]:
    """Three seeds whose accuracies deviate by half a point."""
    return seeds(experiment, best - 0.5, best, best + 0.5, **changes)


# --- The command


def test_two_runs_that_differ_by_dropout(compare, tmp_path: Path) -> None:
    put(tmp_path / "L", invented(LENET, best=65))
    done = compare(tmp_path / "L", put(tmp_path / "D", invented(DROPOUT, best=62, gap=2)))
    assert (done.code, done.err) == (0, "")
    head, heads, *_ = done.out.strip().split("\n\n")
    assert head.startswith("cifar10, 50,000 training and 10,000 test images; all runs: LeNet, lr 0.001, momentum 0.95")
    assert "dropout" not in head and re.match(r"run +dropout +epochs", heads)
    lines = [line.split() for line in heads.splitlines()[-2:]]
    assert lines[0][:3] == ["LeNet", "-", "5"] and lines[1][:5] == ["LeNet,", "dropout", "0.5", "0.5", "5"]
    assert lines[0][5:] == ["65.00", "65.00", "(5)", "10.00", "50"]
    line = " ".join(done.out.split("over the\nseeds\n")[1].split("\n\n")[0].split())
    assert line == (
        "LeNet, dropout 0.5, less LeNet: test accuracy -3.00 points (1 and 1 seeds); "
        "gap -8.00 points (1 and 1 seeds); 1.00 times the seconds, on EPYC, threads 2"
    )
    assert {path.name for path in Path().iterdir()} == {"comparison.png", "comparison.html"}
    assert "holds" not in done.out and "1. The" not in done.out, "no conclusions among somebody's own runs"


def test_the_table_fits_the_terminal(tables, monkeypatch, capsys) -> None:
    runs = [*three(LENET, 60, lr=0.1234, momentum=0.5), *three(DROPOUT, 50, batch_size=64), invented(RESNET, width=16)]
    for columns in (70, 80, 100, 240):
        monkeypatch.setenv("COLUMNS", str(columns))
        table.print_table(tables(*runs), None, None)
        out = capsys.readouterr().out
        lines = out.split("\n\n")[1].splitlines()
        assert max(map(len, out.splitlines())) <= columns
        # As a column; the names say the settings otherwise.
        assert ("schedule" in lines[0]) == (columns == 240), columns
        left_out = re.findall("^in a wider terminal: .*seconds$", out, re.MULTILINE)
        assert bool(left_out) == (columns <= 80) == ("seconds" not in lines[0] + lines[1]), columns


def test_a_mean_of_mirrored_images_is_of_all_runs_or_not_there(tables) -> None:
    first, second = three(LENET, 60)[:2]
    first["result"]["mirrored_test_accuracy"] = 61
    assert rows_of(tables(first))[0]["mirrored %"] == "61.00"
    assert "mirrored %" not in rows_of(tables(first, second))[0]


def test_a_folder_is_all_runs_in_it_and_a_file_is_that_run(tmp_path: Path) -> None:
    put(tmp_path / "a" / "b", invented(LENET), invented(L2))
    assert len(read_runs([tmp_path / "a"])) == 2
    (tmp_path / "a" / "loss.json").write_text(json.dumps(invented(DROPOUT)))
    assert len(read_runs([tmp_path / "a"])) == len(read_runs([tmp_path / "a", tmp_path / "a" / "b"])) == 3
    (only,) = read_runs([tmp_path / "a" / "loss.json"])["experiment"]
    assert only == DROPOUT


def test_each_data_set_has_a_table_and_files_of_its_own(compare, tmp_path: Path, figures) -> None:
    runs = put(tmp_path / "runs", invented(LENET), invented(L2, dataset="synthetic", train_images=45000))
    done = compare(runs, "--output", tmp_path / "new" / "folder")
    assert done.code == 0 and "\ncifar10, 50,000 training and 10,000 test images" in done.out
    assert "\nsynthetic (says nothing about CIFAR-10), 45,000 training and 10,000 test images" in done.out
    files = [tmp_path / "new" / "folder" / f"comparison{of}" for of in ("", "-synthetic-45000")]
    assert [path.with_suffix(suffix).is_file() for path in files for suffix in (".png", ".html")] == [True] * 4
    titles = [figure.get_suptitle() for figure in figures] + [path.with_suffix(".html").read_text() for path in files]
    assert ["SYNTHETIC data, not CIFAR-10; full: test" in title for title in titles] == [False, True] * 2


def test_when_an_accuracy_was_first_reached(tables) -> None:
    runs = tables(invented(LENET), invented(LENET, best=62, seed=1), invented(L2, best=30), invented(DROPOUT))
    column = {row["run"]: row["57 % in epoch"] for row in rows_of(runs, epochs_to=57)}
    assert column["LeNet"] == "3 (30 s)" and column["LeNet, weight decay 0.0001"] == "0 of 1 runs"


def test_where_nothing_can_be_written(compare, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = compare(put(tmp_path / "runs", invented(LENET)), "--output", tmp_path / "file" / "x")
    assert done.code == 1 and re.fullmatch(r"error: .*file/x.* can't be written: .*\n", done.err)
    done = compare(tmp_path / "runs", "--csv", "")
    assert done.code == 1 and done.err.startswith("error: . can't be written: ")
    assert "File name too long" in compare("x" * 300).err


# --- Rows, their names and their figures


BEFORE = {"model_code": "aaa", "commit": "1" * 40}
TWO = {  # what the second of two runs of one seed has otherwise, and what names both
    "the model's file": ({"model_code": "bbb"}, "model code aaa, folder before", "model code bbb, folder after"),
    "common.py": ({"commit": "2" * 40}, "folder before", "folder after"),
    "processes": ({"world_size": 2}, "processes 1", "processes 2"),
    "a copied script": ({"experiment": "mine"}, f"experiment {LENET}", "experiment mine"),
    "both": ({"device": "H100", "precision": "bf16"}, "precision fp32, device cpu", "precision bf16, device H100"),
}


@pytest.mark.parametrize("what", TWO)
def test_two_runs_are_two_rows_named_by_what_differs(tmp_path: Path, what: str) -> None:
    changes, first, second = TWO[what]
    put(tmp_path / "before", invented(LENET, 20, **BEFORE))
    script = {"experiment": changes.pop("experiment")} if "experiment" in changes else {}
    put(tmp_path / "after", invented(LENET, 10, **BEFORE | changes) | script)
    runs = read_runs([tmp_path / "before" / "run0", tmp_path / "after" / "run0"])
    names = [row["run"] for row in rows_of(runs)]
    assert [name.replace("/run0", "") for name in names] == [f"LeNet, {first}", f"LeNet, {second}"]


def test_seeds_of_different_networks_are_no_row(tables) -> None:
    runs = [invented(LENET, seed=0, level=0), invented(LENET, seed=1, level=None), invented(LENET, seed=2, level=0)]
    runs[2]["result"]["parameters"] = 7
    names = sorted(row["run"] for row in rows_of(tables(*runs)))
    assert names == ["LeNet, folder run0", "LeNet, folder run2", "LeNet, level None"]


def test_seeds_of_one_model_are_a_row_and_a_note_says_what_else_differs(tables) -> None:
    commits = ("1", "1", "2", "2")  # a docstring was edited
    runs = [invented(LENET, seed=n, model_code="aaa", commit=commit * 40) for n, commit in enumerate(commits)]
    runs.append(invented(LENET, seed=4, threads=1, processor="another", torch="2.10"))  # code not recorded: matches any
    (row,) = rows_of(tables(*runs))
    assert row["seeds"] == "5"
    assert table.notes(tables(*runs)) == [
        "LeNet: commit 1111111 (seed 0, 1), 2222222 (seed 2, 3), not recorded (seed 4); "
        "changes no (seed 0, 1, 2, 3), not recorded (seed 4); "
        "torch 2.9 (seed 0, 1, 2, 3), 2.10 (seed 4); threads 2 (seed 0, 1, 2, 3), 1 (seed 4)"
    ]


def test_a_seed_is_never_averaged_with_itself(tmp_path: Path) -> None:
    for folder in ("a/epochs=5,seed=0", "a/epochs=5,seed=1", "b/seed=0", "b/seed=1"):
        put(tmp_path / folder, invented(LENET, seed=int(folder[-1])))
    rows = [(row["run"], row["seeds"]) for row in rows_of(read_runs([tmp_path]))]
    assert rows == [("LeNet, folder a/epochs=5/run0", "2"), ("LeNet, folder b/run0", "2")]
    put(tmp_path / "b", invented(LENET, seed=0)).rename(tmp_path / "c")
    (tmp_path / "c" / "run2").rename(tmp_path / "c" / "run0")
    assert len(rows_of(read_runs([tmp_path / "c"]))) == 3, "no folder tells the two runs of seed 0 apart"


def test_a_run_resumed_elsewhere_is_no_other_runs_seed(tables, figures) -> None:
    parts = [{"environment": invented(LENET, device=device)["environment"]} for device in ("cpu", "H100")]
    runs = tables(invented(LENET), invented(LENET, seed=1) | {"parts": parts})
    assert {row["run"] for row in rows_of(runs)} == {"LeNet, device cpu", "LeNet, device cpu, then H100"}
    assert [curve.mean["took"].iloc[-1] for curve in curves.curves_of(runs)] == [50, 50], "as recorded"


def test_runs_of_other_settings_are_rows_of_their_own(tables) -> None:
    def names(*runs: dict) -> list[str]:
        return sorted(row["run"] for row in rows_of(tables(*runs)))

    several = names(invented(LENET), invented(LENET, epochs=6), invented(L2))
    assert several == ["LeNet", "LeNet, 6 epochs", "LeNet, weight decay 0.0001"]
    assert names(invented(LENET, lr=0.1), invented(LENET, lr=0.2)) == ["LeNet, lr 0.1", "LeNet, lr 0.2"]
    augmented = names(*(invented(LENET, augment=True, lr=lr) for lr in (0.1, 0.2, 0.3)), invented(LENET, lr=0.4))
    assert augmented == ["LeNet, lr 0.1", "LeNet, lr 0.2", "LeNet, lr 0.3", "LeNet, lr 0.4, no augment"]
    older = invented(RESNET)
    del older["config"]["nesterov"], older["config"]["resolutions"], older["config"]["optimizer"]
    assert names(older, invented(RESNET, seed=1)) == ["ResNet18"], "a setting that a file does not name is off"
    assert len(names(older, invented(RESNET, seed=1, nesterov=True))) == 2
    assert names(invented(LENET), invented(LENET, seed=1, flips="alternating")) == ["LeNet"], "nothing without augment"


def test_options_named_like_columns_stay_options(compare, tmp_path: Path) -> None:
    runs = seeds(LENET, 60, 61)
    runs[0]["config"] |= {"seed": 1, "gap": True, "machine": "<f8", "seconds": 3, "reference": 1, "run": 2}
    runs[1]["config"] |= {"seed": 1, "gap": False, "machine": "<f4", "seconds": 3, "reference": 1, "run": 2}
    out = compare(put(tmp_path / "runs", *runs), "--csv", "all.csv").out
    assert re.search(r"^LeNet, gap, machine <f8 +yes +<f8 +5 ", out, re.MULTILINE), out
    rows = list(csv.DictReader(Path("all.csv").read_text().splitlines()))  # a row for each run
    assert [(row["gap (setting)"], row["gap"]) for row in rows] == [("False", "10"), ("True", "10")]
    assert "&lt;f8" in Path("comparison.html").read_text() and "machine <f8" not in Path("comparison.html").read_text()


def test_validation_images_choose_the_best_epoch(tables, capsys) -> None:
    chosen = invented(LENET, 60, validation_images=5000)
    chosen["history"]["validation_accuracy"] = [1, 5, 4, 3, 2]
    table.print_table(tables(chosen, invented(L2)), None, None)
    out = " ".join(capsys.readouterr().out.split())
    assert " 50.00 (2) " in out and "best: per cent, chosen on validation or test images;" in out


# --- Own runs beside the reference's and the original's


def test_how_a_run_stands_beside_the_reference_and_the_original() -> None:
    assert reference.original_run(config_of(__import__(RESNET).SETTINGS) | {"width": 32}) == {}
    assert reference.original_run({"model": "Perceptron", "hidden": 50, "epochs": 5}) == {}
    configs = [config_of(__import__(name).SETTINGS) for name in (BASELINE, LENET, L2, RESNET)]
    assert [*map(reference.original_accuracy, configs)] == ["60", "65.75 at best", "", "89.56"]
    run = json.loads((reference.REFERENCE / "original_version_model" / "loss.json").read_text())
    expected = " (reference: 61.51 ± 1.30 over 3 seeds; the original: 60 %)"
    assert reference.beside_reference(run) == expected
    downloaded = run | {"dataset": run["dataset"] | {"source": "download"}, "code": BEFORE}
    assert reference.beside_reference(downloaded) == expected
    elsewhere = run | {"environment": run["environment"] | {"device": "NVIDIA H100"}}
    assert reference.beside_reference(elsewhere) == " (the original: 60 %)", "a row is of one kind of device"
    assert reference.beside_reference(run | {"dataset": run["dataset"] | {"name": "synthetic"}}) == ""
    assert reference.beside_reference(run | {"config": run["config"] | {"validation_images": 5000}}) == ""


def test_a_broken_reference_is_a_warning(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(reference, "REFERENCE", put(tmp_path, {"config": 3}))
    assert reference.beside_reference(invented(LENET)) == "" and "can't be read: KeyError" in capsys.readouterr().err


IN_A_COPY = """
import sys
import compare_results
from pathlib import Path

def compare(*words):
    print("-----")
    sys.argv[1:] = map(str, words if "--conclusions" in words else [*words, "--output", out])
    compare_results.main()

out, own, disk = map(Path, sys.argv[1:])
compare(own)
disk.with_name("away").rename(disk)
compare()
Path("modelset/original_version_model").symlink_to(own / "run0")
compare()
compare(own / "run0", "modelset/reference/original_version_model/seed=1")
compare("--conclusions")
assert "torch" not in sys.modules
"""


def test_own_runs_beside_the_reference_without_torch(tmp_path: Path) -> None:
    """In a copy of the program whose modelset/ is a link to another place, at first to none."""
    copy, disk = tmp_path / "copy", tmp_path / "disk"
    ignored = shutil.ignore_patterns(".git", "data", "__pycache__", "*.pth", "*.png", "tests", "modelset")
    shutil.copytree(ROOT, copy, ignore=ignored)
    shutil.copytree(ROOT / "modelset" / "reference", tmp_path / "away" / "reference", ignore=ignored)
    (copy / "modelset").symlink_to(disk)
    own = put(tmp_path / "own", invented(BASELINE, best=61), invented(L2))
    (own / "run0" / "above").symlink_to(own / "run0")
    done = run_command("python", "-c", IN_A_COPY, tmp_path, own, disk, cwd=copy)
    assert (done.code, done.err) == (0, "")
    without, nothing, one, together, _ = done.out.split("-----\n")[1:]
    assert ", less LeNet, " in " ".join(without.split()), "modelset/ isn't needed"
    assert "no runs of your own" in nothing and "ResNet18" in nothing
    assert len(re.findall("^LeNet", one, re.MULTILINE)) == 1, one
    assert re.search(r"^LeNet .* 61\.00 .* 61\.51 ± 1\.30 +60$", one, re.MULTILINE), one
    assert len(re.findall(r"^LeNet(?:, reference)? ", together, re.MULTILINE)) == 2, together
    assert not list((copy / "modelset").rglob("comparison*"))
    page = (copy / "modelset" / "reference" / "README.md").read_text()
    assert page == (reference.REFERENCE / "README.md").read_text(), "the committed page is up to date"
    assert re.search(r"L2, 50 epochs: gap narrower by +\| \+0\.59 ± 0\.96 points +\| 5 paired seeds: \+0\.99, ", page)


OWN = ["modelset/Resnet/loss.json", "modelset/Resnet/lr=0.1/model.pth", "modelset/reference/Resnet/checkpoint.pth"]
OWN += ["data/train/x.png", "comparison.png", "comparison-synthetic.html", "weights.png", "weights-against-x.png"]
OWN += ["confusion.png", "mistakes.png", "classified.png"]
KEPT = ["README.md", "results.png", "Resnet/confusion.png", "Resnet/width=32/loss.json", "Resnet/model.pth"]


def test_git_ignores_what_is_of_this_machine_alone() -> None:
    kept = [f"modelset/reference/{name}" for name in KEPT]
    done = run_command("git", "check-ignore", "--no-index", *OWN, *kept, cwd=ROOT)
    if done.code == 128:
        pytest.skip("needs a git repository")
    assert done.out.split() == OWN


# --- Runs in progress


def test_a_run_in_progress_beside_a_finished_one(start, compare, tmp_path: Path) -> None:
    finished = put(tmp_path / "finished", invented(LENET, train_images=100, test_images=40))
    running = tmp_path / "running"
    script = start(LENET, "--epochs", 100000, "--output", running)
    wait_for(running / "checkpoint.pth")
    done = compare(finished, running)
    assert (done.code, done.err) == (0, "")
    assert re.search(r"^LeNet, 100000 epochs +\d+ of 100000 ", done.out, re.MULTILINE), done.out
    os.kill(script.process.pid, signal.SIGTERM)
    assert script.finish().code == -signal.SIGTERM, script.text("err")


def checkpoint(**changes: object) -> dict:
    """What the comparison reads of a checkpoint.pth, after one epoch of 25."""
    run = invented(RESNET, epochs=25)
    history = {name: values[:1] for name, values in run["history"].items()}
    return {**{name: run[name] for name in ("experiment", "config", "dataset")}, "history": history} | changes


def test_checkpoints_of_all_kinds(compare, tmp_path: Path) -> None:
    folders = {name: tmp_path / "runs" / name for name in ("first", "both", "damaged", "foreign")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    nothing_yet = {name: [] for name in checkpoint()["history"]}
    write_torch(folders["first"] / "checkpoint.pth", checkpoint(history=nothing_yet))
    (folders["both"] / "loss.json").write_text(json.dumps(invented(LENET)))
    write_torch(folders["both"] / "checkpoint.pth", checkpoint(config=checkpoint()["config"] | {"lr": 0.5}))
    (folders["damaged"] / "checkpoint.pth").write_bytes(b"PK")
    write_torch(folders["foreign"] / "checkpoint.pth", {"net": {}, "acc": 90})
    done = compare(tmp_path / "runs")
    assert done.code == 0 and len(done.err.splitlines()) == 2 and "damaged" in done.err and "foreign" in done.err
    assert sorted(re.findall(r"\d+ of 25", done.out)) == ["0 of 25", "1 of 25"], "one without an epoch"
    assert "lr 0.5" in done.out and re.search(r"^LeNet +5 ", done.out, re.MULTILINE)
    done = compare(folders["first"])
    assert (done.code, done.err) == (0, "") and "0 of 25" in done.out and "wrote" not in done.out


# --- Files that can't be read

DAMAGED = {
    "cut short": lambda text: text[:-50],
    "a list": lambda text: "[1, 2]",
    "columns of different lengths": lambda text: text.replace('"seconds": [10, 10, 10, 10, 10]', '"seconds": [10]'),
    "no number": lambda text: text.replace('"test_loss": [2.1,', '"test_loss": ["x",'),
    "NaN": lambda text: text.replace('"test_loss": [2.1,', '"test_loss": [NaN,'),
    "no such column": lambda text: text.replace('"test_loss"', '"loss"'),
    "no epochs": lambda text: re.sub(r"\[[^]]*\]", "[]", text),
    "a result that is no number": lambda text: text.replace('"parameters": 62006', '"parameters": "x"'),
    "settings that are a list": lambda text: text.replace('"config": {', '"config": 3, "x": {'),
}


def test_damaged_files_are_named_in_a_line_each_and_the_rest_compared(compare, tmp_path: Path, capsys) -> None:
    path = put(tmp_path / "runs", invented(LENET)) / "run0" / "loss.json"
    for name, damage in DAMAGED.items():
        (tmp_path / "runs" / f"{name}.json").write_text(damage(path.read_text()))
    assert len(read_runs([tmp_path / "runs", *(tmp_path / "runs").glob("*.json")])) == 1
    err = capsys.readouterr().err
    assert sorted(re.findall(r"^warning: skipped: .*/(.*)\.json ", err, re.MULTILINE)) == sorted(DAMAGED)
    assert len(err.splitlines()) == len(DAMAGED)
    done = compare(put(tmp_path / "bad", {}))
    assert done.code == 1 and re.search("^warning: skipped.*\nerror: no loss.json to compare", done.err)
    assert compare(tmp_path / "nowhere").err == f"error: {tmp_path / 'nowhere'} does not exist\n"


# --- Pictures and page


def test_two_runs_lie_over_each_other_in_the_picture_and_on_the_page(tables, figures) -> None:
    runs, labels = tables(*three(LENET, 65), invented(DROPOUT, best=62)), ["65.00 %  LeNet (3 seeds)"]
    labels.append("62.00 %  LeNet, dropout 0.5")  # the best first
    png(curves.draw_comparison, runs)
    figure = figures[-1]
    losses, accuracies = ({line.get_label(): line for line in axes.lines} for axes in figure.axes)
    assert list(losses) == [f"LeNet{d}, {k}" for d in (", dropout 0.5", "") for k in ("train", "test")]
    test, train = accuracies["LeNet, test"], accuracies["LeNet, train"]
    assert list(test.get_xdata()) == [1, 2, 3, 4, 5] and list(test.get_ydata()) == [45, 55, 62, 63, 65]
    assert test.get_color() == train.get_color() == curves.COLOURS[0] and train.get_alpha() < 1
    assert list(losses["LeNet, train"].get_xdata()) == [0.5, 1.5, 2.5, 3.5, 4.5], "of an epoch's middle"
    assert len(figure.axes[0].collections) == 2, "a band for the run of three seeds, for training and for test"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == labels
    assert figure.get_size_inches()[0] * curves.DPI == 1660
    png(curves.draw_comparison, runs, "seconds")
    (*_, test) = figures[-1].axes[1].lines  # the best is drawn last
    assert list(test.get_xdata()) == [10, 20, 30, 40, 50]

    text = curves.comparison_page(runs).decode()
    assert not re.search(r'<(script|link)[^>]+(src|href)="http', text), "it needs no network"
    (data,) = re.findall(r'Plotly\.newPlot\(\s*"[^"]+",\s*(\[.*\]),\s*\{"template"', text)
    lines = json.loads(data)
    assert len(lines) == 8 and [line["legendgroup"] for line in lines if line["showlegend"]] == labels
    assert all(f'"label":"{label}"' in text for label in ("epoch, linear", "epoch, log", "seconds of training, linear"))


def test_of_many_runs_the_eight_best_are_coloured(tables, figures) -> None:
    png(curves.draw_comparison, tables(*(invented(LENET, best=40 + i, lr=0.1 + i) for i in range(12))))
    figure = figures[-1]
    tests = [line for line in figure.axes[1].lines if line.get_label().endswith("test")]
    grey = [line for line in tests if line.get_color() == curves.GREY]
    assert len(grey) == 4 and max(line.get_ydata()[-1] for line in grey) == 43
    assert len({line.get_color() for line in tests}) == 9
    assert figure.legends[0].get_texts()[-1].get_text() == "4 more with a lower test accuracy at the end"


# --- Differences


DIFFERENCES = {
    "three shared seeds": ((60, 62, 64, 10), (61.0, 62.9, 65.3), "+1.07 ± 0.52, 3 paired seeds: +1.00, +0.90, +1.30"),
    "the same": ((60, 62, 64), (60, 62, 64), "+0.00 ± 0.00, 3 paired seeds: +0.00, +0.00, +0.00"),
    "two seeds": ((60, 62), (61, 64), "+1.50, 2 and 2 seeds: +1.00, +2.00"),
    "other seeds": ((60, 62, 67, *[math.nan] * 3), (*[math.nan] * 3, 70, 71, 75), "+9.00 ± 7.43, 3 and 3 seeds"),
    "six seeds": ((1, 2, 3, 4, 5, 6), (2, 3, 4, 5, 6, 8), "+1.17 ± 0.43, 6 paired seeds"),
}


@pytest.mark.parametrize("case", DIFFERENCES)
def test_the_difference_of_two_rows(case: str) -> None:
    first, second, expected = DIFFERENCES[case]
    found = difference(*(pd.Series(values, dtype=float).dropna() for values in (first, second)))  # by seed
    assert f"{found}, {found.seeds}{found.by_seed}" == expected


def test_times_are_compared_on_one_processor_alone(tables) -> None:
    def ratio(**changes: object) -> str:
        (_, first), (_, second) = tables(invented(LENET), invented(L2, seconds=15, **changes)).groupby("folder")
        return time_ratio(first, second)

    assert [ratio(), ratio(threads=1), ratio(processor="another")] == ["1.50", "", ""]
    unknown = tables(invented(LENET, processor="not recorded"))
    assert time_ratio(unknown, unknown) == ""


def test_columns_of_differences_to_a_baseline(compare, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    plain = put(tmp_path / "plain", *seeds(LENET, 60, 61, 63))
    others = put(tmp_path / "others", *seeds(L2, 61, 62.1, 63.8), invented(DROPOUT, 50, seed=7))
    out = compare(others, "--against", plain).out
    assert re.search(r"^LeNet, weight decay 0.0001 .* \+0.97 ± 0.38 +3 paired seeds ", out, re.MULTILINE), out
    assert re.search(r"^LeNet, dropout 0.5 .* -11.33 +1 and 3 seeds ", out, re.MULTILINE), out
    assert "differences: to LeNet, in points. ±: 95 % confidence interval" in " ".join(out.split())
    assert "is of 2 rows" in compare(plain, "--against", others).err
    elsewhere = put(tmp_path / "elsewhere", invented(LENET, 20, train_images=200))
    assert "accuracy difference" not in compare(elsewhere, "--against", plain).out, "other images"


# --- The four conclusions, on invented runs


@pytest.fixture
def named(tmp_path: Path):
    """The tables, and the rows by their names in NAMED, of runs in the folders of those names."""

    def named(runs: dict[str, list[dict]]) -> tuple:
        for name, run in [(name, run) for name, of_name in runs.items() for run in of_name]:
            folder = tmp_path / "reference" / NAMED[name] / f"seed={run['config']['seed']}"
            folder.mkdir(parents=True)
            (folder / "loss.json").write_text(json.dumps(run))
        tables = read_runs([tmp_path / "reference"])
        return tables, conclusions.named_rows(tables)

    return named


RESNETS = {  # ResNet-18's accuracies, and whether the model matters more than tuning, where LeNet has 61 and 71 %
    (90, 91.3, 92): HOLDS,
    (72, 73.3, 74): CONTRADICTED,
    (75, 82, 91): UNDECIDED,
}


@pytest.mark.parametrize("bests", RESNETS)
def test_model_choice(named, bests: tuple[float, ...]) -> None:
    lenets = {LENET_50: seeds(LENET, 60, 61, 62), TUNED: seeds(LENET, 70.5, 71, 72.2, augment=True)}
    _, rows = named(lenets | {RESNET_18: seeds(RESNET, *bests)})
    assert [line[-1] for line in conclusions.model_choice(rows)] == ["", RESNETS[bests]]


def test_efficiency_is_epochs_by_seconds_measured_side_by_side(named) -> None:
    tuned = seeds(LENET, 70, 68, augment=True)
    runs, rows = named({LENET_50: seeds(LENET, 70, 68), RESNET_18: seeds(RESNET, 90, 84), TUNED: tuned})
    cases = [{"experiment": one, "pipeline_images_per_second": [900, 1000, 5000]} for one in MEASURED.values()]
    for rate, expected in ((20_000, CONTRADICTED), (100, HOLDS), (2500, UNDECIDED)):
        cases[1]["pipeline_images_per_second"] = [rate]
        lines = list(conclusions.efficiency(runs, rows, cases))
        assert [line[-1] for line in lines] == [OPEN, expected, expected, OPEN, HOLDS, HOLDS], lines
    _, never, *_ = conclusions.efficiency(*named({LENET_50: [invented(LENET, 30, seed=2)]}), cases)
    assert "against never" in never[1]


def test_regularisation(named) -> None:
    def gaps(experiment: str, *gaps: float) -> list[dict]:
        return [invented(experiment, gap=gap, seed=seed) for seed, gap in enumerate(gaps)]

    runs = {LENET_50: gaps(LENET, 11, 12, 13), "LeNet + L2, 50 epochs": gaps(L2, 9.9, 11.1, 11.9)}
    _, rows = named(runs | {"LeNet + dropout, 50 epochs": gaps(DROPOUT, 10.9, 11.7, 13.4)})
    lines = list(conclusions.regularisation(rows))
    assert [line[1] for line in lines[::2]] == ["+1.03 ± 0.29 points", "-0.00 ± 0.90 points", *["not trained"] * 2]
    assert [line[3] for line in lines] == [HOLDS, "", UNDECIDED, "", *[OPEN] * 4]


def test_several_devices_by_the_benchmark() -> None:
    measured = [{"devices": n, "speedup": speedup, "parallel": "DDP"} for n, speedup in ((1, 1), (2, 1.4), (4, 2.6))]
    cases = [{"model": "LeNet", "batch_size": 128, "measured": measured}]
    for devices, expected in (("GPUs", [CONTRADICTED, HOLDS]), ("CPU cores", [CONTRADICTED, HOLDS, OPEN])):
        lines = conclusions.several_devices({"devices": devices, "cases": cases})
        assert [line[-1] for line in lines] == expected


def test_a_conclusions_verdict_is_that_of_its_parts() -> None:
    cases = {(HOLDS, HOLDS): HOLDS, (HOLDS, OPEN): PARTLY, (HOLDS, CONTRADICTED): PARTLY, (OPEN,): OPEN, (): OPEN}
    cases |= {(CONTRADICTED, CONTRADICTED): CONTRADICTED, (UNDECIDED, CONTRADICTED): UNDECIDED}
    assert {parts: conclusions.combined(list(parts)) for parts in cases} == cases


def test_the_reference_picture(named, figures) -> None:
    names = (LENET_50, "LeNet, 200 epochs", "LeNet + L2, 200 epochs", "LeNet + dropout, 200 epochs", RESNET_18)
    runs = [three(LENET, 65, epochs=50), three(LENET, 62, gap=38), [invented(L2, 62, 38)], [invented(DROPOUT, 66, 14)]]
    runs.append([invented(RESNET, 91, epochs=25, device="H100")])
    png(conclusions.draw_results, named(dict(zip(names, runs, strict=True)))[0])
    left, right = figures[-1].axes
    assert [label.get_text() for label in left.get_yticklabels()] == [LENET_50, f"{RESNET_18}\nH100"]
    assert [list(line.get_xdata()) for line in left.lines] == [[64.5, 65, 65.5], [64.99], [91], [89.56]]
    assert {"65.00 ± 0.50 % (3)"} < {text.get_text() for text in left.texts}
    assert [label.get_text() for label in right.get_xticklabels()] == ["plain\ngap 38", "L2\ngap 38", "dropout\ngap 14"]
    assert [text.get_text() for text in right.texts] == ["100.0", "100.0", "80.0", "62.0", "62.0", "66.0"]
