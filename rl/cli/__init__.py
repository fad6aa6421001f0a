"""The commands that offline RL adds to ``egd``."""
