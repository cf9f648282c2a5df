"""torchvision's data sets whose items are an image from a file or an array, its transform, and a label.

Each is read as its `__getitem__` reads it, from the same attributes. torchvision is never imported: who has such a data
set has imported it.

Source: torchvision 0.29, torchvision.datasets; older versions differ where it is said.
"""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vit_rs.data.dropin.datasets_base import REMEDY, Base, array_source, file_source, named
from vit_rs.data.dropin.places import Place, UntranslatableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vit_rs._core import Source

__all__ = ["ATTRIBUTES", "read_torchvision"]

# All that is read of a data set.
ATTRIBUTES = (
    *("samples", "_samples", "imgs", "_image_files", "_images", "data"),
    *("targets", "labels", "_labels", "_bin_labels", "_target_types", "compat"),
    *("loader", "_loader", "transform", "target_transform", "transforms"),
)

_PACKAGE = "torchvision.datasets"
_FOLDER = f"{_PACKAGE}.folder"


def read_torchvision(dataset: Any) -> Base | None:
    """Return a torchvision data set taken apart; None for one that is of nobody known.

    A subclass counts as the class whose `__getitem__` it has.

    Raises:
        UntranslatableError: a known one that is set up in a way that only Python can follow.
    """
    owner = _owner(dataset, "__getitem__")
    if owner.__name__ not in _READERS or not _is_torchvisions(owner):
        return None
    overridden = [name for name in ("__len__", "__getattribute__") if not _is_torchvisions(_owner(dataset, name))]
    if getattr(dataset, "__getitems__", None):
        overridden.append("__getitems__")
    if overridden:
        raise UntranslatableError(
            f"{named(dataset)} is torchvision's {owner.__name__} with a {overridden[0]} of its own, which only Python "
            f"can follow. {REMEDY}"
        )
    return _READERS[owner.__name__](dataset)


def _owner(dataset: Any, name: str) -> type:
    """Return the class that defines a method of the data set."""
    return next((kind for kind in type(dataset).__mro__ if name in vars(kind)), object)


def _is_torchvisions(kind: type) -> bool:
    module = kind.__module__
    if kind is object:
        return True
    return module.startswith(f"{_PACKAGE}.") and getattr(sys.modules.get(module), kind.__name__, None) is kind


def _own(dataset: Any, name: str) -> Any:
    """Return an attribute that the data set's `__getitem__` reads.

    Raises:
        UntranslatableError: it is not simply a value.
    """
    computed = hasattr(inspect.getattr_static(type(dataset), name, None), "__set__")
    if computed or name not in vars(dataset):
        raise UntranslatableError(f"{named(dataset)} has no plain attribute {name!r}, as torchvision's class has")
    return vars(dataset)[name]


def _check_loader(dataset: Any, attribute: str = "loader") -> None:
    """Check that files are opened by Pillow and made RGB.

    Raises:
        UntranslatableError: by something else.
    """
    owner = _owner(dataset, attribute)
    if attribute not in vars(dataset) and _is_torchvisions(owner):
        return  # Older versions of these classes have no loader: they open files with Pillow themselves.
    loader = _own(dataset, attribute)
    folder = sys.modules[_FOLDER]
    known = [getattr(folder, name, None) for name in ("pil_loader", "default_loader")]
    # Somebody may have put another function under torchvision's name.
    if loader not in known or any(getattr(function, "__module__", None) != _FOLDER for function in known):
        raise UntranslatableError(f"{named(dataset)} opens its files with {named(loader)}, which is Python. {REMEDY}")
    backend = sys.modules["torchvision"].get_image_backend()
    if loader is known[1] and backend != "PIL":
        raise UntranslatableError(
            f"torchvision's image backend is {backend!r}, whose pixels are not Pillow's. {REMEDY}"
        )


def _separate(dataset: Any) -> tuple[Any, Any]:
    return _own(dataset, "transform"), _own(dataset, "target_transform")


def _joint(dataset: Any) -> tuple[Any, Any]:
    """Return the transforms of a data set that calls `self.transforms(image, target)`."""
    transforms = _own(dataset, "transforms")
    if transforms is None:
        return None, None
    if type(transforms) is not getattr(sys.modules.get(f"{_PACKAGE}.vision"), "StandardTransform", None):
        raise UntranslatableError(
            f"{named(dataset)} has transforms={named(transforms)} for images and labels together, which is Python. "
            "Give it transform= and target_transform=, or pass fallback='torch'"
        )
    return transforms.transform, transforms.target_transform


def _files(
    dataset: Any,
    paths: Sequence[Any],
    labels: Sequence[Any],
    *,
    transforms: tuple[Any, Any] | None = None,
    loader: str = "loader",
) -> Base:
    _check_loader(dataset, loader)
    core = file_source(paths, owner=named(dataset))
    return _base(dataset, core, list(labels), Place("pil"), transforms=transforms or _separate(dataset))


def _pixels(dataset: Any, attribute: str, labels: list[Any], *, axes: str, channels: int) -> Base:
    core = array_source(_own(dataset, attribute), axes=axes, channels=channels, owner=named(dataset))
    return _base(dataset, core, labels, Place("pil", channels=channels), transforms=_separate(dataset))


def _base(dataset: Any, core: Source, labels: list[Any], start: Place, *, transforms: tuple[Any, Any]) -> Base:
    if len(labels) < len(core):
        raise UntranslatableError(f"{named(dataset)} has {len(core):,} images and {len(labels):,} labels")
    return Base(core, labels[: len(core)], *transforms, start, f"{type(dataset).__name__} of {len(core):,} images")


