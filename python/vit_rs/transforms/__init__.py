"""What happens to an image: frozen descriptions with torchvision v2's names and arguments, carried out in Rust."""

from vit_rs.transforms.base import Transform
from vit_rs.transforms.containers import Compose, RandomApply, RandomChoice, RandomOrder
from vit_rs.transforms.geometry import (
    CenterCrop,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomVerticalFlip,
    Resize,
)
from vit_rs.transforms.multi_crop import MultiCrop
from vit_rs.transforms.values import Normalize, ToDtype

__all__ = [
    "CenterCrop",
    "Compose",
    "MultiCrop",
    "Normalize",
    "RandomApply",
    "RandomChoice",
    "RandomCrop",
    "RandomHorizontalFlip",
    "RandomOrder",
    "RandomResizedCrop",
    "RandomVerticalFlip",
    "Resize",
    "ToDtype",
    "Transform",
]
