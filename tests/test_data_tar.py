"""TarShards: WebDataset's samples, read at random; Python's tarfile writes the shards, webdataset's rules group."""

from __future__ import annotations

import copy
import gc
import gzip
import io
import json
import os
import pickle
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset

from vit_rs.data import ImageFolder, ImageLoader, TarShards
from vit_rs.data.tar import expand_braces
from vit_rs.exceptions import DatasetError, DecodeError
from vit_rs.transforms import Compose, RandomHorizontalFlip, RandomResizedCrop

AUGMENT = Compose([RandomResizedCrop(16), RandomHorizontalFlip()])
PER_SHARD = 6


def encoded(value: int, kind: str = "JPEG") -> bytes:
    rng = np.random.default_rng(value)
    image = Image.fromarray(rng.integers(0, 256, (8, 9, 3), dtype=np.uint8)).resize((40 + value % 7, 31))
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def write_shard(path: Path, members: list[tuple[str, bytes]], mode: str = "w", **options) -> Path:
    with tarfile.open(path, mode, **options) as shard:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))
    return path


def numbered(shard: int) -> list[tuple[str, bytes]]:
    members = []
    for number in range(shard * PER_SHARD, (shard + 1) * PER_SHARD):
        png = number % 3 == 1
        members.append((f"{number:05}.{'png' if png else 'jpg'}", encoded(number, "PNG" if png else "JPEG")))
        label = number % 5
        if number % 2:
            members.append((f"{number:05}.cls", str(label).encode()))
        else:
            members.append((f"{number:05}.json", json.dumps({"label": label, "caption": "x"}).encode()))
    return members


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("plain")
    for shard in range(4):
        write_shard(root / f"train-{shard:03}.tar", numbered(shard))
    return str(root / "train-{000..003}.tar")


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("packed")
    for shard in range(4):
        write_shard(root / f"train-{shard}.tar.gz", numbered(shard), "w:gz")
    return str(root / "train-{0..3}.tar.gz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> ImageFolder:
    """The same images as files, in the same order."""
    root = tmp_path_factory.mktemp("folder") / "all"
    root.mkdir()
    for name, data in (member for shard in range(4) for member in numbered(shard)):
        if not name.endswith(("cls", "json")):
            (root / name).write_bytes(data)
    return ImageFolder(root.parent)


def batches(source, **options) -> list[tuple[torch.Tensor, ...]]:
    with ImageLoader(source, AUGMENT, **{"batch_size": 4, "return_index": True, "seed": 3, **options}) as loader:
        return [tuple(tensor.clone() for tensor in batch) for batch in loader]


def assert_same(one, other):
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        assert all(map(torch.equal, first, second))


def test_samples_and_labels(shards):
    data = TarShards(shards)
    assert len(data) == 4 * PER_SHARD
    assert data.targets == [number % 5 for number in range(24)]
    assert data.classes == ["0", "1", "2", "3", "4"]
    assert repr(data) == "TarShards(4 shards, 24 images, 5 classes)"
    for index in (0, 7, -1):
        image, label = data[index]
        number = index % 24
        with Image.open(io.BytesIO(encoded(number, "PNG" if number % 3 == 1 else "JPEG"))) as expected:
            assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(expected))
        assert label == number % 5
    with pytest.raises(IndexError):
        data[24]


@pytest.mark.parametrize("threads", [1, 4])
def test_plain_shards_are_the_same_batches_as_files(shards, folder, threads):
    from_tar = batches(TarShards(shards), shuffle=True, num_threads=threads)
    from_files = batches(folder, shuffle=True, num_threads=2)
    assert_same([(images, indices) for images, _, indices in from_tar], [(i, n) for i, _, n in from_files])
    indices = torch.cat([batch[2] for batch in from_tar])
    assert torch.equal(torch.cat([batch[1] for batch in from_tar]), indices % 5)


