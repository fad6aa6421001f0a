"""Generators of transitions for the generated share of a batch: a file each, found by name."""
