"""Runs of recipes: jobs, phases, folders, checkpoints, and the store of what is trained already."""
