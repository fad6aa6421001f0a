"""Datasets made on the spot, by name in a recipe: ``data.generator: {name: maze2d, map_name: umaze}``."""

from rl.maze2d import generate as maze2d

__all__ = ["maze2d"]
