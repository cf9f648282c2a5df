"""Frozen features, computed once: kept as safetensors under what they depend on, and checked when they are read.

Features depend on the model (digest of its weights and configuration), the images (digest of the list of files, or of
the pixels), the preprocessing, which features they are, and how they were computed (precision, kind of device, versions
of vit-rs and torch). A file's name is the SHA-256 of all this, which is also written inside. Batch size and threads may
change the last bits and are left out. Nothing is ever removed: the folder is the user's to empty.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from vit_rs import __version__
from vit_rs.checkpoints.files import open_weights, write_safetensors
from vit_rs.data import ArrayDataset, ImageFolder, ImageLoader, TarShards
from vit_rs.data.splits import common_side, image_channels
from vit_rs.evaluation.features import ClassTokens, check_what, extract_features
from vit_rs.exceptions import CheckpointError, DatasetError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vit_rs.evaluation.classify import Precision
    from vit_rs.evaluation.features import What
    from vit_rs.evaluation.subject import Subject

__all__ = ["Features", "default_cache", "image_name", "load_or_extract", "source_digest"]

_METADATA_KEY = "vit_rs_features"
_CHUNK_BYTES = 1 << 24


class Features(NamedTuple):
    """Features (N, F) float32 and labels (N,) int64 of N images, on the CPU, in the images' order."""

    features: Tensor
    labels: Tensor


