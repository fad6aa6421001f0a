"""The pieces of offline RL for ``egd bench speed``."""

from benchmarks.pieces import pieces

__all__ = ["pieces"]
