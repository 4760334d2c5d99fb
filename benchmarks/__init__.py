"""What it costs: programs run from a checkout, `python -m benchmarks.step --shape=cpu`."""
