"""torchvision's transforms, v1 and v2, as those of vit_rs: each only where both give the same numbers at its place.

Both halves of torchvision do the same on PIL images. On uint8 tensors v1 resizes in floating point and rounds some
colours otherwise than v2, whose pixels vit_rs has: those of v1 are left in Python there. Parameters are read from the
objects when they are translated.

Source: torchvision 0.21 to 0.29, torchvision/transforms and torchvision/transforms/v2.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from numbers import Real
from typing import Any

import torch

from vit_rs import transforms as ours
from vit_rs.data.dropin.exact import change_of, library_module, name_of
from vit_rs.data.dropin.places import Place, UntranslatableError
from vit_rs.transforms import Transform

__all__ = ["translate"]

Translation = tuple[tuple[Transform, ...], Place]

# Pillow's numbers of its filters, which torchvision takes in place of names.
_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_V1_RESIZE = (
    "torchvision's v1 class resizes uint8 tensors in floating point: other values than torch's uint8 kernel, which "
    "vit_rs and torchvision.transforms.v2 have"
)
_FLOAT_RESIZE = (
    "the installed torchvision resizes uint8 tensors in floating point on this CPU: other values than torch's uint8 "
    "kernel, which vit_rs has, and newer versions of torchvision"
)
_V1_COLOR = (
    "torchvision's v1 class rounds {} of uint8 tensors otherwise than that of torchvision.transforms.v2, whose values "
    "vit_rs has"
)


def translate(transform: Any, place: Place) -> Translation | None:
    """Translate one of torchvision's transforms at its place.

    Args:
        transform: the user's object.
        place: what the image is when it comes there.

    Returns:
        What does the same in vit_rs and what the image is behind it; None for an object that is not one of
        torchvision's transforms.

    Raises:
        UntranslatableError: it has no equal in vit_rs at this place, or holds other transforms (see chain.py).
    """
    module = library_module(type(transform), "torchvision.transforms")
    if module is None:
        return None
    site = _Site(transform, place, v1=".v2" not in module)
    try:
        return _translated(site)
    except (AttributeError, TypeError, UntranslatableError, ValueError) as error:
        raise UntranslatableError(str(error), _expected(site)) from error


@dataclass(frozen=True)
class _Site:
    """A transform at its place; `v1` tells which half of torchvision it is of."""

    it: Any
    place: Place
    v1: bool

    @property
    def image_type(self) -> type:
        """The type of the image, by which v2 looks up fills and dtypes."""
        if self.place.kind == "pil":
            return sys.modules["PIL.Image"].Image  # type: ignore[no-any-return]
        return sys.modules["torchvision.tv_tensors"].Image if self.place.wrapped else torch.Tensor

    def fill(self, image_type: type | None = None) -> int | tuple[int, ...] | None:
        """Return the fill for images of this type as vit_rs takes it."""
        fill = getattr(self.it, "_fill", self.it.fill)
        if isinstance(fill, dict):
            fill = fill.get(image_type or self.image_type, fill.get("others"))
        if fill is None:
            return None
        values = tuple(fill) if isinstance(fill, Sequence) else (fill,)
        if len(values) not in (1, self.place.channels):
            raise UntranslatableError(f"a fill of {len(values)} values for {self.place.channels} channels")
        if not all(float(value).is_integer() for value in values):
            raise UntranslatableError(f"fill={fill}: vit_rs takes whole numbers")
        whole = tuple(int(value) for value in values)
        return whole[0] if len(whole) == 1 else whole

    def filter(self) -> Any:
        """Return the name of the interpolation."""
        given = self.it.interpolation
        if self.v1 and isinstance(given, str):
            raise UntranslatableError(f"torchvision raises an error here: its v1 class takes no name, got {given!r}")
        if isinstance(given, int):
            return _FILTERS.get(given, given)
        return getattr(given, "value", given)

    def resizing(self) -> Any:
        """Return the name of a resize's filter, where its pixels are those of vit_rs."""
        if self.place.kind != "pil":
            if self.v1 and self.place.kind == "tensor":
                raise UntranslatableError(_V1_RESIZE)
            if self.v1 and self.filter() == "lanczos":
                raise UntranslatableError("torchvision's v1 class has no Lanczos filter for tensors")
            if self.it.antialias is not True:
                raise UntranslatableError(f"antialias={self.it.antialias} on a tensor: vit_rs always antialiases")
            if self.place.kind == "tensor" and not _resizes_alike(self.filter()):
                raise UntranslatableError(_FLOAT_RESIZE)
        return self.filter()

    def pair(self) -> Sequence[int]:
        """Return the size of a crop, which its constructor makes two numbers of."""
        size: Sequence[int] = self.it.size
        if not isinstance(size, Sequence) or len(size) != 2:
            raise UntranslatableError(f"size={size} was set later: torchvision makes no square of one number here")
        return size

    def fill_of_map(self) -> int | tuple[int, ...] | None:
        """Return the fill of a rotation or an affine map."""
        if self.v1 and self.place.kind != "pil" and self.it.fill is None:
            raise UntranslatableError("torchvision raises TypeError here: fill=None was set later")
        return self.fill()

    def refuse_v1_on_bytes(self, what: str) -> None:
        """Raise where v1 has other values than v2 on uint8 tensors."""
        if self.v1 and self.place.kind == "tensor":
            raise UntranslatableError(_V1_COLOR.format(what))

    def refuse_v1_on_floats(self) -> None:
        """Raise where v1 takes no floats."""
        if self.v1 and self.place.kind == "float":
            raise UntranslatableError("torchvision raises TypeError here: its v1 class takes uint8 tensors")

    def ratio(self) -> Sequence[float]:
        """Return the range of aspect ratios, which v2 draws from by a logarithm that it keeps beside it."""
        ratio: Sequence[float] = self.it.ratio
        kept = getattr(self.it, "_log_ratio", None)
        if kept is not None and not torch.equal(kept, torch.log(torch.tensor(ratio, device=kept.device))):
            raise UntranslatableError(f"ratio={ratio} was set later: torchvision goes on drawing from the first one")
        return ratio


