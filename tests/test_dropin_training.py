"""Twenty epochs of a real training loop: memory, threads, descriptors and /dev/shm stay what they were."""

from __future__ import annotations

import gc
import os

import pytest
import torch
from PIL import Image
from skimage import data
from torch.nn.functional import cross_entropy
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from vit_rs.data import DataLoader
from vit_rs.models import VisionTransformer, ViTConfig

COUNT, EPOCHS, SETTLED = 48, 20, 4
# Bytes that the process may grow by: five batches, since a few more or fewer may live at a moment. Keeping one batch of
# each epoch would be four times as much.
ALLOWED = 12 << 20
VALUES = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)]


def brighter(image: Image.Image) -> Image.Image:
    """A user's own function, for which Python's stages run."""
    return image.point(lambda value: min(255, value + 8))


CHAINS = {
    "all in Rust": [v2.RandomResizedCrop(112), v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4, 0.4), *VALUES],
    "a function in Python": [v2.RandomResizedCrop(112), brighter, v2.RandomHorizontalFlip(), *VALUES],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("photographs")
    names = ("astronaut", "chelsea", "coffee", "rocket")
    wholes = [Image.fromarray(getattr(data, name)()) for name in names]
    for number in range(COUNT):
        path = root / names[number % 4] / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        wholes[number % 4].crop((number, number, 300 + number, 240 + number)).save(path, quality=95)
    return str(root)


def usage() -> tuple[int, int, int, int]:
    """Resident bytes, threads, descriptors, names in /dev/shm."""
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resident, *(len(os.listdir(path)) for path in ("/proc/self/task", "/proc/self/fd", "/dev/shm"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts in /proc")
@pytest.mark.parametrize(
    ("chain", "persistent"),
    [("all in Rust", False), pytest.param("a function in Python", True, marks=pytest.mark.slow)],
)
def test_twenty_epochs_of_training_are_flat(folder, chain, persistent):
    torch.manual_seed(0)
    dataset = ImageFolder(folder, v2.Compose(CHAINS[chain]))
    loader = DataLoader(dataset, 16, shuffle=True, num_workers=2, persistent_workers=persistent)
    evaluation = DataLoader(ImageFolder(folder, v2.Compose([v2.Resize((112, 112)), *VALUES])), 16, num_workers=2)
    model = VisionTransformer(ViTConfig(img_size=112, num_classes=4, embed_dim=32, depth=1, num_heads=2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for epoch in range(EPOCHS + SETTLED):
        model.train()
        total = 0.0
        for images, labels in loader:
            loss = cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total / len(loader))
        model.eval()
        with torch.no_grad():
            assert sum(len(model(images)) for images, _ in evaluation) == COUNT
        if epoch == SETTLED - 1:
            before = usage()
    after = usage()
    # Fewer may be left of what other tests began.
    grown = [now - then for now, then in zip(after, before, strict=True)]
    assert max(grown[1:]) <= 0, f"threads, descriptors and names in /dev/shm grew by {grown[1:]}"
    assert grown[0] < ALLOWED, f"grew by {grown[0]} bytes"
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4]), losses  # and it learns
