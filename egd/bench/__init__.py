"""Benchmarks: how good the estimators are where the truth is known."""
