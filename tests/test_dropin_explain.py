"""DataLoader.explain: each transform, where it is done and why, what it costs; stats() where Python sets the pace."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest
import torch
import torchvision
from torch.utils.data import WeightedRandomSampler
from torchvision.transforms import v2

from vit_rs.data import ArrayDataset, DataLoader

COUNT = 12


@pytest.fixture(scope="module")
def root(plain_images) -> str:
    return plain_images(COUNT)


class Emboss:
    def __call__(self, image):
        return image


def slow(image):
    time.sleep(0.002)
    return image


def loader(root: str, *transforms, target_transform=None, **options) -> DataLoader:
    data = torchvision.datasets.ImageFolder(root, v2.Compose(list(transforms)), target_transform)
    return DataLoader(data, **{"batch_size": 4, **options})


FLOAT = (v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5]))


def rows(text: str) -> dict[str, str]:
    """Return the rows by their names, unwrapped; those of the transforms one by one."""
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        assert len(line) <= 120
        if not line.startswith(" " * 13):
            name = line[:12].strip() or f"{name.split(maxsplit=1)[0]} {len(found)}"
            found[name] = line[12:]
        else:
            found[name] += " " + line.strip()
    return found


def test_a_chain_that_is_all_in_rust(root):
    text = loader(root, v2.Resize(16), v2.CenterCrop(8), *FLOAT, v2.RandomHorizontalFlip(), num_workers=2).explain()
    found = rows(text)
    assert found["data set"] == "ImageFolder of 12 images"
    assert found["order"] == "SequentialSampler, batches of 4, the last one may be smaller"
    places = re.findall(r"Rust, (\w+)'s kernels +(\w+)\(", text)
    assert places == [
        *(("Pillow", name) for name in ("Resize", "CenterCrop", "ToImage")),
        *(("torch", name) for name in ("ToDtype", "Normalize", "RandomHorizontalFlip")),
    ]
    assert found["labels"] == "integers"
    assert found["batch"].startswith("images of float32 (3, 8, 8), written into the batch by the threads")
    assert found["random"].startswith("base seed from torch's default generator at each iteration")
    assert "up to 4 batches ahead" in found["threads"]
    assert "2 in Rust (num_workers=2)" in found["threads"]
    assert found["memory"].startswith("3.07 kB a batch; 6 are kept for reuse")
    assert found["cost"] == "not measured: the loader has not run yet"
    assert "Python" not in text.replace("Python's transforms run in the thread", "")


def test_the_same_transforms_on_a_tensor_have_torchs_kernels(root):
    text = loader(root, v2.ToImage(), v2.Resize(16), v2.CenterCrop(8)).explain()
    assert re.findall(r"Rust, (\w+)'s kernels +(\w+)\(", text)[1:] == [("torch", "Resize"), ("torch", "CenterCrop")]


def test_python_is_named_with_its_reason_and_cost(root):
    made = loader(
        root, v2.Resize((8, 8)), Emboss(), v2.RandomHorizontalFlip(), slow, *FLOAT, target_transform=lambda label: label
    )
    found = rows(made.explain())
    chain = [text for name, text in found.items() if name.startswith("transform")]
    assert chain[1].startswith("Python                  Emboss; because ")
    assert "Emboss" in chain[1].partition("because")[2]
    assert chain[2].endswith("because stands between transforms that stay in Python")
    assert chain[3].startswith("Python                  slow; because ")
    assert "Python goes on with it, and Rust writes what it makes of that into the batch" in found["batch"]
    assert "target_transform in Python: " in found["labels"]
    assert "restored" in found["random"]
    list(made)
    text = made.explain()
    found = rows(text)
    chain = [text for name, text in found.items() if name.startswith("transform")]
    [cost] = re.findall(r"; ([\d,]+) us an image", chain[3])
    assert 2000 <= int(cost.replace(",", "")) < 200_000
    assert re.search(r"us a label$", found["labels"])
    assert re.match(
        r"read [\d,]+, decode [\d,]+, augment [\d,]+, emit [\d,]+ us of thread time an image, in 12 images; Python "
        r"[\d,]+ us of the consumer's time, and Rust behind it [\d,]+ us$",
        found["cost"],
    )
    stats = made.stats()
    assert stats.python_us > 2000
    assert stats.verdict == "python-bound"
    assert "explain() says which they are" in stats.advice
    assert re.search(r"python +[\d,.]+ us an image, in the consumer's thread", str(stats))


def test_what_python_made_unexpectedly_is_said(root):
    to_tensor = lambda image: v2.functional.pil_to_tensor(image)  # noqa: E731, PLW0108
    made = loader(root, v2.Resize((8, 8)), to_tensor, v2.CenterCrop(4), v2.ToDtype(torch.float32, scale=True))
    assert "Python made" not in made.explain()
    list(made)
    expected = "Python made tensors of uint8 (RGB) there, not PIL images (RGB): the rest was done with its kernels"
    assert expected in " ".join(made.explain().split())
    to_array = lambda image: np.asarray(image).copy()  # noqa: E731
    made = loader(root, v2.Resize((8, 8)), to_array, v2.ToImage())
    list(made)
    expected = "Python made something else than images there, not PIL images (RGB): the rest was done in Python"
    assert expected in " ".join(made.explain().split())


def test_what_has_no_effect_is_said(root):
    options = {"num_workers": 1, "worker_init_fn": print, "multiprocessing_context": "spawn", "in_order": False}
    text = loader(root, v2.Resize((8, 8)), *FLOAT, pin_memory=True, **options).explain()
    assert "worker_init_fn is not called: nothing of yours runs in Python" in text
    assert "multiprocessing_context is not used: there are no processes" in text
    assert "in_order=False is not used: batches come in order" in text
    assert "pin_memory: " in text
    listed = torchvision.datasets.ImageFolder(root, v2.Compose([v2.Resize((8, 8)), *FLOAT]))
    listed.samples = [(path, float(label)) for path, label in listed.samples]
    calls = []
    made = DataLoader(listed, 4, num_workers=1, worker_init_fn=calls.append)
    list(made)
    assert calls == []
    assert "worker_init_fn is not called: nothing of yours runs in Python" in made.explain()
    text = loader(root, v2.Resize((8, 8)), *FLOAT, worker_init_fn=print, collate_fn=list, num_workers=1).explain()
    assert "worker_init_fn is called once for each iteration, with 0" in text
    text = loader(root, Emboss(), num_workers=1, worker_init_fn=print).explain()
    assert "worker_init_fn is called once for each iteration, with 0" in text


def test_samplers_collation_and_sizes(root):
    data = ArrayDataset(np.zeros((9, 4, 4, 1), np.uint8), np.arange(9))
    sampler = WeightedRandomSampler([1.0] * 9, 9, generator=torch.Generator())
    text = DataLoader(data, 2, sampler=sampler, drop_last=True, collate_fn=list, generator=torch.Generator()).explain()
    assert "WeightedRandomSampler, batches of 2, one that is not full is left out" in text
    assert "views of a batch that the threads write; list gets the samples" in text
    assert "base seed from the generator that was given" in text
    assert "transform   none" in text
    assert "list gives batches" in DataLoader(data, batch_sampler=[[0]]).explain()
    assert "SequentialSampler gives single samples" in DataLoader(data, batch_size=None).explain()
    text = loader(root, v2.ToImage()).explain()
    assert "their sizes differ; default_collate gets the samples" in text
    assert "buffers that are used again" in text


def test_explaining_starts_no_thread_and_disturbs_no_iteration(root):
    made = loader(root, v2.Resize((8, 8)), *FLOAT, shuffle=True)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    made.explain()
    assert torch.equal(torch.get_rng_state(), state)
    want = [labels.tolist() for _, labels in made]
    torch.manual_seed(0)
    got = []
    for _, labels in made:
        got.append(labels.tolist())
        made.explain()
    assert got == want
