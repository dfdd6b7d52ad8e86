"""Measurements of the scripts; each writes its record under benchmarks/results."""
