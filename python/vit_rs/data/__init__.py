"""Data sets and the Rust loader that turns them into batches."""

from vit_rs.data.array import ArrayDataset
from vit_rs.data.dropin import DataLoader
from vit_rs.data.encoded import EncodedDataset
from vit_rs.data.folder import ImageFolder
from vit_rs.data.loader import ImageLoader, Patches
from vit_rs.data.sample import load_idx, sample_dataset
from vit_rs.data.statistics import LoaderStats
from vit_rs.data.table import ImageTable
from vit_rs.data.tar import TarShards

__all__ = [
    "ArrayDataset",
    "DataLoader",
    "EncodedDataset",
    "ImageFolder",
    "ImageLoader",
    "ImageTable",
    "LoaderStats",
    "Patches",
    "TarShards",
    "load_idx",
    "sample_dataset",
]
