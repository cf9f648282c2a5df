"""docs/drop-in.md tells what is so: its tests exist, and its lists are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torchvision

from vit_rs.data.dropin import chain, datasets_torchvision, timm_transforms, torchvision_transforms

TESTS = Path(__file__).resolve().parent
PAGE = (TESTS.parent / "docs" / "drop-in.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return PAGE.partition(f"\n{title}\n")[2].partition("\n## ")[0]


def cells(table: str) -> dict[str, set[str]]:
    """Return the names in the second column of a table, by the text of the first one."""
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", table, re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", cell)) for name, cell in rows}


def test_every_test_of_the_contract_exists():
    sources = "\n".join(path.read_text("utf-8") for path in TESTS.glob("*.py"))
    defined = set(re.findall(r"^def (test_\w+)", sources, re.MULTILINE))
    named = set(re.findall(r"`(test_\w+)`", section("## torch's contract")))
    assert len(named) > 30
    assert named <= defined, sorted(named - defined)


def test_the_transforms_are_those_that_are_translated():
    named = cells(section("## What is carried out where").partition("**Transforms**")[2])
    listed = set.union(*(named[kind] for kind in ("geometry", "colour", "policies", "values", "containers")))
    # In words on the page: "both flips"; Compose and nn.Sequential are taken apart.
    listed = listed - {"Compose", "Sequential"} | {"RandomHorizontalFlip", "RandomVerticalFlip"}
    tables = (torchvision_transforms._CONVERSIONS, torchvision_transforms._OPERATIONS, chain._CONTAINERS)
    assert listed == set().union(*tables)
    of_timm = {*timm_transforms._CONVERSIONS, *timm_transforms._OPERATIONS}
    assert named["timm"] - {"create_transform"} <= of_timm | {"AugMix"}
    assert {"RandAugment", "AutoAugment", "AugMixAugment", "RandomErasing"} <= of_timm


def test_the_data_sets_are_those_that_are_read():
    named = cells(section("## What is carried out where").partition("**Data sets**")[2].partition("**Transforms**")[0])
    listed = set.union(*(names for row, names in named.items() if row.startswith("torchvision's"))) - {"loader"}
    assert len(listed) > 20
    for name in sorted(listed):
        kind = getattr(torchvision.datasets, name, None)
        if kind is None:  # of a later torchvision than the oldest one that is supported
            continue
        owner = next(base for base in kind.__mro__ if "__getitem__" in vars(base))
        assert owner.__name__ in datasets_torchvision._READERS, name


@pytest.mark.parametrize("heading", ["accelerate", "Lightning", "Hugging Face Trainer", "timm"])
def test_wrappers_have_their_place(heading):
    assert f"\n### {heading}\n" in PAGE
