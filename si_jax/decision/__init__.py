"""From a calibrated detector to decisions about images, wherever they come from.

In flow a detector that was saved and image files, streams, or a batch system's tables; out flow
predictions with verdicts, drift alarms, and exported programs that run without this library.
"""
