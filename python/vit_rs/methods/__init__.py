"""Training methods: one file each holds what a method does to a batch, and its loss; averages and LARS beside."""

from vit_rs.methods.ema import EMA
from vit_rs.methods.lars import LARS
from vit_rs.methods.supervised import Supervised

__all__ = ["EMA", "LARS", "Supervised"]
