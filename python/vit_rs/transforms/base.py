"""What every transform is: a frozen description that the engine carries out, in a loader or on one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vit_rs._core import Op

__all__ = ["PixelTransform", "Transform"]


@dataclass(frozen=True)
class Transform:
    """A description of what happens to an image.

    A transform is given to an `ImageLoader`, or called on one image: see `__call__`.
    """

    def steps(self) -> Iterator[Transform]:
        """Yield the transforms that this one is made of, in order; of most only itself."""
        yield self

    def _keep(self, **values: Any) -> None:
        """Keep arguments as they were made by their checks: this object is frozen for everybody else."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def engines(self) -> dict[Any, Any]:
        """What was made of this transform to call it on images; not a part of its value."""
        return self.__dict__.setdefault("_engines", {})  # type: ignore[no-any-return]  # of this line's own dict

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_engines"}

    def __call__(self, image: Any) -> Any:
        """Transform one image.

        Args:
            image: a file's bytes (JPEG, PNG, WebP); a PIL image; a uint8 tensor (C, H, W), C = 1 or 3; or a uint8 numpy
                array (H, W, C) or (H, W). Other threads run meanwhile: none of them may write to the image before the
                call returns. Bytes are decoded as they lie in the file, an EXIF orientation is not applied; a file of
                more pixels than `ImageLoader`'s default of `max_pixels` is refused.

        Returns:
            What came in: a PIL image for a PIL image, an array for an array, a tensor for a tensor, and for bytes a
            tensor (C, H, W). After ToTensor, ToDtype to a float type, or PILToTensor on a PIL image always a tensor
            (C, H, W). With MultiCrop a tuple of these.

        Random numbers come from torch's default generator, as in torchvision: one is drawn for each call. PIL images
        are transformed with Pillow's kernels up to a PILToTensor, all others with torch's, unless a Compose names them.

        Raises:
            DecodeError: bytes that are not a readable image, or one of too many pixels.
            TypeError: another kind of image.
            ValueError: a shape that an image does not have, or an image that does not fit the transform.
        """
        from vit_rs.transforms.calling import call  # noqa: PLC0415  (the room above this file)

        return call(self, image)


class PixelTransform(Transform):
    """A transform of pixels: one operation of the engine."""

    def _op(self) -> Op:
        """Return the engine's operation; raises for parameters that make no sense."""
        raise NotImplementedError
