"""Data sets given to the drop-in loader: the images and labels that `dataset[i]` gives, read by Rust, or a reason."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.utils.data import ConcatDataset, IterableDataset, Subset, TensorDataset, random_split
from torchvision import datasets
from torchvision.datasets.folder import pil_loader
from torchvision.datasets.vision import StandardTransform

from vit_rs.data import ArrayDataset, EncodedDataset, ImageFolder, ImageLoader, loader
from vit_rs.data.dropin import datasets_torchvision
from vit_rs.data.dropin.datasets import Fingerprint, open_dataset
from vit_rs.data.dropin.places import Place, UntranslatableError
from vit_rs.transforms import Resize

H, W = 9, 12


def flip(image):
    return image


def increase(label):
    return label + 1


@pytest.fixture
def read(monkeypatch):
    """Return a function: the images, u8 (N, C, H, W), and labels of an opened data set, through the engine."""

    def through_the_engine(opened, size):
        monkeypatch.setattr(loader, "open_source", lambda *_args, **_kwargs: opened.opened)
        # All images have this size; for files, the loader wants it said.
        with ImageLoader([], Resize(size), batch_size=100, num_threads=1) as batches:
            return next(iter(batches))

    return through_the_engine


def write(path: Path, number: int) -> str:
    rng = np.random.default_rng(number)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Gray ones too, which must come as RGB.
    shape = (H, W) if number % 3 == 2 else (H, W, 3)
    Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(path)
    return str(path)


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(["a/0.jpg", "a/1.PNG", "b/2.jpeg", "b/3.webp", "c/4.png"]):
        write(tmp_path / name, number)
    return tmp_path


def made(kind, **attributes):
    """Return a data set as its __init__ leaves it, without the download that it checks."""
    dataset = object.__new__(kind)
    given = {"transform": flip, "target_transform": increase, **attributes}
    dataset.__dict__.update(given, transforms=StandardTransform(given["transform"], given["target_transform"]))
    return dataset


def files_of(kind, root, **attributes):
    paths = [write(root / f"{number}.png", number) for number in range(4)]
    labels = [3, 1, 2, 1]
    lists = {"paths": paths, "labels": labels, "samples": list(zip(paths, labels, strict=True))}
    filled = {name: lists[value] if isinstance(value, str) else value for name, value in attributes.items()}
    return made(kind, **filled)


LISTS = {"_image_files": "paths", "_labels": "labels", "loader": pil_loader}
FILE_SETS = {
    "Flowers102": LISTS,
    "Food101": LISTS,
    "FGVCAircraft": LISTS,
    "DTD": LISTS,
    "SUN397": LISTS,
    "CLEVRClassification": LISTS,
    "StanfordCars": {"_samples": "samples", "loader": pil_loader},
    "Imagenette": {"_samples": "samples", "loader": pil_loader},
    "RenderedSST2": {"_samples": "samples", "loader": pil_loader},
    "GTSRB": {"_samples": "samples"},
    "EuroSAT": {"samples": "samples", "loader": pil_loader},
    "Country211": {"samples": "samples", "loader": pil_loader},
    "ImageNet": {"samples": "samples", "loader": datasets.folder.default_loader},
    "Places365": {"imgs": "samples", "loader": pil_loader},
    "LFWPeople": {"data": "paths", "targets": "labels", "_loader": pil_loader},
    "OxfordIIITPet": {
        "_images": "paths",
        "_labels": "labels",
        "_bin_labels": [0, 1, 1, 0],
        "_target_types": ["category"],
    },
}
RNG = np.random.default_rng(0)
GRAY = torch.from_numpy(RNG.integers(0, 256, (6, 5, 4), np.uint8))
PLANES = RNG.integers(0, 256, (6, 3, 5, 8), np.uint8)
ARRAY_SETS = {
    "CIFAR10": {"data": PLANES.transpose(0, 2, 3, 1), "targets": [5, 4, 3, 2, 1, 0]},
    "CIFAR100": {"data": np.ascontiguousarray(PLANES.transpose(0, 2, 3, 1)), "targets": [5, 4, 3, 2, 1, 0]},
    "MNIST": {"data": GRAY, "targets": torch.arange(6)},
    "FashionMNIST": {"data": GRAY, "targets": torch.arange(6)},
    "KMNIST": {"data": GRAY[:, ::2], "targets": torch.arange(6)},
    "EMNIST": {"data": GRAY.transpose(1, 2), "targets": torch.arange(6)},
    "QMNIST": {"data": GRAY, "targets": torch.arange(48).view(6, 8), "compat": True},
    "USPS": {"data": GRAY.numpy(), "targets": list(range(6))},
    "SEMEION": {"data": GRAY.numpy(), "labels": np.arange(6)},
    # As scipy reads it: columns of pixels, in Fortran's order.
    "SVHN": {
        "data": np.transpose(np.asfortranarray(PLANES.transpose(2, 3, 1, 0)), (3, 2, 0, 1)),
        "labels": np.arange(6),
    },
    "STL10": {"data": PLANES.transpose(0, 1, 3, 2), "labels": np.arange(6, dtype=np.uint8)},
}


def check_samples(dataset, opened, read):
    """Check images and labels against the data set's own items."""
    items = [dataset[index] for index in range(len(dataset))]
    pixels = [
        np.asarray(image) if isinstance(image, Image.Image) else image.permute(1, 2, 0).numpy() for image, _ in items
    ]
    images, labels = read(opened, pixels[0].shape[:2])
    assert len(images) == len(items) == opened.opened.samples
    np.testing.assert_array_equal(images.permute(0, 2, 3, 1).numpy().reshape(np.stack(pixels).shape), np.stack(pixels))
    before = labels.tolist() if opened.targets is None else opened.targets
    after = [label if opened.target_transform is None else opened.target_transform(label) for label in before]
    assert [(type(label), label) for label in after] == [(type(label), label) for _, label in items]


