"""Speed, as ratios to a calibration loop in the same process: `python -m benchmarks`. Never part of the tests."""
