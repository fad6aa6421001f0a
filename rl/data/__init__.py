"""Offline datasets: Minari episodes and D4RL files, read as transitions on the device."""
