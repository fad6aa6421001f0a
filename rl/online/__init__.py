"""Offline-to-online fine-tuning: one loop, in which base algorithms, replays and generators differ by the contents
of a batch.
"""
