"""Every position encoding under torch.compile, torch.export and ONNX: at sizes that the model was not made for too."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from vit_rs.models import VisionTransformer, ViTConfig

if TYPE_CHECKING:
    from pathlib import Path

TABLE = [
    *itertools.product(("1d", "2d"), ("stem", "every")),
    *itertools.product(("sincos2d_mae",), ("stem", "shared")),
    ("relative", "stem"),
    ("none", "stem"),
]
ENCODINGS = [(name, placement, False) for name, placement in TABLE] + [("none", "stem", True), ("1d", "shared", True)]
SIZES = [(12, 20), (24, 12), (8, 36)]
# torch's own remarks about what its compilers and exporters do.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def model_of(pos_embed: str, placement: str, rope: bool, **changes: object) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"img_size": (12, 20), "patch_size": 4, "num_classes": 5, "embed_dim": 24, "num_heads": 3}
    fields = {
        "depth": 2 if placement == "every" else 1,
        "pos_embed": pos_embed,
        "pos_placement": placement,
        "rope": rope,
        "dynamic_img_size": True,
    }
    model = VisionTransformer(ViTConfig.from_dict({**sizes, **fields, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def gradients_of(model: VisionTransformer, run: object, images: torch.Tensor) -> tuple[torch.Tensor, list[object]]:
    model.zero_grad()
    logits = run(images)
    logits.square().sum().backward()
    return logits.detach(), [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def check_compiled(
    encoding: tuple[str, str, bool], backend: str, dynamic: bool | None, sizes: list[tuple[int, int]]
) -> None:
    torch.compiler.reset()
    model = model_of(*encoding)
    compiled = torch.compile(model, fullgraph=True, backend=backend, dynamic=dynamic)
    for size in sizes:
        images = torch.randn(2, 3, *size)
        logits, gradients = gradients_of(model, model, images)
        ours, theirs = gradients_of(model, compiled, images)
        torch.testing.assert_close(ours, logits, rtol=0, atol=1e-5 * max(1.0, logits.abs().max().item()))
        largest = max(g.abs().max().item() for g in gradients if g is not None)
        for got, want in zip(theirs, gradients, strict=True):
            assert (got is None) == (want is None)
            if want is not None:
                torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * max(1.0, largest))


# A compilation takes seconds: what the others have, too, is in these two.
RELATIVE, ROTARY = ("relative", "stem", False), ("1d", "shared", True)


def slow_but(quick: tuple[str, str, bool]) -> list[object]:
    return [
        pytest.param(encoding, marks=() if encoding == quick else pytest.mark.slow, id=str(encoding))
        for encoding in ENCODINGS
    ]


def test_compiles_at_another_size() -> None:
    check_compiled(RELATIVE, "aot_eager", None, SIZES[1:2])


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "dynamic"), [("aot_eager", None), ("aot_eager", True), ("inductor", None)])
@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_compiles_in_every_way(encoding: tuple[str, str, bool], backend: str, dynamic: bool | None) -> None:
    check_compiled(encoding, backend, dynamic, SIZES)


# ONNX


def run_onnx(path: Path, images: torch.Tensor) -> tuple[np.ndarray, set[str]]:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    [logits] = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return logits, {node.domain for node in onnx.load(str(path)).graph.node}


def check_onnx(path: Path, model: VisionTransformer, images: torch.Tensor) -> None:
    with torch.no_grad():
        want = model(images).numpy()
    got, domains = run_onnx(path, images)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * max(1.0, np.abs(want).max()))
    assert domains <= {""}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*legacy TorchScript.*", "ignore::UserWarning")
@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("encoding", slow_but(RELATIVE))
def test_onnx(encoding: tuple[str, str, bool], dynamo: bool, tmp_path: Path) -> None:
    """Native and other sizes, which a graph has for good; any number of images."""
    pytest.importorskip("onnxscript")
    model, path = model_of(*encoding).eval(), tmp_path / "model.onnx"
    for size in ((24, 12),) if dynamo else ((12, 20), (24, 12)):
        images = torch.randn(2, 3, *size)
        axes = (
            {"dynamic_shapes": ({0: torch.export.Dim("batch")},)} if dynamo else {"dynamic_axes": {"x": {0: "batch"}}}
        )
        torch.onnx.export(
            model, (images,), str(path), dynamo=dynamo, verbose=False, input_names=["x"], opset_version=18, **axes
        )
        for batch in (2, 3):
            check_onnx(path, model, torch.randn(batch, 3, *size))


@pytest.mark.parametrize("encoding", slow_but(ROTARY))
def test_onnx_of_any_size(encoding: tuple[str, str, bool], tmp_path: Path) -> None:
    """Batch, height and width stay open: the table is resampled, or the angles made, in the graph itself."""
    pytest.importorskip("onnxscript")
    model, path = model_of(*encoding).eval(), tmp_path / "model.onnx"
    rows, columns = (torch.export.Dim(name, min=2, max=64) for name in ("rows", "columns"))
    shapes = ({0: torch.export.Dim("batch"), 2: 4 * rows, 3: 4 * columns},)
    images = torch.randn(2, 3, 24, 16)
    torch.onnx.export(model, (images,), str(path), dynamo=True, verbose=False, input_names=["x"], dynamic_shapes=shapes)
    for size in SIZES:
        check_onnx(path, model, torch.randn(3, 3, *size))
