"""Train and fine-tune networks on CIFAR, the digits or a folder of images.

In flow arrays of images and labels and a network's first weights; out flow a checkpoint, a log of
the epochs, and a run directory from which an interrupted training goes on.
"""
