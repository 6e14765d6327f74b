"""On one or more GPUs; skipped where there are none."""

import dataclasses

import pytest
import torch

import common
from common import Execution
from internals.synthetic import synthetic_images
from original_version_model_multigpu import SETTINGS as LENET
from resnet_model import SETTINGS as RESNET

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

SMALL = {
    "LeNet": dataclasses.replace(LENET, epochs=3, lr=0.01, batch_size=32),
    "ResNet18": dataclasses.replace(RESNET, epochs=2, width=16, batch_size=32),
}


def small_data(device: str) -> common.Data:
    arrays = [torch.from_numpy(array[:512]).to(device) for array in synthetic_images()]
    return common.Data(*arrays, "synthetic", "test")


def train(settings: common.Settings, device: str, precision: str = "fp32", parallel: str = "none") -> tuple[dict, dict]:
    """The history and the weights of a short run."""
    execution = Execution(torch.device(device), precision, parallel)
    model = common.build_model(settings, execution.device)
    options = {"weight_decay": settings.weight_decay, "fused": True}
    optimizer = torch.optim.SGD(model.parameters(), settings.lr, settings.momentum, **options)
    nothing = lambda *_: None  # noqa: E731
    data = small_data(device)
    state = common.train(settings, data, model, optimizer, execution, common.new_state(), nothing, nothing)
    return state["history"], common.plain_weights(model)


@pytest.mark.parametrize("model", SMALL)
def test_gpu_and_cpu_losses_agree(model: str) -> None:
    cpu, gpu = (train(SMALL[model], device)[0] for device in ("cpu", "cuda"))
    assert gpu["train_loss"] == pytest.approx(cpu["train_loss"], rel=0.02)
    assert gpu["test_loss"] == pytest.approx(cpu["test_loss"], rel=0.05)


def test_data_parallel_equals_the_unwrapped_model() -> None:
    (plain, plain_weights), (wrapped, wrapped_weights) = (
        train(SMALL["LeNet"], "cuda", parallel=parallel) for parallel in ("none", "DataParallel")
    )
    assert wrapped["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-3)
    assert plain_weights.keys() == wrapped_weights.keys()
    for name in plain_weights:
        assert torch.allclose(plain_weights[name], wrapped_weights[name], rtol=1e-2, atol=1e-3), name


@pytest.mark.parametrize("model", SMALL)
def test_bf16_and_fp32_reach_the_same_loss(model: str) -> None:
    settings = dataclasses.replace(SMALL[model], epochs=20)
    losses = [train(settings, "cuda", precision)[0]["train_loss"][-1] for precision in ("fp32", "bf16")]
    assert losses[1] == pytest.approx(losses[0], abs=0.15)


@pytest.mark.parametrize("model", SMALL)
def test_the_host_never_waits_within_an_epoch(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(common.CHUNK_IMAGES, "cuda", 128)
    settings, execution = SMALL[model], Execution(torch.device("cuda"), "bf16", "none")
    net, data = common.build_model(settings, execution.device), small_data("cuda")
    optimizer = torch.optim.SGD(net.parameters(), settings.lr, settings.momentum, fused=True)
    weight = torch.tensor(1 / settings.batch_size, device="cuda")

    def step() -> torch.Tensor:
        batches, _ = next(chunks)
        assert {images.device.type for images, _ in batches} == {"cuda"}
        return common.train_chunk(net, optimizer, batches, [weight] * len(batches), "bf16")

    chunks = common.epoch_chunks(data, settings, net, 1, 0, execution)
    step()  # the epoch's permutation comes from the host, once
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = torch.cat([step(), step()])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert losses.device.type == "cuda"


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs several GPUs")
def test_several_gpus_are_wrapped_in_data_parallel() -> None:
    assert common.start_execution(LENET).parallel == "DataParallel"
    assert common.start_execution(dataclasses.replace(LENET, device="cuda:1")).parallel == "none"
    assert common.start_execution(RESNET).parallel == "none"
