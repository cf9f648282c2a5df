"""Hugging Face's Trainer: it builds torch's DataLoader itself, so its two methods that do so are overridden."""

import tempfile

import torch
from photographs import data_folder
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from vit_rs.data import DataLoader

VALUES = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
AUGMENT = v2.Compose([v2.RandomResizedCrop(96), v2.RandomHorizontalFlip(), *VALUES])
EVALUATE = v2.Compose([v2.Resize(112), v2.CenterCrop(96), *VALUES])


def collate(samples):
    images, labels = zip(*samples, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}


class ImageTrainer(Trainer):
    """A Trainer whose images come from vit-rs.

    The loaders do not go through `self.accelerator.prepare`, which would build torch's in their place; on several
    devices they need a DistributedSampler.
    """

    def get_train_dataloader(self) -> DataLoader:
        size, workers = self.args.per_device_train_batch_size, self.args.dataloader_num_workers
        return DataLoader(self.train_dataset, size, shuffle=True, num_workers=workers, collate_fn=collate)

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        dataset, size = eval_dataset or self.eval_dataset, self.args.per_device_eval_batch_size
        return DataLoader(dataset, size, num_workers=self.args.dataloader_num_workers, collate_fn=collate)


def main() -> None:
    data = data_folder()
    train, val = ImageFolder(str(data / "train"), AUGMENT), ImageFolder(str(data / "val"), EVALUATE)
    size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    model = ViTForImageClassification(ViTConfig(image_size=96, num_labels=len(train.classes), **size))
    with tempfile.TemporaryDirectory() as out:
        sizes = {"per_device_train_batch_size": 16, "per_device_eval_batch_size": 32, "dataloader_num_workers": 2}
        quiet = {"save_strategy": "no", "report_to": "none"}
        arguments = TrainingArguments(out, num_train_epochs=2, learning_rate=1e-3, **sizes, **quiet)
        trainer = ImageTrainer(model, arguments, train_dataset=train, eval_dataset=val)
        trainer.train()
        print(f"loss {trainer.evaluate()['eval_loss']:.3f}")


if __name__ == "__main__":
    main()
