"""From a detector and sets of images to numbers.

In flow a model, detectors and image sets; scores are made batch by batch over all devices, kept in
score files that an interrupted run resumes from, and measured; out flow metrics.
"""
