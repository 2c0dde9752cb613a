"""The folder that masks are written into, beside the table of their decisions."""

from collections.abc import Sequence
from pathlib import Path

from stage1_pro.core import artifacts
from stage1_pro.core.data.masks.layouts import FOLDERS
from stage1_pro.core.errors import UserError
from stage1_pro.core.inference.jobs import Job
from stage1_pro.core.inference.tables import Output

FOLDER, MARK = "masks", ".decisions"
"""Name of the folder, and of the file in it that names the table which its masks belong to."""


def demand_images_alone(names: Sequence[str]) -> None:
    """Raise UserError for a folder with one of images and one of their masks in it, which would be decided as well."""
    for name in names:
        for images, masks in FOLDERS:
            if (Path(name) / images).is_dir() and (Path(name) / masks).is_dir():
                alone = Path(name) / images
                raise UserError(
                    f"{name} holds {images}/ and {masks}/, and masks are no images to decide. Name {alone}."
                )


def masks_beside(out: Output, overwrite: bool) -> Path:
    """Return the folder for masks that go with decisions: masks/ beside their file, or here.

    Raises UserError where it holds anything but the masks of this table, such as the true masks of a data set: those
    have the names of their images too. overwrite: whether the masks of an earlier table of this name may be replaced.
    """
    folder = (out.path.parent if out.path is not None and out.regular else Path()) / FOLDER
    elsewhere = "name an --out in another folder"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, and masks go into a folder of this name: {elsewhere}.")
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if not found:
        return folder
    if MARK not in found:
        raise UserError(f"{folder} holds files such as {found[0]}, and masks would be written over them: {elsewhere}.")
    owner = artifacts.read_bytes(folder / MARK).decode(errors="replace").strip()
    if owner != _name(out):
        raise UserError(f"{folder} holds the masks of {owner}: {elsewhere}.")
    if not overwrite and not (out.regular and out.path and Job(out.path, ()).folder.exists()):
        raise UserError(
            f"{folder} holds the masks of an earlier {owner}: add --overwrite to replace them, or {elsewhere}."
        )
    return folder


def mark_masks(folder: Path, out: Output) -> None:
    """Say in the folder whose masks it holds; called before the first of them is written."""
    folder.mkdir(parents=True, exist_ok=True)
    artifacts.write_bytes(folder / MARK, f"{_name(out)}\n".encode())


def _name(out: Output) -> str:
    return out.path.name if out.path is not None and out.regular else str(out)
