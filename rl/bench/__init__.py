"""The pieces of offline RL for ``egd bench speed``."""

from rl.bench.pieces import pieces

__all__ = ["pieces"]
