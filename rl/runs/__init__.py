"""Runs of offline RL: their configuration, their jobs, and what is loaded of them."""
