"""The tutorial's network."""

import torch.nn.functional as F
from torch import Tensor, nn

from cifar10lab.models.interface import Interface


class LeNet(nn.Module):
    """LeNet of PyTorch's tutorial "Training a classifier": 62,006 parameters.

    Images float32 (N, 3, 32, 32) -> logits (N, 10). `dropout` is the probability, from 0 to below 1, of dropout
    between the linear layers. https://docs.pytorch.org/tutorials/beginner/blitz/cifar10_tutorial.html
    """

    cifar10_interface = Interface(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), static_graph=True)

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError("dropout must be a number of at least 0 and below 1")
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        # The tutorial's ReLU comes before the pooling. The result is the same, for a quarter of the work.
        x = F.relu(F.max_pool2d(self.conv1(images), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = self.dropout(F.relu(self.fc1(x.flatten(1))))
        x = self.dropout(F.relu(self.fc2(x)))
        return self.fc3(x)
