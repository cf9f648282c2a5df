"""What happens to an image: frozen descriptions with torchvision v2's names and arguments, carried out in Rust."""

from vit_rs.transforms.compose import Compose, Transform
from vit_rs.transforms.geometry import (
    CenterCrop,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomVerticalFlip,
    Resize,
)
from vit_rs.transforms.values import Normalize, ToDtype

__all__ = [
    "CenterCrop",
    "Compose",
    "Normalize",
    "RandomCrop",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "RandomVerticalFlip",
    "Resize",
    "ToDtype",
    "Transform",
]
