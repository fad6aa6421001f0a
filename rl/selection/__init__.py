"""Policies compared without a simulator."""