@cache
def _resizes_alike(interpolation: Any) -> bool:
    """Tell whether the installed torchvision's v2 takes torch's uint8 kernel, which depends on version and CPU."""
    if interpolation not in ("bilinear", "bicubic", "lanczos"):
        # Refused by vit_rs's own class, with its own reason.
        return True
    modes = sys.modules["torchvision.transforms"].InterpolationMode
    image = (torch.arange(3 * 24 * 20, device="cpu") * 2654435761 >> 13).to(torch.uint8).reshape(3, 24, 20)
    resize = sys.modules["torchvision.transforms.v2.functional"].resize
    try:
        theirs = resize(image, [9, 13], interpolation=modes(interpolation), antialias=True)
    except (NotImplementedError, ValueError):
        # This version has no such filter for tensors.
        return False
    return torch.equal(theirs, ours.Resize((9, 13), interpolation)(image))


def _translated(site: _Site) -> Translation:
    name = type(site.it).__name__
    if (changed := change_of(site.it)) is not None:
        raise UntranslatableError(changed)
    if name in _CONVERSIONS:
        return _CONVERSIONS[name](site)
    if name in _OPERATIONS:
        return _operation(name, site)
    if name == "Lambda":
        raise UntranslatableError(f"runs {name_of(site.it.lambd)}")
    raise UntranslatableError("vit_rs has no such transform")


def _expected(site: _Site) -> Place:
    """Return what a transform that stays in Python is expected to make of the image."""
    name, place = type(site.it).__name__, site.place
    if site.v1:
        place = replace(place, wrapped=False)
    dtype = getattr(site.it, "dtype", None)
    if name == "ToPILImage":
        return Place("pil", place.channels)
    if name == "Grayscale" and site.it.num_output_channels in (1, 3):
        return replace(place, channels=site.it.num_output_channels)
    if name == "RGB":
        return replace(place, channels=3)
    if name == "ToTensor":
        dtype = torch.get_default_dtype()
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return replace(place, kind="float", dtype=dtype)
    return place