@pytest.mark.parametrize("name", FILE_SETS)
def test_torchvisions_sets_of_files(name, tmp_path, read):
    dataset = files_of(getattr(datasets, name), tmp_path, **FILE_SETS[name])
    opened = open_dataset(dataset)
    assert opened.start == Place("pil", channels=3)
    assert (opened.transform, opened.target_transform) == (flip, increase)
    assert opened.describe == f"{name} of 4 images"
    check_samples(dataset, opened, read)


@pytest.mark.parametrize("name", ARRAY_SETS)
def test_torchvisions_sets_in_memory(name, read):
    dataset = made(getattr(datasets, name), **ARRAY_SETS[name])
    opened = open_dataset(dataset)
    assert opened.start == Place("pil", channels=len(dataset[0][0].getbands()))
    assert dataset[0][0].mode == {1: "L", 3: "RGB"}[opened.start.channels]
    assert (opened.transform, opened.target_transform) == (flip, increase)
    check_samples(dataset, opened, read)


def test_folders_and_their_subclasses(folder, read):
    class Own(datasets.ImageFolder):
        def find_classes(self, directory):
            classes = super().find_classes(directory)[0]
            return classes, {name: 7 - number for number, name in enumerate(classes)}

    for dataset in (
        datasets.ImageFolder(folder),
        datasets.ImageFolder(str(folder), loader=pil_loader, transform=flip, target_transform=increase),
        datasets.DatasetFolder(folder, pil_loader, (".jpg", ".webp", ".png")),
        Own(folder),
    ):
        opened = open_dataset(dataset)
        assert opened.transform is dataset.transform
        assert opened.target_transform is dataset.target_transform
        assert opened.targets is None
        check_samples(dataset, opened, read)
    assert opened.opened.core.name(1) == str(folder / "a" / "1.PNG")
    empty = datasets.ImageFolder(folder)
    empty.samples = []
    assert open_dataset(empty).opened.samples == 0


def test_files_are_told_by_content_and_formats_by_endings(folder):
    for name in ("b/5.bmp", "c/6.TIFF"):
        write(folder / name, 0)
    expected = (
        "torchvision.datasets.folder.ImageFolder has 2 files of formats that Rust does not decode, the first one "
    )
    with pytest.raises(UntranslatableError, match=re.escape(f"{expected}{folder / 'b' / '5.bmp'}; it reads JPEG, PNG")):
        open_dataset(datasets.ImageFolder(folder))
    only_known = datasets.ImageFolder(folder, is_valid_file=lambda path: not path.lower().endswith((".bmp", ".tiff")))
    assert open_dataset(only_known).opened.samples == 5


