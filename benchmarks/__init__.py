"""Measurements a person runs by hand; their tables stand in docs/."""
