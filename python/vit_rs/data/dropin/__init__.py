"""torch's DataLoader over the Rust loader: a training script changes one import."""

from vit_rs.data.dropin.dataloader import DataLoader

__all__ = ["DataLoader"]
