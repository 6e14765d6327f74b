"""Other systems than Linux, and what containers forbid, as far as Linux can show it."""

import os
from pathlib import Path

import pytest
from conftest import ROOT, run_command

from cifar10lab.files import writing
from cifar10lab.files.writing import FileInUse, write_file

TORCHRUN = ("torchrun", "--standalone", "--nproc-per-node=1")


def test_torchrun_on_a_mac_takes_the_cpu(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import torch; torch.backends.mps.is_available = lambda: True\n"
        "torch.cuda.is_available = lambda: False\n"
        "import common\n"
        "execution = common.start_execution('auto', 'auto', True, False)\n"
        "print(execution.device, execution.parallel)\n"
    )
    done = run_command(*TORCHRUN, script)
    assert done.out.split()[-2:] == ["cpu", "DistributedDataParallel"], done.err  # torch 2.9 says who is connected
    assert run_command("python", script).out.split() == ["mps", "none"]


def test_a_refused_scheduler_does_not_end_a_run(tmp_path: Path, data_dir: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"import os, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "def refuse(*_): raise PermissionError(1, 'Operation not permitted')\n"
        "os.sched_setscheduler = refuse\n"
        "import common, original_version_model_multigpu as script\n"
        "common.main(script.SETTINGS, '')\n"
    )
    done = run_command(*TORCHRUN, script, "--epochs", 1, "--output", tmp_path / "out", data_dir=data_dir)
    assert done.code == 0, done.err
    assert (tmp_path / "out" / "loss.json").is_file()


@pytest.mark.parametrize("benchmark", ["scaling", "throughput", "on_gpu"])
def test_benchmarks_start_where_there_are_no_hangups(benchmark: str) -> None:
    code = (
        "import runpy, signal, sys\n"
        "import torch.distributed.run\n"  # which needs them itself, on systems that have them
        "del signal.SIGHUP\n"
        f"runpy.run_path({str(ROOT / 'benchmarks' / benchmark)!r} + '.py', run_name='__main__')\n"
    )
    done = run_command("python", "-c", code, "--help")
    assert done.code == 0 and "--help" in done.out, done.err


def test_a_file_that_another_program_has_open_is_replaced_a_little_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, refusals, replace = tmp_path / "checkpoint.pth", [1, 2, 3], os.replace

    def as_windows_does(new: Path, old: Path) -> None:
        if refusals:
            refusals.pop()
            raise PermissionError(13, "Access is denied")
        replace(new, old)

    path.write_bytes(b"old")
    monkeypatch.setattr(os, "replace", as_windows_does)
    write_file(path, b"new")
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["checkpoint.pth"]


def test_a_file_that_stays_open_is_named_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Access is denied")

    path = tmp_path / "checkpoint.pth"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(writing, "REPLACE_SECONDS", 0.1)
    with pytest.raises(FileInUse, match=r"checkpoint\.pth can't be replaced: Access is denied; another program may"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["checkpoint.pth"]
