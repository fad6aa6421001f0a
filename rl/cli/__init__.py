"""Commands that offline RL adds to ``egd``."""
