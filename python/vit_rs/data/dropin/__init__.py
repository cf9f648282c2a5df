"""torch's DataLoader over the Rust loader: a training script changes one import."""
