"""Evaluation environments: their making, controllers that solve mazes, and vectors of environments."""
