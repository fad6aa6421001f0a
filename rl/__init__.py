"""Offline RL assembled from ``egd``: data, critics, agents and evaluation, registered with the command line ``egd``."""
