"""How fast the project is: `python -m benchmarks` (`make bench`). One file a group; docs/performance.md explains them.

Every figure is taken beside a calibration loop in the same process, so that two machines, or two hours on a busy one,
can be compared. All times are CPU times.
"""
