"""compare_results.py on runs that the tests train, and on invented ones where the verdicts are known."""

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from conftest import ROOT, wait_for

import compare_results
from common import config_of
from files.writing import write_torch
from internals import experiments, pictures
from internals.conclusions import judge_all
from internals.original import original_run, original_text
from internals.runs import group_runs, read_run
from internals.speedups import read_scaling
from terminal.errors import UserError


def invented(experiment: str, best: float = 60, gap: float = 10, seconds: float = 10, **changes: object) -> dict:
    """A run's loss.json over three epochs, with `best` test accuracy in the last."""
    environment = {"device": "cpu", "torch": "2.9", "precision": "fp32", "parallel": "none", "world_size": 1}
    environment |= {key: changes.pop(key) for key in (*environment, "processor", "threads") if key in changes}
    dataset = {"name": changes.pop("dataset", "cifar10"), "source": "x", "train_images": 50000, "test_images": 10000}
    result = {"final_test_accuracy": best, "best_test_accuracy": best, "best_epoch": 3, "parameters": 62006}
    result |= {"train_seconds": 3 * seconds, "images_per_second": 50000 / seconds}
    for name in ("total_seconds", "mirrored_test_accuracy"):
        result |= {name: changes.pop(name)} if name in changes else {}
    config = config_of(__import__(experiment).SETTINGS) | changes
    history = {
        "epoch": [1, 2, 3],
        "train_loss": [2.0, 1.5, 1.2],
        "train_accuracy": [best - 20, best - 10, best + gap],
        "test_loss": [2.1, 1.6, 1.4],
        "test_accuracy": [best - 20, best - 10, best],
        "learning_rate": [config["lr"]] * 3,
        "seconds": [seconds] * 3,
    }
    head = {"experiment": experiment, "config": config, "dataset": dataset, "environment": environment}
    return {**head, "history": history, "steps": {"epoch": [1, 2, 3], "train_loss": [2, 1.5, 1.2]}, "result": result}


def with_validation(run: dict) -> dict:
    """The same run with 5,000 validation images, by which its second epoch is the best."""
    run = copy.deepcopy(run)
    run["config"]["validation_images"] = 5000
    run["history"] |= {"validation_loss": [2.1, 1.5, 1.6], "validation_accuracy": [30.0, 55.0, 54.0]}
    run["result"] |= {"best_epoch_chosen_on": "validation", "best_epoch": 2}
    run["result"]["best_test_accuracy"] = run["history"]["test_accuracy"][1]
    return run


BASELINE, LENET, L2, DROPOUT, RESNET = (
    "original_version_model",
    "original_version_model_multigpu",
    "l2_regularization",
    "dropout_regularization",
    "resnet_model",
)


def grouped(*runs: dict) -> list:
    return group_runs({Path(f"run{i}/loss.json"): run for i, run in enumerate(runs)})


def verdicts(*runs: dict, measured: tuple = ()) -> list[tuple[str, str]]:
    return [(judged.verdict, judged.evidence) for judged in judge_all(grouped(*runs), list(measured))]


def seeds(experiment: str, gaps: tuple[float, ...], **changes: object) -> list[dict]:
    return [invented(experiment, gap=gap, seed=seed, **changes) for seed, gap in enumerate(gaps)]


def three(experiment: str, best: float, **changes: object) -> list[dict]:
    """Three seeds whose accuracies deviate by half a point."""
    return [invented(experiment, best=best + off, seed=seed, **changes) for seed, off in enumerate((-0.5, 0, 0.5))]


def put(modelset: Path, name: str, run: dict) -> None:
    (modelset / name).mkdir(parents=True)
    (modelset / name / "loss.json").write_text(json.dumps(run))


@pytest.fixture
def modelset(tmp_path: Path, monkeypatch) -> Path:
    """An empty folder that is compare_results.py's modelset/, and another one that is current."""
    folder, elsewhere = tmp_path / "modelset", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    monkeypatch.setattr(compare_results, "MODELSET", folder)
    monkeypatch.chdir(elsewhere)
    return folder


