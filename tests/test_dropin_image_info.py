"""A PIL image's info (EXIF, resolution, profile): what Python gets of it is what torch's loader would give."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, ImageCms, ImageOps, PngImagePlugin
from torch.utils.data import ConcatDataset, Subset
from torchvision.transforms import v2

from vit_rs.data import DataLoader, EncodedDataset
from vit_rs.data.dropin.chain import Place, steps
from vit_rs.data.image_info import image_info, keeps_info

COUNT = 8
FLOAT = (v2.ToImage(), v2.ToDtype(torch.float32, scale=True))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> str:
    """JPEGs of all EXIF orientations."""
    folder, rng = tmp_path_factory.mktemp("turned"), np.random.default_rng(0)
    for orientation in range(1, COUNT + 1):
        exif = Image.Exif()
        exif[0x112] = orientation
        path = folder / f"class{orientation % 2}" / f"{orientation}.jpg"
        path.parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((35, 25)).save(path, exif=exif, dpi=(72 + orientation, 72), comment=b"turned")
    return str(folder)


def folder(root: str, *transforms) -> torchvision.datasets.ImageFolder:
    return torchvision.datasets.ImageFolder(root, v2.Compose(list(transforms)) if transforms else None)


def infos(samples: list) -> list[dict]:
    return [image.info for image, _ in samples]


def both(data, **options) -> list[list]:
    """Return what torch's loader gives, and ours."""
    return [list(kind(data, **options)) for kind in (torch.utils.data.DataLoader, DataLoader)]


CHAINS = {
    "first": (ImageOps.exif_transpose, v2.Resize((8, 8)), *FLOAT),
    "middle": (v2.Resize(20), v2.CenterCrop((16, 18)), ImageOps.exif_transpose, v2.Resize((8, 8)), *FLOAT),
    "behind a loss": (v2.Pad(2), ImageOps.exif_transpose, v2.Resize((8, 8)), *FLOAT),
}


@pytest.mark.parametrize("name", CHAINS)
def test_upright_by_exif(root, name):
    theirs, mine = both(folder(root, *CHAINS[name]), batch_size=3)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(mine, theirs, strict=True))


def test_what_loses_the_info_in_rust_loses_it(root):
    data = folder(root, v2.RandomCrop(16, padding=2), lambda image: image)
    assert [image.info for image, _ in DataLoader(data, batch_size=None)] == [{}] * COUNT


@pytest.mark.parametrize("behind", [(), (v2.Resize(12),), (v2.Resize(12), v2.Pad(1)), (v2.Grayscale(),)], ids=str)
@pytest.mark.parametrize("before", [(), (v2.Resize(20), v2.RandomHorizontalFlip(1.0))], ids=str)
def test_info_is_torchs_at_each_place(root, before, behind):
    seen: list[dict] = []

    def look(image):
        seen.append((image.info, image.format, hasattr(image, "filename"), image.readonly))
        return image

    data = folder(root, *before, look, *behind)
    theirs, mine = both(data, batch_size=3, collate_fn=infos)
    assert seen[:COUNT] == seen[COUNT:]
    assert mine == theirs
    assert mine[0][0].keys() == (set() if any(isinstance(each, v2.Pad) for each in behind) else seen[0][0].keys())
    assert "exif" in seen[0][0]
    theirs, mine = both(folder(root, *before, *behind), batch_size=3, collate_fn=infos)
    assert mine == theirs


def test_subsets_concatenations_and_arrays(root):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    array = torchvision.datasets.CIFAR10.__new__(torchvision.datasets.CIFAR10)
    vars(array).update(root=root, data=pixels, targets=[0] * 4, transform=None, target_transform=None, train=True)
    array.transforms = None
    data = Subset(ConcatDataset([array, Subset(folder(root), [5, 2, 1])]), [6, 0, 4, 5, 3])
    [theirs], [mine] = both(data, batch_size=5, collate_fn=infos)
    assert mine == theirs
    assert [bool(info) for info in mine] == [True, False, True, True, False]


def test_tables(root):
    arrow = pytest.importorskip("pyarrow")
    from vit_rs.data import ImageTable

    files = [Path(path).read_bytes() for path, _ in folder(root).samples]
    table = arrow.table({"image": files, "label": list(range(COUNT))})
    data = ImageTable(table, transform=v2.Compose(CHAINS["first"]))
    expected = [folder(root, *CHAINS["first"])[index][0] for index in range(COUNT)]
    for [images, _] in both(data, batch_size=COUNT)[0] + both(data, batch_size=COUNT)[1]:
        assert torch.equal(images, torch.stack(expected))


