"""benchmarks/scaling.py: what it predicts, and that nothing of it is left running; benchmarks/on_gpu.py, on the CPU."""

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from conftest import ROOT, environment, linux, run_command, wait_until


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return __import__("scaling")


CASE = {"model": "LeNet", "width": None, "batch_size": 128, "precision": "fp32", "gradient_bytes": 8e6, "exchanges": 3}
LINK = {"name": "a wire", "latency": 0.001, "bandwidth": 1e9}


# Of a machine of two devices that take 1 ms per image and 10 ms per step.
SECONDS = {("alone", "LeNet", size, 1): 0.01 + 0.001 * size for size in (128, 64, 32, 16, 8, 4, 2)}
SECONDS |= {("training", "LeNet", 128, 2): 0.1, ("alone", "LeNet", 64, 2): 0.08}
SECONDS |= {("all_reduce", "", 1024, 2): 0.0004, ("all_reduce", "", 2**24, 2): 0.0104}


def test_prediction_is_share_latency_and_bandwidth_beside_what_was_measured(scaling) -> None:
    predicted = scaling.predict(CASE, SECONDS, LINK, [1, 2])
    assert predicted["devices"][:3] == [1, 2, 4]
    assert predicted["computing_seconds"][:3] == pytest.approx([0.138, 0.074, 0.042])
    assert predicted["exchanging_seconds"][:3] == pytest.approx([0, 3 * 2 * 0.001 + 0.008, 3 * 6 * 0.001 + 0.012])
    assert predicted["images_per_second"][2] == pytest.approx(128 / (0.042 + 0.030))
    assert predicted["speedup"][2] == pytest.approx(0.138 / 0.072)
    assert predicted["stops_gaining_at"] == 4  # on 8: 26 ms + 42 ms + 14 ms
    fast = scaling.predict(CASE, SECONDS, {"name": "magic", "latency": 0.0, "bandwidth": 1e15}, [1, 2])
    assert fast["stops_gaining_at"] is None

    one, two = scaling.measured_rows(CASE, SECONDS, predicted, [1, 2])
    assert (one["devices"], one["parallel"], one["speedup"], one["exchanging_seconds"]) == (1, "none", 1, 0)
    assert two["parallel"] == "DistributedDataParallel"
    assert (two["speedup"], two["efficiency"]) == pytest.approx((1.38, 0.69))
    assert (two["computing_seconds"], two["exchanging_seconds"]) == pytest.approx((0.08, 0.02))
    assert two["predicted_images_per_second"] == pytest.approx(128 / 0.088)


def test_latency_and_bandwidth_come_from_two_sizes(scaling) -> None:
    here, *usual = scaling.connections(SECONDS, 2)
    assert here == {"name": "measured here", "latency": 0.0002, "bandwidth": pytest.approx((2**24 - 1024) / 0.01)}
    assert usual == scaling.connections({}, 1) == scaling.LINKS


def test_the_committed_figures_are_whole_and_drawn(scaling, figures) -> None:
    record = json.loads((ROOT / "benchmarks" / "scaling.json").read_text())
    assert [case["batch_size"] for case in record["cases"]] == [*itertools.chain(*scaling.BATCH_SIZES.values())]
    assert scaling.png(scaling.draw, record).startswith(b"\x89PNG")
    speedups, steps = figures[0].axes
    lines, rows = [[*map(list, line.get_data())] for line in speedups.lines], []
    for case in record["cases"]:
        devices, speedup = zip(*[(row["devices"], row["speedup"]) for row in case["measured"]], strict=True)
        predicted = case["predicted"][0]
        assert [predicted["devices"], predicted["speedup"]] in lines and [[*devices], [*speedup]] in lines
        rows += [f"{scaling.case_name(case)} on {count}" for count in devices]
    assert [label.get_text() for label in steps.get_yticklabels()] == rows


def workers(of: int) -> list[int]:
    """Those that know what to do, since they have begun to import torch."""
    found, words = [], {"cmdline": "spawn_main", "maps": "libtorch"}
    for pid in Path(f"/proc/{of}/task/{of}/children").read_text().split():
        with contextlib.suppress(OSError):  # it may have ended meanwhile
            if all(word in Path(f"/proc/{pid}/{name}").read_text() for name, word in words.items()):
                found.append(int(pid))
    return found


