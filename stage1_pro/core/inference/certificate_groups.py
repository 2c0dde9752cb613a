"""Which camera or site each image is of, for a bundle that certifies each of them by itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stage1_pro.core.data.image_files import folder_of
from stage1_pro.core.errors import UserError, counted, first_few, raise_problems
from stage1_pro.core.inference.groups import FOLDER, read_rows
from stage1_pro.core.policies.grouped import GroupedExitPolicy
from stage1_pro.core.schemas import did_you_mean

OPTION = "--certificate_groups"
TABLES = (".csv", ".parquet")


def certificate_groups_of(ids: Sequence[str], option: str | None, policy: Any) -> list[str] | None:
    """Return the certificate group of each image, "" where it is not known; None for a bundle with one certificate.

    option: "folder" for the name of the folder that an image lies in, a table with the columns id and the bundle's own
    (or certificate_group), or the name of one certified group for all images. Raises UserError where it says nothing.
    """
    if not isinstance(policy, GroupedExitPolicy):
        if option is not None:
            raise UserError(f"{OPTION} {option}: this bundle has one certificate for all cases. Leave it out.")
        return None
    ways = (
        f"'folder' for the folder that an image lies in, a {' or '.join(TABLES)} file with the columns id and "
        f"{policy.column}, or for all images one of {first_few(policy.names.tolist())}"
    )
    if option is None:
        raise UserError(f"this bundle certifies each '{policy.column}' by itself: name them with {OPTION}, as {ways}.")
    if option == FOLDER:
        return [Path(folder_of(name)).name for name in ids]
    if Path(option).suffix.lower() in TABLES:
        return _from_table(Path(option), ids, policy.column)
    if option not in policy.names:
        hint = did_you_mean(option, policy.names.tolist())
        raise UserError(f"{OPTION} {option}: no '{policy.column}' with a certificate{hint}. Name {ways}.")
    return [option] * len(ids)


def _from_table(table: Path, ids: Sequence[str], column: str) -> list[str]:
    rows = read_rows(table, f"Name a file with the columns id and {column}, or 'folder'.")
    named = next((name for name in (column, "certificate_group") if name in rows.columns), None)
    missing = [f"no column {name}" for name, found in (("id", "id" in rows.columns), (column, named)) if not found]
    raise_problems(f"{table}:", missing, f"It needs the columns id and {column}.")
    rows = rows[["id", str(named)]].dropna().astype(str)
    differing = rows.drop_duplicates()["id"]
    twice = differing[differing.duplicated()]
    if len(twice):
        raise UserError(f"{table}: {counted(len(twice), 'id')} with two values of {named}: {first_few(twice)}.")
    known = dict(rows.itertuples(index=False, name=None))
    return [known.get(name, "").strip() for name in ids]
