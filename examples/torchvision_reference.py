"""Training as in torchvision's references/classification: its presets, MixUp and CutMix in collate_fn, a sampler."""

import torch
from photographs import data_folder
from torch.utils.data import RandomSampler, SequentialSampler, default_collate
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

from vit_rs.data import DataLoader  # was: from torch.utils.data import DataLoader
from vit_rs.models import VisionTransformer, ViTConfig

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VALUES = [v2.PILToTensor(), v2.ToDtype(torch.float, scale=True), v2.Normalize(MEAN, STD)]
TRAINING = v2.Compose(
    [
        v2.RandomResizedCrop(96, interpolation=InterpolationMode.BILINEAR, antialias=True),
        v2.RandomHorizontalFlip(0.5),
        v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR),
        *VALUES,
        v2.RandomErasing(0.1),
        v2.ToPureTensor(),
    ]
)
EVALUATION = v2.Compose([v2.Resize(112, antialias=True), v2.CenterCrop(96), *VALUES, v2.ToPureTensor()])


def main() -> None:
    torch.manual_seed(0)
    data = data_folder()
    dataset, dataset_test = ImageFolder(str(data / "train"), TRAINING), ImageFolder(str(data / "val"), EVALUATION)
    classes = len(dataset.classes)
    mix = v2.RandomChoice([v2.MixUp(num_classes=classes, alpha=0.2), v2.CutMix(num_classes=classes, alpha=1.0)])

    def collate(samples):
        return mix(*default_collate(samples))

    options = {"num_workers": 2, "pin_memory": torch.cuda.is_available()}
    loader = DataLoader(dataset, 16, sampler=RandomSampler(dataset), collate_fn=collate, drop_last=True, **options)
    loader_test = DataLoader(dataset_test, 16, sampler=SequentialSampler(dataset_test), **options)
    model = VisionTransformer(ViTConfig(img_size=96, num_classes=classes, embed_dim=64, depth=2, num_heads=4))
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    for epoch in range(2):
        model.train()
        for image, target in loader:
            loss = criterion(model(image), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.inference_mode():
            right = sum(int((model(image).argmax(1) == target).sum()) for image, target in loader_test)
        print(f"epoch {epoch}: loss {loss:.3f}, accuracy {right / len(dataset_test):.3f}")


if __name__ == "__main__":
    main()
