"""AEPO: analytic energy-guided policy optimisation."""

from __future__ import annotations

from rl.agents.guided import GuidedAgent


class AEPO(GuidedAgent):
    """AEPO (arXiv:2505.01822, Algorithm 1): behaviour diffusion, implicit Q-learning, an intermediate energy that is known in
    closed form or regressed on one, guided sampling.
    """
