"""A LightningDataModule on vit-rs's loader; on several devices Lightning gives it a DistributedSampler."""

import lightning as L
import torch
from photographs import data_folder
from torch.nn.functional import cross_entropy
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from vit_rs.data import DataLoader  # was: from torch.utils.data import DataLoader
from vit_rs.models import VisionTransformer, ViTConfig

VALUES = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]


class Photographs(L.LightningDataModule):
    """Class folders below train/ and val/."""

    def setup(self, stage: str) -> None:
        data = data_folder()
        augment = v2.Compose([v2.RandomResizedCrop(96), v2.RandomHorizontalFlip(), *VALUES])
        evaluate = v2.Compose([v2.Resize(112), v2.CenterCrop(96), *VALUES])
        self.train, self.val = ImageFolder(str(data / "train"), augment), ImageFolder(str(data / "val"), evaluate)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=16, shuffle=True, num_workers=2, persistent_workers=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, batch_size=32, num_workers=2, persistent_workers=True)


class Classifier(L.LightningModule):
    """A small ViT."""

    def configure_model(self) -> None:
        config = ViTConfig(img_size=96, num_classes=4, embed_dim=64, depth=2, num_heads=4)
        self.vit = VisionTransformer(config)

    def training_step(self, batch, index: int) -> torch.Tensor:
        return cross_entropy(self.vit(batch[0]), batch[1])

    def validation_step(self, batch, index: int) -> None:
        self.log("accuracy", (self.vit(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main() -> None:
    L.seed_everything(0)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=2, accelerator="cpu", **quiet)
    trainer.fit(Classifier(), datamodule=Photographs())
    print(f"epoch {trainer.current_epoch - 1}: accuracy {trainer.callback_metrics['accuracy']:.3f}")


if __name__ == "__main__":
    main()
