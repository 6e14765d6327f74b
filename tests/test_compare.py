"""compare_results.py on runs that the tests train, and on invented ones where the verdicts are known."""

import copy
import json
from pathlib import Path

import matplotlib.image
import pytest
from conftest import run_command

import compare_results
from common import config_of


def invented(experiment: str, best: float = 60, gap: float = 10, seconds: float = 10, **changes: object) -> dict:
    """A run's loss.json over three epochs, with `best` test accuracy in the last."""
    environment = {"device": "cpu", "torch": "2.9", "precision": "fp32", "parallel": "none", "world_size": 1}
    environment |= {key: changes.pop(key) for key in tuple(environment) if key in changes}
    dataset = {"name": changes.pop("dataset", "cifar10"), "source": "x", "train_images": 50000, "test_images": 10000}
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
    result = {"final_test_accuracy": best, "best_test_accuracy": best, "best_epoch": 3, "parameters": 62006}
    result |= {"train_seconds": 3 * seconds, "images_per_second": 50000 / seconds}
    head = {"experiment": experiment, "config": config, "dataset": dataset, "environment": environment}
    return {**head, "history": history, "steps": {"epoch": [1, 2, 3], "train_loss": [2, 1.5, 1.2]}, "result": result}


LENET, L2, DROPOUT, RESNET = (
    "original_version_model_multigpu",
    "l2_regularization",
    "dropout_regularization",
    "resnet_model",
)


def verdicts(*runs: dict) -> list[tuple[str, str]]:
    groups = compare_results.group_runs({Path(f"run{i}/loss.json"): run for i, run in enumerate(runs)})
    return [judge(groups) for _, judge in compare_results.CONCLUSIONS]


def seeds(experiment: str, gaps: tuple[float, ...], **changes: object) -> list[dict]:
    return [invented(experiment, gap=gap, seed=seed, **changes) for seed, gap in enumerate(gaps)]


def put(folder: Path, name: str, run: dict) -> None:
    (folder / "modelset" / name).mkdir(parents=True)
    (folder / "modelset" / name / "loss.json").write_text(json.dumps(run))


def test_trained_runs_are_compared(run, copied: Path) -> None:
    out = copied / "modelset"
    for seed in (0, 1):
        options = ("--epochs", 2, "--seed", seed, "--output", out / "L" / f"seed={seed}")
        assert run("original_version_model", *options).code == 0
    assert run("resnet_model", "--epochs", 1, "--width", 4, "--output", out / "R").code == 0
    options = ("--epochs", 1, "--batch-size", 500, "--dataset", "synthetic", "--output", out / "S")
    assert run("original_version_model", *options).code == 0
    done = run_command("python", copied / "compare_results.py", "--epochs-to", 5)
    assert done.code == 0, done.err
    assert done.err == ""
    lines = done.out.splitlines()
    row = next(line.split() for line in lines if line.startswith("original_version_model  "))
    assert row[1:3] == ["epochs=2", "2"] and "±" in row  # two seeds, one row
    assert ["resnet_model", "width=4,epochs=1"] in [line.split()[:2] for line in lines]
    synthetic = next(i for i, line in enumerate(lines) if line.startswith("SYNTHETIC"))
    assert "original_version_model" in "\n".join(lines[synthetic:]) and "resnet" not in "\n".join(lines[synthetic:])
    assert matplotlib.image.imread(out / "comparison.png").shape[1] > 1000
    assert (out / "comparison-synthetic.png").is_file()
    readme = (out / "README.md").read_text()
    for link in ("comparison.png", "L/seed=0/loss.png", "L/seed=1/loss.png", "R/loss.png", "S/loss.png"):
        assert f"({link})" in readme or f"(<{link}>)" in readme, link
        assert (out / link).is_file()
    assert readme.count("can't be judged") + readme.count("**holds") + readme.count("**is contra") == 4


def test_runs_and_folders_can_be_named(copied: Path) -> None:
    put(copied, "a", invented(LENET))
    put(copied, "b/c", invented(L2))
    put(copied, "d", invented(DROPOUT))
    done = run_command("python", "compare_results.py", "modelset/a/loss.json", "modelset/b", cwd=copied)
    assert done.code == 0
    assert LENET in done.out and L2 in done.out and DROPOUT not in done.out.split("1. ")[0]


def test_mean_and_deviation_of_seeds() -> None:
    runs = [invented(LENET, best=best, seed=seed) for seed, best in enumerate((60, 61, 65))]
    (group,) = compare_results.group_runs({Path(f"{i}/loss.json"): run for i, run in enumerate(runs)})
    assert group.show("best_test_accuracy") == "62.00 ± 2.65"
    assert group.changes == ""


def test_runs_on_other_devices_or_data_are_no_seeds_of_one_another() -> None:
    runs = [invented(LENET), invented(LENET, seed=1, device="gpu"), invented(LENET, seed=2, dataset="synthetic")]
    assert len(compare_results.group_runs({Path(f"{i}/loss.json"): run for i, run in enumerate(runs)})) == 3


def test_first_epoch_to_an_accuracy(copied: Path) -> None:
    put(copied, "a", invented(LENET, best=60))
    put(copied, "b", invented(LENET, best=40, seed=3))
    done = run_command("python", copied / "compare_results.py", "--epochs-to", 45)
    assert f"{LENET}, seed 0: epoch 2, 20.0 s of training" in done.out
    assert f"{LENET}, seed 3: never" in done.out


