"""Numbers in names: of policies, of results, of files."""

from __future__ import annotations


def label(number: float) -> str:
    """The shortest text that is this number and no other: 1, 1.5, 1.0000001."""
    short = f"{number:g}"
    return short if float(short) == number else repr(float(number))
