"""Evaluation environments: made, solved by controllers, and stepped in vectors."""
