"""compare_results.py on runs that the tests train, and on invented ones whose figures are known."""

import csv
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import matplotlib.colors
import pytest
from conftest import ROOT, wait_for

import compare_results
from cifar10lab.comparison import conclusions, curves, evidence, page, reference_page, table
from cifar10lab.comparison.evidence import CONTRADICTED, HOLDS, OPEN, PARTLY, UNDECIDED
from cifar10lab.comparison.runs import names_of, read_runs
from cifar10lab.files.tensors import write_torch
from cifar10lab.results import reference
from cifar10lab.settings.experiment import config_of

BASELINE, LENET, L2, DROPOUT, RESNET = (
    "original_version_model",
    "original_version_model_multigpu",
    "l2_regularization",
    "dropout_regularization",
    "resnet_model",
)


def invented(experiment: str, best: float = 60, gap: float = 10, seconds: float = 10, **changes: object) -> dict:
    """A run's loss.json with `best` test accuracy in the last of five epochs."""
    environment = {"device": "cpu", "processor": "EPYC", "threads": 2, "parallel": "none", "world_size": 1}
    environment |= {"torch": "2.9", "precision": "fp32"}
    environment |= {key: changes.pop(key) for key in environment if key in changes}
    dataset = {"name": changes.pop("dataset", "cifar10"), "source": changes.pop("source", "image folder")}
    dataset |= {name: changes.pop(name, count) for name, count in (("train_images", 50000), ("test_images", 10000))}
    result = {"final_test_accuracy": best, "best_test_accuracy": best, "best_epoch": 5, "parameters": 62006}
    result |= {"best_epoch_chosen_on": "test", "train_seconds": 5 * seconds, "total_seconds": None}
    result |= {"images_per_second": 50000 / seconds}
    config = config_of(__import__(experiment).SETTINGS) | {"epochs": 5} | changes
    history = {
        "epoch": [1, 2, 3, 4, 5],
        "train_loss": [2.0, 1.5, 1.3, 1.2, 1.1],
        "train_accuracy": [best - 20, best - 10, best, best, best + gap],
        "test_loss": [2.1, 1.6, 1.5, 1.4, 1.3],
        "test_accuracy": [best - 20, best - 10, best - 3, best - 2, best],
        "learning_rate": [config["lr"]] * 5,
        "seconds": [seconds] * 5,
    }
    head = {"experiment": experiment, "config": config, "dataset": dataset, "environment": environment}
    return {**head, "history": history, "steps": {"epoch": [1], "train_loss": [2]}, "result": result}


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
def compare(tmp_path: Path, monkeypatch, capsys):
    """The command with these arguments in an empty folder: its exit code, its output and its errors."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def compare(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["compare_results.py", *map(str, arguments)])
        code = 0
        try:
            compare_results.main()
        except SystemExit as exit_:
            code = exit_.code
        return code, *capsys.readouterr()

    return compare


def rows_of(runs, **options: object) -> list[dict[str, str]]:
    return table.table_rows(runs, **options).to_dict("records")


def three(experiment: str, best: float, **changes: object) -> list[dict]:
    """Three seeds whose accuracies deviate by half a point."""
    return [invented(experiment, best=best + off, seed=seed, **changes) for seed, off in enumerate((-0.5, 0, 0.5))]


# --- The command


def test_two_runs_that_differ_by_dropout(compare, tmp_path: Path) -> None:
    first, second = (
        put(tmp_path / "L", invented(LENET, best=65)),
        put(tmp_path / "D", invented(DROPOUT, best=62, gap=2)),
    )
    code, out, err = compare(first, second)
    assert (code, err) == (0, "")
    head, heads, *_ = out.strip().split("\n\n")
    assert head.startswith("cifar10, 50,000 training and 10,000 test images; all runs: LeNet, lr 0.001, momentum 0.95")
    assert "dropout" not in head and re.match(r"run +dropout +epochs", heads)
    lines = [line.split() for line in heads.splitlines()[-2:]]
    assert lines[0][:3] == ["LeNet", "0", "5"] and lines[1][:5] == ["LeNet,", "dropout", "0.5", "0.5", "5"]
    assert lines[0][5:] == ["65.00", "65.00", "(5)", "10.00", "50"]
    assert {path.name for path in Path().iterdir()} == {"comparison.png", "comparison.html"}
    assert "holds" not in out and "1. The" not in out, "no conclusions among somebody's own runs"


@pytest.mark.parametrize("columns", [70, 80, 100, 240])
def test_the_table_fits_the_terminal(compare, tmp_path: Path, monkeypatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    runs = [*three(LENET, 60, lr=0.1234, momentum=0.5), *three(DROPOUT, 50, batch_size=64), invented(RESNET, width=16)]
    _, out, _ = compare(put(tmp_path / "runs", *runs))
    lines = out.split("\n\n")[1].splitlines()
    assert max(map(len, lines)) <= columns
    assert ("schedule" in lines[0]) == (columns == 240)  # as a column; the names say the settings otherwise
    left_out = re.findall("^in a wider terminal: .*seconds$", out, re.MULTILINE)
    assert bool(left_out) == (columns <= 80) == ("seconds" not in lines[0] + lines[1])


def test_sixty_runs_of_a_sweep(compare, tmp_path: Path) -> None:
    runs = [invented(LENET, best=40 + i / 4, lr=0.001 * i, momentum=m) for i in range(1, 31) for m in (0.5, 0.9)]
    code, out, err = compare(put(tmp_path / "sweep", *runs))
    assert (code, err) == (0, "") and "the 8 runs of the highest test accuracy" in out
    assert len(set(re.findall(r"^LeNet, lr [\d.]+, momentum [\d.]+", out, re.MULTILINE))) == 60


def test_a_mean_of_mirrored_images_is_of_all_runs_or_not_there(tables) -> None:
    first, second = three(LENET, 60)[:2]
    first["result"]["mirrored_test_accuracy"] = 61
    assert rows_of(tables(first))[0]["mirrored %"] == "61.00"
    assert "mirrored %" not in rows_of(tables(first, second))[0]


def test_csv_has_a_row_for_each_run(compare, tmp_path: Path) -> None:
    runs = [*three(LENET, 60), invented(RESNET, best=90)]
    assert compare(put(tmp_path / "runs", *runs), "--csv", "all.csv")[0] == 0
    rows = list(csv.DictReader(Path("all.csv").read_text().splitlines()))
    assert [float(row["test_accuracy"]) for row in rows] == [90, 59.5, 60, 60.5]
    assert rows[0]["width"] == "64" and rows[1]["width"] == "" and rows[1]["dropout"] == "0"


def test_a_folder_is_all_runs_in_it_and_a_file_is_that_run(tmp_path: Path) -> None:
    put(tmp_path / "a" / "b", invented(LENET), invented(L2))
    assert len(read_runs([tmp_path / "a"]).table) == 2
    (tmp_path / "a" / "loss.json").write_text(json.dumps(invented(DROPOUT)))
    assert len(read_runs([tmp_path / "a"]).table) == len(read_runs([tmp_path / "a", tmp_path / "a" / "b"]).table) == 3
    (only,) = read_runs([tmp_path / "a" / "loss.json"]).table["experiment"]
    assert only == DROPOUT


def test_each_data_set_has_a_table_and_files_of_its_own(compare, tmp_path: Path, figures) -> None:
    runs = [invented(LENET), invented(L2, dataset="synthetic"), invented(DROPOUT, train_images=45000)]
    code, out, _ = compare(put(tmp_path / "runs", *runs))
    assert code == 0 and out.count("training and 10,000 test images") == 3
    assert "synthetic (says nothing about CIFAR-10)" in out
    assert {path.suffix for path in Path().iterdir()} == {".png", ".html"} and len(list(Path().iterdir())) == 6
    titles = [figure.get_suptitle() for figure in figures] + [path.read_text() for path in Path().glob("*.html")]
    assert sum("SYNTHETIC data, not CIFAR-10; full: test" in title for title in titles) == 2


def test_when_an_accuracy_was_first_reached(tables) -> None:
    runs = tables(invented(LENET), invented(LENET, best=62, seed=1), invented(L2, best=30), invented(DROPOUT))
    column = {row["run"]: row["57 % in epoch"] for row in rows_of(runs, epochs_to=57)}
    assert column["LeNet"] == "3 (30 s)" and column["LeNet, weight decay 0.0001"] == "never"


def test_without_plotly_the_picture_is_there(compare, tmp_path: Path, monkeypatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "plotly"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "plotly", None)
    code, out, err = compare(put(tmp_path / "runs", invented(LENET)))
    assert (code, err) == (0, "") and "pip install plotly" in out
    assert [path.name for path in Path().iterdir()] == ["comparison.png"]


def test_where_nothing_can_be_written(compare, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, err = compare(put(tmp_path / "runs", invented(LENET)), "--output", tmp_path / "file" / "x")
    assert re.fullmatch(r"error: .*file/x.* can't be written: .*", str(code)) and err == ""
    assert str(compare(tmp_path / "runs", "--csv", "")[0]).startswith("error: . can't be written: ")
    assert "File name too long" in compare("x" * 300)[0]
    assert compare(tmp_path / "runs", "--output", tmp_path / "new" / "folder")[0] == 0
    assert (tmp_path / "new" / "folder" / "comparison.png").is_file()


# --- Rows, their names and their figures


def test_mean_and_deviation_of_seeds(tables) -> None:
    runs = [invented(LENET, best=best, seed=seed) for seed, best in enumerate((60, 61, 65))]
    (row,) = rows_of(tables(*runs))
    assert (row["test accuracy %"], row["seeds"]) == ("62.00 ± 2.65", "3")
    (row,) = rows_of(tables(*runs, invented(LENET, best=60, seed=0, processor="another")))
    assert (row["test accuracy %"], row["seeds"]) == ("62.00 ± 2.65", "3"), "a seed that was trained twice counts once"


def test_accuracies_pool_over_machines_and_sources_and_times_do_not(tables) -> None:
    two = {"parallel": "DistributedDataParallel", "world_size": 2}
    runs = [
        invented(LENET, 60), invented(LENET, 61, seed=1, device="H100", seconds=1), invented(LENET, 62, seed=2, **two),
        invented(LENET, 63, seed=3, precision="bf16"), invented(LENET, 64, seed=4, source="official files", seconds=30),
    ]  # fmt: skip
    (row,) = rows_of(tables(*runs))
    assert row["test accuracy %"] == "62.00 ± 1.58" and row["seconds"] == "5 to 150"
    over_seconds = curves.curves_of(tables(*runs), "seconds")
    assert sorted(curve.mean["seconds"].iloc[-1] for curve in over_seconds) == [5, 50, pytest.approx(250 / 3)], (
        "the same machine's have a mean"
    )


def test_runs_of_other_settings_are_rows_of_their_own(tables) -> None:
    names = [row["run"] for row in rows_of(tables(invented(LENET), invented(LENET, epochs=6), invented(L2)))]
    assert sorted(names) == ["LeNet", "LeNet, 6 epochs", "LeNet, weight decay 0.0001"]
    names = [row["run"] for row in rows_of(tables(invented(LENET, lr=0.1), invented(LENET, lr=0.2)))]
    assert sorted(names) == ["LeNet, lr 0.1", "LeNet, lr 0.2"]
    augmented = [invented(LENET, augment=True, lr=lr) for lr in (0.1, 0.2, 0.3)]
    names = [row["run"] for row in rows_of(tables(*augmented, invented(LENET, lr=0.4)))]
    assert "LeNet, lr 0.1" in names and "LeNet, lr 0.4, no augment" in names


def test_scripts_that_do_the_same_are_told_apart(tables) -> None:
    own = invented(LENET) | {"experiment": "perceptron"}
    runs = tables(invented(LENET), own)
    assert set(names_of(runs, runs.table["key"]).values()) == {f"LeNet, {LENET}", "LeNet, perceptron"}


def test_a_setting_that_a_file_does_not_name_has_its_default(tables) -> None:
    older, newer = invented(RESNET), invented(RESNET, seed=1)
    del older["config"]["width"], older["config"]["nesterov"]
    assert len(rows_of(tables(older, newer))) == 1
    assert len(rows_of(tables(older, invented(RESNET, seed=1, width=32)))) == 2
    # Those of augmentation do nothing without it.
    assert len(rows_of(tables(invented(LENET), invented(LENET, seed=1, flips="alternating")))) == 1


def test_an_epoch_that_other_work_slowed_down_does_not_count(tables) -> None:
    slow = invented(LENET)
    slow["history"]["seconds"][0] = 1000
    assert rows_of(tables(slow))[0]["seconds"] == "50"


# --- Own runs beside the reference's and the original's


def test_the_original_beside_us() -> None:
    fifty = reference.original_run(config_of(__import__(LENET).SETTINGS) | {"epochs": 50, "seed": 7})
    assert (fifty["last"], fifty["best"], fifty["best_epoch"], fifty["total_seconds"]) == (64.99, 64.99, 50, 259)
    stated = [
        reference.original_accuracy(config_of(__import__(name).SETTINGS)) for name in (BASELINE, LENET, L2, RESNET)
    ]
    assert stated == ["60", "65.75 at best", "", "89.56"]
    assert reference.original_run(config_of(__import__(RESNET).SETTINGS) | {"width": 32}) is None
    assert reference.original_run(fifty | {"validation_images": 5000}) is None
    assert reference.original_run({"model": "Perceptron", "hidden": 50, "epochs": 5}) is None


def test_how_a_run_stands() -> None:
    run = json.loads((reference.REFERENCE / "original_version_model" / "loss.json").read_text())
    assert reference.standing(run) == " (reference: 61.51 ± 1.30 over 3 seeds; the original: 60 %)"
    assert reference.standing(run | {"dataset": run["dataset"] | {"source": "download"}}) == reference.standing(run)
    assert reference.standing(run | {"dataset": run["dataset"] | {"name": "synthetic"}}) == ""
    assert reference.standing(invented(LENET, lr=0.77)) == ""


@pytest.fixture(scope="module")
def own_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program with its reference results, in a folder of their own."""
    folder = tmp_path_factory.mktemp("own") / "copy"
    ignored = shutil.ignore_patterns(".git", "data", "__pycache__", "*.pth", "*.png", "tests")
    shutil.copytree(ROOT, folder, ignore=ignored)
    return folder


