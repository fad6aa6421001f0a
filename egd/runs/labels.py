"""Numbers in the names of policies, results and files."""

from __future__ import annotations


def label(number: float) -> str:
    """Return the shortest text that reads back as exactly this number: 1, 1.5, 1.0000001."""
    short = f"{number:g}"
    return short if float(short) == number else repr(float(number))


def with_seed(task: str, seed: int) -> str:
    """Return the task's name in a results table, with the seed where it is not 0."""
    return f"{task} ({seed})" if seed else task
