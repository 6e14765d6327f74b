"""The scripts as their users start them."""

import platform
import shutil
from pathlib import Path

from common import options_of

import matplotlib.image
import pytest
import torch
from conftest import EXPERIMENTS, ROOT, linux, read_run, run_command, same_losses, same_weights

from cifar10lab.data.loading import dataset_record, load_cifar10

QUICK = {
    "original_version_model": ("--epochs", 3, "--lr", 0.005),
    "original_version_model_multigpu": ("--epochs", 6, "--lr", 0.03, "--batch-size", 10),
    "l2_regularization": ("--epochs", 6, "--lr", 0.03, "--batch-size", 10),
    "dropout_regularization": ("--epochs", 6, "--lr", 0.03, "--batch-size", 10),
    "resnet_model": ("--epochs", 4, "--width", 4, "--batch-size", 10),
    "fast_model": ("--epochs", 3, "--batch-size", 10, "--lr", 0.1),
}


@pytest.mark.parametrize("script", EXPERIMENTS)
def test_script_trains_and_leaves_its_files(run, tmp_path: Path, data_dir: Path, script: str) -> None:
    done = run(script, *QUICK[script], "--device", "cpu", "--output", tmp_path / "out")
    assert done.code == 0, done.err
    assert done.err == ""
    assert sum(line.startswith("epoch ") for line in done.out.splitlines()) == QUICK[script][1]
    visible = sorted(p.name for p in (tmp_path / "out").iterdir() if p.name[0] != ".")
    assert visible == ["best_model.pth", "loss.json", "loss.png", "model.pth"]
    assert list((tmp_path / "out").glob(".*.tmp")) == []
    record = read_run(tmp_path / "out")
    assert record["experiment"] == script
    counts = {"train_images": 100, "test_images": 40}
    checksum = dataset_record(load_cifar10(data_dir))["checksum"]
    assert record["dataset"] == {"name": "cifar10", "source": "image folder", "checksum": checksum, **counts}
    assert record["history"]["train_loss"][-1] < record["history"]["train_loss"][0]
    accuracies = record["history"]["test_accuracy"]
    assert record["result"]["best_test_accuracy"] == max(accuracies)
    assert record["result"]["best_epoch"] == 1 + accuracies.index(max(accuracies))
    assert f"{accuracies[-1]:.2f} % at the end" in done.out and str(tmp_path / "out") in done.out
    for name in ("model.pth", "best_model.pth"):
        weights = torch.load(tmp_path / "out" / name, weights_only=True)
        assert not any(key.startswith("module.") for key in weights)
        assert {tensor.device.type for tensor in weights.values()} == {"cpu"}
    assert matplotlib.image.imread(tmp_path / "out" / "loss.png").shape[1] > 1000


def test_the_stated_settings_are_those_of_the_experiments() -> None:
    stated = {}
    for script in EXPERIMENTS:
        s = __import__(script).SETTINGS
        numbers = (s.epochs, s.lr, s.momentum, s.batch_size, s.weight_decay)
        stated[s.folder] = (s.model.__name__, *numbers, dict(s.options), s.augment)
    assert stated == {
        "original_version_model": ("LeNet", 5, 0.001, 0.9, 4, 0, {}, False),
        "original_version_model_multiGPU": ("LeNet", 200, 0.001, 0.95, 128, 0, {}, False),
        "L2_regularization_model": ("LeNet", 200, 0.001, 0.95, 128, 1e-4, {}, False),
        "Dropout_regularization": ("LeNet", 200, 0.001, 0.95, 128, 0, {"dropout": 0.5}, False),
        "Resnet": ("ResNet18", 25, 0.005, 0.95, 128, 5e-4, {"width": 64}, True),
        "Fast": ("FastNet", 12, 1.0, 0.85, 512, 0.001, {}, True),
    }


@pytest.mark.parametrize("script", EXPERIMENTS)
def test_help_shows_every_flag_with_its_default(run, script: str) -> None:
    done = run(script, "--help")
    assert done.code == 0
    settings = __import__(script).SETTINGS
    flags = ["epochs", "lr", "momentum", "weight-decay", "batch-size", "seed", "device", "precision", "dataset"]
    flags += [
        "schedule",
        "resolutions",
        "label-smoothing",
        "crop-padding",
        "padding-mode",
        "flips",
        "optimizer",
        "cutout",
    ]
    own = {"resnet_model": ["width"], "fast_model": ["width"]}.get(script, ["dropout"])
    for flag in [*flags, *own]:
        assert f"--{flag}" in done.out
        default = (vars(settings) | options_of(settings))[flag.replace("-", "_")]
        assert f"(default: {default})" in " ".join(done.out.split())
    rest = ("--augment, --no-augment", "--nesterov, --no-nesterov", "--data-dir", "--output", "--resume")
    assert all(flag in done.out for flag in rest)