def test_vit_rs_own_data_sets_give_tensors(folder, read):
    color = ArrayDataset(RNG.integers(0, 256, (4, 5, 6, 3), np.uint8), [1, -1, 0, 2])
    gray = ArrayDataset(RNG.integers(0, 256, (4, 5, 6), np.uint8), [1, -1, 0, 2])
    ours = ImageFolder(folder)
    for dataset, channels in ((color, 3), (gray, 1), (ours, 3)):
        opened = open_dataset(dataset)
        assert opened.start == Place("tensor", channels=channels)
        assert (opened.transform, opened.target_transform) == (None, None)
        check_samples(dataset, opened, read)
    samples = [(Path(path).read_bytes(), label) for path, label in ours.samples]
    for dataset, expected in (
        (EncodedDataset(samples), samples),
        (
            ConcatDataset([EncodedDataset(samples), Subset(EncodedDataset(samples), [4, 1])]),
            [*samples, samples[4], samples[1]],
        ),
    ):
        opened = open_dataset(dataset)
        assert opened.opened.feeder is not None
        assert opened.opened.samples == len(expected) == len(dataset)
        images, labels = read(opened, (H, W))
        assert labels.tolist() == [label for _, label in expected]
        for image, (data, _) in zip(images, expected, strict=True):
            pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), pixels)


def test_encoded_data_sets_may_have_transforms(folder):
    samples = [(Path(path).read_bytes(), label) for path, label in ImageFolder(folder).samples]
    images = EncodedDataset(samples, transform=flip, target_transform=increase)
    image, label = images[3]
    assert (image.mode, label) == ("RGB", samples[3][1] + 1)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(samples[3][0])).convert("RGB")))
    both = ConcatDataset([images, EncodedDataset(samples, transform=flip, target_transform=increase)])
    for dataset in (images, Subset(images, [1]), both):
        opened = open_dataset(dataset)
        assert (opened.start, opened.transform, opened.target_transform) == (Place("pil"), flip, increase)
    with pytest.raises(UntranslatableError, match="parts 0 and 1 of the ConcatDataset have different transforms"):
        open_dataset(ConcatDataset([images, EncodedDataset(samples)]))
    before = Fingerprint(images)
    samples.append(samples[0])
    assert before != Fingerprint(images)
    with pytest.raises(ValueError, match="ImageLoader takes the transform itself: make the EncodedDataset without one"):
        ImageLoader(images, batch_size=2)


def test_subsets_in_subsets(folder, read):
    dataset = datasets.ImageFolder(folder, transform=flip)
    first, second = random_split(dataset, [2, 3], generator=torch.Generator().manual_seed(1))
    negative = Subset(dataset, [-1, 0, -5])
    for subset in (
        first,
        second,
        negative,
        Subset(negative, np.array([2, 2, 0])),
        Subset(dataset, torch.tensor([3, 1])),
    ):
        opened = open_dataset(subset)
        assert opened.transform is flip
        assert opened.describe == f"{len(subset)} samples of ImageFolder of 5 images"
        check_samples(subset, opened, read)
    assert open_dataset(Subset(dataset, [])).opened.samples == 0


def test_concatenations_in_any_nesting(folder, tmp_path_factory, read):
    other = tmp_path_factory.mktemp("other")
    for number in range(3):
        write(other / "x" / f"{number}.png", number + 10)
    one, two = (datasets.ImageFolder(root, transform=flip) for root in (folder, other))
    cifar = made(datasets.CIFAR10, data=RNG.integers(0, 256, (4, H, W, 3), np.uint8), targets=[9, 8, 7, 6])
    cifar.target_transform = None
    both = ConcatDataset([one, two])
    for dataset in (
        both,
        ConcatDataset([two, cifar, one]),
        Subset(both, [-1, 2, 6]),
        ConcatDataset([Subset(one, [4, 0]), both, Subset(ConcatDataset([cifar, two]), [6, 0, 3]), Subset(one, [1])]),
        ConcatDataset([ConcatDataset([two, two]), Subset(two, [])]),
    ):
        opened = open_dataset(dataset)
        assert opened.start == Place("pil")
        check_samples(dataset, opened, read)
    assert open_dataset(both).describe == "ImageFolder of 5 images + ImageFolder of 3 images"
    assert open_dataset(both).opened.core.name(5) == str(other / "x" / "0.png")


