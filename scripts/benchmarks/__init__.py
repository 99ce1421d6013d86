"""What `scripts/benchmark.py` measures: detectors, the input pipeline, memory and rounding."""
