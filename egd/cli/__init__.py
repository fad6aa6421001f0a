"""The command line ``egd``."""