# Conversions: what the image is may change.


def _to_tensor(site: _Site) -> Translation:
    if site.place.kind != "pil":
        return _only_of_pil_images(site)
    if torch.get_default_dtype() != torch.float32:
        raise UntranslatableError(f"it makes {torch.get_default_dtype()}, the default dtype: vit_rs makes float32")
    return (ours.ToTensor(),), Place("float", site.place.channels, dtype=torch.float32)


def _pil_to_tensor(site: _Site) -> Translation:
    if site.place.kind != "pil":
        return _only_of_pil_images(site)
    return (ours.PILToTensor(),), Place("tensor", site.place.channels)


def _only_of_pil_images(site: _Site) -> Translation:
    if site.v1:
        raise UntranslatableError("torchvision raises TypeError here: it takes a PIL image")
    return (), site.place


def _to_image(site: _Site) -> Translation:
    if site.place.kind == "pil":
        return (ours.PILToTensor(),), Place("tensor", site.place.channels, wrapped=True)
    return (), replace(site.place, wrapped=True)


def _to_dtype(site: _Site) -> Translation:
    dtype, scale = site.it.dtype, getattr(site.it, "scale", True)
    if isinstance(dtype, dict):
        if site.image_type not in dtype and "others" not in dtype:
            raise UntranslatableError("torchvision raises ValueError here: no dtype for images")
        dtype = dtype.get(site.image_type, dtype.get("others"))
    if site.place.kind == "pil" or dtype is None or dtype == site.place.dtype:
        return (), site.place
    return _converted(site.place, dtype, ours.ToDtype(dtype, scale=scale))


def _convert_image_dtype(site: _Site) -> Translation:
    if not site.v1:
        return _to_dtype(site)
    if site.place.kind == "pil":
        raise UntranslatableError("torchvision raises TypeError here: it takes a tensor")
    if site.it.dtype == site.place.dtype:
        return (), site.place
    if site.it.dtype != torch.float32:
        raise UntranslatableError(f"{site.it.dtype}: torchvision's v1 class divides in that type, vit_rs in float32")
    return _converted(replace(site.place, wrapped=False), torch.float32, ours.ToTensor())


def _converted(place: Place, dtype: torch.dtype, conversion: Transform) -> Translation:
    if place.kind == "float":
        raise UntranslatableError(f"a second conversion, from {place.dtype} to {dtype}: vit_rs makes one")
    return (conversion,), replace(place, kind="float", dtype=dtype)


