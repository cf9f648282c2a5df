"""Libraries that wrap or rebuild a loader go on with ours, or are refused where they would quietly build torch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from vit_rs.data import DataLoader

# The libraries' own warnings, about their versions and about small runs.
pytestmark = pytest.mark.filterwarnings("ignore")

COUNT = 20
REFUSED = r"torch's DataLoader, rebuilt from a vit_rs\.data\.DataLoader"
TRANSFORM = v2.Compose([v2.RandomHorizontalFlip(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


@pytest.fixture
def dataset(class_per_image) -> ImageFolder:
    return ImageFolder(class_per_image, TRANSFORM)


def labels_of(loader) -> list[list[int]]:
    return [labels.tolist() for _, labels in loader]


def joined(batches: list[list[int]]) -> list[int]:
    return [label for batch in batches for label in batch]


def model() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, COUNT))


@pytest.fixture
def accelerator():
    return pytest.importorskip("accelerate").Accelerator(cpu=True)


@pytest.mark.parametrize("collate_fn", [None, len])
@pytest.mark.parametrize("workers", [0, 2])
def test_accelerates_prepare_is_refused_at_the_first_batch(accelerator, dataset, workers, collate_fn):
    prepared = accelerator.prepare(DataLoader(dataset, 4, num_workers=workers, collate_fn=collate_fn))
    with pytest.raises(RuntimeError, match=REFUSED):
        next(iter(prepared))


def test_accelerates_skipping_is_refused(accelerator, dataset):
    with pytest.raises(RuntimeError, match=REFUSED):
        next(iter(accelerator.skip_first_batches(DataLoader(dataset, 4), 2)))


def test_accelerate_prepares_model_and_optimizer_alone(accelerator, dataset):
    net = model()
    net, optimizer = accelerator.prepare(net, torch.optim.SGD(net.parameters(), 0.1))
    loader = DataLoader(dataset, 4, num_workers=2)
    for images, labels in loader:
        loss = nn.functional.cross_entropy(net(images.to(accelerator.device)), labels.to(accelerator.device))
        accelerator.backward(loss)
        optimizer.step()
    assert len(loader) == 5


def test_accelerates_shard_takes_ours_as_its_base(accelerator, dataset):
    """The way that docs/drop-in.md shows for those who need accelerate's shards and gradient accumulation."""
    from accelerate.data_loader import prepare_data_loader

    found, expected = [], []
    for rank in range(2):
        shard = prepare_data_loader(DataLoader(dataset, 4, num_workers=2), num_processes=2, process_index=rank)
        shard.base_dataloader = DataLoader(shard.dataset, batch_sampler=shard.batch_sampler, num_workers=2)
        found.append(labels_of(shard))
        assert shard.end_of_dataloader
        theirs = torch.utils.data.DataLoader(dataset, 4)
        expected.append(labels_of(prepare_data_loader(theirs, num_processes=2, process_index=rank)))
    assert found == expected
    assert {label for rank in found for label in joined(rank)} == set(range(COUNT))


@pytest.fixture
def trainer(dataset, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model()

        def forward(self, images, labels):
            return {"loss": nn.functional.cross_entropy(self.net(images), labels)}

    def collate(samples):
        return {"images": torch.stack([s[0] for s in samples]), "labels": torch.tensor([s[1] for s in samples])}

    class Trainer(transformers.Trainer):
        def get_train_dataloader(self):
            return DataLoader(dataset, 4, shuffle=True, num_workers=2, collate_fn=collate)

    def make(**options):
        options = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "logging_steps": 1} | options
        arguments = transformers.TrainingArguments(str(tmp_path), **options)
        return Trainer(Net(), arguments, train_dataset=dataset)

    return make


def test_trainer_sees_whole_epochs(trainer):
    done = trainer(num_train_epochs=2, save_strategy="no").train()
    assert done.global_step == 10


def test_trainers_skipping_is_refused(trainer, tmp_path):
    trainer(max_steps=2, save_strategy="steps", save_steps=2).train()
    checkpoint = str(tmp_path / "checkpoint-2")
    with pytest.raises(RuntimeError, match=REFUSED):
        trainer(max_steps=4, save_strategy="no").train(resume_from_checkpoint=checkpoint)
    runner = trainer(max_steps=4, save_strategy="no", ignore_data_skip=True)
    assert runner.train(resume_from_checkpoint=checkpoint).global_step == 4


def test_timms_prefetch_loader_wraps_ours(class_per_image):
    loaders = pytest.importorskip("timm.data.loader")
    loader = DataLoader(ImageFolder(class_per_image, v2.PILToTensor()), 8, num_workers=2)
    wrapped = loaders.PrefetchLoader(loader, mean=(0.5,) * 3, std=(0.5,) * 3, device=torch.device("cpu"))
    images = torch.cat([images for images, _ in wrapped])
    assert (wrapped.sampler, wrapped.dataset, len(wrapped)) == (loader.sampler, loader.dataset, 3)
    expected = torch.cat([images for images, _ in loader])
    assert torch.equal(images, (expected.float() - 127.5) / 127.5)


def test_timms_mixup_is_switched_off_through_it(dataset):
    from timm.data import FastCollateMixup
    from timm.data.loader import PrefetchLoader

    collate = FastCollateMixup(mixup_alpha=0.8, num_classes=COUNT)
    wrapped = PrefetchLoader(DataLoader(dataset, 4, collate_fn=collate), device=torch.device("cpu"))
    assert wrapped.mixup_enabled
    wrapped.mixup_enabled = False
    assert not collate.mixup_enabled
