"""INPUT: a Parquet file, or a folder of them, with one image a row, read part by part and never whole."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stage1_pro.core.cluster.folder import filesystem, reaching
from stage1_pro.core.errors import UserError, first_line, raise_problems

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import ParquetFile

PATH, BYTES, ID, GROUP, CERTIFICATE_GROUP = COLUMNS = "path", "bytes", "id", "group", "certificate_group"
BATCH = 1024
VERSIONS = ("ETag", "etag", "md5Hash", "generation", "mtime", "LastModified", "last_modified", "updated")
"""What file systems call the version of a file, in the order of how much it says."""


@dataclass(frozen=True, slots=True)
class TableFile:
    """One file. groups: rows of each of its row groups."""

    path: str
    groups: tuple[int, ...]

    @property
    def rows(self) -> int:
        return sum(self.groups)


@dataclass(frozen=True, slots=True)
class InputTable:
    """The rows of all files, in the order of their names. store: the file system; columns: those of COLUMNS that are
    there; digest: of the files' names, sizes and versions."""

    name: str
    store: Any
    files: tuple[TableFile, ...]
    columns: tuple[str, ...]
    digest: str

    def __len__(self) -> int:
        return sum(file.rows for file in self.files)

    def rows(self, at: range) -> "pyarrow.Table":
        """The rows at these positions, with `columns`."""
        import pyarrow

        return pyarrow.Table.from_batches(list(self._batches(at)))

    def distinct_groups(self) -> tuple[int, int]:
        """How many groups the column group names, and how many rows it names one for."""
        names, rows = set(), 0
        for file in self.files if GROUP in self.columns else ():
            with _opened(self.store, file.path, self.name) as source:
                for batch in source.iter_batches(columns=[GROUP]):
                    rows += len(batch) - batch.column(0).null_count
                    names.update(batch.column(0).drop_null().unique().to_pylist())
        return len(names), rows

    def _batches(self, at: range) -> Iterator["pyarrow.RecordBatch"]:
        first = 0
        for file in self.files:
            inside = range(max(at.start - first, 0), min(at.stop - first, file.rows))
            first += file.rows
            if not inside:
                continue
            needed, position = _row_groups(file.groups, inside)
            with _opened(self.store, file.path, self.name) as source:
                for batch in source.iter_batches(BATCH, row_groups=needed, columns=list(self.columns)):
                    low, high = max(inside.start - position, 0), min(inside.stop - position, len(batch))
                    if low < high:
                        yield batch.slice(low, high - low)
                    position += len(batch)
                    if position >= inside.stop:
                        break


def open_table(name: str) -> InputTable:
    """Look at INPUT: a file, or the files *.parquet in a folder. Raises UserError with all that is wrong with it."""
    store, root = filesystem(name)
    with reaching(name):
        if not store.exists(root):
            raise UserError(f"{name}: no such file or folder. Name a Parquet file with one image a row.")
        found = [store.info(root)]
        if store.isdir(root):
            found = sorted(filter(_is_part_of_it, store.ls(root, detail=True)), key=lambda info: info["name"])
    if not found:
        raise UserError(f"{name}: no files *.parquet in this folder. Name a Parquet file with one image a row.")
    files, kinds = [], {}
    for info in found:
        with _opened(store, info["name"], name) as source:
            facts = source.metadata
            files.append(
                TableFile(info["name"], tuple(facts.row_group(n).num_rows for n in range(facts.num_row_groups)))
            )
            kinds[info["name"]] = _kinds(source.schema_arrow)
    columns = tuple(column for column in COLUMNS if column in kinds[files[0].path])
    raise_problems(f"{name}:", list(_problems(kinds, columns)), "Write the table anew with these columns.")
    table = InputTable(name, store, tuple(files), columns, _digest(found))
    if not len(table):
        raise UserError(f"{name}: no rows. Name a Parquet file with one image a row.")
    return table


def _is_part_of_it(info: dict[str, Any]) -> bool:
    """Whether an entry of the folder is a file *.parquet that no name hides, such as the ._a.parquet of macOS.

    A link is one too, as all files of the Hub's cache are.
    """
    name = info["name"].rpartition("/")[2]
    return info["type"] != "directory" and name.endswith(".parquet") and not name.startswith((".", "_"))


def _kinds(schema: Any) -> dict[str, Any]:
    """Name of a column → its type, of a name that stands several times the list of its types."""
    found: dict[str, list[Any]] = {}
    for field in schema:
        found.setdefault(field.name, []).append(field.type)
    return {name: types[0] if len(types) == 1 else types for name, types in found.items()}


def _problems(kinds: dict[str, dict[str, Any]], columns: tuple[str, ...]) -> Iterator[str]:
    import pyarrow.types as types

    texts = (types.is_string, types.is_large_string, types.is_string_view)
    binary = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    names = (
        "text, numbers or dates",
        (lambda kind: not types.is_nested(kind) and not any(test(kind) for test in binary),),
    )
    words = {
        PATH: ("text", texts),
        BYTES: ("binary", binary),
        **dict.fromkeys((ID, GROUP, CERTIFICATE_GROUP), names),
    }
    if PATH not in columns and BYTES not in columns:
        found = ", ".join(next(iter(kinds.values()))) or "none"
        yield f"no column path and no column bytes, but {found}; one is needed"
    for file, found in kinds.items():
        if tuple(column for column in COLUMNS if column in found) != columns:
            yield f"{file} has other columns than the first file"
            continue
        for column, (word, tests) in words.items():
            kind = found.get(column)
            if isinstance(kind, list):
                yield f"column {column} stands {len(kind)} times; allowed once"
                continue
            if kind is not None and types.is_dictionary(kind):
                kind = kind.value_type
            if kind is not None and not any(test(kind) for test in tests):
                yield f"column {column} is {kind}; allowed {word}"


def _digest(found: list[dict[str, Any]]) -> str:
    digest = hashlib.sha256()
    for info in found:
        version = next((str(info[name]) for name in VERSIONS if info.get(name)), "")
        digest.update(f"{info['name'].rpartition('/')[2]}\0{info['size']}\0{version}\0".encode())
    return digest.hexdigest()


def _row_groups(rows: tuple[int, ...], inside: range) -> tuple[list[int], int]:
    """The row groups that hold these rows, and the position of the first row of the first of them."""
    needed, first, start = [], 0, 0
    for number, count in enumerate(rows):
        if first < inside.stop and first + count > inside.start:
            if not needed:
                start = first
            needed.append(number)
        first += count
    return needed, start


@contextmanager
def _opened(store: Any, path: str, name: str) -> Iterator["ParquetFile"]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    with reaching(name), store.open(path, "rb") as stream:
        try:
            yield ParquetFile(stream)
        except pyarrow.ArrowInvalid as error:
            raise UserError(f"{path}: not a whole Parquet file ({first_line(error)}). {_anew(name)}") from None


def _anew(name: str) -> str:
    """What to do about a file that is no Parquet."""
    if not name.endswith((".csv", ".csv.gz")):
        return "Write it anew."
    # as text: an id 007 is no 7
    return f"Write it as Parquet: pandas.read_csv({name!r}, dtype=str).to_parquet('images.parquet')."