def test_gzipped_shards_hold_the_same_samples_and_shuffle_shard_by_shard(shards, packed):
    assert_same(batches(TarShards(packed)), batches(TarShards(shards)))
    data = TarShards(packed)
    shuffled = batches(data, shuffle=True, num_threads=1)
    assert_same(batches(data, shuffle=True, num_threads=4, prefetch=5), shuffled)
    order = torch.cat([batch[2] for batch in shuffled])
    assert sorted(order.tolist()) == list(range(24))
    by_shard = (order // PER_SHARD).reshape(4, PER_SHARD)
    assert all(len(set(row.tolist())) == 1 for row in by_shard)
    assert by_shard[:, 0].tolist() != [0, 1, 2, 3]
    assert any(row.tolist() != sorted(row.tolist()) for row in order.reshape(4, PER_SHARD))
    # Pixels do not depend on how the order came about.
    plain = {int(i): image for batch in batches(TarShards(shards)) for image, i in zip(batch[0], batch[2], strict=True)}
    assert all(
        torch.equal(image, plain[int(i)])
        for images, _, indices in shuffled
        for image, i in zip(images, indices, strict=True)
    )


def test_gzipped_shards_resume_inside_a_shard(packed):
    data = TarShards(packed)
    options = {"batch_size": 4, "shuffle": True, "return_index": True}
    with ImageLoader(data, AUGMENT, **options) as loader:
        reference = [indices.tolist() for _, _, indices in loader]
    for stop in range(1, 6):
        with ImageLoader(data, AUGMENT, **options) as loader:
            seen = [indices.tolist() for _, (_, _, indices) in zip(range(stop), loader, strict=False)]
            state = loader.state_dict()
        assert state["consumed"] == 4 * stop
        with ImageLoader(data, AUGMENT, **options) as loader:
            loader.load_state_dict(state)
            assert seen + [indices.tolist() for _, _, indices in loader] == reference


@pytest.mark.parametrize("shuffle", [False, True])
def test_subsets_of_shards(packed, shuffle):
    chosen = [20, 3, 4, 5, 22]
    seen = batches(Subset(TarShards(packed), chosen), shuffle=shuffle, batch_size=5)
    [(_, labels, positions)] = seen
    assert sorted(positions.tolist()) == list(range(5))
    assert labels.tolist() == [chosen[position] % 5 for position in positions]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_in_every_format(tmp_path, form):
    names = [f"{'a' * 90}/{'b' * 60}/x.jpg", "short.jpg"]
    if form != tarfile.USTAR_FORMAT:
        names += [f"{'folder/' * 60}x.jpg", f"{'c' * 200}.jpg", "ünïcode.jpg"]
    members = [member for name in names for member in ((name, encoded(1)), (name[:-3] + "cls", b"2\n"))]
    path = write_shard(tmp_path / "a.tar", members, format=form)
    data = TarShards(path)
    assert data.targets == [2] * len(names)
    assert [data.core_source.name(index) for index in range(len(data))] == [f"{path}: {name}" for name in names]


def test_sizes_in_every_format(tmp_path):
    """A size in base 256 (GNU) and in a pax header; what tarfile reads of them is the oracle."""
    image = encoded(3)
    info = tarfile.TarInfo("0.jpg")
    info.size = len(image)
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\x80" + len(image).to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    info.pax_headers = {"size": str(len(image))}
    pax = bytearray(info.tobuf(tarfile.PAX_FORMAT))
    body = image + bytes(-len(image) % 512)
    label = write_shard(tmp_path / "label.tar", [("0.cls", b"4")]).read_bytes()
    for header in (block, pax):
        path = tmp_path / "sized.tar"
        path.write_bytes(header + body + label)
        with tarfile.open(path) as shard:
            assert shard.extractfile("0.jpg").read() == image
        data = TarShards(path)
        assert data.targets == [4]
        assert data.core_source.encoded(0) == image


def test_a_webp_member_is_listed(tmp_path):
    path = write_shard(tmp_path / "a.tar", [("0.WEBP", encoded(1)), ("0.cls", b"1")])
    assert len(TarShards(path)) == 1


def test_without_labels(tmp_path):
    path = write_shard(tmp_path / "a.tar", [("0.jpg", encoded(0)), ("0.txt", b"a caption"), ("1.jpg", encoded(1))])
    assert TarShards(path, label_key=None).targets == [-1, -1]
    with pytest.raises(DatasetError, match=re.escape(f"{path}: byte 0: sample 0: no label: neither")):
        TarShards(path)


def test_label_key_and_classes(tmp_path):
    member = json.dumps({"label": 1, "fine": 3}).encode()
    path = write_shard(tmp_path / "a.tar", [("0.jpg", encoded(0)), ("0.json", member)])
    assert TarShards(path, label_key="fine").targets == [3]
    assert TarShards(path, classes=["x", "y"]).classes == ["x", "y"]
    with pytest.raises(ValueError, match=re.escape("a.tar: 0.jpg) has no name: only 3 classes are given")):
        TarShards(path, label_key="fine", classes=["x", "y", "z"])
    with pytest.raises(DatasetError, match=re.escape('0.json has no number of a class in field "other"')):
        TarShards(path, label_key="other")


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda data: pickle.loads(pickle.dumps(data))])
def test_pickled_and_copied(packed, shards, again):
    for source in (packed, shards):
        data = TarShards(source, label_key="label", classes=list("abcde"))
        data.targets[3] = -1
        other = again(data)
        assert (other.shards, other.targets, other.classes) == (data.shards, data.targets, data.classes)
        assert (other.label_key, other.gzipped, repr(other)) == ("label", source == packed, repr(data))
        assert_same(batches(other, shuffle=True), batches(data, shuffle=True))
        del data
        assert other[5][1] == 0


