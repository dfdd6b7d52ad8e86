"""Measurements of the scripts. Each writes its table as a record under benchmarks/results."""
