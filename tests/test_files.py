"""Files that are pipes or links; and locks: of other processes, and where there are none, as on Lustre or NFS."""

import errno
import fcntl
import os
import threading
from pathlib import Path

import pytest
from conftest import FORKSERVER, ROOT, Finished, _child, environment, read_run

from cifar10lab.data.loading import load_cifar10
from cifar10lab.files.locks import locked
from cifar10lab.files.writing import write_file
from cifar10lab.terminal.errors import UserError


def refuse(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


def run_without_locks(number: int, *arguments: object) -> None:
    refuse(pytest.MonkeyPatch(), number)
    _child(*arguments)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_run_where_there_are_no_locks(tmp_path: Path, data_dir: Path, number: int) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    words = ["--epochs", "1", "--data-dir", str(data_dir), "--output", str(out)]
    for _ in range(2):  # the first leaves a file named .lock, which must not keep the second out
        arguments = (ROOT / "original_version_model_multigpu.py", words, log, environment(data_dir))
        process = FORKSERVER.Process(target=run_without_locks, args=(number, *arguments))
        process.start()
        process.join(60)
        done = Finished(process.exitcode, Path(f"{log}.out").read_text(), Path(f"{log}.err").read_text())
        assert done.code == 0, done.err
        assert done.err.count(f"{out} can't be locked ({os.strerror(number)})") == 1
        assert done.err.count("can't be locked") == 2  # the data's folder, too
    assert read_run(out)["history"]["epoch"] == [1]


def test_without_locks_the_data_is_read_and_kept(
    own_data_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    refuse(monkeypatch, errno.ENOSYS)
    theirs = own_data_dir / ".cifar10-download.tmp"
    theirs.touch()
    for _ in range(2):
        assert len(load_cifar10(own_data_dir).train_labels) == 20
        assert len(capfd.readouterr().err.splitlines()) == 1
    assert (own_data_dir / "cifar10-cache.npz").is_file()
    assert theirs.exists()  # it may be another process's, which can't be told


def test_any_other_refusal_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, errno.EIO)
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


def test_a_lock_keeps_others_out_until_it_is_let_go(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    order = []

    def wait() -> None:
        with locked(tmp_path, wait=True):
            order.append("second")

    with locked(tmp_path):
        with pytest.raises(UserError, match=f"in use by process {os.getpid()}"), locked(tmp_path):
            pass
        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(0.2)
        order.append("first")
    waiting.join(20)
    assert order == ["first", "second"]
    assert f"waiting for process {os.getpid()}" in capfd.readouterr().err
    assert not (tmp_path / ".lock-holder").exists()
