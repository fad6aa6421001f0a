"""Runs of offline RL: their configuration, their jobs, and the loading of finished runs."""
