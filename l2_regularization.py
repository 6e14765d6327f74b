"""LeNet with L2 regularisation: does weight decay narrow the gap between training and test accuracy?

    python l2_regularization.py

The settings are those of original_version_model_multigpu.py but for the weight decay. Reported for
the original, at 50 epochs (--epochs 50): less overfitting, slightly lower accuracy.
"""

from common import LeNet, Settings, main

SETTINGS = Settings(
    experiment="l2_regularization",
    folder="L2_regularization_model",
    model=LeNet,
    epochs=200,
    lr=0.001,
    momentum=0.95,
    batch_size=128,
    weight_decay=1e-4,
    data_parallel=True,
)

if __name__ == "__main__":
    main(SETTINGS, __doc__)
