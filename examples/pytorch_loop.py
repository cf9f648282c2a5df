"""A plain PyTorch loop. To use vit-rs, its author changed the line that imports DataLoader."""

import torch
from photographs import data_folder
from torch.nn.functional import cross_entropy
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from vit_rs.data import DataLoader  # was: from torch.utils.data import DataLoader
from vit_rs.models import VisionTransformer, ViTConfig

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
AUGMENT = v2.Compose(
    [
        v2.RandomResizedCrop(96),
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(0.2, 0.2, 0.2),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, STD),
    ]
)
EVALUATE = v2.Compose(
    [v2.Resize(112), v2.CenterCrop(96), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
)


def main() -> None:
    torch.manual_seed(0)
    data = data_folder()
    train_set, val_set = ImageFolder(str(data / "train"), AUGMENT), ImageFolder(str(data / "val"), EVALUATE)
    train = DataLoader(train_set, batch_size=16, shuffle=True, num_workers=2, drop_last=True)
    val = DataLoader(val_set, batch_size=32, num_workers=2)
    config = ViTConfig(img_size=96, num_classes=len(train_set.classes), embed_dim=64, depth=2, num_heads=4)
    model = VisionTransformer(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for epoch in range(3):
        model.train()
        for images, labels in train:
            loss = cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in val)
        print(f"epoch {epoch}: loss {loss:.3f}, accuracy {right / len(val_set):.3f}")


if __name__ == "__main__":
    main()
