"""A training script that knows torchvision and torch alone; compare.py runs it as it is and with one line changed."""

import argparse

import torch
from torch.utils.data import DataLoader
from torchvision import transforms as v1
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# Before the crop, and behind it: images stay PIL's until the end, or become tensors at once.
FORMS = {
    "PIL": (v2, [], [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]),
    "tensor": (v2, [v2.ToImage()], [v2.ToDtype(torch.float32, scale=True)]),
    "PIL, v1": (v1, [], [v1.ToTensor()]),
}


def loaders(train: str, val: str, form: str = "PIL", batch: int = 64) -> tuple[DataLoader, DataLoader]:
    """Return the shuffled loader of random crops of `train`, and that of the middles of `val` in their order."""
    library, first, last = FORMS[form]
    last = [*last, library.Normalize(MEAN, STD)]
    augment = library.Compose([*first, library.RandomResizedCrop(224), library.RandomHorizontalFlip(), *last])
    evaluate = library.Compose([*first, library.Resize(256), library.CenterCrop(224), *last])
    options = {"batch_size": batch, "num_workers": 2, "persistent_workers": True}
    training = DataLoader(ImageFolder(train, augment), shuffle=True, **options)
    return training, DataLoader(ImageFolder(val, evaluate), **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="folder with train/ and val/, which hold a sub-folder for each class")
    data = parser.parse_args().data
    training, validation = loaders(f"{data}/train", f"{data}/val")
    side, classes = 14, len(training.dataset.classes)
    model = torch.nn.Sequential(torch.nn.AvgPool2d(side), torch.nn.Flatten(), torch.nn.LazyLinear(classes))
    model(next(iter(validation))[0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for epoch in range(2):
        for images, labels in training:
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in validation)
        print(f"epoch {epoch}: loss {loss:.3f}, accuracy {right / len(validation.dataset):.3f}")


if __name__ == "__main__":
    main()
