"""Where a run is trained: CPU, GPUs and precision, the processes of torchrun, and BatchNorm over them."""
