"""From files and prepared sets to batches of images.

In flow folders, archives, TFDS sets and the digits that come with the package; out flow image sets,
the benchmarks made of them, and batches of images in a network's input size.
"""