@pytest.fixture
def compare(modelset: Path, monkeypatch, capsys):
    """The command with these arguments: its exit code, its output and its errors."""

    def compare(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["compare_results.py", *map(str, arguments)])
        code = 0
        try:
            compare_results.main()
        except SystemExit as exit:
            code = exit.code
        return code, *capsys.readouterr()

    return compare


# --- The command, its table, its pictures and its page


def test_trained_runs_are_compared(run, copied: Path) -> None:
    out = copied / "modelset"
    for seed in (0, 1):
        options = ("--epochs", 2, "--seed", seed, "--output", out / "L" / f"seed={seed}")
        assert run("original_version_model", *options).code == 0
    assert run("resnet_model", "--epochs", 1, "--width", 4, "--output", out / "A").code == 0
    options = ("--epochs", 1, "--batch-size", 500, "--dataset", "synthetic", "--output", out / "S")
    assert run("original_version_model", *options).code == 0
    done = run(copied / "compare_results.py", "--epochs-to", 5)
    assert done.code == 0, done.err
    assert done.err == ""
    lines = done.out.splitlines()
    cells = next(line.split() for line in lines if line.startswith("original_version_model  "))
    assert cells[1:3] == ["epochs=2", "2"] and "±" in cells  # two seeds, one row
    assert ["resnet_model", "width=4,epochs=1"] in [line.split()[:2] for line in lines]
    synthetic = next(i for i, line in enumerate(lines) if line.startswith("SYNTHETIC"))
    assert "original_version_model" in "\n".join(lines[synthetic:]) and "resnet" not in "\n".join(lines[synthetic:])
    for name in ("comparison.png", "curves.png", "curves-synthetic.png"):
        assert matplotlib.image.imread(out / name).shape[1] == 1660, name
    readme = (out / "README.md").read_text()
    for link in ("comparison.png", "curves.png", "L/seed=0/loss.png", "L/seed=1/loss.png", "A/loss.png"):
        assert f"({link})" in readme or f"(<{link}>)" in readme, link
        assert (out / link).is_file()
    # In the order of the README's table, each run's picture folded away; nothing of the stand-in, which git ignores.
    assert readme.index("### original_version_model") < readme.index("### resnet_model")
    assert readme.count("<details><summary>") == readme.count("</details>") == 3
    assert "S/loss.png" not in readme and "ynthetic" not in readme
    assert len(re.findall(r"^\d\. .*: \*\*.+\*\*", readme, re.MULTILINE)) == 4
    before = {name: (out / name).read_bytes() for name in ("README.md", "comparison.png", "curves.png")}
    assert run(copied / "compare_results.py").code == 0
    assert before == {name: (out / name).read_bytes() for name in before}


def test_a_part_leaves_the_page_of_all_runs_alone(compare, modelset: Path, tmp_path: Path) -> None:
    put(modelset, "a", invented(LENET))
    put(modelset, "b/c", invented(L2))
    put(modelset, "d", invented(DROPOUT))
    before = sorted(modelset.rglob("*"))
    code, out, err = compare(modelset / "a" / "loss.json", modelset / "b")
    assert (code, err) == (0, "")
    assert LENET in out and L2 in out and DROPOUT not in out.split("1. ")[0]
    assert sorted(modelset.rglob("*")) == before
    assert {path.name for path in Path().iterdir()} == {"comparison.png", "curves.png"}
    assert compare(modelset / "a", "--output", tmp_path / "new" / "folder")[0] == 0
    assert (tmp_path / "new" / "folder" / "curves.png").is_file()
    code, _, _ = compare(modelset / "a", "--output", modelset)
    assert str(code).startswith("error: ") and sorted(modelset.rglob("*")) == before
    os.chdir(modelset)
    assert "--output" in str(compare("a")[0]) and sorted(modelset.rglob("*")) == before
    assert compare(modelset)[0] == 0  # that is everything
    assert (modelset / "README.md").is_file()


def test_mean_and_deviation_of_seeds() -> None:
    runs = [invented(LENET, best=best, seed=seed) for seed, best in enumerate((60, 61, 65))]
    (group,) = grouped(*runs)
    assert group.show("best_test_accuracy") == "62.00 ± 2.65"
    assert group.changes == {}
    # A seed that was trained twice is no further one.
    (group,) = grouped(*runs, invented(LENET, best=60, seed=0, processor="another"))
    assert group.seeds == 3 and group.show("best_test_accuracy") == "62.00 ± 2.65"
    mean, deviation = pictures.band(pictures.columns(group, "test_accuracy"))
    assert mean[-1] == 62 and round(deviation[-1], 2) == 2.65