def _normalize(site: _Site) -> Translation:
    place = site.place
    if place.kind != "float":
        raise UntranslatableError("torchvision raises TypeError here: it takes a float tensor")
    if place.dtype != torch.float32:
        raise UntranslatableError(f"in {place.dtype}, where vit_rs computes in float32")
    mean, std = ([float(value) for value in _values(given)] for given in (site.it.mean, site.it.std))
    if not {len(mean), len(std)} <= {1, place.channels}:
        raise UntranslatableError(f"{len(mean)} means and {len(std)} deviations for {place.channels} channels")
    length = max(len(mean), len(std))
    # The kernel's numbers: torchvision, too, makes float32 of them first.
    narrow = [torch.tensor(values, dtype=torch.float64, device="cpu").to(torch.float32) for values in (mean, std)]
    if not all(values.isfinite().all() for values in narrow) or (narrow[1] == 0).any():
        raise UntranslatableError(f"mean={mean}, std={std}: in float32 means must be finite, and std finite and not 0")
    normalize = ours.Normalize(mean * (length // len(mean)), std * (length // len(std)))
    return (normalize,), replace(place, wrapped=place.wrapped and not site.v1)


def _values(given: Any) -> list[Any]:
    """Return the items of a list or a tensor, or a single number as a list."""
    plain = given.tolist() if isinstance(given, torch.Tensor) else given
    return list(plain) if isinstance(plain, Sequence) else [plain]


def _grayscale(site: _Site) -> Translation:
    channels = site.it.num_output_channels
    if channels == site.place.channels == 1:
        return (), site.place
    if site.place.channels == 1:
        raise UntranslatableError("an image of one channel stays one in vit_rs")
    return _operation("Grayscale", site)


def _rgb(site: _Site) -> Translation:
    if site.place.channels != 3:
        raise UntranslatableError("an image of one channel stays one in vit_rs")
    return (), site.place


_CONVERSIONS: dict[str, Callable[[_Site], Translation]] = {
    "ConvertImageDtype": _convert_image_dtype,
    "Grayscale": _grayscale,
    "Identity": lambda site: ((), site.place),
    "Normalize": _normalize,
    "PILToTensor": _pil_to_tensor,
    "RGB": _rgb,
    "ToDtype": _to_dtype,
    "ToImage": _to_image,
    "ToPureTensor": lambda site: ((), replace(site.place, wrapped=False)),
    "ToTensor": _to_tensor,
}


# Operations on pixels: the image stays what it is.


def _operation(name: str, site: _Site) -> Translation:
    place = site.place
    if place.kind == "float" and place.dtype != torch.float32:
        raise UntranslatableError(f"in {place.dtype}, where vit_rs computes in float32")
    if site.v1 and place.wrapped and name not in ("CenterCrop", "RandomCrop", "RandomErasing", "RandomResizedCrop"):
        raise UntranslatableError(
            "torchvision's v1 class makes a plain tensor of a tv_tensors.Image, or not, as drawn: take that of "
            "torchvision.transforms.v2, or put ToPureTensor before it"
        )
    made = _OPERATIONS[name](site)
    return (made,), replace(place, wrapped=place.wrapped and (not site.v1 or name == "RandomErasing"))


def _resize(site: _Site) -> Transform:
    return ours.Resize(site.it.size, site.resizing(), max_size=site.it.max_size)


def _random_resized_crop(site: _Site) -> Transform:
    return ours.RandomResizedCrop(site.pair(), site.it.scale, site.ratio(), site.resizing())


def _random_crop(site: _Site) -> Transform:
    it = site.it
    padding = it.padding
    if not site.v1 and padding is not None:
        left, right, top, bottom = padding
        padding = left, top, right, bottom
    fill = site.fill()
    one = isinstance(it.fill if site.v1 else fill, Real | None)
    if site.place.kind != "pil" and not one and (site.v1 or it.padding_mode != "constant"):
        raise UntranslatableError(f"torchvision raises an error here: fill={it.fill} is not one number")
    return ours.RandomCrop(site.pair(), padding, it.pad_if_needed, fill, it.padding_mode)


def _color_jitter(site: _Site) -> Transform:
    it = site.it
    for name in ("brightness", "contrast", "saturation", "hue"):
        given = getattr(it, name)
        if given is not None and not isinstance(given, Sequence):
            raise UntranslatableError(f"torchvision raises TypeError here: {name}={given} was set later, no range")
    if it.saturation is not None or it.hue is not None:
        site.refuse_v1_on_bytes("saturation and hue")
    return ours.ColorJitter(it.brightness, it.contrast, it.saturation, it.hue)


def _autocontrast(site: _Site) -> Transform:
    site.refuse_v1_on_bytes("stretched contrast")
    return ours.RandomAutocontrast(site.it.p)


def _posterize(site: _Site) -> Transform:
    site.refuse_v1_on_floats()
    if site.place.kind == "pil" and site.it.bits == 0:
        raise UntranslatableError("bits=0: Pillow 13 raises an error here")
    return ours.RandomPosterize(site.it.bits, site.it.p)


def _solarize(site: _Site) -> Transform:
    threshold = site.it.threshold
    if site.place.kind == "tensor" and not 0 <= threshold <= 255:
        raise UntranslatableError(f"threshold={threshold}: torch takes it as a byte, which it is not")
    return ours.RandomSolarize(threshold, site.it.p)


def _equalize(site: _Site) -> Transform:
    site.refuse_v1_on_floats()
    return ours.RandomEqualize(site.it.p)


def _sharpness(site: _Site) -> Transform:
    site.refuse_v1_on_bytes("sharpness")
    return ours.RandomAdjustSharpness(site.it.sharpness_factor, site.it.p)


def _rotation(site: _Site) -> Transform:
    it = site.it
    return ours.RandomRotation(it.degrees, site.filter(), it.expand, it.center, site.fill_of_map())


def _affine(site: _Site) -> Transform:
    it = site.it
    fill = site.fill_of_map()
    return ours.RandomAffine(it.degrees, it.translate, it.scale, it.shear, site.filter(), fill, it.center)


def _erasing(site: _Site) -> Transform:
    it, value = site.it, site.it.value
    if site.v1 and site.place.kind == "pil":
        raise UntranslatableError("torchvision raises an error here: its v1 class takes a tensor")
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) not in (1, site.place.channels):
        raise UntranslatableError(f"value={value} for {site.place.channels} channels")
    return ours.RandomErasing(it.p, it.scale, site.ratio(), "random" if value is None else value)


def _rand_augment(site: _Site) -> Transform:
    it = site.it
    site.refuse_v1_on_floats()
    site.refuse_v1_on_bytes("saturation and sharpness")
    return ours.RandAugment(it.num_ops, it.magnitude, it.num_magnitude_bins, site.filter(), site.fill(), v1=site.v1)


def _trivial_augment(site: _Site) -> Transform:
    site.refuse_v1_on_floats()
    site.refuse_v1_on_bytes("saturation and sharpness")
    return ours.TrivialAugmentWide(site.it.num_magnitude_bins, site.filter(), site.fill(), v1=site.v1)


def _auto_augment(site: _Site) -> Transform:
    it = site.it
    site.refuse_v1_on_floats()
    site.refuse_v1_on_bytes("saturation and sharpness")
    if (it.policies if site.v1 else it._policies) != it._get_policies(it.policy):  # noqa: SLF001
        raise UntranslatableError("its pairs of operations are not those of its policy")
    return ours.AutoAugment(it.policy, site.filter(), site.fill(), v1=site.v1)


def _aug_mix(site: _Site) -> Transform:
    it = site.it
    if site.v1:
        raise UntranslatableError(_V1_COLOR.format("saturation, sharpness and contrast"))
    # PIL images are mixed as tensors: theirs is the fill.
    fill = site.fill(torch.Tensor)
    return ours.AugMix(it.severity, it.mixture_width, it.chain_depth, it.alpha, it.all_ops, site.filter(), fill)


_OPERATIONS: dict[str, Callable[[_Site], Transform]] = {
    "AugMix": _aug_mix,
    "AutoAugment": _auto_augment,
    "CenterCrop": lambda site: ours.CenterCrop(site.it.size),
    "ColorJitter": _color_jitter,
    "GaussianBlur": lambda site: ours.GaussianBlur(site.it.kernel_size, site.it.sigma),
    "Grayscale": lambda site: ours.Grayscale(site.it.num_output_channels),
    "RandAugment": _rand_augment,
    "RandomAdjustSharpness": _sharpness,
    "RandomAffine": _affine,
    "RandomAutocontrast": _autocontrast,
    "RandomCrop": _random_crop,
    "RandomEqualize": _equalize,
    "RandomErasing": _erasing,
    "RandomGrayscale": lambda site: ours.RandomGrayscale(site.it.p),
    "RandomHorizontalFlip": lambda site: ours.RandomHorizontalFlip(site.it.p),
    "RandomInvert": lambda site: ours.RandomInvert(site.it.p),
    "RandomPosterize": _posterize,
    "RandomResizedCrop": _random_resized_crop,
    "RandomRotation": _rotation,
    "RandomSolarize": _solarize,
    "RandomVerticalFlip": lambda site: ours.RandomVerticalFlip(site.it.p),
    "Resize": _resize,
    "TrivialAugmentWide": _trivial_augment,
}
