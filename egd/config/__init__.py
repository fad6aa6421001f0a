"""Recipes as typed objects, and components selected by name."""
