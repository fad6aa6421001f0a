"""Trained policies outside of egd's runs: in control loops and as files."""

from rl.deploy.module import PolicyModule
from rl.deploy.policy import Policy

__all__ = ["Policy", "PolicyModule"]
