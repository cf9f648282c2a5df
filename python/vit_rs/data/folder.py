"""Folders of images, one sub-folder a class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vit_rs._core import IMAGE_EXTENSIONS, decode_image, scan_folder
from vit_rs.exceptions import DatasetError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ImageFolder", "image_files", "visible_folder"]

# A scan waits for disks more than it computes: more threads than cores.
_SCANNING_THREADS = 16


class ImageFolder:
    """List the images below `root`, in the classes and order of torchvision's ImageFolder.

    Files are chosen by their names' endings and decoded by their content (JPEG, PNG, WebP).

    Args:
        root: folder with one sub-folder a class; images may lie at any depth below it.
        extensions: endings that count, any case; None = torchvision's list.
        allow_empty: accept classes without an image.

    Raises:
        FileNotFoundError: no such folder.
        NotADirectoryError: `root` is not a folder.
        DatasetError: no class folder in it, or a class without an image.

    Source: torchvision.datasets.ImageFolder.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        extensions: str | Sequence[str] | None = None,
        allow_empty: bool = False,
    ) -> None:
        self.root = os.fspath(root)
        if not os.path.exists(self.root):  # noqa: PTH110  (a path of any kind the user gives)
            raise FileNotFoundError(f"{self.root}: no such folder")
        if not os.path.isdir(self.root):  # noqa: PTH112
            raise NotADirectoryError(f"{self.root}: not a folder")
        given = [extensions] if isinstance(extensions, str) else extensions
        endings = list(IMAGE_EXTENSIONS) if given is None else [ending.lower() for ending in given]
        classes, paths, labels = scan_folder(self.root, endings, allow_empty, _SCANNING_THREADS)
        self.classes: list[str] = classes
        self.class_to_idx: dict[str, int] = {name: index for index, name in enumerate(classes)}
        self.targets: list[int] = labels
        self.samples: list[tuple[str, int]] = list(zip(paths, labels, strict=True))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return (image, label): image u8 RGB, (3, H, W), values 0..255.

        Raises:
            DecodeError: the file is not a readable image; the message names it.
        """
        path, label = self.samples[index]
        pixels = decode_image(Path(path).read_bytes(), name=path)
        return torch.from_numpy(pixels).permute(2, 0, 1), label

    def __repr__(self) -> str:
        return f"ImageFolder({self.root!r}: {len(self)} images, {len(self.classes)} classes)"


def visible_folder(root: str | os.PathLike[str], *, allow_empty: bool = False) -> ImageFolder:
    """Return an `ImageFolder` without what lies in hidden folders: their names begin with a dot.

    A notebook leaves .ipynb_checkpoints/ with copies of images behind: that is no class, and a copy would be trained on
    and tested on. torchvision, and `ImageFolder` itself, take them.

    Args:
        root: folder with one sub-folder a class.
        allow_empty: accept classes without an image.

    Raises:
        FileNotFoundError, NotADirectoryError, DatasetError: as `ImageFolder`.
    """
    folder = ImageFolder(root, allow_empty=True)
    start = len(os.path.join(folder.root, ""))  # noqa: PTH118  (paths are strings, a million of them)
    hidden = os.sep + "."
    names = [name for name in folder.classes if not name.startswith(".")]
    if not names:
        raise DatasetError(f"{folder.root}: no class folders in it but hidden ones: {', '.join(folder.classes)}")
    samples = folder.samples
    if len(names) < len(folder.classes) or any(hidden in path[start:] for path, _ in samples):
        new = {folder.class_to_idx[name]: label for label, name in enumerate(names)}
        samples = [
            (path, new[label])
            for path, label in samples
            if label in new and hidden not in path[start : path.rindex(os.sep) + 1]
        ]
        folder.classes, folder.samples = names, samples
        folder.class_to_idx = {name: label for label, name in enumerate(names)}
        folder.targets = [label for _, label in samples]
    filled = set(folder.targets)
    empty = [name for label, name in enumerate(names) if label not in filled]
    if empty and not allow_empty:
        listed, endings = ", ".join(empty), " ".join(IMAGE_EXTENSIONS)
        raise DatasetError(f"{folder.root}: no image in class folder {listed} (endings that count: {endings})")
    return folder


def image_files(root: str | os.PathLike[str]) -> list[str]:
    """Return the paths of the images at any depth below a folder, by their endings, folders and files in sorted order.

    Args:
        root: the folder. Links to folders are not followed.

    Raises:
        OSError: a folder cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise error

    found: list[str] = []
    for folder, subfolders, names in os.walk(root, onerror=fail):
        subfolders.sort()
        named = (name for name in sorted(names) if name.lower().endswith(tuple(IMAGE_EXTENSIONS)))
        found += [str(Path(folder, name)) for name in named]
    return found