def test_labels_that_are_no_integers_are_kept_as_they_are(tmp_path, read):
    labels = [np.uint8(3), np.uint8(1)]
    samples = [(write(tmp_path / f"{n}.png", n), label) for n, label in enumerate(labels)]
    cars = made(datasets.StanfordCars, _samples=samples, loader=pil_loader, target_transform=None)
    opened = open_dataset(cars)
    assert opened.targets == labels
    assert [type(label) for label in opened.targets] == [np.uint8, np.uint8]
    assert opened.opened.labels.tolist() == [-1, -1]
    check_samples(cars, opened, read)
    plain = made(datasets.CIFAR10, data=RNG.integers(0, 256, (2, H, W, 3), np.uint8), targets=[4, 5])
    cars.transform = flip
    cars.target_transform = increase
    mixed = ConcatDataset([plain, cars])
    assert open_dataset(mixed).targets == [4, 5, 3, 1]
    assert open_dataset(Subset(mixed, [3, 0])).targets == [1, 4]
    plain.targets = [2**70, 1]
    assert open_dataset(plain).targets == [2**70, 1]
    plain.targets = np.array([1, 2])
    assert [type(label) for label in open_dataset(plain).targets] == [np.int64, np.int64]
    unlabelled = made(datasets.STL10, data=PLANES, labels=None, target_transform=None)
    assert open_dataset(unlabelled).targets == [None] * 6
    rows = torch.arange(48).view(6, 8)
    nist = made(datasets.QMNIST, data=GRAY, targets=rows, compat=False, target_transform=None)
    assert torch.equal(torch.stack(open_dataset(nist).targets), rows)


def test_pets_have_two_labels(tmp_path, read):
    pets = files_of(datasets.OxfordIIITPet, tmp_path, **FILE_SETS["OxfordIIITPet"])
    pets._target_types = ["binary-category", "category"]
    pets.transforms = None
    opened = open_dataset(pets)
    # `transforms` is what its __getitem__ calls.
    assert (opened.transform, opened.target_transform) == (None, None)
    assert opened.targets == [(0, 3), (1, 1), (1, 2), (0, 1)]
    check_samples(pets, opened, read)
    pets.transforms = lambda image, target: (image, target)
    with pytest.raises(UntranslatableError, match=r"has transforms=.* for images and labels together"):
        open_dataset(pets)
    for targets, reason in ((["segmentation"], "gives targets of type 'segmentation'"), ([], "gives no targets")):
        pets._target_types = targets
        with pytest.raises(UntranslatableError, match=reason):
            open_dataset(pets)


class OwnItems(datasets.ImageFolder):
    def __getitem__(self, index):
        return super().__getitem__(index)


class OwnLength(datasets.ImageFolder):
    def __len__(self):
        return 1


class OwnBatches(datasets.ImageFolder):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


class OwnSamples(datasets.ImageFolder):
    @property
    def samples(self):
        return []

    @samples.setter
    def samples(self, value):
        pass


class OwnSubset(Subset):
    pass


class OwnArray(ArrayDataset):
    pass


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


class NoLength:
    def __getitem__(self, index):
        return index


def other_loader(path):
    return pil_loader(path)


class OwnLoader(datasets.ImageFolder):
    loader = staticmethod(other_loader)

    def __init__(self, root):
        super().__init__(root)
        del self.__dict__["loader"]


class OwnFaces(datasets.LFWPeople):
    def _loader(self, path):
        return other_loader(path)


