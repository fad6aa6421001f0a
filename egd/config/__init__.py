"""Recipes as typed objects, and components by name."""