def test_same_seed_same_result_other_seed_other_result(run, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        options = ("--epochs", 1, "--seed", seed, "--output", tmp_path / name)
        assert run("dropout_regularization", *options).code == 0
    assert same_losses(tmp_path / "a", tmp_path / "b")
    assert same_weights(tmp_path / "a" / "model.pth", tmp_path / "b" / "model.pth")
    assert not same_losses(tmp_path / "a", tmp_path / "c")


def test_without_data_and_network_it_trains_on_the_stand_in_and_says_so(run, copied: Path) -> None:
    # From another folder, too: data/ and modelset/ are beside the scripts.
    assert Path.cwd() != copied
    script = copied / "original_version_model_multigpu.py"
    done = run(script, "--epochs", 1, "--device", "cpu", data_dir=None)
    assert done.code == 0, done.err
    assert done.err.count("WARNING: this is NOT CIFAR-10 but a synthetic stand-in") == 2
    assert done.err.count("zenodo.org") == 2  # when it is tried, and when all have failed
    assert done.err.splitlines()[-1].startswith("WARNING") and len(done.err.splitlines()[-1]) < 200 + len(str(copied))
    folder = copied / "modelset" / "original_version_model_multiGPU" / "epochs=1,dataset=synthetic"
    assert (folder / "loss.png").is_file()
    assert read_run(folder)["dataset"]["name"] == "synthetic"


def test_cifar10_asked_for_but_not_to_be_had_is_an_error(run, copied: Path) -> None:
    done = run(copied / "original_version_model.py", "--dataset", "cifar10", data_dir=None)
    assert done.code == 1
    first, *lines, last = done.err[done.err.index("error:") :].splitlines()
    assert first.startswith("error: CIFAR-10 is not in") and "--data-dir" in last and "Traceback" not in done.err
    for mirror in ("zenodo.org", "scidata.sjtu.edu.cn", "cave.cs.toronto.edu", "www.cs.toronto.edu"):
        assert sum(mirror in line for line in lines) == 1
    assert list((copied / "modelset").iterdir()) == []


WRONG_ARGUMENTS = [
    ("--epochs", "1.5"),
    ("--batch-size", "0"),
    ("--lr", "nan"),
    ("--lr", "fast"),
    ("--dropout", "1"),
    ("--dropout", "nan"),
    ("--device", "tpu"),
    ("--resolutions", "24;28"),
    ("--seeds", "0"),
    ("--seeds", "0,0"),
    ("--width", "64"),
    ("--momentum", "0", "--nesterov"),
]


@pytest.mark.parametrize("arguments", WRONG_ARGUMENTS, ids=" ".join)
def test_wrong_arguments_end_with_one_line_and_code_2(run, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = run("original_version_model", *arguments, "--output", tmp_path / "out")
    assert done.code == 2
    assert len(done.err.splitlines()) == 1 and arguments[0] in done.err, done.err
    assert not (tmp_path / "out").exists()


def test_openmp_does_not_wait_busily_for_long_unless_asked_for_anything() -> None:
    """It is asked only before torch is loaded: so `common` comes before torch."""
    names = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
    code = f"import fast_model, os; print([os.environ.get(name) for name in {names}])"
    unset = ("env", *(f"--unset={name}" for name in names))
    assert run_command(*unset, "python", "-c", code, cwd=ROOT).out.strip() == "[None, '10000']"
    asked = run_command(*unset, "OMP_WAIT_POLICY=ACTIVE", "python", "-c", code, cwd=ROOT)
    assert asked.out.strip() == "['ACTIVE', None]", asked.err
    loaded = run_command(*unset, "python", "-c", f"import torch, {code[7:]}", cwd=ROOT)
    assert loaded.out.strip() == "[None, None]", loaded.err


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")
def test_the_memory_of_large_tensors_is_kept_for_the_next_step() -> None:
    code = (
        "import resource, torch\n"
        "from cifar10lab.devices.execution import process_settings\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(20):\n"
        "        torch.ones(2**24)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "with process_settings(torch.device('cpu'), []):\n"
        "    faults()\n"  # the heap grows until it has a gap for 64 MiB between what else lies there
        "    print(faults(), end=' ')\n"
        "print(faults())\n"
    )
    done = run_command("python", "-c", code, cwd=ROOT)
    kept, afterwards = map(int, done.out.split())
    assert kept < afterwards / 2, done.err


def test_a_spoilt_data_folder_ends_with_one_line_and_code_1(run, own_data_dir: Path, tmp_path: Path) -> None:
    shutil.rmtree(own_data_dir / "train" / "frog")
    done = run("original_version_model", "--output", tmp_path / "out", data_dir=own_data_dir)
    assert done.code == 1
    assert len(done.err.splitlines()) == 1 and "frog" in done.err


@pytest.mark.parametrize("what", ["a file is in the way", pytest.param("no room for folders", marks=linux)])
def test_an_output_folder_that_cannot_be_written_is_found_before_training(run, tmp_path: Path, what: str) -> None:
    (tmp_path / "file").write_text("")
    output = tmp_path / "file" / "out" if what == "a file is in the way" else Path("/proc/out")
    done = run("original_version_model", "--output", output)
    assert done.code == 1
    assert len(done.err.splitlines()) == 1 and str(output) in done.err
    assert "epoch" not in done.out.replace("epochs=", "")


def test_a_diverging_loss_stops_the_run_and_keeps_earlier_results(run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("original_version_model", "--epochs", 1, "--output", out).code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.name[0] != "."}
    done = run("original_version_model", "--lr", 1e9, "--output", out)
    assert done.code == 1
    assert len(done.err.splitlines()) == 1 and "at epoch 1, step " in done.err
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.name in before} == before


def test_a_model_that_does_not_fit_into_memory_is_one_line(run, tmp_path: Path) -> None:
    done = run("resnet_model", "--width", 1_000_000, "--device", "cpu", "--output", tmp_path / "out")
    assert done.code == 1
    assert len(done.err.splitlines()) == 1, done.err
    assert "ResNet18 can't be made: " in done.err and "allocate memory" in done.err


@pytest.mark.parametrize("command", ["inspect_weights.py", "resnet_model.py --data-dir"])
def test_a_name_that_is_too_long_is_an_error_of_one_line(command: str, tmp_path: Path) -> None:
    script, *flag = command.split()
    done = run_command("python", ROOT / script, *flag, "x" * 300, cwd=tmp_path)
    assert done.code == 1 and done.err.count("\n") == 1 and "File name too long" in done.err and "x" * 300 in done.err