def test_a_pickle_of_shards_that_have_changed(tmp_path):
    path = write_shard(tmp_path / "a.tar", numbered(0))
    pickled = pickle.dumps(TarShards(path))
    write_shard(path, numbered(0)[:4])
    with pytest.raises(DatasetError, match=re.escape(f"{path}, ...: 2 samples now, 6 when the data set was pickled")):
        pickle.loads(pickled)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.tar"):
        pickle.loads(pickled)


def test_missing_and_damaged_shards_are_named(tmp_path, shards):
    with pytest.raises(FileNotFoundError, match=r"no\.tar"):
        TarShards(tmp_path / "no.tar")
    with pytest.raises(ValueError, match="at least one shard"):
        TarShards([])
    whole = Path(expand_braces(shards)[0]).read_bytes()
    cut = tmp_path / "cut.tar"
    for length in (100, 600, 5000):
        cut.write_bytes(whole[:length])
        with pytest.raises(DatasetError, match=re.escape(str(cut)) + r": byte \d+: (truncated|sample)"):
            TarShards([*expand_braces(shards), cut])
    cut.write_bytes(b"no tar at all" * 100)
    with pytest.raises(DatasetError, match=r"cut\.tar: byte 0: not a tar file, nor a gzipped one"):
        TarShards(cut)
    packed = gzip.compress(whole)
    cut.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DatasetError, match=r"cut\.tar: byte \d+ of the inflated shard: truncated"):
        TarShards(cut)
    cut.write_bytes(packed[:-8] + b"\0" * 8)
    with pytest.raises(DatasetError, match="checksum"):
        TarShards(cut)


def test_bad_members_are_named_and_can_be_skipped(tmp_path):
    members = numbered(0)
    members[2] = (members[2][0], b"not an image")
    path = write_shard(tmp_path / "bad.tar", members)
    text = re.escape(f"{path}: 00001.png: no known image format")
    with pytest.raises(DecodeError, match=text):
        batches(TarShards(path))
    with ImageLoader(TarShards(path), AUGMENT, batch_size=6, on_error="skip", return_index=True) as loader:
        assert next(iter(loader))[2].tolist() == [0, 2, 3, 4, 5]
        [failure] = loader.stats().failures
    assert re.match(text, failure)
    data = TarShards(path)
    with open(path, "r+b") as file:
        file.truncate(512)
    with pytest.raises(DecodeError, match=re.escape(f"{path}: 00000.jpg: the shard is shorter")):
        batches(data)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"bad\.tar"):
        batches(data)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors in /proc")
def test_many_shards_need_few_descriptors(tmp_path):
    for shard in range(100):
        write_shard(tmp_path / f"{shard:03}.tar", [("0.jpg", encoded(shard)), ("0.cls", b"0")])
    gc.collect()  # what earlier tests left to it
    before = len(os.listdir("/proc/self/fd"))
    data = TarShards(str(tmp_path / "{000..099}.tar"))
    assert len(os.listdir("/proc/self/fd")) == before
    with ImageLoader(data, AUGMENT, batch_size=10, shuffle=True, num_threads=2) as loader:
        for _ in range(2):
            assert sum(len(images) for images, _ in loader) == 100
            assert len(os.listdir("/proc/self/fd")) - before <= 64
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("a{1..3}.tar", ["a1.tar", "a2.tar", "a3.tar"]),
        ("{008..011}", ["008", "009", "010", "011"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{0..10..5}", ["0", "5", "10"]),
        ("{-2..1}", ["-2", "-1", "0", "1"]),
        ("{a,b}{1..2}", ["a1", "a2", "b1", "b2"]),
        ("{a,b{1..2},}x", ["ax", "b1x", "b2x", "x"]),
        ("{x{1..2}}", ["{x1}", "{x2}"]),
        ("{x}-{}-{1..2", ["{x}-{}-{1..2"]),
        ("a}{1,2}", ["a}1", "a}2"]),
    ],
)
def test_braces_as_in_a_shell(pattern, expected):
    """The expected names are those that bash prints."""
    assert expand_braces(pattern) == expected


def test_braces_cannot_fill_the_memory():
    for pattern in ("{1..99999999999}", "{0..999}{0..999}{0..9}"):
        with pytest.raises(ValueError, match="stands for more than 1000000 shards"):
            expand_braces(pattern)
