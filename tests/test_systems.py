"""What is gone or missing around a run: its terminal, its pipe, its output; what other systems lack or forbid."""

import fcntl
import functools
import io
import math
import os
import select
import struct
import sys
import termios
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, at, read_run, wait_for

from cifar10lab.devices.execution import cpu_share, process_settings
from cifar10lab.terminal.output import make_output_last


def opened_terminal(path: Path) -> int:
    """A pseudo-terminal of 100 columns at `path`; the end that a person looks at."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    path.symlink_to(os.ttyname(theirs))
    return ours


def test_a_run_goes_on_when_its_output_is_gone(start, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log0.err")
    pipe, terminal = os.open(tmp_path / "log0.err", os.O_RDONLY | os.O_NONBLOCK), opened_terminal(tmp_path / "log0.out")
    held = at("written", 1, functools.partial(wait_for, tmp_path / "gone"))
    script = start("original_version_model", "--epochs", 3, "--output", tmp_path / "out", moment=held)
    wait_for(tmp_path / "out" / "checkpoint.pth")
    os.close(pipe)
    os.close(terminal)
    (tmp_path / "gone").touch()
    script.process.join(100)
    assert script.process.exitcode == 0
    assert read_run(tmp_path / "out")["history"]["epoch"] == [1, 2, 3]
    assert not (tmp_path / "out" / "checkpoint.pth").exists()


def test_progress_is_shown_on_a_terminal(start, tmp_path: Path) -> None:
    reader, shown = opened_terminal(tmp_path / "log0.err"), b""
    slow = at("step", 2, functools.partial(time.sleep, 0.2))  # since the bar is drawn at most ten times a second
    script = start("original_version_model", "--epochs", 1, "--output", tmp_path / "out", moment=slow)
    while script.process.exitcode is None or select.select([reader], [], [], 0)[0]:
        if select.select([reader], [], [], 0.1)[0]:
            shown += os.read(reader, 1000)
    assert script.process.exitcode == 0
    assert "images/s" in shown.decode() and "loss=" in shown.decode() and "epoch 1/1" in shown.decode()


def close_output() -> None:
    os.close(1)
    os.close(2)
    sys.stdout = sys.stderr = None


def test_a_run_needs_no_standard_output_at_all(run, tmp_path: Path) -> None:
    assert run("original_version_model", "--epochs", 1, "--output", tmp_path / "out", moment=close_output).code == 0
    assert read_run(tmp_path / "out")["history"]["epoch"] == [1]


def test_characters_that_a_terminal_cannot_show_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    make_output_last()
    print("62.1 ± 0.3")
    assert terminal.buffer.getvalue() == b"62.1 \\xb1 0.3\n"


# --- Other systems, and what containers forbid, as far as Linux can show it


EXECUTION = f"""
import os, sys; sys.path.insert(0, {str(ROOT)!r})
def refuse(*_): raise PermissionError(1, 'Operation not permitted')
os.sched_setscheduler = refuse
import torch; torch.backends.mps.is_available = lambda: True
torch.cuda.is_available = lambda: False
import common
execution = common.start_execution('auto', 'auto', True, False)
print(execution.device, execution.parallel)
"""
BENCHMARKS = f"""
import contextlib, runpy, signal, sys
import torch.distributed.run  # which needs hangups itself, on systems that have them
del signal.SIGHUP
sys.path.insert(0, "{ROOT}/benchmarks")
for name in ("scaling", "throughput", "on_gpu"):
    with contextlib.suppress(SystemExit):
        runpy.run_path(f"{ROOT}/benchmarks/{{name}}.py", run_name="__main__")
"""


def test_on_a_mac_several_processes_take_the_cpu_and_need_no_scheduler(together, run, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(EXECUTION)
    done = together(1, tmp_path / "script.py")
    assert done.out.split()[-2:] == ["cpu", "DistributedDataParallel"], done.err  # torch 2.9 says who is connected
    assert run(tmp_path / "script.py").out.split() == ["mps", "none"]


def test_benchmarks_start_where_there_are_no_hangups(run, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(BENCHMARKS)
    done = run(tmp_path / "script.py", "--help")
    assert done.code == 0 and done.out.count("show this help message and exit") == 3, done.err


QUOTAS = {  # which groups a process is in, the files of their quotas, and the CPUs that these are
    "none": ("0::/", {"cpu.max": "max 100000"}, math.inf),
    "a container's, version 2": ("0::/", {"cpu.max": "50000 100000"}, 0.5),
    "a group's above": ("0::/a/b", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 1.5),
    "version 1": ("3:cpu,x:/d", {"cpu,x/cpu.cfs_quota_us": "200000", "cpu,x/cpu.cfs_period_us": "100000"}, 2),
    "none, version 1": ("3:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
}


def make_quota(folder: Path, group: str, files: dict[str, str]) -> None:
    for name, text in {"proc/self/cgroup": group, **{f"sys/fs/cgroup/{name}": t for name, t in files.items()}}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{text}\n")


@pytest.mark.parametrize("what", QUOTAS)
def test_a_containers_share_of_the_cpu_is_read(tmp_path: Path, what: str) -> None:
    group, files, share = QUOTAS[what]
    make_quota(tmp_path, group, files)
    assert cpu_share(tmp_path) == share
    assert cpu_share(tmp_path / "another system") == math.inf


@pytest.mark.parametrize(("asked", "threads"), [(None, 1), ("2", 2)])
def test_a_run_takes_no_more_threads_than_its_share_unless_asked(
    tmp_path: Path, asked: str | None, threads: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_quota(tmp_path, "0::/", {"cpu.max": "50000 100000"})
    monkeypatch.setattr(cpu_share, "__defaults__", (tmp_path,))
    monkeypatch.delenv("OMP_NUM_THREADS")
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with process_settings(torch.device("cpu"), []):
        assert torch.get_num_threads() == threads
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    assert after == 2
    assert capsys.readouterr().out.count("threads: 1 instead of 2, since") == (not asked)
