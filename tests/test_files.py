"""Files that are pipes, links or open; and locks: of other processes, and where there are none, as on Lustre or NFS."""

import dataclasses
import errno
import fcntl
import os
import threading
from pathlib import Path

import common

import pytest

from cifar10lab.files.locks import locked
from cifar10lab.files.writing import write_file
from cifar10lab.terminal.errors import UserError
from original_version_model import SETTINGS as LENET


def refuse(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process's locks fail with that error."""

    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_where_there_are_no_locks_a_run_says_so_and_goes_on(
    own_data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    theirs = own_data_dir / ".cifar10-download.tmp"
    theirs.touch()
    settings = dataclasses.replace(LENET, epochs=1, data_dir=own_data_dir, output=tmp_path / "out", device="cpu")
    for number in (errno.ENOSYS, errno.ENOLCK):  # the first run's .lock must not keep the second out
        refuse(number, monkeypatch)
        assert common.run(settings)["history"]["epoch"] == [1]
        err = capfd.readouterr().err
        for folder in (settings.output, own_data_dir):
            assert err.count(f"{folder} can't be locked ({os.strerror(number)})") == 1
    assert (own_data_dir / "cifar10-cache.npz").is_file()
    assert theirs.exists()  # it may be another process's, which can't be told


def test_any_other_refusal_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(errno.EIO, monkeypatch)
    with pytest.raises(UserError, match="Input/output"), locked(tmp_path):
        pass


def test_a_pipe_gets_what_is_written_to_it_and_stays_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_file(tmp_path / "pipe", b"1,2\n")
    reader.join(20)
    assert read == [b"1,2\n"] and (tmp_path / "pipe").is_fifo()


def test_a_link_stays_one_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "file")
    for content in (b"old", b"new"):
        write_file(tmp_path / "link", content)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "elsewhere" / "file").read_bytes() == content
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["elsewhere", "file", "link"]


def test_a_lock_keeps_who_waits_out_until_it_is_let_go(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    order = []

    def wait() -> None:
        with locked(tmp_path, wait=True):
            order.append("second")

    with locked(tmp_path):
        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(0.2)
        order.append("first")
    waiting.join(20)
    assert order == ["first", "second"]
    assert "waiting for another process" in capfd.readouterr().err
