"""Evaluation of trained policies: scores, figures, films, and selection without a simulator."""