def test_runs_on_other_devices_or_data_are_no_seeds_of_one_another() -> None:
    others = [invented(LENET, seed=1, device="gpu"), invented(LENET, seed=2, dataset="synthetic")]
    others.append(invented(LENET, seed=3, parallel="DistributedDataParallel", world_size=2))
    assert len(grouped(invented(LENET), *others)) == 4


def test_accuracies_compare_across_machines_and_times_do_not() -> None:
    here = [invented(LENET, best=60 + seed, seconds=10, seed=seed, processor="A") for seed in (1, 2)]
    there = invented(LENET, best=63, seconds=100, seed=3, processor="B")
    older = [invented(LENET, best=64, seconds=1000, seed=seed) for seed in (4, 5, 6)]  # processor not recorded
    (group,) = grouped(there, *older, *here)
    cells = compare_results.table_row(group)
    assert cells["last epoch %"] == "63.00 ± 1.26" and cells["seeds"] == "6"
    assert cells["s/epoch"] == "10.0 ± 0.0 (2 of 6 runs)" and cells["images/s"] == "5000 ± 0"
    assert cells["device"] == "A, 1 thread; B, 1 thread; cpu, 1 thread"
    (group,) = grouped(there, *older, *here, invented(LENET, seconds=6, seed=7, processor="A", threads=2))
    assert compare_results.table_row(group)["s/epoch"] == "6.0 (1 of 7 runs)"  # of the most threads


def test_the_original_beside_us() -> None:
    fifty = original_run(config_of(__import__(LENET).SETTINGS) | {"epochs": 50, "seed": 7})
    assert (fifty["last"], fifty["best"], fifty["best_epoch"], fifty["total_seconds"]) == (64.99, 64.99, 50, 259)
    stated = [original_text(config_of(__import__(name).SETTINGS)) for name in (BASELINE, LENET, L2, RESNET)]
    assert stated == ["60 % at the end", "65.75 % at best", "", "89.56 % at the end, 89.56 % at best"]
    assert original_run(config_of(__import__(RESNET).SETTINGS) | {"width": 32}) is None
    assert original_run(fifty | {"validation_images": 5000}) is None
    assert original_run({"model": "Perceptron", "hidden": 50, "epochs": 5}) is None
    cells = compare_results.table_row(grouped(invented(LENET, epochs=50, total_seconds=251.6))[0])
    assert (cells["original's %"], cells["original's best %"]) == ("64.99", "64.99 (50)")
    assert (cells["whole run s"], cells["original's s"]) == ("252", "259")


def test_a_column_that_no_run_fills_is_left_out() -> None:
    def heads(*runs: dict) -> list[str]:
        return compare_results.table([compare_results.table_row(group) for group in grouped(*runs)])[0]

    plain = heads(invented(LENET, epochs=3))
    optional = ("epoch chosen on validation images %", "last, with mirrored images %", "whole run s", "original's %")
    assert not set(optional) & set(plain)
    runs = [with_validation(invented(LENET)), invented(LENET, mirrored_test_accuracy=61, total_seconds=9, epochs=50)]
    assert set(optional) <= set(heads(invented(L2), *runs))


def test_epochs_chosen_on_validation_images_stand_apart() -> None:
    run = with_validation(invented(LENET, best=60))
    cells = compare_results.table_row(grouped(run)[0])
    assert cells["epoch chosen on validation images %"] == "50.00"
    assert cells["best epoch on the test set %"] == "60.00 (3)"
    assert pictures.best_so_far(run) == [40, 50, 50]
    # They don't mix with runs that chose on the test set, and decide only where those don't suffice.
    chosen = [with_validation(invented(LENET, best=best, lr=lr)) for best, lr in ((70, 0.1), (80, 0.2))]
    lenets = [invented(LENET, best=60), invented(LENET, best=62, lr=0.005)]
    _, evidence = verdicts(*chosen, *lenets, invented(RESNET, best=90))[0]
    assert "best LeNet 62.00 %" in evidence and "best epoch on the test set" in evidence
    _, evidence = verdicts(*chosen, with_validation(invented(RESNET, best=100)))[0]
    assert "best LeNet 70.00 %" in evidence and "epoch chosen on validation images" in evidence, evidence


