"""Tables as plain lines, for the console."""

from collections.abc import Iterator, Sequence

from stage1_pro.core.report.common.cells import Cell


def table_lines(lines: Sequence[Sequence[str]], block: int | None = None) -> Iterator[str]:
    """Lines of cells in columns of equal width.

    block: columns shown at a time beside the first one, so that a line fits a terminal, an empty line before each
    block, and no line that says nothing in it; None for all at once.
    """
    widths = [max(map(len, column)) + 2 for column in zip(*lines, strict=True)]
    for start in range(1, len(widths), block or len(widths)):
        shown = [0, *range(start, min(start + (block or len(widths)), len(widths)))]
        if block:
            yield ""
        for line in lines:
            if any(line[column] for column in shown[1:]):
                yield "".join(f"{line[column]:<{widths[column]}}" for column in shown).rstrip()


def flat(cell: Cell) -> str:
    """Value and interval in one line, without the notes that the page has room for."""
    return f"{cell.value} {cell.interval}".rstrip()
