"""Other systems than Linux, and what containers forbid, as far as Linux can show it."""

import math
import os
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_command

from cifar10lab.devices.execution import cpu_share, process_settings
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


QUOTAS = {  # which groups a process is in, the files of their quotas, and the CPUs that these are
    "none": ("0::/", {"cpu.max": "max 100000"}, math.inf),
    "a container's, version 2": ("0::/", {"cpu.max": "50000 100000"}, 0.5),
    "a group's above": ("0::/a/b", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 1.5),
    "a container's, version 1": (
        "3:cpu,cpuacct:/docker/1",
        {"cpu,cpuacct/cpu.cfs_quota_us": "200000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
        2,
    ),
    "none, version 1": ("3:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
}


@pytest.mark.parametrize("what", QUOTAS)
def test_a_containers_share_of_the_cpu_is_read(tmp_path: Path, what: str) -> None:
    group, files, share = QUOTAS[what]
    for name, text in {"proc/self/cgroup": group, **{f"sys/fs/cgroup/{name}": t for name, t in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert cpu_share(tmp_path) == share
    assert cpu_share(tmp_path / "another system") == math.inf


@pytest.mark.parametrize(("asked", "threads"), [("", 1), ("2", 2)])
def test_a_run_takes_no_more_threads_than_its_share_unless_asked(
    tmp_path: Path, asked: str, threads: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("50000 100000\n")
    monkeypatch.setattr(cpu_share, "__defaults__", (tmp_path,))
    monkeypatch.delenv("OMP_NUM_THREADS")
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with process_settings(torch.device("cpu"), []):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 2
        assert capsys.readouterr().out.count("threads: 1 instead of 2, since") == (not asked)
    finally:
        torch.set_num_threads(before)