def test_what_only_python_can_read_says_why(folder):
    images = datasets.ImageFolder(folder)
    array = np.zeros((2, 4, 4, 3), np.uint8)
    odd = datasets.ImageFolder(folder)
    del odd.samples
    threes, singles = datasets.ImageFolder(folder), datasets.ImageFolder(folder)
    threes.samples = [(path, label, 3) for path, label in threes.samples]
    singles.samples = [1, 2]
    batches, subset, parts = datasets.ImageFolder(folder), Subset(images, [0]), ConcatDataset([images])
    for dataset in (batches, subset, parts):
        dataset.__getitems__ = list
    remedy = "For Rust, vit_rs.data.EncodedDataset"
    wrong_length = ConcatDataset([images])
    wrong_length.cumulative_sizes = [3]
    for dataset, reason in (
        (OwnItems(folder), f"OwnItems has a __getitem__ of its own, which only Python can run. {remedy}"),
        (OwnLength(folder), "OwnLength is torchvision's DatasetFolder with a __len__ of its own"),
        (OwnBatches(folder), "OwnBatches is torchvision's DatasetFolder with a __getitems__ of its own"),
        (OwnSamples(folder), "OwnSamples has no plain attribute 'samples'"),
        (odd, "ImageFolder has no plain attribute 'samples'"),
        (batches, "ImageFolder has a __getitems__ that was put on the object"),
        (subset, "Subset has a __getitems__ that was put on the object"),
        (parts, "ConcatDataset has a __getitems__ that was put on the object"),
        (threes, r"the items of .*ImageFolder's 'samples' are not \(path, label\) each"),
        (singles, r"the items of .*ImageFolder's 'samples' are not \(path, label\) each"),
        (OwnLoader(folder), "OwnLoader has no plain attribute 'loader', as torchvision's class has"),
        (made(OwnFaces, data=["a.png"], targets=[1]), "OwnFaces has no plain attribute '_loader'"),
        (OwnSubset(images, [0]), "OwnSubset is a subclass, which may choose its samples in its own way"),
        (OwnArray(array, [0, 1]), "OwnArray is a subclass of ArrayDataset"),
        (TensorDataset(torch.zeros(2)), "torch.utils.data.dataset.TensorDataset has a __getitem__ of its own"),
        ([(array[0], 1)], "a list gives its items as they are"),
        (Stream(), "Stream is an IterableDataset"),
        (NoLength(), "NoLength has no length"),
        (datasets.ImageFolder(folder, loader=other_loader), r"opens its files with .*other_loader, which is Python"),
        (datasets.FakeData(), "FakeData has a __getitem__ of its own"),
        (datasets.wrap_dataset_for_transforms_v2(images), "ImageFolder has a __getitem__ of its own"),
        (Subset(images, [0, 5]), r"a Subset has indices 0\.\.5 into 5 samples"),
        (Subset(images, [-6]), r"a Subset has indices -6\.\.-6 into 5 samples"),
        (Subset(images, [True, False]), r"the indices of a Subset are bool of shape \(2,\)"),
        (wrong_length, "a ConcatDataset's parts have other lengths now"),
        (
            ConcatDataset([images, datasets.ImageFolder(folder, flip)]),
            "parts 0 and 1 of the ConcatDataset have different transforms",
        ),
        (ConcatDataset([images, ImageFolder(folder)]), "have different images"),
        (ConcatDataset([EncodedDataset([]), images]), "mixes data sets that Python and that Rust reads"),
        (made(datasets.CIFAR10, data=array, targets=[1]), "has 2 images and 1 labels"),
        (made(datasets.CIFAR10, data=array, targets={0: 3, 1: 4}), "'targets' of .*CIFAR10 is a dict, not a list"),
        (made(datasets.USPS, data=array[..., 0], targets={3: 0, 4: 1}), "'targets' of .*USPS is a dict, not a list"),
        (made(datasets.DTD, _image_files={"a": 1}, _labels=[1]), "'_image_files' of .*DTD is a dict, not a list"),
        (made(datasets.CIFAR10, data=array[..., :1], targets=[1, 2]), "are 4 x 4 with 1 channels, and not 3"),
        (
            made(datasets.CIFAR10, data=array / 255, targets=[1, 2]),
            r"float64 of shape \(2, 4, 4, 3\), not uint8 \(N, H, W, C\)",
        ),
        (made(datasets.MNIST, data=array[..., 0], targets=[1, 2]), "are no CPU tensor"),
        (
            made(datasets.MNIST, data=GRAY, targets=torch.zeros(6, 2)),
            r"labels of .*MNIST \(targets\) are not one integer each",
        ),
    ):
        with pytest.raises(UntranslatableError, match=reason):
            open_dataset(dataset)


def test_torchvisions_settings_count(folder, monkeypatch):
    dataset = datasets.ImageFolder(folder)
    monkeypatch.setattr(torchvision, "get_image_backend", lambda: "accimage")
    with pytest.raises(UntranslatableError, match="image backend is 'accimage', whose pixels are not Pillow's"):
        open_dataset(dataset)
    assert open_dataset(datasets.ImageFolder(folder, loader=pil_loader)).opened.samples == 5
    monkeypatch.undo()
    monkeypatch.setattr(datasets.folder, "pil_loader", other_loader)
    with pytest.raises(UntranslatableError, match="opens its files with"):
        open_dataset(dataset)


