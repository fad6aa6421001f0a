"""Generators of transitions for the generated share of a batch, one per file and found by name."""
