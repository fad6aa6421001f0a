"""Benchmarks of this project: the offline-RL pieces of ``egd bench speed``, and commands of their own."""

from benchmarks.pieces import pieces

__all__ = ["pieces"]
