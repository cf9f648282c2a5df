"""The bundled images and the IDX reader: what is there, that it is what the script chooses, each refusal."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import lzma
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vit_rs.data import load_idx, sample_dataset
from vit_rs.data import sample as sample_module
from vit_rs.exceptions import DatasetError

BUNDLED = Path(sample_module.__file__).parent / "_fashion_mnist"
SCRIPT = Path(__file__).parent.parent / "scripts" / "make_sample_data.py"
FULL_SET = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
COUNTS = {"train": 6000, "test": 1000}


def idx(array, *, magic=None, shape=None):
    header = bytes((0, 0, 8, array.ndim)) if magic is None else magic
    return header + struct.pack(f">{array.ndim}I", *(shape or array.shape)) + array.tobytes()


def write(folder, images, labels, *, split="train", ending="", pack=bytes):
    prefix = {"train": "train", "test": "t10k"}[split]
    paths = []
    for kind, content in (("images-idx3", images), ("labels-idx1", labels)):
        path = folder / f"{prefix}-{kind}-ubyte{ending}"
        path.write_bytes(pack(content if isinstance(content, bytes) else idx(content)))
        paths.append(path)
    return paths


@pytest.fixture
def arrays():
    rng = np.random.default_rng(3)
    return rng.integers(0, 256, (7, 5, 3), dtype=np.uint8), rng.integers(0, 4, 7, dtype=np.uint8)


@pytest.mark.parametrize("split", ["train", "test"])
def test_bundled_split_is_class_balanced_u8(split):
    source = sample_dataset(split)
    assert len(source) == COUNTS[split]
    assert len(source.classes) == 10
    assert source.classes[0] == "T-shirt/top"
    assert np.bincount(source.targets).tolist() == [COUNTS[split] // 10] * 10
    image, label = source[0]
    assert image.dtype == torch.uint8
    assert image.shape == (1, 28, 28)
    assert label == source.targets[0]


def test_default_split_is_train():
    assert len(sample_dataset()) == COUNTS["train"]


def test_no_image_occurs_twice_in_the_bundle():
    digests = {hashlib.sha256(image.tobytes()).digest() for split in COUNTS for image in sample_dataset(split).images}
    assert len(digests) == sum(COUNTS.values())


def test_bundle_matches_its_digests_and_size():
    listed = dict(line.split("  ")[::-1] for line in (BUNDLED / "SHA256SUMS").read_text().splitlines())
    files = sorted(BUNDLED.glob("*.xz"))
    assert len(files) == len(listed) == 4
    for path in files:
        assert hashlib.sha256(lzma.decompress(path.read_bytes())).hexdigest() == listed[path.stem]
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) <= 3_000_000
    assert "Zalando" in (BUNDLED / "LICENSE").read_text(encoding="utf-8")


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(("ending", "pack"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)])
def test_idx_round_trip(tmp_path, arrays, split, ending, pack):
    images, labels = arrays
    write(tmp_path, images, labels, split=split, ending=ending, pack=pack)
    source = load_idx(str(tmp_path), split)
    assert source.targets == labels.tolist()
    assert source.classes == [str(i) for i in range(labels.max() + 1)]
    for i in range(len(images)):
        image, label = source[i]
        assert label == labels[i]
        assert torch.equal(image, torch.from_numpy(images[i])[None])


def test_plain_file_goes_before_the_compressed_one(tmp_path, arrays):
    images, labels = arrays
    write(tmp_path, images, labels)
    write(tmp_path, 255 - images, labels, ending=".gz", pack=gzip.compress)
    assert torch.equal(load_idx(tmp_path)[0][0][0], torch.from_numpy(images[0]))


def test_one_pixel_images_and_names(tmp_path):
    write(tmp_path, np.full((1, 1, 1), 9, np.uint8), np.array([1], np.uint8))
    source = load_idx(tmp_path, classes=["a", "b"])
    assert source[0] == (torch.tensor([[[9]]], dtype=torch.uint8), 1)
    assert source.classes == ["a", "b"]


def test_file_larger_than_one_chunk(tmp_path, arrays, monkeypatch):
    monkeypatch.setattr(sample_module, "_CHUNK_BYTES", 4)
    images, labels = arrays
    write(tmp_path, images, labels, ending=".gz", pack=gzip.compress)
    assert torch.equal(load_idx(tmp_path)[6][0][0], torch.from_numpy(images[6]))


def test_unknown_split():
    with pytest.raises(ValueError, match=r"split must be \"train\" or \"test\", got 'val'"):
        sample_dataset("val")


def test_missing_folder_file_and_not_a_folder(tmp_path, arrays):
    with pytest.raises(FileNotFoundError, match=r"no such folder of IDX files.*nowhere"):
        load_idx(tmp_path / "nowhere")
    images_path, labels_path = write(tmp_path, *arrays)
    with pytest.raises(NotADirectoryError, match=r"expected a folder of IDX files.*train-images"):
        load_idx(images_path)
    with pytest.raises(FileNotFoundError, match=r"nor with the ending \.gz, \.xz.*t10k-images-idx3-ubyte"):
        load_idx(tmp_path, "test")
    labels_path.unlink()
    with pytest.raises(FileNotFoundError, match="train-labels-idx1-ubyte"):
        load_idx(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"u8 with 3 dimension\(s\).*expected the first bytes 00 00 08 03, got an empty file"),
        (idx(np.zeros(7, np.uint8)), "expected the first bytes 00 00 08 03, got 00 00 08 01"),
        (idx(np.zeros((7, 5, 3), np.uint8), magic=b"\0\0\x0d\3"), "got 00 00 0d 03"),
        (b"\x89PNG\r\n\x1a\n", "got 89 50 4e 47"),
        (b"\0\0\x08\x03\0\0\0\7\0\0", "truncated header: expected 16 bytes, got 10"),
        (idx(np.zeros((7, 5, 3), np.uint8))[:-1], r"truncated.*105 bytes of shape \(7, 5, 3\), got 104"),
        (idx(np.zeros((7, 5, 3), np.uint8)) + b"x", r"more data than the 105 bytes of shape \(7, 5, 3\)"),
        (idx(np.zeros((8, 5, 3), np.uint8)), "holds 8 images, but .*train-labels.* holds 7 labels"),
    ],
)
@pytest.mark.parametrize(("ending", "pack"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)])
def test_bad_content_names_the_file(tmp_path, *, content, message, ending, pack):
    write(tmp_path, content, np.zeros(7, np.uint8), ending=ending, pack=pack)
    with pytest.raises(DatasetError, match=f"train-images-idx3-ubyte{ending}.*{message}"):
        load_idx(tmp_path)


@pytest.mark.parametrize(
    ("ending", "pack", "message"),
    [
        (".gz", gzip.compress, "not a sound gzip file"),
        (".xz", lzma.compress, "not a sound xz file"),
    ],
)
def test_damaged_compression(tmp_path, arrays, ending, pack, message):
    images_path, _ = write(tmp_path, *arrays, ending=ending, pack=pack)
    sound = images_path.read_bytes()
    images_path.write_bytes(sound[:-20])
    with pytest.raises(
        DatasetError, match=f"train-images-idx3-ubyte{ending}: truncated: the compressed data has no end"
    ):
        load_idx(tmp_path)
    images_path.write_bytes(b"not " + sound)
    with pytest.raises(DatasetError, match=f"train-images-idx3-ubyte{ending}: {message}"):
        load_idx(tmp_path)
    flipped = bytearray(sound)
    flipped[len(sound) // 2] ^= 0x10
    images_path.write_bytes(flipped)
    with pytest.raises(DatasetError, match=f"train-images-idx3-ubyte{ending}"):
        load_idx(tmp_path)


def test_wrong_checksum_is_found(tmp_path, arrays):
    images_path, _ = write(tmp_path, *arrays, ending=".gz", pack=gzip.compress)
    content = bytearray(images_path.read_bytes())
    content[-8] ^= 1  # gzip's CRC-32 field
    images_path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"train-images-idx3-ubyte\.gz: not a sound gzip file: CRC"):
        load_idx(tmp_path)


def test_false_headers_allocate_nothing(tmp_path, arrays):
    huge = struct.pack(">4s3I", b"\0\0\x08\x03", 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    write(tmp_path, huge, arrays[1])
    with pytest.raises(DatasetError, match=r"the header claims shape .* expected at most 4294967296"):
        load_idx(tmp_path)
    large = struct.pack(">4s3I", b"\0\0\x08\x03", 1 << 16, 1 << 8, 1 << 8)  # exactly 4 GiB
    write(tmp_path, large, arrays[1])
    with pytest.raises(DatasetError, match=r"truncated: the header asks for 4294967296 bytes .* got 0"):
        load_idx(tmp_path)


def test_reading_stops_at_the_header_sizes(tmp_path, arrays):
    # 64 MiB of zeros in 64 KiB: found to be too long after one byte more than announced.
    bomb = idx(arrays[0]) + bytes(1 << 26)
    write(tmp_path, bomb, arrays[1], ending=".gz", pack=gzip.compress)
    with pytest.raises(DatasetError, match="more data than the 105 bytes"):
        load_idx(tmp_path)


def test_no_images_and_unnamed_label(tmp_path, arrays):
    write(tmp_path, np.zeros((0, 5, 3), np.uint8), np.zeros(0, np.uint8))
    with pytest.raises(DatasetError, match=r"expected at least one image of one pixel, got shape \(0, 5, 3\)"):
        load_idx(tmp_path)
    write(tmp_path, arrays[0], np.array([0, 1, 2, 9, 0, 0, 0], np.uint8))
    with pytest.raises(DatasetError, match=r"label 9 at position 3 has no name, expected labels 0\.\.2"):
        load_idx(tmp_path, classes="abc")


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("make_sample_data", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PER_CLASS", {"train": 3, "test": 2})
    monkeypatch.setattr(module, "CLASSES", 4)
    return module


def run(monkeypatch, script, *arguments):
    monkeypatch.setattr(sys, "argv", ["make_sample_data.py", *map(str, arguments)])
    return script.main()


def test_script_chooses_balanced_different_images_and_checks_them(tmp_path, script, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    full, out = tmp_path / "full", tmp_path / "out"
    full.mkdir()
    images = rng.integers(0, 256, (40, 4, 6), dtype=np.uint8)
    images[20:28] = images[:8]  # eight duplicates, of the same classes
    labels = np.arange(40, dtype=np.uint8) % 4
    write(full, images, labels, ending=".gz", pack=gzip.compress)
    write(full, images[:24], labels[:24], split="test")
    assert run(monkeypatch, script, full, "--out", out) == 0
    train, test = load_idx(out), load_idx(out, "test")
    assert np.bincount(train.targets).tolist() == [3] * 4
    assert np.bincount(test.targets).tolist() == [2] * 4
    chosen = [image.tobytes() for source in (train, test) for image in source.images]
    assert len(set(chosen)) == len(chosen)
    positions = [next(i for i, image in enumerate(images) if image.tobytes() == c) for c in chosen]
    assert all(labels[p] == t for p, t in zip(positions, train.targets + test.targets, strict=True))
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert run(monkeypatch, script, full, "--out", out) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    assert run(monkeypatch, script, full, "--out", out, "--check") == 0
    (out / "train-labels-idx1-ubyte.xz").write_bytes(lzma.compress(idx(labels[:12])))
    assert run(monkeypatch, script, full, "--out", out, "--check") == 1
    assert "train-labels-idx1-ubyte: differs" in capsys.readouterr().err


def test_script_refuses_a_set_that_is_too_small(tmp_path, script):
    write(tmp_path, np.zeros((9, 2, 2), np.uint8), np.zeros(9, np.uint8))
    with pytest.raises(SystemExit, match="class 0 of train: wanted 3 different images, found 1"):
        script.build(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not FULL_SET.is_dir(), reason="needs the full set: Debian's package dataset-fashion-mnist")
def test_bundle_is_what_the_script_chooses(monkeypatch, script):
    monkeypatch.setattr(script, "PER_CLASS", {"train": 600, "test": 100})
    monkeypatch.setattr(script, "CLASSES", 10)
    assert run(monkeypatch, script, FULL_SET, "--check") == 0
