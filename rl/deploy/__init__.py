"""Trained policies outside of egd's runs: in control loops and as files."""

from rl.deploy.policy import Policy, PolicyModule

__all__ = ["Policy", "PolicyModule"]
