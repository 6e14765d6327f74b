"""ResNet-18 for 32x32 images: does a better model beat tuning LeNet?

    python resnet_model.py                # hours on a CPU
    python resnet_model.py --width 32     # half the channels, a quarter of the time

The learning rate is annealed over the run's own epochs: the original's cosine schedule was set for
200 epochs but stopped at 25, so that it hardly fell, and a rate that stays high leaves the weights
jumping about the minimum. The weight decay of 5e-4 keeps 11 million weights from fitting 50,000
images by heart, as crop and flip do. Reported for the original: best test accuracy 89.56 %.
"""

from common import ResNet18, Settings, main

SETTINGS = Settings(
    experiment="resnet_model",
    folder="Resnet",
    model=ResNet18,
    options={"width": 64},
    epochs=25,
    lr=0.005,
    momentum=0.95,
    batch_size=128,
    weight_decay=5e-4,
    schedule="cosine",
    augment=True,
)

if __name__ == "__main__":
    main(SETTINGS, __doc__)
