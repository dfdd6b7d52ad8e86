"""Judges, metrics and the report on a synthetic tree."""
