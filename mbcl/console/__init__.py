"""Console output: progress of a running command, and listings of the registries."""

from collections.abc import Sequence


def align_columns(lines: Sequence[Sequence[str]], num_names: int) -> list[str]:
    """Format a table: left-aligned names, then right-aligned numbers, each column as wide as its longest cell."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    formats = [f"{{:{'<' if index < num_names else '>'}{width}}}" for index, width in enumerate(widths)]
    return ["  ".join(formats).format(*line).rstrip() for line in lines]


def duration(seconds: float) -> str:
    """Format a duration for people.

    Example:
        >>> [duration(seconds) for seconds in (40.2, 200, 9000)]
        ['40 s', '3 min', '2.5 h']
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