def test_files_that_pillow_would_complete_are_errors_here(folder, monkeypatch):
    dataset = datasets.ImageFolder(folder)
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    with pytest.warns(UserWarning, match=r"truncated files of .*ImageFolder are errors \(DecodeError\) here"):
        assert open_dataset(dataset).opened.samples == 5
    # There are no files in memory.
    assert open_dataset(made(datasets.MNIST, **ARRAY_SETS["MNIST"])).opened.samples == 6


def test_a_loader_that_older_versions_lack_is_not_missed(tmp_path):
    # GTSRB has none in any version; Flowers102 in old ones.
    for name in ("GTSRB", "Flowers102"):
        attributes = {key: value for key, value in FILE_SETS[name].items() if key != "loader"}
        assert open_dataset(files_of(getattr(datasets, name), tmp_path / name, **attributes)).opened.samples == 4


def test_a_fingerprint_changes_with_what_samples_come_from(folder):
    dataset = datasets.ImageFolder(folder, transform=flip)
    whole = Subset(ConcatDataset([dataset, Subset(dataset, np.arange(4))]), list(range(8)))
    opened = open_dataset(whole)
    assert opened.fingerprint == Fingerprint(whole)
    assert opened.fingerprint != Fingerprint(dataset)
    assert opened.fingerprint != "something else"

    def replace(name, value):
        return lambda: setattr(dataset, name, value)

    changes = [
        replace("transform", lambda image: image),
        replace("target_transform", increase),
        replace("loader", pil_loader),
        dataset.samples.reverse,
        lambda: dataset.samples.__setitem__(0, dataset.samples[1]),
        replace("samples", [list(sample) for sample in dataset.samples]),
        lambda: dataset.samples[0].__setitem__(1, 9),
        lambda: dataset.samples[2].__setitem__(0, "other.png"),
        lambda: dataset.samples[1].append(3),
        lambda: dataset.samples.append(dataset.samples[0]),
        whole.indices.reverse,
        lambda: whole.dataset.datasets[1].indices.__setitem__(0, 3),
        lambda: setattr(whole.dataset.datasets[1], "indices", [0]),
    ]
    for change in changes:
        before = Fingerprint(whole)
        change()
        assert before != Fingerprint(whole)
        assert Fingerprint(whole) == Fingerprint(whole)


def test_labels_in_arrays_are_part_of_the_fingerprint_and_pixels_are_not():
    dataset = made(datasets.MNIST, data=GRAY.clone(), targets=torch.arange(6))
    before = Fingerprint(dataset)
    dataset.data[0] = 0
    assert before == Fingerprint(dataset)
    dataset.targets[0] = 5
    assert before != Fingerprint(dataset)
    before = Fingerprint(dataset)
    dataset.data.transpose_(1, 2)
    assert before != Fingerprint(dataset)
    dataset = made(datasets.CIFAR10, data=np.zeros((2, 4, 4, 3), np.uint8), targets=np.arange(2))
    before = Fingerprint(dataset)
    dataset.data[:] = 1
    assert before == Fingerprint(dataset)
    dataset.targets[1] = 7
    assert before != Fingerprint(dataset)
    before = Fingerprint(dataset)
    dataset.data = dataset.data.copy()
    assert before != Fingerprint(dataset)


@pytest.mark.parametrize("name", [*FILE_SETS, *ARRAY_SETS])
def test_the_fingerprint_knows_every_attribute_that_is_read(name, tmp_path, monkeypatch):
    sets = {**FILE_SETS, **ARRAY_SETS}
    make = files_of if name in FILE_SETS else lambda kind, _root, **attributes: made(kind, **attributes)
    dataset = make(getattr(datasets, name), tmp_path, **sets[name])
    asked = set()
    original = datasets_torchvision._own
    monkeypatch.setattr(datasets_torchvision, "_own", lambda one, what: asked.add(what) or original(one, what))
    open_dataset(dataset)
    assert asked
    assert asked <= set(datasets_torchvision.ATTRIBUTES)


def test_hundreds_of_thousands_of_files_open_quickly():
    samples = [(f"{n % 1000:04d}/{n}.JPEG", n % 1000) for n in range(300_000)]
    dataset = made(datasets.ImageFolder, samples=samples, loader=pil_loader)
    start = time.perf_counter()
    opened = open_dataset(dataset)
    assert opened.fingerprint == Fingerprint(dataset)
    # A tenth of a second on an idle machine.
    assert time.perf_counter() - start < 2
    assert opened.opened.samples == 300_000
    assert opened.opened.labels[-1] == 999
