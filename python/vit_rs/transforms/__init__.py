"""What happens to an image: frozen descriptions with torchvision v2's names and arguments, carried out in Rust."""

from vit_rs.transforms.affine import RandomAffine, RandomRotation
from vit_rs.transforms.base import Transform
from vit_rs.transforms.blur import GaussianBlur
from vit_rs.transforms.color import (
    ColorJitter,
    Grayscale,
    RandomAdjustSharpness,
    RandomAutocontrast,
    RandomEqualize,
    RandomGrayscale,
    RandomInvert,
    RandomPosterize,
    RandomSolarize,
)
from vit_rs.transforms.containers import Compose, RandomApply, RandomChoice, RandomOrder
from vit_rs.transforms.erasing import RandomErasing
from vit_rs.transforms.fitting import CenterCropOrPad, RandomCropOrPad, ResizeKeepRatio, TrimBorder
from vit_rs.transforms.geometry import (
    CenterCrop,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomVerticalFlip,
    Resize,
)
from vit_rs.transforms.mixing import CutMix, MixUp
from vit_rs.transforms.multi_crop import MultiCrop
from vit_rs.transforms.policy import AugMix, AutoAugment, RandAugment, ThreeAugment, TrivialAugmentWide
from vit_rs.transforms.timm_policy import TimmAugMix, TimmOp, TimmRandAugment, timm_policy
from vit_rs.transforms.values import Normalize, PILToTensor, ToDtype, ToTensor

__all__ = [
    "AugMix",
    "AutoAugment",
    "CenterCrop",
    "CenterCropOrPad",
    "ColorJitter",
    "Compose",
    "CutMix",
    "GaussianBlur",
    "Grayscale",
    "MixUp",
    "MultiCrop",
    "Normalize",
    "PILToTensor",
    "RandAugment",
    "RandomAdjustSharpness",
    "RandomAffine",
    "RandomApply",
    "RandomAutocontrast",
    "RandomChoice",
    "RandomCrop",
    "RandomCropOrPad",
    "RandomEqualize",
    "RandomErasing",
    "RandomGrayscale",
    "RandomHorizontalFlip",
    "RandomInvert",
    "RandomOrder",
    "RandomPosterize",
    "RandomResizedCrop",
    "RandomRotation",
    "RandomSolarize",
    "RandomVerticalFlip",
    "Resize",
    "ResizeKeepRatio",
    "ThreeAugment",
    "TimmAugMix",
    "TimmOp",
    "TimmRandAugment",
    "ToDtype",
    "ToTensor",
    "Transform",
    "TrimBorder",
    "TrivialAugmentWide",
    "timm_policy",
]
