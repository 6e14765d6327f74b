"""LeNet with dropout: does it narrow the gap between training and test accuracy?

    python dropout_regularization.py

The settings are those of original_version_model_multigpu.py but for dropout 0.5 between the linear
layers. Reported for the original, at 50 epochs (--epochs 50): less overfitting, slightly lower accuracy.
"""

from common import LeNet, Settings, main

SETTINGS = Settings(
    experiment="dropout_regularization",
    folder="Dropout_regularization",
    model=LeNet,
    options={"dropout": 0.5},
    epochs=200,
    lr=0.001,
    momentum=0.95,
    batch_size=128,
    data_parallel=True,
)

if __name__ == "__main__":
    main(SETTINGS, __doc__)
