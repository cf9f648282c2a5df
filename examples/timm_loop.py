"""Training with timm: its model, transforms, Mixup, optimizer and schedule, around vit-rs's loader."""

import timm
import torch
from photographs import data_folder
from timm.data import Mixup, create_transform, resolve_data_config
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torchvision.datasets import ImageFolder

from vit_rs.data import DataLoader  # was: from torch.utils.data import DataLoader

EPOCHS = 2


def main() -> None:
    torch.manual_seed(0)
    data = data_folder()
    classes = sorted(folder.name for folder in (data / "train").iterdir())
    size = {"img_size": 96, "embed_dim": 48, "depth": 2, "num_heads": 3}  # small, for the example's sake
    model = timm.create_model("vit_tiny_patch16_224", num_classes=len(classes), **size)
    config = resolve_data_config({"img_size": 96}, model=model)  # input size, mean, std, interpolation
    shared = {key: config[key] for key in ("input_size", "interpolation", "mean", "std")}
    augment = create_transform(**shared, is_training=True, color_jitter=0.4, re_prob=0.25)
    evaluate = create_transform(**shared, crop_pct=config["crop_pct"])

    train_set, val_set = ImageFolder(str(data / "train"), augment), ImageFolder(str(data / "val"), evaluate)
    train = DataLoader(train_set, batch_size=16, shuffle=True, num_workers=2, drop_last=True)
    val = DataLoader(val_set, batch_size=32, num_workers=2)
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=len(classes))
    criterion = SoftTargetCrossEntropy()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    schedule = CosineLRScheduler(optimizer, t_initial=EPOCHS, lr_min=1e-5)
    for epoch in range(EPOCHS):
        model.train()
        for images, labels in train:
            mixed, targets = mixup(images, labels)
            loss = criterion(model(mixed), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step(epoch + 1)
        model.eval()
        with torch.no_grad():
            right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in val)
        print(f"epoch {epoch}: loss {loss:.3f}, accuracy {right / len(val_set):.3f}")


if __name__ == "__main__":
    main()