def test_times_of_a_gpu_are_not_drawn_beside_a_cpus() -> None:
    """Also where the GPU has more seeds of the same settings, so that accuracies are drawn from there."""
    gpus = [run | {"environment": run["environment"] | {"device": "A100"}} for run in three(LENET, 60)]
    groups = grouped(*gpus, invented(LENET), invented(L2), invented(DROPOUT))
    chosen = pictures.on_one_device(groups)
    assert [group.experiment for group in chosen] == [LENET, L2, DROPOUT]
    assert {group.runs[0]["environment"]["device"] for group in chosen} == {"cpu"}
    # Nor is another number of threads.
    groups = grouped(invented(LENET, threads=2), invented(L2, threads=1), invented(DROPOUT, threads=2))
    assert [group.experiment for group in pictures.on_one_device(groups)] == [LENET, DROPOUT]


def test_a_run_in_progress_is_shown_and_left_alone(start, compare, modelset: Path) -> None:
    put(modelset, "finished", invented(LENET, best=60))
    folder = modelset / "running"
    script = start(LENET, "--epochs", 100000, "--output", folder)
    wait_for(folder / "checkpoint.pth")
    code, out, err = compare()
    assert (code, err) == (0, "")
    assert re.search(r"epochs=100000 .* unfinished: epoch \d+ of 100000", out), out
    assert (modelset / "unfinished-cifar10.png").is_file()
    # The page is committed, the run is not: it looks as if there were none, in pictures and verdicts, too.
    committed = {name: (modelset / name).read_bytes() for name in ("README.md", "comparison.png", "curves.png")}
    assert b"unfinished" not in committed["README.md"]
    os.kill(script.process.pid, signal.SIGTERM)
    assert script.finish().code == 143, script.text("err")
    shutil.move(folder, modelset.parent / "elsewhere")
    assert compare()[0] == 0
    assert committed == {name: (modelset / name).read_bytes() for name in committed}
    assert not (modelset / "unfinished-cifar10.png").exists()


def checkpoint(**changes: object) -> dict:
    """What the comparison reads of a checkpoint.pth, after one epoch of 25."""
    run = invented(RESNET)
    history = {name: values[:1] for name, values in run["history"].items()}
    content = {"experiment": RESNET, "config": run["config"], "dataset": run["dataset"], "history": history}
    return content | {"epoch": 2, "step": 3} | changes


def test_checkpoints_of_all_kinds(compare, modelset: Path) -> None:
    for name in ("first", "Resnet", "older", "newer", "damaged", "foreign"):
        (modelset / name).mkdir()
    nothing_yet = {name: [] for name in checkpoint()["history"]}
    write_torch(modelset / "first" / "checkpoint.pth", checkpoint(epoch=1, history=nothing_yet))
    older = checkpoint()
    del older["experiment"]
    write_torch(modelset / "Resnet" / "checkpoint.pth", older)
    for name in ("older", "newer"):  # than results in the same folder: an earlier run's, or its own
        (modelset / name / "loss.json").write_text(json.dumps(invented(LENET)))
        write_torch(modelset / name / "checkpoint.pth", checkpoint())
        seconds = time.time() + (10 if name == "newer" else -10)
        os.utime(modelset / name / "checkpoint.pth", (seconds, seconds))
    (modelset / "damaged" / "checkpoint.pth").write_bytes(b"PK")
    write_torch(modelset / "foreign" / "checkpoint.pth", {"net": {}, "acc": 90})
    code, out, err = compare()
    assert code == 0
    unfinished = [line for line in out.splitlines() if "unfinished" in line and not line.startswith("wrote")]
    assert len(unfinished) == 3, out
    assert sum("epoch 1 of 25" in line for line in unfinished) == 1
    assert sum("epoch 2 of 25" in line and line.startswith("resnet_model ") for line in unfinished) == 1
    assert sum(line.startswith("Resnet ") for line in unfinished) == 1
    assert len(err.splitlines()) == 2 and "damaged" in err and "foreign" in err


