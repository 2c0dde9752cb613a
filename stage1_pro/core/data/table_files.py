"""From the file of a table to rows of strings: any usual delimiter, ragged ends, and what no one can read refused."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from stage1_pro.core.errors import UserError, counted, first_few

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "|"}
LOOKED_AT = 50
"""Lines that tell the delimiter."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Cells as they stand in the file, stripped, each row equally wide.

    cells: (N,) lists of strings, at least one; lines: (N,) the line of the file that each row ends in.
    """

    cells: list[list[str]]
    lines: list[int]


def delimited_rows(content: bytes, path: Path) -> Rows:
    """Return the rows of a text file that are not blank. Raises UserError for a file that is no table."""
    text = _text(content, path)
    cells, lines = _parsed(text, _delimiter(text), path)
    if not cells:
        raise UserError(f"{path}: no cases could be read (it is empty).")
    width = _width(cells)
    ragged = [line for row, line in zip(cells, lines, strict=True) if any(row[width:])]
    if ragged:
        raise UserError(
            f"{path}: {counted(len(ragged), 'line')} with more than the {width} columns of the first one: "
            f"{first_few(ragged)}. Quote a cell that holds the delimiter."
        )
    return Rows([row[:width] + [""] * (width - len(row)) for row in cells], lines)


def _text(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        guess = "UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "Latin-1 or Windows-1252"
        raise UserError(f"{path}: is not UTF-8, but looks like {guess}. Save it as UTF-8.") from None


def _delimiter(text: str) -> str:
    """The first delimiter that gives the first lines equally many columns, or the one that is there at all."""
    lines = text.lstrip("\r\n").split("\n", LOOKED_AT)[:LOOKED_AT]
    counts = {mark: {line.count(mark) for line in lines if line.strip()} for mark in DELIMITERS}
    even = [mark for mark, found in counts.items() if len(found) == 1 and 0 not in found]
    present = [mark for mark in DELIMITERS if lines and mark in lines[0]]
    return next(iter([*even, *present]), ",")


def _parsed(text: str, delimiter: str, path: Path) -> tuple[list[list[str]], list[int]]:
    # all strings, none a gap: `NA` is a label and `007` an id
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    cells, lines = [], []
    try:
        for row in reader:
            stripped = [cell.strip() for cell in row]
            if any(stripped):
                cells.append(stripped)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise UserError(f"{path}: no cases could be read (line {reader.line_num}: {error}).") from None
    return cells, lines


def _width(cells: list[list[str]]) -> int:
    """Columns of the table: those of its first row, without a tail that is blank in every row."""
    width = len(cells[0])
    while width > 1 and not any(cell for row in cells for cell in row[width - 1 : width]):
        width -= 1
    return width
