"""Training states: exact round trips, and every damage found."""

import os
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from vit_rs.checkpoints import load_model, load_state, save_state
from vit_rs.exceptions import CheckpointError
from vit_rs.models import VisionTransformer, ViTConfig

TINY = ViTConfig(img_size=16, patch_size=4, num_classes=5, embed_dim=12, depth=2, num_heads=3)


def tiny_model(seed: int = 0, **changes: object) -> VisionTransformer:
    torch.manual_seed(seed)
    model = VisionTransformer(ViTConfig.from_dict({**TINY.to_dict(), **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def equal_states(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class _Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    path, trap = tmp_path / "state.pt", tmp_path / "executed"
    torch.save({"a": _Payload(trap)}, path)
    for read in (load_state, load_model):
        with pytest.raises(CheckpointError, match=r"state\.pt: refused") as error:
            read(path)
        assert "weights_only=False" not in str(error.value)
    path.write_bytes(pickle.dumps({"a": _Payload(trap)}))
    for read in (load_state, load_model):
        with pytest.raises(CheckpointError, match=r"state\.pt: "):
            read(path)
    assert not trap.exists()


def test_state_round_trip(tmp_path: Path) -> None:
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(1e-3))
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    optimizer.step()
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "step": 2**70,
        "best": -0.0,
        "name": "lauf é",
        "nothing": None,
        "nested": [(1, True), OrderedDict(a=b"bytes"), {}],
        "dtype": torch.bfloat16,
        "half": torch.randn(3).bfloat16(),
    }
    path = tmp_path / "state.pt"
    save_state(path, state)
    back = load_state(path)
    assert back.keys() == state.keys()
    for key in ("step", "best", "name", "nothing", "nested", "dtype"):
        assert back[key] == state[key]
        assert type(back[key]) is type(state[key])
    for key in ("rng", "half"):
        assert torch.equal(back[key], state[key])
    other = torch.optim.AdamW(tiny_model().parameters(), lr=1.0)
    other.load_state_dict(back["optimizer"])
    assert torch.equal(other.param_groups[0]["lr"], torch.tensor(1e-3))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), back["model"].values(), strict=True))
    assert names(tmp_path) == ["state.pt"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.float64(1.0), r"state\['a'\]\[0\] is a numpy\.float64"),
        (TINY, r"state\['a'\]\[0\] is a vit_rs\.models\.vit\.ViTConfig"),
        ({1.5: 2}, r"state\['a'\]\[0\]: keys must be str or int, got 1\.5 \(float\)"),
        ({1, 2}, r"state\['a'\]\[0\] is a builtins\.set"),
        (b"", r"state\['a'\]\[0\] is an empty bytes"),
    ],
)
def test_what_cannot_be_read_back_is_not_written(tmp_path: Path, value: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        save_state(tmp_path / "state.pt", {"a": [value]})
    assert names(tmp_path) == []


def test_every_damage_of_a_state_is_found(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    want = {"weights": torch.arange(300.0), "step": 7}
    save_state(path, want)
    good = path.read_bytes()
    rng = random.Random(0)
    messages = []
    for round_number in range(150):
        damaged = bytearray(good)
        if round_number % 2:
            damaged = damaged[: rng.randrange(len(damaged))]
        else:
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            back = load_state(path)
        except CheckpointError as error:
            messages.append(str(error))
        else:  # a bit that means nothing, such as a date or padding of the zip
            assert back["step"] == 7
            assert torch.equal(back["weights"], want["weights"])
    assert len(messages) > 100
    assert all(str(path) in message and "\n" not in message for message in messages)


def test_tensors_with_attributes_come_back(tmp_path: Path) -> None:
    tensor = torch.nn.Parameter(torch.ones(3))
    tensor.group = "head"
    buffer = torch.nn.Buffer(torch.ones(2))
    save_state(tmp_path / "state.pt", {"parameter": tensor, "buffer": buffer})
    back = load_state(tmp_path / "state.pt")
    assert back["parameter"].group == "head"
    assert torch.equal(back["buffer"], buffer)


def test_a_compressed_state_is_refused(tmp_path: Path) -> None:
    """torch's are not, and a megabyte could unpack to a terabyte before anything is known of it."""
    path, packed = tmp_path / "state.pt", tmp_path / "packed.pt"
    save_state(path, {"zeros": torch.zeros(10_000)})
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(CheckpointError, match=r"packed\.pt: refused: \S+ is compressed, torch's never are"):
        load_state(packed)


def test_a_state_is_a_dictionary(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match=r"list\.pt: expected a dictionary, the file holds a list"):
        load_state(tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="expected a dictionary of tensors, the file holds a list"):
        load_model(tmp_path / "list.pt")