def default_cache() -> Path:
    """Return the folder of kept features: vit-rs/ under $XDG_CACHE_HOME, or under ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a relative path is invalid and ignored.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "vit-rs"  # noqa: PTH117


def load_or_extract(
    subject: Subject,
    source: Any,
    *,
    what: What = "pre_logits",
    cache: str | os.PathLike[str] | None = None,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
    num_threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
    tell: Callable[[str], object] | None = None,
) -> Features:
    """Return the features of all images of a data set: from the cache, or by running the model once.

    Args:
        subject: the model, and how images are prepared for it. Its model is moved to `device`.
        source: an ImageFolder or ArrayDataset, or a torch Subset of one (`Splits.train`, `Splits.test`).
        what: which features.
        cache: a folder, made where it is missing, as `default_cache()`; None keeps nothing.
        batch_size: images that the model gets at once.
        device: where the model runs.
        precision: "bfloat16" runs it under autocast.
        num_threads: of the image loader; None is one for each core.
        progress: called with (images done, images) while the model runs; not for features that were kept.
        tell: called with one line where the cache cannot be used or a file in it is unsound.

    Returns:
        Features and labels, in the data set's order.

    Raises:
        DatasetError: there is no image, or images have other channels than the model takes.
        DecodeError: an image cannot be decoded.
        TypeError: the source is of another kind, or the model has no such features.
        CheckpointError: a feature is not a finite number; the message says of which image.
    """
    count = len(source)
    if count == 0:
        raise DatasetError("the data set has no images to take features from")
    check_what(subject.model, what)
    subject.check_channels(image_channels(source))
    say = tell or (lambda _line: None)
    path, identity = None, ""
    if cache is not None:
        identity = _identity(subject, source, what, torch.device(device), precision)
        path = Path(cache) / "features" / f"{hashlib.sha256(identity.encode()).hexdigest()}.safetensors"
        kept = _kept(path, identity, count, say)
        if kept is not None:
            return kept
    model = subject.model.to(device)
    step = None if progress is None else lambda done: progress(done, count)
    with ImageLoader(
        source,
        subject.preprocessing.transform(common_side(source)),
        batch_size=batch_size,
        num_threads=num_threads,
        device=device,
        rank=0,
        world_size=1,
    ) as loader:
        features, labels = extract_features(
            model,
            loader,
            device=device,
            what=what,
            precision=precision,
            count=count,
            progress=step,
        )
    _check_finite(features, source)
    if path is not None:
        _keep(path, identity, features, labels, say)
    return Features(features, labels)


def source_digest(source: Any) -> str:
    """Return the SHA-256 of the images of a data set, in their order, without decoding one.

    Of a folder: its classes and, of each image, the path in the folder, size in bytes, times of last change (of content
    and of inode) and label. Of tar shards: the same of every shard, and the images' places and labels. Of arrays:
    pixels, labels and classes. Of a Subset: the same of its own images.

    Raises:
        TypeError: the data set is of another kind.
        FileNotFoundError: an image of a folder is gone.
    """
    base: Any = source
    places = np.arange(len(source))
    while isinstance(base, Subset):
        base, places = base.dataset, np.asarray(base.indices, np.int64)[places]
    if isinstance(base, ArrayDataset):
        digest = hashlib.sha256(json.dumps(["array", base.images.shape[1:], base.classes]).encode())
        digest.update(np.asarray(base.targets, np.int64)[places].data)
        step = max(1, _CHUNK_BYTES // max(1, base.images[:1].nbytes))
        for start in range(0, len(places), step):
            digest.update(np.ascontiguousarray(base.images[places[start : start + step]]).data)
        return digest.hexdigest()
    if isinstance(base, ImageFolder):
        digest = hashlib.sha256(json.dumps(["folder", base.classes]).encode())
        start = len(os.path.join(base.root, ""))  # noqa: PTH118  (paths are strings, a million of them)
        for place in places.tolist():
            path, label = base.samples[place]
            found = os.stat(path)  # noqa: PTH116
            entry = f"{path[start:]!r} {label} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
            digest.update(entry.encode())
        return digest.hexdigest()
    if isinstance(base, TarShards):
        shards = [(os.path.basename(path), os.stat(path)) for path in base.shards]  # noqa: PTH116, PTH119
        entries = [[name, found.st_size, found.st_mtime_ns, found.st_ctime_ns] for name, found in shards]
        digest = hashlib.sha256(json.dumps(["tar", base.classes, entries]).encode())
        digest.update(np.stack([places, np.asarray(base.targets, np.int64)[places]]).data)
        return digest.hexdigest()
    kind = type(base).__name__
    raise TypeError(f"expected an ImageFolder, TarShards, an ArrayDataset, or a Subset of one, got {kind}")


def _identity(subject: Subject, source: Any, what: What, device: torch.device, precision: Precision) -> str:
    kind = ["tokens", what.blocks, what.average] if isinstance(what, ClassTokens) else what
    return json.dumps(
        {
            "model": subject.digest,
            "images": source_digest(source),
            "preprocessing": subject.preprocessing.to_dict(),
            "what": kind,
            "precision": precision,
            "device": device.type,
            "vit_rs": __version__,
            "torch": torch.__version__,
        },
        sort_keys=True,
    )


def _kept(path: Path, identity: str, count: int, say: Callable[[str], object]) -> Features | None:
    """Return what a file of the cache holds, if it is there and sound."""
    try:
        if not path.is_file():
            return None
        with open_weights(path) as file:
            features, labels = (file.read(name).clone() for name in ("features", "labels"))
            written = json.loads(file.metadata.get(_METADATA_KEY, "{}"))
    except (CheckpointError, OSError, KeyError, ValueError) as error:
        say(f"{path}: cannot be read, the features are computed anew: {error}")
        return None
    sound = (
        isinstance(written, dict)
        and written.get("identity") == identity
        and features.dtype == torch.float32
        and labels.dtype == torch.int64
        and features.ndim == 2
        and labels.shape == features.shape[:1] == (count,)
        and written.get("sha256") == _content(features, labels)
    )
    if not sound:
        say(f"{path}: damaged, or not what its name says: the features are computed anew")
        return None
    return Features(features, labels)


def _keep(path: Path, identity: str, features: Tensor, labels: Tensor, say: Callable[[str], object]) -> None:
    entry = json.dumps({"identity": identity, "sha256": _content(features, labels)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(path, {"features": features, "labels": labels}, {_METADATA_KEY: entry})
    except OSError as error:
        say(f"the features are not kept: {error.strerror or error}: {path.parent}")  # the same line for every file


def _content(features: Tensor, labels: Tensor) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(features.numpy()).data)
    digest.update(np.ascontiguousarray(labels.numpy()).data)
    return digest.hexdigest()


def _check_finite(features: Tensor, source: Any) -> None:
    # A row's sum is finite where all its values are, but for an overflow, which is looked at again.
    suspects = torch.isfinite(features.sum(dim=1)).logical_not().nonzero().flatten().tolist()
    for row in suspects:
        if not torch.isfinite(features[row]).all():
            raise CheckpointError(f"the features of {image_name(source, row)} are not finite numbers")


def image_name(source: Any, index: int) -> str:
    """Return what to call an image of a data set in a message: its file, or its number."""
    place = index
    while isinstance(source, Subset):
        source, place = source.dataset, source.indices[place]
    return str(source.samples[place][0]) if isinstance(source, ImageFolder) else f"image {place}"