DAMAGED = {
    "cut short": lambda text: text[:-50],
    "not JSON": lambda text: "hello",
    "empty": lambda text: "",
    "a list": lambda text: "[1, 2]",
    "another object": lambda text: '{"loss": [1, 2]}',
    "columns of different lengths": lambda text: text.replace('"seconds": [10, 10, 10]', '"seconds": [10]'),
    "no number": lambda text: text.replace('"test_loss": [2.1,', '"test_loss": ["x",'),
    "NaN": lambda text: text.replace('"test_loss": [2.1,', '"test_loss": [NaN,'),
    "no epochs": lambda text: json.dumps(without_epochs(json.loads(text))),
}


def without_epochs(run: dict) -> dict:
    return run | {"history": {name: [] for name in run["history"]}}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "loss.json"
    text = json.dumps(invented(LENET))
    path.write_text(text)
    compare_results.read_run(path)
    path.write_text(DAMAGED[damage](text))
    with pytest.raises(compare_results.UserError, match=r"loss\.json") as error:
        compare_results.read_run(path)
    assert "\n" not in str(error.value)


def test_a_damaged_file_is_skipped_and_the_rest_compared(copied: Path) -> None:
    put(copied, "good", invented(LENET))
    put(copied, "bad", invented(L2))
    bad = copied / "modelset" / "bad" / "loss.json"
    bad.write_text(bad.read_text()[:100])
    done = run_command("python", copied / "compare_results.py")
    assert done.code == 0 and LENET in done.out
    assert len(done.err.splitlines()) == 1 and str(bad) in done.err


def test_nothing_to_compare_is_exit_code_1(copied: Path) -> None:
    put(copied, "bad", {})
    done = run_command("python", copied / "compare_results.py")
    assert done.code == 1 and "warning: skipped" in done.err and "error: no loss.json to compare" in done.err
    done = run_command("python", copied / "compare_results.py", copied / "nowhere")
    assert done.code == 1 and len(done.err.splitlines()) == 1


# --- The four conclusions, on invented runs


def test_model_choice() -> None:
    lenets = [invented(LENET, best=60), invented(LENET, best=64, lr=0.005)]
    assert verdicts(*lenets, invented(RESNET, best=90))[0][0] == "holds"
    assert verdicts(*lenets, invented(RESNET, best=66))[0][0] == "is contradicted"
    _, evidence = verdicts(*lenets, invented(RESNET, best=90))[0]
    assert "26.00 points" in evidence and "4.00 points" in evidence
    assert verdicts(*lenets)[0] == ("can't be judged", "missing: a ResNet-18 run (resnet_model.py).")
    assert verdicts(lenets[0], invented(RESNET))[0][0] == "can't be judged"


def test_efficiency() -> None:
    lenet = invented(LENET, best=60, seconds=100)
    assert verdicts(lenet, invented(RESNET, best=90, seconds=50))[1][0] == "holds"
    verdict, evidence = verdicts(lenet, invented(RESNET, best=90, seconds=1000))[1]
    assert verdict == "holds in part" and "1000 s" in evidence and "300 s" in evidence
    assert verdicts(lenet, invented(RESNET, best=50))[1][0] == "is contradicted"
    assert verdicts(lenet, invented(RESNET, best=90, device="gpu"))[1][0] == "can't be judged"


def test_regularisation() -> None:
    plain = seeds(LENET, (10, 11, 12))
    both = [*seeds(L2, (5, 6, 7)), *seeds(DROPOUT, (1, 2, 3), best=58)]
    verdict, evidence = verdicts(*plain, *both)[2]
    assert verdict == "holds"
    assert "gap 11.00 ± 1.00 -> 6.00 ± 1.00" in evidence and "costs 2.00" in evidence
    # Within the seeds' deviation it is no help.
    assert verdicts(*plain, *seeds(L2, (9, 10, 12)), *seeds(DROPOUT, (1, 2, 3)))[2][0] == "holds in part"
    assert verdicts(*plain, *seeds(L2, (15, 16, 17)), *seeds(DROPOUT, (15, 16, 17)))[2][0] == "is contradicted"
    verdict, evidence = verdicts(*plain, *seeds(L2, (5, 6, 7)))[2]
    assert verdict == "can't be judged" and "dropout" in evidence
    # A single run with each setting tells nothing within a point.
    assert verdicts(plain[0], *seeds(L2, (9.5,)), *seeds(DROPOUT, (1,)))[2][0] == "holds in part"
    # Other settings must be the same.
    other = [*seeds(L2, (5, 6), epochs=7), *seeds(DROPOUT, (5, 6), epochs=7)]
    assert verdicts(*plain, *other)[2][0] == "can't be judged"


def test_parallel() -> None:
    one = invented(LENET, seconds=40)
    four = invented(LENET, seconds=10, parallel="DistributedDataParallel", world_size=4)
    verdict, evidence = verdicts(one, four)[3]
    assert verdict == "holds" and "4.00 times as fast" in evidence
    slower = copy.deepcopy(four)
    slower["result"]["images_per_second"] = 1000
    assert verdicts(one, slower)[3][0] == "is contradicted"
    assert verdicts(one)[3][0] == "can't be judged"
    elsewhere = invented(LENET, parallel="DataParallel", world_size=4, device="gpu")
    assert verdicts(one, elsewhere)[3][0] == "can't be judged"