@linux
@pytest.mark.parametrize(("kill", "code"), [("itself", 130), ("a worker", 1)])
def test_nothing_is_left_running(tmp_path: Path, kill: str, code: int) -> None:
    command = [sys.executable, ROOT / "benchmarks" / "scaling.py", "--width", "4", "--save", tmp_path]
    running = subprocess.Popen(command, env=environment(None), stderr=subprocess.PIPE, text=True)
    wait_until(lambda: workers(running.pid), "a worker runs", 120)
    if kill == "itself":
        running.send_signal(signal.SIGINT)
    else:
        os.kill(workers(running.pid)[0], signal.SIGKILL)
    _, error = running.communicate(timeout=60)  # until all that have its standard error have ended
    assert running.returncode == code
    assert not list(tmp_path.iterdir())
    assert error == "" if kill == "itself" else "error: one of 1 processes failed" in error


STARTING = f"""
import multiprocessing.util, os, signal, sys
sys.path.insert(0, "{ROOT}/benchmarks")
import scaling
def start(path, words, files, start=multiprocessing.util.spawnv_passfds):
    pid = start(path, words, files)
    if "--multiprocessing-fork" in words:
        os.kill(os.getpid(), signal.SIGTERM)
    return pid
multiprocessing.util.spawnv_passfds = start
scaling.main()
"""


@linux
def test_a_signal_while_a_worker_starts_ends_it_in_silence() -> None:
    done = run_command("python", "-c", STARTING, "--width", 4)
    assert (done.code, done.err) == (143, "")


RIVAL = """
evaluate = lambda model, test_loader, tta_level: 0.92 + 0.01 * tta_level
assert __import__("os").path.getsize("cifar10/test.pt") > 40 * 32 * 32 * 3
test_loader = None
print([evaluate(None, test_loader, tta_level=2) for run in range(200)])
"""


def test_the_program_for_a_gpu_packs_what_its_parts_say(tmp_path: Path, data_dir: Path) -> None:
    (tmp_path / "rival.py").write_text(RIVAL)
    words = ("--smoke", "--only", "fast", "rival", "scaling", "--rival", tmp_path / "rival.py", "--output", tmp_path)
    done = run_command("python", ROOT / "benchmarks" / "on_gpu.py", *words, data_dir=data_dir)
    assert done.code == 0, done.err
    fast, beside, left_out = done.out.splitlines()
    assert fast.startswith("fast: done, ") and " s: seeds 0, 1: test accuracy " in fast
    assert beside.endswith(f" s: {[0.93] * 5}")
    assert left_out == "scaling: left out, since it needs 2 GPUs"
    with tarfile.open(tmp_path / "on_gpu.tar.gz") as archive:
        names = [name for name in archive.getnames() if name.endswith((".json", ".pth"))]
    assert [Path(name).name for name in names] == ["loss.json"] * 2


@pytest.mark.parametrize(("text", "line"), [
    ("raise SystemExit('no GPU')  # range(200), test_loader, tta_level=2",
     r"rival: failed with exit code 1, see rival.txt, \d+ s: no GPU"),
    ("print('hello')", "rival: left out, since .*rival.py isn't airbench94_muon.py, which has 'range\\(200\\)'"),
    (None, "rival: left out, since .*No such file.*"),
], ids=["fails", "another file", "no file"])  # fmt: skip
def test_a_rival_that_fails_is_a_line(tmp_path, data_dir, monkeypatch, call, text: str | None, line: str) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    on_gpu = __import__("on_gpu")
    monkeypatch.setattr(on_gpu, "DATA_DIR", data_dir)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    if text:
        (tmp_path / "rival.py").write_text(text)
    words = ("--smoke", "--only", "rival", "--rival", tmp_path / "rival.py", "--output", tmp_path)
    assert re.fullmatch(line, call(on_gpu.main, *words).out.strip())
