"""From the file of a table to rows of strings: any usual delimiter, ragged ends, and what no one can read refused."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from stage1_pro.core.errors import UserError, counted, first_few

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "|"}
WORKBOOK = "an Excel workbook: save its sheet as CSV in UTF-8"
NO_TEXT = (
    (b"PK\x03\x04", b"xl/workbook.xml", WORKBOOK),
    (b"PK\x03\x04", b"", "a ZIP archive: unpack it, and name the folder in root, or the table in it in labels"),
    (b"\xd0\xcf\x11\xe0", b"", WORKBOOK),
    (b"\x1f\x8b", b"", "a gzip file: unpack it"),
)
"""How a file begins, what it holds, and what it then is, with what to do."""
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
    _demand_text(content, path)
    text = _text(content, path)
    delimiter = _delimiter(text)
    cells, lines = _parsed(text, delimiter, path)
    if not cells:
        raise UserError(f"{path}: no cases could be read (it is empty).")
    width = _width(cells)
    _demand_one_delimiter(cells, lines, width, delimiter, path)
    ragged = [line for row, line in zip(cells, lines, strict=True) if any(row[width:])]
    if ragged:
        raise UserError(
            f"{path}: {counted(len(ragged), 'line')} with more than the {width} columns of the first one: "
            f"{first_few(ragged)}. Quote a cell that holds the delimiter."
        )
    return Rows([row[:width] + [""] * (width - len(row)) for row in cells], lines)


def _demand_text(content: bytes, path: Path) -> None:
    for head, inside, words in NO_TEXT:
        if content.startswith(head) and inside in content:
            raise UserError(f"{path}: is not a table but {words}.")


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


def _demand_one_delimiter(cells: list[list[str]], lines: list[int], width: int, delimiter: str, path: Path) -> None:
    """Raise UserError for lines whose cells are all in the first one, parted by another mark than the other lines'."""
    others = [mark for mark in DELIMITERS if mark != delimiter]
    mixed = {
        line: mark
        for row, line in zip(cells, lines, strict=True)
        if width > 1 and not any(row[1:])
        for mark in others
        if row[0].count(mark) == width - 1
    }
    if mixed:
        marks = " or ".join(dict.fromkeys(DELIMITERS[mark] for mark in mixed.values()))
        raise UserError(
            f"{path}: the columns are parted by {DELIMITERS[delimiter]}, but by {marks} in "
            f"{counted(len(mixed), 'line')}: {first_few(mixed)}. Write the same mark in every line."
        )


def _width(cells: list[list[str]]) -> int:
    """Columns of the table: those of its first row, without a tail that is blank in every row."""
    width = len(cells[0])
    while width > 1 and not any(cell for row in cells for cell in row[width - 1 : width]):
        width -= 1
    return width
