"""Agents: one file each."""

from rl.agents.aepo import AEPO

AGENTS = {"aepo": AEPO}
