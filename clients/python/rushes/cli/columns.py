"""Rows of text in columns."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text


def print_columns(rows: Sequence[tuple[str, ...]]) -> None:
    """The first row is the heading; only the last column may be cut off, and only on a terminal."""
    console = Console(highlight=False)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    for index, row in enumerate(rows):
        line = Text(style="bold" if index == 0 else "")
        for cell, width in zip(row, widths, strict=False):
            line.append(f"{cell:<{width}}  ")
        line.append(" ".join(row[-1].split()))
        if console.is_terminal:
            console.print(line, no_wrap=True, overflow="ellipsis")
        else:
            console.print(line, soft_wrap=True)
