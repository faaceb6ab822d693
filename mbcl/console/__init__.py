"""Console output: progress of a running command, and listings of the registries."""

from collections.abc import Sequence


def align_columns(lines: Sequence[Sequence[str]], num_names: int) -> list[str]:
    """Format a table: left-aligned names, then right-aligned numbers, each column as wide as its longest cell."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    formats = [f"{{:{'<' if index < num_names else '>'}{width}}}" for index, width in enumerate(widths)]
    return ["  ".join(formats).format(*line).rstrip() for line in lines]
