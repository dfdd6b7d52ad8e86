"""Speed of the scripts against the same recipe done naively: `python -m benchmarks.bench`."""
