"""Benchmarks: the accuracy of estimators where the exact answer is known, and speed."""
