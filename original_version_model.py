"""Baseline: how far does the LeNet of PyTorch's tutorial get in five epochs, on a CPU?

    python original_version_model.py

Reported for the original: the loss falls throughout, test accuracy 60 %.
"""

from common import LeNet, Settings, main

SETTINGS = Settings(
    experiment="original_version_model",
    folder="original_version_model",
    model=LeNet,
    epochs=5,
    lr=0.001,
    momentum=0.9,
    batch_size=4,
    device="cpu",
)

if __name__ == "__main__":
    main(SETTINGS, __doc__)
