"""Data sets and the Rust loader that turns them into batches."""

from vit_rs.data.array import ArrayDataset
from vit_rs.data.folder import ImageFolder
from vit_rs.data.loader import ImageLoader, Patches
from vit_rs.data.sample import load_idx, sample_dataset

__all__ = ["ArrayDataset", "ImageFolder", "ImageLoader", "Patches", "load_idx", "sample_dataset"]