def test_what_python_fed_has_no_info(root):
    files = [(Path(path).read_bytes(), 0) for path, _ in folder(root).samples]
    data = EncodedDataset(files, transform=lambda image: image)
    assert [image.info for image, _ in DataLoader(data, batch_size=None)] == [{}] * COUNT


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def with_chunk_behind(png: bytes) -> bytes:
    """Return a PNG with a text behind its pixels."""
    body = b"tEXtComment\0late"
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    end = png.rindex(b"IEND") - 4
    return png[:end] + chunk + png[end:]


def files() -> dict[str, bytes]:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 8, 3), dtype=np.uint8))
    palette, text = image.quantize(16), PngImagePlugin.PngInfo()
    text.add_text("Comment", "early")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x112] = 3
    rest = {"exif": exif, "icc_profile": profile}
    return {
        "JPEG": encoded(image, "jpeg", dpi=(100, 50), comment="hello", xmp=b"<x/>", **rest),
        "progressive JPEG": encoded(image, "jpeg", progressive=True),
        "gray JPEG": encoded(image.convert("L"), "jpeg"),
        "CMYK JPEG": encoded(image.convert("CMYK"), "jpeg"),
        "MPO": encoded(image, "mpo", save_all=True, append_images=[image]),
        "PNG": encoded(image, "png", dpi=(100, 50), pnginfo=text, **rest),
        "PNG with a text behind": with_chunk_behind(encoded(image, "png", **rest)),
        "PNG, gray and alpha": encoded(image.convert("LA"), "png"),
        "PNG, 16 bits": encoded(Image.new("I;16", (9, 8)), "png", transparency=3),
        "PNG with a transparent colour": encoded(image, "png", transparency=(1, 2, 3)),
        "PNG with a transparent gray": encoded(image.convert("L"), "png", transparency=7),
        "PNG, transparent index": encoded(palette, "png", transparency=3),
        "PNG, two values": encoded(image.convert("1"), "png", transparency=0),
        "PNG, animated": encoded(image, "png", save_all=True, append_images=[palette.convert("RGB")], duration=30),
        "WebP": encoded(image, "webp", **rest),
        "WebP with alpha": encoded(image.convert("RGBA"), "webp"),
        "WebP, animated": encoded(image, "webp", save_all=True, append_images=[palette.convert("RGB")], duration=30),
    }


FILES = files()


@pytest.mark.parametrize("name", FILES)
def test_info_is_that_of_the_converted_image(name):
    expected = Image.open(io.BytesIO(FILES[name])).convert("RGB").info
    assert image_info(FILES[name]) == expected
    assert name != "PNG with a text behind" or expected["Comment"] == "late"


@pytest.mark.parametrize("cut", [8, 20, 60, 100])
def test_a_damaged_file_is_pillows_error_or_has_its_info(cut):
    """Whatever a header lacks: no other error than Pillow's own."""
    for content in FILES.values():
        try:
            info = image_info(content[:cut])
        except (OSError, SyntaxError, ValueError):
            continue
        assert isinstance(info, dict)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WebP"])
def test_only_the_header_is_read(monkeypatch, name):
    def decode(*_):
        raise AssertionError("the pixels were decoded")

    monkeypatch.setattr(type(Image.open(io.BytesIO(FILES[name]))), "load", decode)
    assert image_info(FILES[name])


TRANSFORMS = [
    *(v2.Resize(20), v2.CenterCrop(20), v2.RandomCrop(20), v2.RandomCrop(20, padding=2), v2.RandomResizedCrop(20)),
    *(v2.RandomCrop(20, pad_if_needed=True), v2.RandomHorizontalFlip(1), v2.RandomVerticalFlip(1)),
    *(v2.RandomRotation(30), v2.RandomRotation(90, expand=True), v2.RandomAffine(30, (0.1, 0.1), (0.5, 1), 20)),
    *(v2.ColorJitter(0.5), v2.ColorJitter(contrast=0.5), v2.ColorJitter(saturation=0.5), v2.ColorJitter(hue=0.2)),
    *(v2.Grayscale(3), v2.RandomGrayscale(1), v2.RandomInvert(1), v2.RandomPosterize(3, 1)),
    *(v2.RandomSolarize(100, 1), v2.RandomAdjustSharpness(2, 1), v2.RandomAutocontrast(1), v2.RandomEqualize(1)),
    *(v2.GaussianBlur(3), v2.AugMix(), v2.RandomApply([v2.Resize(9)]), v2.RandomChoice([v2.RandomInvert(1)])),
    *(v2.RandomOrder([v2.RandomInvert(1), v2.GaussianBlur(3)]), v2.RandomApply([v2.GaussianBlur(3)], 1.0)),
]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
def test_what_keeps_the_info_is_known(transform):
    image = Image.new("RGB", (50, 60), (1, 2, 3))
    image.info = {"dpi": (1, 1)}
    [step] = steps(transform, Place("pil"))
    [translated] = step.translated
    # A crop that pads where it must may keep it: nothing is promised.
    kept = bool(transform(image).info) and not getattr(transform, "pad_if_needed", False)
    assert keeps_info(translated) == kept
