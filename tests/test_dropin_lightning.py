"""Lightning makes a loader anew where it changes the sampler: it is ours again, and takes over what it was given."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from vit_rs.data import DataLoader

# Lightning's own warnings, about its versions and about small runs.
pytestmark = pytest.mark.filterwarnings("ignore")

COUNT = 20
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
def lightning():
    return pytest.importorskip("lightning")


@pytest.fixture
def module(lightning):
    """Return a module that keeps the labels of the batches that it is given, and the images."""

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.labels, self.images = model(), [], []

        def training_step(self, batch, index):
            self.labels.append(batch[1].tolist())
            self.images.append(batch[0].clone())
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def predict_step(self, batch, index):
            return batch[1]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    return Module


@pytest.fixture
def trainer(lightning, tmp_path):
    def make(**options):
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        options = {"max_epochs": 1, "enable_checkpointing": False} | options
        return lightning.Trainer(accelerator="cpu", default_root_dir=tmp_path, **quiet, **options)

    return make


def test_predicting_makes_ours_anew(trainer, module, dataset):
    runner = trainer()
    predicted = runner.predict(module(), DataLoader(dataset, 8, num_workers=2))
    assert type(runner.predict_dataloaders) is DataLoader
    assert runner.predict_dataloaders.num_workers == 2
    assert torch.cat(predicted).tolist() == list(range(COUNT))


def test_another_sampler_is_taken_over(trainer, module, dataset):
    """overfit_batches turns shuffling off, by a loader made anew; everything else stays as it was given."""
    runner, learner = trainer(overfit_batches=3), module()
    loader = DataLoader(dataset, 4, shuffle=True, num_workers=2, persistent_workers=True, fallback="torch")
    runner.fit(learner, loader)
    made = runner.train_dataloader
    assert type(made) is DataLoader
    assert made is not loader
    assert (made.num_workers, made.persistent_workers, made.fallback) == (2, True, "torch")
    assert learner.labels == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_loaders_made_in_a_hook_keep_nothing_of_the_first(trainer, module, dataset):
    """Lightning replays attributes that were set on the loader; an iteration begun before must not come along."""
    made = []

    class Data(pytest.importorskip("lightning").LightningDataModule):
        def train_dataloader(self):
            made.append(DataLoader(dataset, 4, shuffle=True, num_workers=2))
            next(iter(made[0]))
            return made[0]

    runner, learner = trainer(overfit_batches=5), module()
    runner.fit(learner, datamodule=Data())
    assert type(runner.train_dataloader) is DataLoader
    assert runner.train_dataloader is not made[0]
    assert joined(learner.labels) == list(range(COUNT))
    assert len(labels_of(made[0])) == 5


def test_a_run_goes_on_in_the_middle_of_an_epoch(lightning, trainer, module, dataset, tmp_path):
    """Lightning's checkpoints hold the loader's state; the batches that follow are those of the run without a break."""

    def loader():
        return DataLoader(dataset, 4, shuffle=True, num_workers=2, generator=torch.Generator().manual_seed(3))

    whole, resumed = module(), module()
    saving = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, "at-{step}", every_n_train_steps=2, save_top_k=-1)
    trainer(enable_checkpointing=True, callbacks=[saving]).fit(whole, loader())
    trainer().fit(resumed, loader(), ckpt_path=tmp_path / "at-step=2.ckpt")
    assert len(whole.labels) == 5
    assert resumed.labels == whole.labels[2:]
    assert all(map(torch.equal, resumed.images, whole.images[2:]))


def test_fabric_iterates_ours(lightning, dataset):
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    wrapped = fabric.setup_dataloaders(DataLoader(dataset, 8, num_workers=2))
    assert joined(labels_of(wrapped)) == list(range(COUNT))


@pytest.mark.slow
def test_two_processes_share_the_images(lightning, class_per_image, tmp_path):
    """A DistributedSampler is injected in both; each sees its half, through our loader."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            import sys
            import lightning
            import torch
            from torchvision.datasets import ImageFolder
            from torchvision.transforms import v2
            from vit_rs.data import DataLoader

            class Module(lightning.LightningModule):
                def __init__(self):
                    super().__init__()
                    self.net = torch.nn.Linear(1, 1)
                def training_step(self, batch, index):
                    made = type(self.trainer.train_dataloader).__module__
                    with open(f"rank{self.global_rank}", "a") as file:
                        print(made, *batch[1].tolist(), file=file)
                    return self.net(batch[0].mean().view(1)).sum()
                def configure_optimizers(self):
                    return torch.optim.SGD(self.parameters(), 0.1)

            folder, = sys.argv[1:]
            chain = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
            quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
            trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", devices=2, strategy="ddp", **quiet)
            trainer.fit(Module(), DataLoader(ImageFolder(folder, chain), 5, shuffle=True, num_workers=2))
        """)
    )
    done = subprocess.run(
        [sys.executable, str(script), class_per_image],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    rows = [[line.split() for line in (tmp_path / f"rank{rank}").read_text().splitlines()] for rank in range(2)]
    assert {row[0].split(".")[0] for rank in rows for row in rank} == {"vit_rs"}
    halves = [sorted(int(label) for row in rank for label in row[1:]) for rank in rows]
    assert [len(half) for half in halves] == [10, 10]
    assert sorted(halves[0] + halves[1]) == list(range(COUNT))