def test_own_runs_beside_the_reference(run, own_copy: Path) -> None:
    done = run(own_copy / "compare_results.py", "--output", own_copy / "out")
    assert (done.code, done.err) == (0, "") and "no runs of your own" in done.out and "ResNet18" in done.out
    own = own_copy / "modelset" / "original_version_model"
    put(own, invented(BASELINE, best=61))
    done = run(own_copy / "compare_results.py", "--output", own_copy / "out")
    assert (done.code, done.err) == (0, "") and "ResNet18" not in done.out
    assert re.search(r"^LeNet .* 61\.00 .* 61\.51 ± 1\.30 +60$", done.out, re.MULTILINE), done.out
    # Named together, they are rows of their own.
    done = run(own_copy / "compare_results.py", own, own_copy / "modelset/reference/original_version_model/seed=1")
    assert len(re.findall(r"^LeNet(?:, reference)? ", done.out, re.MULTILINE)) == 2, done.out
    assert not [path for path in (own_copy / "modelset" / "reference").iterdir() if path.name.startswith("comparison")]


def test_conclusions_are_of_the_reference_alone(run, own_copy: Path) -> None:
    put(own_copy / "modelset" / "Resnet", invented(RESNET, best=99))
    done = run(own_copy / "compare_results.py", "--conclusions")
    assert (done.code, done.err) == (0, "") and "99" not in re.findall(r"best epoch of .*", done.out)[0]
    assert len(re.findall(r"^\d\. .*: [a-z' ]+$", done.out, re.MULTILINE)) == 4
    readme = (own_copy / "modelset" / "reference" / "README.md").read_text()
    assert readme == (reference.REFERENCE / "README.md").read_text(), "the committed page is up to date"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_ignores_what_is_of_this_machine_alone(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    git("init", "-q")
    shutil.copy(ROOT / ".gitignore", tmp_path)
    own = (
        "modelset/Resnet/loss.json",
        "modelset/Resnet/lr=0.1/model.pth",
        "comparison.png",
        "comparison-synthetic.html",
    )
    own = (
        *own,
        "confusion.png",
        "modelset/reference/Resnet/checkpoint.pth",
        "weights-against-x.png",
        "data/train/x.png",
    )
    kept = ("README.md", "results.png", "Resnet/confusion.png", "Resnet/width=32/loss.json", "Resnet/model.pth")
    kept = tuple(f"modelset/reference/{name}" for name in kept)
    for name in (*own, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert sorted(git("ls-files", "--others", "--exclude-standard").split()) == sorted([".gitignore", *kept])


# --- Runs in progress


def test_a_run_in_progress_beside_a_finished_one(start, compare, tmp_path: Path) -> None:
    finished = put(tmp_path / "finished", invented(LENET, train_images=100, test_images=40))
    running = tmp_path / "running"
    script = start(LENET, "--epochs", 100000, "--output", running)
    wait_for(running / "checkpoint.pth")
    code, out, err = compare(finished, running)
    assert (code, err) == (0, "")
    assert re.search(r"^LeNet, 100000 epochs +\d+ of 100000 ", out, re.MULTILINE), out
    os.kill(script.process.pid, signal.SIGTERM)
    assert script.finish().code == 143, script.text("err")


def checkpoint(**changes: object) -> dict:
    """What the comparison reads of a checkpoint.pth, after one epoch of 25."""
    run = invented(RESNET, epochs=25)
    history = {name: values[:1] for name, values in run["history"].items()}
    return {**{name: run[name] for name in ("experiment", "config", "dataset")}, "history": history} | changes


def test_checkpoints_of_all_kinds(compare, tmp_path: Path) -> None:
    folders = {name: tmp_path / "runs" / name for name in ("first", "newer", "older", "damaged", "foreign")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    nothing_yet = {name: [] for name in checkpoint()["history"]}
    write_torch(folders["first"] / "checkpoint.pth", checkpoint(history=nothing_yet))
    for name, seconds in (("newer", 2e9), ("older", 1e9)):
        (folders[name] / "loss.json").write_text(json.dumps(invented(LENET)))
        write_torch(folders[name] / "checkpoint.pth", checkpoint(config=checkpoint()["config"] | {"lr": 0.5}))
        os.utime(folders[name] / "checkpoint.pth", (seconds, seconds))
    (folders["damaged"] / "checkpoint.pth").write_bytes(b"PK")
    write_torch(folders["foreign"] / "checkpoint.pth", {"net": {}, "acc": 90})
    code, out, err = compare(tmp_path / "runs")
    assert code == 0 and len(err.splitlines()) == 2 and "damaged" in err and "foreign" in err
    assert sorted(re.findall(r"\d+ of 25", out)) == ["0 of 25", "1 of 25"], "one without an epoch, and the newer one"
    assert "lr 0.5" in out and re.search(r"^LeNet +5 ", out, re.MULTILINE)
    code, out, err = compare(folders["first"])
    assert (code, err) == (0, "") and "0 of 25" in out and "wrote" not in out


# --- Files that can't be read

DAMAGED = {
    "cut short": lambda text: text[:-50],
    "not JSON": lambda text: "hello",
    "empty": lambda text: "",
    "a list": lambda text: "[1, 2]",
    "another object": lambda text: '{"loss": [1, 2]}',
    "columns of different lengths": lambda text: text.replace('"seconds": [10, 10, 10, 10, 10]', '"seconds": [10]'),
    "no number": lambda text: text.replace('"test_loss": [2.1,', '"test_loss": ["x",'),
    "NaN": lambda text: text.replace('"test_loss": [2.1,', '"test_loss": [NaN,'),
    "no such column": lambda text: text.replace('"test_loss"', '"loss"'),
    "no epochs": lambda text: json.dumps(without_epochs(json.loads(text))),
    "a result that is no number": lambda text: text.replace('"best_epoch": 5', '"best_epoch": "x"'),
    "settings that are a list": lambda text: text.replace('"config": {', '"config": 3, "x": {'),
}


def without_epochs(run: dict) -> dict:
    return run | {"history": {name: [] for name in run["history"]}}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_named_in_one_line_and_the_rest_compared(compare, tmp_path: Path, damage: str) -> None:
    runs = put(tmp_path / "runs", invented(LENET), invented(L2))
    path = runs / "run1" / "loss.json"
    path.write_text(DAMAGED[damage](path.read_text()))
    code, out, err = compare(runs)
    assert code == 0 and re.search("^LeNet +5 ", out, re.MULTILINE)
    assert err.startswith("warning: skipped: ") and str(path) in err and len(err.splitlines()) == 1


def test_nothing_to_compare_is_exit_code_1(compare, tmp_path: Path) -> None:
    code, _, err = compare(put(tmp_path / "bad", {}))
    assert str(code).startswith("error: no loss.json to compare") and "warning: skipped" in err
    code, _, err = compare(tmp_path / "nowhere")
    assert code == f"error: {tmp_path / 'nowhere'} does not exist" and err == ""


# --- Pictures and page


def lines_of(axes) -> dict[str, object]:
    return {line.get_label(): line for line in axes.lines}


def test_two_runs_lie_over_each_other(tables, figures) -> None:
    runs = tables(*three(LENET, 65), invented(DROPOUT, best=62))
    curves.draw_comparison(runs)
    figure = figures[-1]
    loss, accuracy = figure.axes
    assert list(lines_of(loss)) == [f"LeNet{d}, {k}" for d in (", dropout 0.5", "") for k in ("train", "test")]
    test, train = lines_of(accuracy)["LeNet, test"], lines_of(accuracy)["LeNet, train"]
    assert list(test.get_xdata()) == [1, 2, 3, 4, 5] and list(test.get_ydata()) == [45, 55, 62, 63, 65]
    assert test.get_color() == train.get_color() == curves.COLOURS[0] and train.get_alpha() < 1
    assert list(lines_of(loss)["LeNet, train"].get_xdata()) == [0.5, 1.5, 2.5, 3.5, 4.5], (
        "a mean is of an epoch's middle"
    )
    assert len(loss.collections) == 2, "a band for the run of three seeds, for training and for test"
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["65.00 %  LeNet (3 seeds)", "62.00 %  LeNet, dropout 0.5"], "the best first"
    assert figure.get_size_inches()[0] * curves.DPI == 1660
    curves.draw_comparison(runs, "seconds")
    over_seconds = figures[-1].axes[1]
    assert list(lines_of(over_seconds)["LeNet, test"].get_xdata()) == [10, 20, 30, 40, 50]


def test_of_many_runs_the_eight_best_are_coloured(tables, figures) -> None:
    curves.draw_comparison(tables(*(invented(LENET, best=40 + i, lr=0.1 + i) for i in range(12))))
    figure = figures[-1]
    tests = [line for line in figure.axes[1].lines if line.get_label().endswith("test")]
    grey = [line for line in tests if line.get_color() == curves.GREY]
    assert len(grey) == 4 and max(line.get_ydata()[-1] for line in grey) == 43
    assert len({line.get_color() for line in tests}) == 9
    assert figure.legends[0].get_texts()[-1].get_text() == "4 more with a lower test accuracy at the end"


def test_settings_of_the_user_do_not_change_the_picture(tables) -> None:
    plain = curves.draw_comparison(tables(invented(LENET)))
    with matplotlib.rc_context({"savefig.facecolor": "black", "savefig.bbox": "tight", "font.size": 30}):
        assert curves.draw_comparison(tables(invented(LENET))) == plain


def test_the_picture_says_where_a_training_loss_is_smoothed(tables, figures) -> None:
    plain, smoothed = invented(LENET), invented(LENET, label_smoothing=0.1)
    for runs in (tables(plain), tables(plain, smoothed)):
        curves.draw_comparison(runs)
    assert ["label smoothing" in figure.axes[0].get_xlabel() for figure in figures] == [False, True]


def test_colours_can_be_told_apart_when_printed() -> None:
    def lightness(colour: str) -> float:
        return sum(w * c for w, c in zip((0.299, 0.587, 0.114), matplotlib.colors.to_rgb(colour), strict=True))

    assert len(set(curves.COLOURS)) == 8 and all(lightness(colour) < 0.72 for colour in curves.COLOURS)
    assert abs(lightness(curves.COLOURS[0]) - lightness(curves.COLOURS[1])) > 0.1, "two runs, the usual case"


def test_the_page_needs_no_network_and_has_all_lines(tables) -> None:
    text = page.comparison_page(tables(*three(LENET, 65), invented(DROPOUT, best=62))).decode()
    assert not re.search(r'<(script|link)[^>]+(src|href)="http', text)
    (data,) = re.findall(r'Plotly\.newPlot\(\s*"[^"]+",\s*(\[.*\]),\s*\{"template"', text)
    lines = json.loads(data)
    assert len(lines) == 8 and {line["legendgroup"] for line in lines} == {
        "65.00 %  LeNet (3 seeds)",
        "62.00 %  LeNet, dropout 0.5",
    }
    assert sum(line["showlegend"] for line in lines) == 2
    for label in ("epoch", "seconds of training", "across: log", "up: log"):
        assert f'"label":"{label}"' in text, label


def test_the_reference_picture(tables, figures) -> None:
    scripts = [*three(LENET, 65, epochs=50), *three(LENET, 62, epochs=200, gap=38), invented(L2, 62, 38, epochs=200)]
    scripts += [invented(DROPOUT, 66, 14, epochs=200), invented(RESNET, 91, epochs=25)]
    reference_page.draw_results(tables(*scripts))
    left, right = figures[-1].axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["LeNet, 50 epochs", "ResNet-18, 25 epochs"]
    dots = [list(line.get_xdata()) for line in left.lines if line.get_marker() == "o"]
    stars = [list(line.get_xdata()) for line in left.lines if line.get_marker() == "*"]
    assert dots == [[64.5, 65, 65.5], [91]] and stars == [[64.99], [89.56]]
    assert "65.00 ± 0.50 %" in [text.get_text() for text in left.texts]
    assert {"gap 38", "gap 14", "66.0", "80.0"} <= {text.get_text() for text in right.texts}


# --- Evidence


def test_the_deviation_is_pooled_and_student_t_is_used(tables) -> None:
    runs = [*three(LENET, 60), *(invented(LENET, best, lr=0.5, seed=s) for s, best in enumerate((63, 64, 65, 66)))]
    frame = tables(*runs, invented(LENET, 70, lr=0.7)).table
    groups = {lr: group for lr, group in frame.groupby("lr")}
    variance = (2 * 0.25 + 3 * statistics.variance((63, 64, 65, 66))) / 5
    assert evidence.pooled_variance(frame, "LeNet", "test_accuracy") == (pytest.approx(variance), 5)
    value, error = evidence.difference(frame, "test_accuracy", [groups[0.7]], [groups[0.001]])
    assert (value, error) == (10, pytest.approx(2.5706 * math.sqrt(variance * (1 + 1 / 3)), rel=1e-4))  # t of 5 degrees
    _, wider = evidence.difference(frame, "test_accuracy", [groups[0.7]], [groups[0.001]], pairs=3)
    assert wider / error == pytest.approx(3.5341 / 2.5706, rel=1e-4)  # t at 1 - 0.025 / 3
    # One that is in it twice: the best less the worst, less the best again.
    value, error = evidence.difference(frame, "test_accuracy", [groups[0.7]], [groups[0.5], groups[0.5]])
    assert value == 70 - 129 and error == pytest.approx(2.5706 * math.sqrt(variance * (1 + 4 / 4)), rel=1e-4)


def test_three_seeds_that_happen_to_agree_are_not_certain(tables) -> None:
    agree = [invented(LENET, 60, lr=0.5, seed=seed) for seed in range(3)]
    frame = tables(*agree, *three(LENET, 61)).table
    groups = {lr: group for lr, group in frame.groupby("lr")}
    value, error = evidence.difference(frame, "test_accuracy", [groups[0.001]], [groups[0.5]])
    assert value == 1 and error > 0.5
    single = tables(invented(LENET), invented(LENET, lr=0.5)).table
    groups = [group for _, group in single.groupby("lr")]
    assert evidence.verdict(*evidence.difference(single, "test_accuracy", groups[:1], groups[1:])) == OPEN


def test_models_that_deviate_differently(tables) -> None:
    """Welch's test with a pooled variance for each model."""
    wide = [invented(RESNET, best, seed=seed) for seed, best in enumerate((85, 90, 95))]
    frame = tables(*three(LENET, 60), *wide).table
    groups = [group for _, group in frame.groupby("model")]
    value, error = evidence.difference(frame, "test_accuracy", groups[1:], groups[:1])
    assert value == 30 and error == pytest.approx(
        12.2, rel=0.01
    )  # scipy.stats.ttest_ind(…, equal_var=False): 2.04 degrees


def test_verdicts() -> None:
    assert [evidence.verdict(*one) for one in ((2, 1), (-2, 1), (1, 2), (9, math.nan))] == [
        HOLDS,
        CONTRADICTED,
        UNDECIDED,
        OPEN,
    ]
    cases = {(HOLDS, HOLDS): HOLDS, (HOLDS, OPEN): PARTLY, (HOLDS, CONTRADICTED): PARTLY, (OPEN,): OPEN, (): OPEN}
    cases |= {(CONTRADICTED, CONTRADICTED): CONTRADICTED, (UNDECIDED, CONTRADICTED): UNDECIDED}
    for parts, expected in cases.items():
        assert evidence.combined(list(parts)) == expected, parts


# --- The four conclusions, on invented runs


def judge(tables, *runs: dict) -> list[tuple[str, list]]:
    return conclusions.judge_all(tables(*runs))


def test_model_choice(tables) -> None:
    lenets = [*three(LENET, 60), *three(LENET, 64, lr=0.005)]
    verdict, lines = judge(tables, *lenets, *three(RESNET, 90))[0]
    assert verdict == HOLDS and [line.difference.split(" ")[0] for line in lines] == ["+26.00", "+4.00", "+22.00"]
    assert judge(tables, *lenets, *three(RESNET, 65))[0][0] == CONTRADICTED
    assert judge(tables, *lenets, *three(RESNET, 68.5))[0][0] == UNDECIDED
    assert judge(tables, *lenets)[0][0] == OPEN
    assert judge(tables, *three(LENET, 60), *three(RESNET, 90))[0][0] == OPEN, "one setting is no tuning"
    other_machine = [invented(LENET, best=62, threads=1), *three(RESNET, 90)]
    assert judge(tables, *three(LENET, 60), *other_machine)[0][0] == OPEN, (
        "the same settings elsewhere are no further one"
    )


def test_a_trial_of_few_epochs_and_validation_runs_are_no_evidence(tables) -> None:
    runs = [*three(LENET, 60), *three(LENET, 64, lr=0.005), *three(RESNET, 90)]
    trial = invented(LENET, 11, lr=0.5, epochs=1)
    trial["history"] = {name: values[:1] for name, values in trial["history"].items()}
    assert judge(tables, *runs, trial, invented(LENET, 5, validation_images=5000)) == judge(tables, *runs)


def test_efficiency_at_several_accuracies_and_widths(tables) -> None:
    lenet = three(LENET, 74, seconds=100)
    verdict, lines = judge(tables, *lenet, *three(RESNET, 90, seconds=50), *three(RESNET, 88, seconds=900, width=32))[1]
    assert verdict == PARTLY
    verdicts = {re.search(r"width (\d+): (.*)", line.claim).groups(): line.verdict for line in lines}
    assert verdicts["64", "sooner at 60 %"] == HOLDS and verdicts["32", "sooner at 60 %"] == CONTRADICTED
    assert {claim for _, claim in verdicts} == {
        "best epoch more accurate",
        *(f"sooner at {n} %" for n in (60, 65, 70, 73)),
    }
    elsewhere = judge(tables, *lenet, *three(RESNET, 90, processor="another"))[1][1]
    assert [line.claim for line in elsewhere] == ["ResNet18: best epoch more accurate"], "times are of one machine"


def test_regularisation(tables) -> None:
    def seeds(experiment: str, gap: float, **changes: object) -> list[dict]:
        return [invented(experiment, gap=gap + off, seed=seed, **changes) for seed, off in enumerate((-1, 0, 1))]

    verdict, lines = judge(tables, *seeds(LENET, 11), *seeds(L2, 6), *seeds(DROPOUT, 2, best=58))[2]
    assert verdict == HOLDS and lines[0].difference == "+5.00 ± 2.00 points"  # t of 6 degrees, 2.447, times root of 2/3
    assert [line.difference[:5] for line in lines] == ["+5.00", "+0.00", "+9.00", "-2.00"]
    assert judge(tables, *seeds(LENET, 11), *seeds(L2, 10), *seeds(DROPOUT, 2))[2][0] == PARTLY
    assert judge(tables, *seeds(LENET, 11), *seeds(L2, 16), *seeds(DROPOUT, 16))[2][0] == CONTRADICTED
    other = seeds(L2, 5, lr=0.7)
    assert judge(tables, *seeds(LENET, 11), *other)[2][0] == OPEN, "all else must be the same"


def test_several_devices_by_the_benchmark() -> None:
    lines = conclusions.several_devices()
    assert lines[0].claim.startswith("2 CPU cores are 1.75 times as fast") and lines[0].verdict == HOLDS
    assert lines[0].difference == "+0.25 ± 0.14 times" and lines[-1].claim == "on several GPUs"
