"""What a run shows, and that it outlives its terminal, its pipe and its standard output."""

import fcntl
import functools
import os
import select
import struct
import termios
import time
from pathlib import Path

import pytest
from conftest import ROOT, At, read_run, run_command, wait_for

SCRIPT = ("original_version_model", "--epochs", 4)


def opened_terminal(path: Path) -> int:
    """A pseudo-terminal of 100 columns at `path`; the end that a person looks at."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    path.symlink_to(os.ttyname(theirs))
    return ours


def opened_pipe(path: Path) -> int:
    os.mkfifo(path)
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)


@pytest.mark.parametrize("opened", [opened_terminal, opened_pipe])
@pytest.mark.parametrize("stream", ["out", "err"])
def test_a_run_goes_on_when_its_output_is_gone(start, tmp_path: Path, opened, stream: str) -> None:
    reader = opened(tmp_path / f"log0.{stream}")
    held = At("written", 1, functools.partial(wait_for, tmp_path / "gone"))
    script = start(*SCRIPT, "--output", tmp_path / "out", moment=held)
    wait_for(tmp_path / "out" / "checkpoint.pth")
    os.close(reader)
    (tmp_path / "gone").touch()
    script.process.join(100)
    assert script.process.exitcode == 0
    assert read_run(tmp_path / "out")["history"]["epoch"] == [1, 2, 3, 4]
    assert not (tmp_path / "out" / "checkpoint.pth").exists()


def test_progress_is_shown_on_a_terminal(start, larger_data_dir: Path, tmp_path: Path) -> None:
    reader, shown = opened_terminal(tmp_path / "log0.err"), b""
    words = ("--epochs", 1, "--batch-size", 2, "--output", tmp_path / "out")  # three chunks
    slow = At("step", 2, functools.partial(time.sleep, 0.2))  # since the bar is drawn at most ten times a second
    script = start("original_version_model", *words, data_dir=larger_data_dir, moment=slow)
    while script.process.exitcode is None or select.select([reader], [], [], 0)[0]:
        if select.select([reader], [], [], 0.1)[0]:
            shown += os.read(reader, 1000)
    assert script.process.exitcode == 0
    assert "images/s" in shown.decode() and "loss=" in shown.decode() and "epoch 1/1" in shown.decode()


def test_a_run_needs_no_standard_output_at_all(tmp_path: Path, data_dir: Path) -> None:
    command = f"exec python {ROOT}/original_version_model.py --epochs 1 --output {tmp_path}/out >&- 2>&-"
    assert run_command("sh", "-c", command, data_dir=data_dir).code == 0
    assert read_run(tmp_path / "out")["history"]["epoch"] == [1]


def test_characters_that_a_terminal_cannot_show_are_no_error(copied: Path, run) -> None:
    for seed in (0, 1):
        out = copied / "modelset" / "L" / f"seed={seed}"
        assert run("original_version_model", "--epochs", 1, "--seed", seed, "--output", out).code == 0
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    done = run_command("env", *(f"{k}={v}" for k, v in ascii_only.items()), "python", copied / "compare_results.py")
    assert done.code == 0, done.err
    assert "\\xb1" in done.out
