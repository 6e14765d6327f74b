"""The images: CIFAR-10 read, checked, cached or downloaded, and its synthetic stand-in."""