def _of_samples(attribute: str, transforms: Callable[[Any], tuple[Any, Any]] = _separate) -> Callable[[Any], Base]:
    """Return the reader of data sets with a list of (path, label)."""

    def read(dataset: Any) -> Base:
        samples = _listed(dataset, attribute)
        try:
            paths, labels = [path for path, _ in samples], [label for _, label in samples]
        except (TypeError, ValueError):
            raise UntranslatableError(
                f"the items of {named(dataset)}'s {attribute!r} are not (path, label) each. {REMEDY}"
            ) from None
        return _files(dataset, paths, labels, transforms=transforms(dataset))

    return read


def _of_lists(images: str, labels: str, *, loader: str = "loader") -> Callable[[Any], Base]:
    """Return the reader of data sets with a list of paths and a list of labels."""
    return lambda dataset: _files(dataset, _listed(dataset, images), _listed(dataset, labels), loader=loader)


def _pets(dataset: Any) -> Base:
    columns = {"category": "_labels", "binary-category": "_bin_labels"}
    wanted = _own(dataset, "_target_types")
    unknown = [target for target in wanted if target not in columns]
    if unknown or not wanted:
        what = f"targets of type {unknown[0]!r}, which are images" if unknown else "no targets"
        raise UntranslatableError(f"{named(dataset)} gives {what}. Pass fallback='torch'")
    labels = [_listed(dataset, columns[target]) for target in wanted]
    several = labels[0] if len(labels) == 1 else list(zip(*labels, strict=True))
    return _files(dataset, _listed(dataset, "_images"), several, transforms=_joint(dataset))


def _cifar(dataset: Any) -> Base:
    return _pixels(dataset, "data", _listed(dataset, "targets"), axes="NHWC", channels=3)


def _mnist(dataset: Any) -> Base:
    _check_tensor(dataset)
    return _pixels(dataset, "data", _integers(dataset, "targets"), axes="NHW", channels=1)


def _qmnist(dataset: Any) -> Base:
    _check_tensor(dataset)
    targets = _listed(dataset, "targets")
    if _own(dataset, "compat"):
        targets = [int(target[0]) for target in targets]
    return _pixels(dataset, "data", targets, axes="NHW", channels=1)


def _usps(dataset: Any) -> Base:
    return _pixels(dataset, "data", _integers(dataset, "targets"), axes="NHW", channels=1)


def _semeion(dataset: Any) -> Base:
    return _pixels(dataset, "data", _integers(dataset, "labels"), axes="NHW", channels=1)


def _svhn(dataset: Any) -> Base:
    return _pixels(dataset, "data", _integers(dataset, "labels"), axes="NCHW", channels=3)


def _stl10(dataset: Any) -> Base:
    known = _own(dataset, "labels") is not None
    labels = _integers(dataset, "labels") if known else [None] * len(dataset)
    return _pixels(dataset, "data", labels, axes="NCHW", channels=3)


def _check_tensor(dataset: Any) -> None:
    """Check that `dataset.data[i].numpy()` is what MNIST makes an image of."""
    data = _own(dataset, "data")
    if not isinstance(data, torch.Tensor) or data.device.type != "cpu":
        raise UntranslatableError(f"the images of {named(dataset)} are no CPU tensor. {REMEDY}")


def _listed(dataset: Any, attribute: str) -> list[Any]:
    """Return `attribute[i]` for each i."""
    values = _own(dataset, attribute)
    if type(values) is list:
        return values
    if type(values) is not tuple and not isinstance(values, (np.ndarray, torch.Tensor)):
        raise UntranslatableError(
            f"the attribute {attribute!r} of {named(dataset)} is a {type(values).__name__}, not a list. {REMEDY}"
        )
    return list(values)


def _integers(dataset: Any, attribute: str) -> list[int]:
    """Return `int(attribute[i])` for each i."""
    values = _own(dataset, attribute)
    listed = values.tolist() if isinstance(values, (np.ndarray, torch.Tensor)) else _listed(dataset, attribute)
    try:
        return [int(value) for value in listed]
    except (TypeError, ValueError):
        raise UntranslatableError(f"the labels of {named(dataset)} ({attribute}) are not one integer each") from None


# By the class that defines `__getitem__`: ImageFolder, ImageNet, EuroSAT and Country211 have DatasetFolder's,
# CIFAR100 has CIFAR10's, FashionMNIST, KMNIST and EMNIST have MNIST's.
_READERS: dict[str, Callable[[Any], Base]] = {
    "DatasetFolder": _of_samples("samples"),
    "GTSRB": _of_samples("_samples"),
    "Imagenette": _of_samples("_samples"),
    "RenderedSST2": _of_samples("_samples"),
    "StanfordCars": _of_samples("_samples"),
    "Places365": _of_samples("imgs", _joint),
    "CLEVRClassification": _of_lists("_image_files", "_labels"),
    "DTD": _of_lists("_image_files", "_labels"),
    "FGVCAircraft": _of_lists("_image_files", "_labels"),
    "Flowers102": _of_lists("_image_files", "_labels"),
    "Food101": _of_lists("_image_files", "_labels"),
    "SUN397": _of_lists("_image_files", "_labels"),
    "LFWPeople": _of_lists("data", "targets", loader="_loader"),
    "OxfordIIITPet": _pets,
    "CIFAR10": _cifar,
    "MNIST": _mnist,
    "QMNIST": _qmnist,
    "SEMEION": _semeion,
    "STL10": _stl10,
    "SVHN": _svhn,
    "USPS": _usps,
}