def test_only_unfinished_runs(compare, modelset: Path) -> None:
    (modelset / "Resnet").mkdir()
    write_torch(modelset / "Resnet" / "checkpoint.pth", checkpoint())
    code, out, err = compare()
    assert (code, err) == (0, "") and "unfinished: epoch 2 of 25" in out
    assert {path.name for path in modelset.iterdir()} == {"Resnet", "unfinished-cifar10.png"}


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_ignores_what_is_of_this_machine_alone(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    git("init", "-q")
    shutil.copy(ROOT / ".gitignore", tmp_path)
    own = ("Resnet/dataset=synthetic/loss.json", "Resnet/lr=0.1,dataset=synthetic/loss.png", "curves-synthetic.png")
    own = (*own, "unfinished-cifar10.png", "Resnet/checkpoint.pth", "Resnet/width=32/model.pth")
    kept = ("README.md", "curves.png", "original.json", "Resnet/loss.json", "Resnet/width=32/loss.json")
    for name in (*own, *kept):
        (tmp_path / "modelset" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "modelset" / name).touch()
    listed = git("ls-files", "--others", "--exclude-standard").split()
    assert sorted(listed) == sorted([".gitignore", *(f"modelset/{name}" for name in kept)])


def test_first_epoch_to_an_accuracy(compare, modelset: Path) -> None:
    put(modelset, "a", invented(LENET, best=60))
    put(modelset, "b", invented(LENET, best=40, seed=3))
    _, out, _ = compare("--epochs-to", 45)
    assert f"{LENET}, seed 0: epoch 2, 20.0 s of training" in out
    assert f"{LENET}, seed 3: never" in out


# --- Pictures


def test_pictures_of_little_and_of_much() -> None:
    """One run, one epoch, a model of one's own, nothing but the stand-in, and 30 settings."""
    own = invented(LENET) | {"experiment": "perceptron"}
    own["config"] = {"model": "Perceptron", "hidden": 20, "epochs": 3, "seed": 0}
    short = invented(RESNET)
    short["history"] = {name: values[:1] for name, values in short["history"].items()}
    many = [invented(LENET, lr=0.001 * i) for i in range(2, 32)]
    for runs in ([own], [short, with_validation(invented(L2))], many):
        groups = grouped(*runs)
        images = [pictures.draw_comparison(groups, judge_all(groups, []), []), pictures.draw_curves(groups, [])]
        assert all(image.startswith(b"\x89PNG") for image in images)


def test_labels_stay_in_order_apart_and_inside() -> None:
    moved = pictures.apart([0.5, 0.5, 0.51, 0.9, 0.99], 0.1, 0.05, 0.95)
    assert np.diff(moved).min() >= 0.1 - 1e-9 and moved[-1] <= 0.95 + 1e-9
    assert pictures.apart([0.2, 0.6], 0.1, 0, 1) == pytest.approx([0.2, 0.6])
    assert pictures.apart([0.5, 0.5, 0.5], 0.1, 0, 1) == pytest.approx([0.4, 0.5, 0.6])  # around where they belong
    assert pictures.apart([], 0.1, 0, 1) == []


def test_an_experiment_has_one_colour() -> None:
    colours = [experiments.colour_of(name) for name in experiments.EXPERIMENTS]
    assert len(set(colours)) == len(colours) and not set(colours) & set(experiments.OTHER_COLOURS)
    assert experiments.colour_of("perceptron") == experiments.colour_of("perceptron")
    first, second = (style["color"] for style in pictures.styles(grouped(invented(L2), invented(L2, lr=0.1))).values())
    assert first == experiments.colour_of(L2) != second
    assert experiments.shade("#336699", 1) == "#FFFFFF" and experiments.shade("#336699", -1) == "#000000"


# --- Files that can't be read


DAMAGED = {
    "cut short": lambda text: text[:-50],
    "not JSON": lambda text: "hello",
    "empty": lambda text: "",
    "a list": lambda text: "[1, 2]",
    "another object": lambda text: '{"loss": [1, 2]}',
    "columns of different lengths": lambda text: text.replace('"seconds": [10, 10, 10]', '"seconds": [10]'),
    "no number": lambda text: text.replace('"test_loss": [2.1,', '"test_loss": ["x",'),
    "NaN": lambda text: text.replace('"test_loss": [2.1,', '"test_loss": [NaN,'),
    "total seconds that are no number": lambda text: text.replace('"best_epoch"', '"total_seconds": "x", "best_epoch"'),
    "a processor without a name": lambda text: text.replace('"device": "cpu"', '"device": "cpu", "processor": 7'),
    "no validation columns": lambda text: text[:-2] + ', "best_epoch_chosen_on": "validation"}}',
    "no epochs": lambda text: json.dumps(without_epochs(json.loads(text))),
}


def without_epochs(run: dict) -> dict:
    return run | {"history": {name: [] for name in run["history"]}}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "loss.json"
    text = json.dumps(invented(LENET))
    path.write_text(text)
    read_run(path)
    path.write_text(DAMAGED[damage](text))
    with pytest.raises(UserError, match=r"loss\.json") as error:
        read_run(path)
    assert "\n" not in str(error.value)


def test_a_damaged_file_is_skipped_and_the_rest_compared(compare, modelset: Path) -> None:
    put(modelset, "good", invented(LENET))
    put(modelset, "bad", invented(L2))
    bad = modelset / "bad" / "loss.json"
    bad.write_text(bad.read_text()[:100])
    code, out, err = compare()
    assert code == 0 and LENET in out
    assert len(err.splitlines()) == 1 and str(bad) in err


def test_nothing_to_compare_is_exit_code_1(compare, modelset: Path) -> None:
    put(modelset, "bad", {})
    code, _, err = compare()
    assert str(code).startswith("error: no loss.json to compare") and "warning: skipped" in err
    code, _, err = compare(modelset / "nowhere")
    assert str(code).startswith("error: ") and "\n" not in str(code) and err == ""


# --- The four conclusions, on invented runs

HOLDS, CONTRADICTED, PARTLY = "holds", "is contradicted", "holds in part"
UNCERTAIN, OPEN = "is too uncertain to tell", "can't be judged"


def test_model_choice() -> None:
    lenets = [*three(LENET, 60), *three(LENET, 64, lr=0.005)]
    verdict, evidence = verdicts(*lenets, *three(RESNET, 90))[0]
    assert verdict == HOLDS and "26.00 ± 0.41 points" in evidence and "4.00 ± 0.41 points" in evidence
    assert "22.00 ± 0.71 points more" in evidence  # the best LeNet counts twice: 0.29 times the root of 1 + 4 + 1
    assert verdicts(*lenets, *three(RESNET, 66))[0][0] == CONTRADICTED
    assert verdicts(*lenets, *three(RESNET, 67.5))[0][0] == UNCERTAIN
    assert verdicts(*lenets)[0] == (OPEN, "Missing: a ResNet-18 run (resnet_model.py).")
    assert verdicts(*three(LENET, 60), *three(RESNET, 90))[0][0] == OPEN
    # The same settings on other devices are no further setting.
    assert verdicts(*three(LENET, 60), invented(LENET, best=62, threads=2), *three(RESNET, 90))[0][0] == OPEN


def test_single_runs_say_so_and_decide_less() -> None:
    lenets = [invented(LENET, best=60), invented(LENET, best=64, lr=0.005)]
    judged = judge_all(grouped(*lenets, invented(RESNET, best=70)), [])[0]
    assert judged.verdict == UNCERTAIN and "a single run" in judged.evidence  # 2 points more ± 2.45
    assert judged.caveat == " (rests on single runs)"
    assert judge_all(grouped(*lenets, *three(RESNET, 90)), [])[0].caveat == " (rests partly on single runs)"
    all_three = [*three(LENET, 60), *three(LENET, 64, lr=0.005), *three(RESNET, 90)]
    assert judge_all(grouped(*all_three), [])[0].caveat == ""


def test_a_trial_of_few_epochs_decides_nothing() -> None:
    runs = [*three(LENET, 60), *three(LENET, 64, lr=0.005), *three(RESNET, 90)]
    trial = invented(LENET, 11, lr=0.5, epochs=1)
    assert verdicts(*runs, trial)[:2] == verdicts(*runs)[:2]


def test_efficiency() -> None:
    lenet = three(LENET, 60, seconds=100)
    assert verdicts(*lenet, *three(RESNET, 90, seconds=50))[1][0] == HOLDS
    verdict, evidence = verdicts(*lenet, *three(RESNET, 90, seconds=1000))[1]
    # ResNet-18 gets in its first epoch to what LeNet's worst seed reaches in its last.
    assert verdict == PARTLY and "To LeNet's 59.50 %, ResNet-18 needed 1000 ± 29 s" in evidence
    assert "LeNet 300 ± 9 s" in evidence
    assert verdicts(*lenet, *three(RESNET, 50, seconds=50))[1][0] == CONTRADICTED
    assert verdicts(*lenet, *three(RESNET, 60.1, seconds=100))[1][0] == UNCERTAIN
    assert verdicts(*lenet)[1] == (OPEN, "Missing: ResNet-18.")
    assert verdicts(*three(RESNET, 90))[1] == (OPEN, "Missing: LeNet.")
    assert verdicts(*lenet, *three(RESNET, 90, device="gpu"))[1][0] == OPEN
    assert verdicts(*lenet, *three(RESNET, 90, processor="another"))[1][0] == OPEN


def test_regularisation() -> None:
    plain = seeds(LENET, (10, 11, 12))
    both = [*seeds(L2, (5, 6, 7)), *seeds(DROPOUT, (1, 2, 3), best=58)]
    verdict, evidence = verdicts(*plain, *both)[2]
    assert verdict == HOLDS
    assert "gap 11.00 ± 1.00 -> 6.00 ± 1.00 points, 5.00 ± 0.82 less" in evidence
    assert "costs 2.00 ± 0.00" in evidence
    # Within twice the standard error it is no help.
    assert verdicts(*plain, *seeds(L2, (9, 10, 11)), *seeds(DROPOUT, (1, 2, 3)))[2][0] == PARTLY
    assert verdicts(*plain, *seeds(L2, (9, 10, 11)), *seeds(DROPOUT, (15, 16, 17)))[2][0] == UNCERTAIN
    assert verdicts(*plain, *seeds(L2, (15, 16, 17)), *seeds(DROPOUT, (15, 16, 17)))[2][0] == CONTRADICTED
    verdict, evidence = verdicts(*plain, *seeds(L2, (5, 6, 7)))[2]
    assert verdict == OPEN and "dropout" in evidence
    # A single run with each setting tells nothing within a few points.
    assert verdicts(plain[0], *seeds(L2, (8,)), *seeds(DROPOUT, (1,)))[2][0] == PARTLY
    # Other settings must be the same, other devices need not, and are no second pair.
    other = [*seeds(L2, (5, 6), epochs=7), *seeds(DROPOUT, (5, 6), epochs=7)]
    assert verdicts(*plain, *other)[2][0] == OPEN
    validated = [with_validation(run) for run in seeds(L2, (5, 6, 7))]
    assert verdicts(*plain, *both, *validated)[2] == verdicts(*plain, *both)[2]
    two = {"parallel": "DistributedDataParallel", "world_size": 2}
    elsewhere = [*both, invented(LENET, gap=11, **two), *seeds(L2, (5, 6), device="gpu")]
    assert verdicts(*plain, *elsewhere)[2] == verdicts(*plain, *both)[2]


def test_regularisation_shows_the_original() -> None:
    runs = [invented(name, epochs=50, gap=gap) for name, gap in ((LENET, 13), (L2, 12), (DROPOUT, 4))]
    assert "the original, single runs: 64.99 -> 61.43 %" in verdicts(*runs)[2][1]


def test_what_older_files_lack_is_off() -> None:
    older, newer = invented(LENET), invented(LENET, seed=1, smoothing=0.0, crop_padding=4, flips="random")
    del older["config"]["dropout"]
    newer["dataset"]["validation_images"] = 0
    assert len(grouped(older, newer)) == 1


def test_a_run_from_before_an_option_of_its_model_had_the_default() -> None:
    older, newer = invented(RESNET), invented(RESNET, seed=1)
    del older["config"]["width"]
    assert len(grouped(older, newer)) == 1
    assert len(grouped(older, invented(RESNET, seed=1, width=32))) == 2


def test_several_devices_in_whole_runs() -> None:
    one = invented(LENET, seconds=40, threads=1)
    four = invented(LENET, seconds=10, parallel="DistributedDataParallel", world_size=4, threads=1)
    verdict, evidence = verdicts(one, four)[3]
    assert verdict == HOLDS and "4.00 ± 0.28 times as fast" in evidence
    assert "CPU cores are the devices" in evidence and "LeNet, batch size 128" in evidence
    for speed, expected in ((1000, CONTRADICTED), (3000, UNCERTAIN)):  # 2.5 times on four is the least
        slower = copy.deepcopy(four)
        slower["result"]["images_per_second"] = speed
        assert verdicts(one, slower)[3][0] == expected
    assert verdicts(one)[3][0] == OPEN
    # A process with two threads uses two cores; other devices and processors are no comparison.
    assert verdicts(invented(LENET, threads=2), four)[3][0] == OPEN
    assert verdicts(one, invented(LENET, parallel="DataParallel", world_size=4, device="gpu"))[3][0] == OPEN
    assert verdicts(one, four | {"environment": four["environment"] | {"processor": "B"}})[3][0] == OPEN
    gpus = [invented(LENET, device="GPU", threads=8, seconds=10)]
    gpus.append(invented(LENET, device="GPU", threads=8, seconds=10, parallel="DataParallel", world_size=4))
    verdict, evidence = verdicts(one, four, *gpus)[3]
    assert verdict == CONTRADICTED and "4 GPUs (GPU, DataParallel)" in evidence and "CPU" not in evidence


def scaling(tmp_path: Path, device: str, devices: str, *speedups: float) -> list:
    """What is read of a benchmarks/scaling.json with one case for each speed-up on two devices."""
    cases = []
    for number, speedup in enumerate(speedups):
        one = {"devices": 1, "parallel": "none", "images_per_second": 1000.0, "speedup": 1.0}
        two = {"devices": 2, "parallel": "DistributedDataParallel", "images_per_second": 1000 * speedup}
        case = {"model": "ResNet18", "width": 32, "batch_size": 128 * 4**number, "precision": "bf16"}
        cases.append(case | {"measured": [one, two | {"speedup": speedup}]})
    path = tmp_path / "scaling.json"
    path.write_text(json.dumps({"device": device, "devices": devices, "count": 2, "cases": cases}))
    return read_scaling(path)


def test_several_devices_in_the_benchmark(tmp_path: Path) -> None:
    measured = scaling(tmp_path, "EPYC", "CPU cores", 1.8, 1.9)
    verdict, evidence = verdicts(invented(LENET), measured=measured)[3]
    assert verdict == HOLDS and "Several GPUs have not been measured" in evidence
    assert "ResNet18, width 32, batch size 512 (scaling.py): 1000 images/s on one, 1900 on 2 CPU cores (EP" in evidence
    for speedups, expected in (((1.9, 1.0), PARTLY), ((1.0,), CONTRADICTED), ((1.0, 1.5), UNCERTAIN)):
        measured = scaling(tmp_path, "EPYC", "CPU cores", *speedups)
        assert verdicts(invented(LENET), measured=measured)[3][0] == expected
    gpus = scaling(tmp_path, "H100", "GPUs", 1.9)
    verdict, evidence = verdicts(invented(LENET), measured=[*measured, *gpus])[3]
    assert verdict == HOLDS and "2 GPUs (H100" in evidence and "EPYC" not in evidence
    groups = grouped(invented(LENET))
    assert pictures.draw_comparison(groups, judge_all(groups, measured), measured).startswith(b"\x89PNG")


def test_a_damaged_benchmark_is_named_in_one_line(tmp_path: Path) -> None:
    assert read_scaling(tmp_path / "none.json") == []
    for text in ("", "[]", '{"device": "x", "devices": "GPUs", "cases": [{"measured": []}]}'):
        (tmp_path / "scaling.json").write_text(text)
        with pytest.raises(UserError, match=r"scaling\.json") as error:
            read_scaling(tmp_path / "scaling.json")
        assert "\n" not in str(error.value)
