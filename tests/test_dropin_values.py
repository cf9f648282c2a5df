"""A torchvision script's evaluation gives the same classes, length, labels and values with either DataLoader."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torchvision import transforms as v1
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from vit_rs.data import DataLoader

pytestmark = [
    pytest.mark.parity,
    # Pillow's own, about two of the files.
    pytest.mark.filterwarnings("ignore:Palette images with Transparency"),
]

ODD_FILES = Path(__file__).resolve().parent.parent / "rust" / "fuzz" / "corpus" / "decode"
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
TO_FLOAT = v2.ToDtype(torch.float32, scale=True)
FORMS = {
    "PIL, v2": (v2, [], [v2.ToImage(), TO_FLOAT]),
    "PIL, v2, PILToTensor": (v2, [], [v2.PILToTensor(), TO_FLOAT]),
    "PIL, v1": (v1, [], [v1.ToTensor()]),
    "tensor, v2": (v2, [v2.ToImage()], [TO_FLOAT]),
    "tensor, v2, PILToTensor": (v2, [v2.PILToTensor()], [TO_FLOAT]),
    "tensor, v1": (v1, [v1.PILToTensor()], [v1.ConvertImageDtype(torch.float32)]),
}


def evaluation(form: str, interpolation=v2.InterpolationMode.BILINEAR):
    """Return Resize 256, CenterCrop 224, Normalize in one of the forms."""
    library, first, last = FORMS[form]
    steps = [library.Resize(256, interpolation), library.CenterCrop(224), *last, library.Normalize(MEAN, STD)]
    return library.Compose([*first, *steps])


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Baseline JPEGs of photographs: large, small, wide, high, of every subsampling and several qualities."""
    root, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    sizes = [(500, 375), (375, 500), (640, 427), (256, 256), (257, 300), (224, 224), (100, 80), (31, 47), (900, 90)]
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        whole = Image.fromarray(getattr(data, name)())
        (root / name).mkdir()
        whole.save(root / name / "whole.jpg", quality=95)
        for number, (width, height) in enumerate(sizes):
            scale = max(width / whole.width, height / whole.height, 1)
            larger = whole.resize((round(whole.width * scale) + 1, round(whole.height * scale) + 1))
            left, top = rng.integers(0, (larger.width - width, larger.height - height))
            piece = larger.crop((left, top, left + width, top + height))
            piece.save(root / name / f"{number}.JPG", quality=(75, 90, 95)[number % 3], subsampling=number % 3)
    return root


@pytest.fixture(scope="module")
def oddities(tmp_path_factory) -> Path:
    """Files of every other kind that torchvision's ImageFolder takes: progressive, CMYK, gray, PNG, WebP, tiny."""
    root = tmp_path_factory.mktemp("oddities")
    for path in ODD_FILES.iterdir():
        folder = root / path.suffix[1:]
        folder.mkdir(exist_ok=True)
        shutil.copy(path, folder)
    photograph = Image.fromarray(data.astronaut())
    photograph.save(root / "jpg" / "photograph-progressive.jpg", progressive=True)
    photograph.convert("CMYK").save(root / "jpg" / "photograph-cmyk.jpg")
    photograph.convert("L").save(root / "jpg" / "photograph-gray.jpg")
    photograph.resize((1, 1)).save(root / "jpg" / "pixel.jpg")
    photograph.resize((1, 90)).save(root / "jpg" / "line.jpg")
    photograph.quantize(64).save(root / "png" / "photograph-palette.png")
    photograph.save(root / "webp" / "photograph.webp", quality=80)
    return root


def same_in_both(root: Path, transform) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the values that the script gets from torch and from vit_rs; all else must be equal."""
    dataset = ImageFolder(str(root), transform)
    theirs, ours = torch.utils.data.DataLoader(dataset, 8), DataLoader(ImageFolder(str(root), transform), 8)
    assert ours.dataset.classes == dataset.classes
    assert len(ours) == len(theirs) == -(-len(dataset) // 8)
    found, expected = list(ours), list(theirs)
    assert [[type(part) for part in batch] for batch in found] == [[torch.Tensor] * 2 for _ in expected]
    assert [type(batch) for batch in found] == [type(batch) for batch in expected]
    assert all(batch[1].dtype == torch.int64 for batch in found)
    assert [batch[1].tolist() for batch in found] == [batch[1].tolist() for batch in expected]
    return torch.cat([batch[0] for batch in expected]), torch.cat([batch[0] for batch in found])


@pytest.mark.parametrize("form", FORMS)
def test_every_value_of_baseline_jpegs(photographs, form):
    expected, found = same_in_both(photographs, evaluation(form))
    assert expected.shape == (40, 3, 224, 224)
    # Bit for bit: nothing is rounded otherwise than torchvision rounds it.
    assert torch.equal(found, expected), f"{int((found != expected).sum())} of {found.numel()} values differ"


@pytest.mark.parametrize("form", FORMS)
def test_every_value_of_other_files(oddities, form):
    expected, found = same_in_both(oddities, evaluation(form))
    assert len(expected) == len(list(oddities.glob("*/*"))) > 40
    # No step of 255 in any value: decoding is Pillow's, byte for byte, of every kind of file.
    assert torch.equal(found, expected), f"{int((found != expected).sum())} of {found.numel()} values differ"


@pytest.mark.parametrize("form", ["PIL, v2", "tensor, v2"])
def test_bicubic_too(photographs, form):
    expected, found = same_in_both(photographs, evaluation(form, v2.InterpolationMode.BICUBIC))
    assert torch.equal(found, expected)


def test_the_forms_differ():
    """Pillow's kernels and torch's are told apart by these values: one could not stand in for the other unnoticed."""
    image = Image.fromarray(data.coffee())
    pil, tensor = (evaluation(form)(image) for form in ("PIL, v2", "tensor, v2"))
    assert (pil != tensor).float().mean() > 1e-4
    v1_form, v2_form = (evaluation(form)(image) for form in ("PIL, v1", "PIL, v2"))
    # ToTensor divides by 255, ToDtype multiplies by its reciprocal.
    assert 0 < (v1_form - v2_form).abs().max() < 1e-6
