"""Files of weights that change, or close, while somebody reads them."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vit_rs.checkpoints import torch_file
from vit_rs.checkpoints.files import WeightsFile, open_weights, rewrite
from vit_rs.exceptions import CheckpointError

CONTAINERS = ("safetensors", "pth", "old.pth", "npz")


def written(path: Path, value: float, extra: int = 0) -> Path:
    tensors = {"a": torch.full((40,), value), "b": torch.full((9 + extra,), value), "c": torch.full((5,), value)}
    match path.name.split(".", 1)[1]:
        case "safetensors":
            save_file(tensors, path)
        case "npz":
            np.savez(path, **{key: tensor.numpy() for key, tensor in tensors.items()})
        case kind:
            torch.save(tensors, path, _use_new_zipfile_serialization=kind == "pth")
    return path


def values(file: WeightsFile) -> set[float]:
    return {number for key in file.tensors for number in file.read(key).tolist()}


@pytest.mark.parametrize("changes", [{}, {"c": torch.full((7,), 1.0)}], ids=["copy", "change"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_a_rewritten_file_is_the_one_that_was_opened(tmp_path: Path, container: str, changes: dict) -> None:
    path, other = written(tmp_path / f"a.{container}", 1.0), written(tmp_path / f"b.{container}", 2.0, extra=3)
    before = path.read_bytes()
    with open_weights(path) as file:
        other.replace(path)
        rewrite(file, changes, tmp_path / f"out.{container}")
        assert values(file) == {1.0}
    with open_weights(tmp_path / f"out.{container}") as file:
        assert values(file) == {1.0}
        assert file.tensors["b"].shape == (9,)
    assert changes or (tmp_path / f"out.{container}").read_bytes() == before


@pytest.mark.parametrize("changes", [{}, {"c": torch.full((7,), 1.0)}], ids=["copy", "change"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_a_file_that_was_written_to_is_not_rewritten(tmp_path: Path, container: str, changes: dict) -> None:
    path = written(tmp_path / f"a.{container}", 1.0)
    os.utime(path, ns=(0, 0))
    with open_weights(path) as file:
        with path.open("r+b") as writing:
            writing.seek(-1, os.SEEK_END)
            last = writing.read()
            writing.seek(-1, os.SEEK_END)
            writing.write(last)
        with pytest.raises(CheckpointError, match=rf"a\.{container}: it was changed while it was read"):
            rewrite(file, changes, tmp_path / "out")
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(("container", "module"), [("safetensors", "safetensors_file.safe_open"), ("pth", "")])
def test_a_file_replaced_between_two_openings_is_told(
    tmp_path: Path, container: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = written(tmp_path / f"a.{container}", 1.0), written(tmp_path / f"b.{container}", 2.0)
    where = f"vit_rs.checkpoints.{module}" if module else "torch.load"
    library = torch.load if not module else __import__("safetensors").safe_open

    def replaced(*arguments: object, **named: object) -> object:
        other.replace(path)
        return library(*arguments, **named)

    monkeypatch.setattr(where, replaced)
    with pytest.raises(CheckpointError, match="it was changed while it was read"):
        open_weights(path)


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_closed_file_says_so(tmp_path: Path, container: str) -> None:
    path = written(tmp_path / f"a.{container}", 1.0)
    with open_weights(path) as file:
        kept = file.read("a")
    assert kept.tolist() == [1.0] * 40
    for use in (lambda: file.read("a"), lambda: rewrite(file, {}, tmp_path / "out")):
        with pytest.raises(ValueError, match=rf"a\.{container}: the file was closed"):
            use()
    assert os.listdir(tmp_path) == [path.name]


def test_storages_of_one_size_are_not_compared_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of storages, of which lists hide every other one, could be in many places: two that fit are enough."""
    path = tmp_path / "run.pth"
    monkeypatch.setattr(torch_file, "_MOST_COMPARED", 500)
    pages = [torch.full((1008,), float(index)) for index in range(400)]
    torch.save({"list": pages[:200], **{str(index): tensor for index, tensor in enumerate(pages[200:])}}, path)
    with open_weights(path) as file:
        assert all(file.read(key)[0] == 200 + int(key) for key in file.tensors)
    # Every place is compared up to the odd one, which fits nowhere but where it is.
    odd = torch.ones(5)
    named = {str(index): pages[index] for index in range(100, 300)}
    torch.save({"list": [*pages[:200], odd, *pages[200:]], **named, "odd": odd}, path)
    with pytest.raises(CheckpointError, match="too many storages of one size"):
        open_weights(path)
