"""Datasets: from Minari episodes and D4RL's files to transitions on the device."""
