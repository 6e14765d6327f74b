"""The scripts as their users start them."""

import os
import platform
from pathlib import Path

import matplotlib.image
import pytest
from conftest import EXPERIMENTS, ROOT, read_run, run_command, same_losses, same_weights

from cifar10lab.data.loading import dataset_record, load_cifar10

STATED = {name: __import__(name).SETTINGS for name in EXPERIMENTS}
BASELINE = STATED["original_version_model"]
LENET = ("--epochs", 6, "--lr", 0.03, "--batch-size", 10)
QUICK = {
    "original_version_model": ("--epochs", 3, "--lr", 0.005),
    "resnet_model": ("--epochs", 3, "--batch-size", 10, "--width", 4),
    "fast_model": ("--epochs", 3, "--batch-size", 10, "--lr", 0.1, "--width", 8),
}


@pytest.mark.parametrize("script", EXPERIMENTS)
def test_script_trains_and_leaves_its_files(main, tmp_path: Path, data_dir: Path, script: str) -> None:
    words, out = QUICK.get(script, LENET), tmp_path / "out"
    done = main(STATED[script], *words, "--output", out)
    assert (done.code, done.err) == (0, "")
    assert sum(line.startswith("epoch ") for line in done.out.splitlines()) == words[1]
    left = sorted(name for name in os.listdir(out) if not name.startswith(".lock"))
    assert left == ["best_model.pth", "loss.json", "loss.png", "model.pth"]
    record = read_run(out)
    assert record["experiment"] == script
    counts = {"train_images": 100, "test_images": 40}
    checksum = dataset_record(load_cifar10(data_dir))["checksum"]
    assert record["dataset"] == {"name": "cifar10", "source": "image folder", "checksum": checksum, **counts}
    assert record["history"]["train_loss"][-1] < record["history"]["train_loss"][0]
    accuracies = record["history"]["test_accuracy"]
    assert record["result"]["best_test_accuracy"] == max(accuracies)
    assert record["result"]["best_epoch"] == 1 + accuracies.index(max(accuracies))
    assert f"{accuracies[-1]:.2f} % at the end" in done.out and str(out) in done.out
    assert matplotlib.image.imread(out / "loss.png").shape[1] > 1000


def test_the_stated_settings_are_those_of_the_experiments() -> None:
    stated = {}
    for s in STATED.values():
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
def test_help_shows_every_flag_with_its_default(main, script: str) -> None:
    done = main(STATED[script], "--help")
    assert done.code == 0
    own = {"resnet_model": {"width": 64}, "fast_model": {"width": 64}}.get(script, {"dropout": 0.0})
    for name, default in (vars(STATED[script]) | own | STATED[script].options).items():
        if name not in ("experiment", "folder", "model", "options", "data_parallel", "data_dir"):
            assert f"--{name.replace('_', '-')}" in done.out
            assert f"(default: {default})" in " ".join(done.out.split()), name
    assert all(flag in done.out for flag in ("--augment, --no-augment", "--nesterov, --no-nesterov", "--seeds"))


def test_same_seed_same_result_other_seed_other_result(main, reference, tmp_path: Path) -> None:
    script, words = "dropout_regularization", ("--epochs", 1, "--batch-size", 50)
    whole = reference(script, *words)
    assert main(STATED[script], *words, "--seeds", "0,1", "--output", tmp_path).code == 0
    assert same_losses(whole, tmp_path / "seed=0") and not same_losses(whole, tmp_path / "seed=1")
    assert same_weights(whole / "model.pth", tmp_path / "seed=0" / "model.pth")


def test_without_data_and_network_it_trains_on_the_stand_in_or_not_at_all(run, copied: Path) -> None:
    # From another folder, too: data/ and modelset/ are beside the scripts.
    assert Path.cwd() != copied
    done = run(copied / "original_version_model.py", "--dataset", "cifar10", data_dir=None)
    assert done.code == 1
    first, *lines, last = done.err[done.err.index("error:") :].splitlines()
    assert first.startswith("error: CIFAR-10 is not in") and "--data-dir" in last and "Traceback" not in done.err
    for mirror in ("zenodo.org", "scidata.sjtu.edu.cn", "cave.cs.toronto.edu", "www.cs.toronto.edu"):
        assert sum(mirror in line for line in lines) == 1
    assert list((copied / "modelset").iterdir()) == []
    done = run(copied / "original_version_model_multigpu.py", "--epochs", 1, "--device", "cpu", data_dir=None)
    assert done.code == 0, done.err
    assert done.err.count("WARNING: this is NOT CIFAR-10 but a synthetic stand-in") == 2
    assert done.err.count("zenodo.org") == 2  # when it is tried, and when all have failed
    assert done.err.splitlines()[-1].startswith("WARNING") and len(done.err.splitlines()[-1]) < 200 + len(str(copied))
    folder = copied / "modelset" / "original_version_model_multiGPU" / "epochs=1,dataset=synthetic"
    assert (folder / "loss.png").is_file()
    assert read_run(folder)["dataset"]["name"] == "synthetic"


@pytest.mark.parametrize(
    "words", ["--lr fast", "--dropout 1", "--resolutions 24;28", "--seeds 0", "--seeds 0,0", "--width 64"]
)
def test_wrong_arguments_end_with_one_line_and_code_2(main, tmp_path: Path, words: str) -> None:
    done = main(BASELINE, *words.split(), "--output", tmp_path / "out")
    assert done.code == 2
    assert len(done.err.splitlines()) == 1 and words.split()[0] in done.err, done.err
    assert not (tmp_path / "out").exists()


def test_openmp_does_not_wait_busily_for_long_unless_asked_for_anything(tmp_path: Path) -> None:
    """It is asked only before torch is loaded: so `common` comes before torch."""
    assert os.environ.get("GOMP_SPINCOUNT") != "10000", "conftest has imported torch before common"
    names = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
    (tmp_path / "torch.py").write_text(f"import os; print([os.environ.get(name) for name in {names}]); os._exit(0)")
    start = ("env", *(f"--unset={name}" for name in names), f"PYTHONPATH={tmp_path}")
    for asked, found in (((), "[None, '10000']"), (("OMP_WAIT_POLICY=ACTIVE",), "['ACTIVE', None]")):
        done = run_command(*start, *asked, "python", "-uc", "import fast_model", cwd=ROOT)
        assert done.out.strip() == found, done.err


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


def test_a_diverging_loss_stops_the_run_and_keeps_earlier_results(main, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(BASELINE, "--epochs", 1, "--output", out).code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.name[0] != "."}
    done = main(BASELINE, "--lr", 1e9, "--output", out)
    assert done.code == 1
    assert len(done.err.splitlines()) == 1 and "at epoch 1, step " in done.err
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.name in before} == before


def test_a_model_that_does_not_fit_into_memory_is_one_line(main, tmp_path: Path) -> None:
    done = main(STATED["resnet_model"], "--width", 1_000_000, "--output", tmp_path / "out")
    assert done.code == 1
    assert len(done.err.splitlines()) == 1, done.err
    assert "ResNet18 can't be made: " in done.err and "allocate memory" in done.err


def test_a_name_that_is_too_long_is_an_error_of_one_line(main, inspect) -> None:
    done = main(BASELINE, "--data-dir", "x" * 300)
    for code, err in ((done.code, done.err), inspect("x" * 300)[::2]):
        assert code == 1 and err.count("\n") == 1 and "File name too long" in err and "x" * 300 in err
