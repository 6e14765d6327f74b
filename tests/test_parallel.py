"""Several processes, with Gloo on the CPU, against the single process.

Most are forked and meet as torchrun's do; what torchrun itself does has tests of its own.
"""

import dataclasses
import itertools
import os
import platform
import signal
import subprocess
import threading
from pathlib import Path

import common

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, at, environment, in_processes, linux, read_run, small_run, wait_until, weights_of

from cifar10lab.devices.execution import Execution
from cifar10lab.devices.processes import BatchNorm2d, NormaliseOverProcesses, all_reduce
from original_version_model_multigpu import SETTINGS as LENET
from resnet_model import SETTINGS as RESNET

# 100 images: batches of 33 leave one of a single image, of which only one process gets something.
SCRIPTS = {
    "LeNet": ("original_version_model_multigpu", "--epochs", 2, "--lr", 0.01, "--batch-size", 33),
    "ResNet18": ("resnet_model", "--epochs", 1, "--lr", 0.001, "--batch-size", 33, "--width", 4, "--precision", "fp32"),
}


@pytest.mark.parametrize(("model", "processes"), [("LeNet", 3), ("ResNet18", 1), ("ResNet18", 2)])
def test_losses_and_weights_are_the_single_processs(together, reference, tmp_path: Path, model, processes) -> None:
    done = together(processes, *SCRIPTS[model], "--output", tmp_path / "out")
    assert done.code == 0, done.err
    assert done.out.count("epoch   1/") == 1  # rank 0 alone prints
    assert f"data, checkpoints and results are those of {platform.node()}, where rank 0 is: {tmp_path}/out" in done.out
    single = reference(*SCRIPTS[model], "--device", "cpu")
    record, expected = read_run(tmp_path / "out"), read_run(single)
    assert record["environment"]["parallel"] == "DistributedDataParallel"
    assert record["environment"]["world_size"] == processes
    for name in ("train_loss", "test_loss", "train_accuracy", "test_accuracy"):
        assert record["history"][name] == pytest.approx(expected["history"][name], rel=1e-4), name
    assert record["steps"]["train_loss"] == pytest.approx(expected["steps"]["train_loss"], rel=1e-4)
    weights, expected_weights = (weights_of(folder / "model.pth") for folder in (tmp_path / "out", single))
    assert weights.keys() == expected_weights.keys()
    for name in weights:
        assert np.allclose(weights[name], expected_weights[name], rtol=1e-3, atol=1e-5), name


