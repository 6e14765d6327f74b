"""LeNet on several GPUs: what do bigger batches, more epochs and four GPUs bring?

    python original_version_model_multigpu.py                                           # DataParallel
    torchrun --standalone --nproc-per-node=4 original_version_model_multigpu.py   # DistributedDataParallel

The batch size is the global one: 128 is 32 images per GPU on four. With one GPU or none it trains
unwrapped. Reported for the original, on 4 A100: best test accuracy 65.75 %.
"""

from common import LeNet, Settings, main

SETTINGS = Settings(
    experiment="original_version_model_multigpu",
    folder="original_version_model_multiGPU",
    model=LeNet,
    epochs=200,
    lr=0.001,
    momentum=0.95,
    batch_size=128,
    data_parallel=True,
)

if __name__ == "__main__":
    main(SETTINGS, __doc__)