def test_a_run_goes_on_in_another_number_of_processes(together, run, reference, tmp_path: Path) -> None:
    script, out = ("original_version_model_multigpu", "--epochs", 2, "--batch-size", 10), tmp_path / "out"
    moment = at("step", 15, signal.SIGTERM)  # of 10 an epoch
    assert run(*script, "--output", out, moment=moment).code == -signal.SIGTERM
    done = together(2, *script, "--output", out, "--resume")
    assert done.code == 0 and "resuming at epoch 2" in done.out, done.err
    history, expected = (read_run(folder)["history"] for folder in (out, reference(*script)))
    assert history["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-4)


def test_the_error_of_rank_0_ends_every_process(together, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = together(2, "original_version_model", "--output", tmp_path / "file" / "out")
    assert done.code == 1
    assert f"error: {tmp_path}/file/out can't be written" in done.err
    assert "the connection to another process is lost" in done.err and "Traceback" not in done.err


def test_no_stand_in_that_nobody_asked_for(together, tmp_path: Path) -> None:
    done = together(2, "original_version_model", "--output", tmp_path / "out", data_dir=tmp_path / "none")
    assert done.code == 1 and "error: CIFAR-10 is not in" in done.err, done.err


# --- A group that the caller has made


def run_in_group(rank: int, number: int, settings: common.Settings) -> tuple:
    """Losses and accuracies, or the error; and whether the group is still there."""
    settings = dataclasses.replace(settings, output=settings.output / str(rank), lr=settings.lr[rank])
    try:
        result = common.run(settings)["history"]
    except common.UserError as error:
        result = str(error)
    return result, dist.is_initialized()


@pytest.mark.parametrize("rates", [(0.01, 0.01), (0.01, 0.02)])
def test_a_callers_group_trains_one_model_and_stays(reference, data_dir: Path, tmp_path: Path, rates: tuple) -> None:
    changes = {"epochs": 2, "batch_size": 33, "data_dir": data_dir, "output": tmp_path, "device": "cpu", "lr": rates}
    members = in_processes(2, tmp_path, run_in_group, dataclasses.replace(LENET, **changes))
    assert [still_there for _, still_there in members] == [True, True]
    if rates[0] != rates[1]:
        assert all("must be given the same settings" in error for error, _ in members)
        return
    expected = read_run(reference(*SCRIPTS["LeNet"], "--device", "cpu"))["history"]
    for history, _ in members:
        assert history["test_accuracy"] == pytest.approx(expected["test_accuracy"])
        assert history["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-4)
    assert (tmp_path / "0" / "model.pth").is_file() and not (tmp_path / "1").exists()


# --- torchrun itself


@linux
def test_torchruns_worker_is_killed_and_torchrun_is_stopped(run, reference, tmp_path: Path, data_dir: Path) -> None:
    """The worker is started again and goes on; the signal saves; the run ends as if nothing had happened."""
    script, log, out = ("original_version_model", "--epochs", 400), tmp_path / "log", tmp_path / "out"
    launch = ("torchrun", "--standalone", "--nproc-per-node=2", "--max-restarts=3", ROOT / f"{script[0]}.py")
    command = [str(word) for word in (*launch, *script[1:], "--device", "cpu", "--output", out)]
    with open(log, "w") as file:
        running = subprocess.Popen(command, env=environment(data_dir), stdout=file, stderr=file)

    def said(text: str) -> bool:
        assert running.poll() is None, log.read_text()
        return text in log.read_text()

    wait_until(lambda: said("epoch   1/"), "the first epoch ends")
    workers = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    wait_until(lambda: said("resuming at epoch"), "the processes are started again")
    epochs = log.read_text().count("epoch ")
    wait_until(lambda: log.read_text().count("epoch ") > epochs, "another epoch ends")
    running.send_signal(signal.SIGTERM)
    running.wait(60)
    assert "stopped by signal" in log.read_text() and log.read_text().count("epoch   1/") == 1
    done = run(*script, "--lr", 1, "--output", out, "--resume")
    assert "lr 0.001 -> 1.0" in done.err  # the checkpoint is whole
    checkpoint, expected = torch.load(out / "checkpoint.pth", weights_only=True), read_run(reference(*script[:2], 3))
    history = checkpoint["history"]
    assert history["epoch"] == list(range(1, checkpoint["epoch"])) and len(history["epoch"]) >= 2
    assert history["test_loss"][:2] == pytest.approx(expected["history"]["test_loss"][:2], rel=1e-4)


# --- Parts of it, in processes that have met


def normalised_in_all_kinds(rank: int, number: int) -> list[dict]:
    """`normalised` for each of `KINDS`."""
    return [normalised(rank, number, *kind) for kind in KINDS]


def normalised(rank: int, number: int, images: int, kind: torch.dtype, layout: torch.memory_format) -> dict:
    """What BatchNorm makes of this process's share of a batch, and its gradients."""
    random = torch.Generator().manual_seed(1)
    x, factors = (torch.randn(images, 16, 6, 5, generator=random, dtype=torch.float64) for _ in range(2))
    x[:, 0] += 100  # a mean that is far from 0 must not cost the variance its digits
    x, factors = (values.tensor_split(number)[rank].to(kind, memory_format=layout) for values in (x, factors))
    x.requires_grad_()
    layer = BatchNorm2d(16).to(torch.float64 if kind == torch.float64 else torch.float32)
    with torch.no_grad():
        layer.weight.copy_(torch.rand(16, generator=random))
        layer.bias.copy_(torch.rand(16, generator=random))
    y = layer(x)
    (y * factors + y.square()).double().sum().backward()
    results = {"y": y.detach(), "x": x.grad, **dict(layer.named_buffers())}
    if number == 1 and kind == torch.float64 and dist.is_initialized():
        arguments = x.detach()[:2].requires_grad_(), layer.weight, layer.bias, 1e-5
        assert torch.autograd.gradcheck(lambda *values: NormaliseOverProcesses.apply(*values)[0], arguments)
    return results | {name: parameter.grad for name, parameter in layer.named_parameters()}


LAYOUTS = (torch.contiguous_format, torch.channels_last)
TOLERANCES = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 0.1}
KINDS = list(itertools.product((5, 2), TOLERANCES, LAYOUTS))  # of 2 images, one of 3 processes gets nothing


@pytest.mark.parametrize("number", [1, 3])
def test_batch_norm_of_shares_is_that_of_the_batch(tmp_path: Path, number: int) -> None:
    members = in_processes(number, tmp_path, normalised_in_all_kinds)
    for (images, kind, layout), shares in zip(KINDS, zip(*members, strict=True), strict=True):
        expected, tolerance = normalised(0, 1, images, kind, layout), TOLERANCES[kind]
        for name in ("y", "x"):
            assert {share[name].dtype for share in shares} == {kind}
            assert all(share[name].is_contiguous(memory_format=layout) for share in shares)
            together = torch.cat([share[name] for share in shares])
            assert torch.allclose(together.double(), expected[name].double(), rtol=0, atol=tolerance), (kind, name)
        for name in ("weight", "bias"):
            together = sum(share[name] for share in shares)
            assert torch.allclose(together, expected[name], rtol=0, atol=50 * tolerance), (kind, name)
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            same = [torch.allclose(share[name], expected[name], rtol=1e-6, atol=1e-6) for share in shares]
            assert all(same), (kind, name)


def early_losses(rank: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """ResNet-18's losses of the first four steps in bf16, summed over this process's share and over all images."""
    parallel = "DistributedDataParallel" if dist.is_initialized() else "none"
    settings = dataclasses.replace(RESNET, batch_size=32, options={"width": 16}, lr=0.001)
    run = small_run(settings, Execution(torch.device("cpu"), "bf16", parallel, rank, number))
    share = torch.cat([common.train_chunk(run, *chunk) for chunk in common.epoch_chunks(run, 1, 0)])
    return share, all_reduce(share)


def test_early_losses_in_bf16_are_the_single_processs(tmp_path: Path) -> None:
    (first, whole), (second, _) = in_processes(2, tmp_path, early_losses)
    assert torch.equal(first + second, whole), "a sum over processes leaves what it sums"
    assert whole.tolist() == pytest.approx(early_losses(0, 1)[1].tolist(), rel=1e-2)


@pytest.mark.parametrize(("precision", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_replicas_thread_has_the_runs_precision_and_an_empty_share_is_float32(precision: str, kind) -> None:
    """`DataParallel` runs each replica in a thread, where autocast has its default type: on GPUs, float16."""
    run, kinds = small_run(LENET, Execution(torch.device("cpu"), precision, "none")), []
    run.model.fc2.register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))

    def work() -> None:
        torch.set_autocast_dtype("cpu", torch.float16)
        for images in (1, 0):
            kinds.append(run.network(torch.zeros(images, 3, 32, 32)).dtype)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert kinds == [kind, torch.float32, torch.float32, torch.float32]
