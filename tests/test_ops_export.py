"""Resampling and patchify in graphs: torch.compile, torch.export and ONNX, at sizes that the model was not made for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

import vit_rs
from vit_rs.models import VisionTransformer, ViTConfig
from vit_rs.ops._traced_matrix import traced_matrix
from vit_rs.ops.conventions import GRID_CONVENTIONS

NAMES = list(GRID_CONVENTIONS)
# torch's own remarks about what its compilers and exporters do.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore:Attempted to insert a get_attr Node",  # torch 2.6, of every constant
    "ignore:.*does not reference an nn.Module",
    "ignore:Additional .* warnings suppressed about get_attr",
)
IN_TORCH_2_6 = not hasattr(torch.compiler, "is_exporting")


def slow(*values):
    """A case of a kind that a quick one stands for."""
    return pytest.param(*values, marks=pytest.mark.slow)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def operators_of(program):
    return {str(node.target) for node in program.graph.nodes if str(node.target).startswith("vit_rs")}


# torch.compile


def resample_all(posemb, kernel, grid):
    resampled = vit_rs.resample_abs_pos_embed(posemb, grid, (3, 4))
    patches = vit_rs.resample_patch_embed(kernel, grid)
    return resampled.sin(), patches.sin(), vit_rs.interpolation_matrix(*grid)


@pytest.mark.parametrize(
    ("backend", "dynamic"),
    [
        ("aot_eager", True),
        slow("aot_eager", False),
        slow("inductor", True),
        slow("inductor", False),
    ],
)
def test_compile(backend, dynamic):
    """pytorch#197622: the dynamic backward of antialiased bicubic fails to compile."""
    torch.compiler.reset()
    compiled = torch.compile(resample_all, fullgraph=True, backend=backend, dynamic=dynamic)
    for grid in ((5, 7), (2, 6), (8, 9)):
        inputs = [randn(1, 13, 6).requires_grad_(), randn(5, 3, 4, 6).requires_grad_()]
        eager = resample_all(*inputs, grid)
        ours = compiled(*inputs, grid)
        torch.testing.assert_close(ours, eager, rtol=1e-5, atol=1e-5)
        eager = torch.autograd.grad(sum(result.sum() for result in eager), inputs)
        ours = torch.autograd.grad(sum(result.sum() for result in ours), inputs)
        torch.testing.assert_close(ours, eager, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    "options",
    [{"convention": "dino"}, slow({"scale": (0.3, 0.4), "compute_dtype": torch.float64}), slow({"offset": 0.2})],
)
def test_compile_with_a_step(options):
    """pytorch#147261: a wrong shape from a symbolic scale factor. pytorch#114752: sizes that vary from call to call."""
    torch.compiler.reset()

    def resample(posemb, rows, columns):
        return vit_rs.resample_abs_pos_embed(posemb, (rows, columns), (3, 4), **options)

    compiled = torch.compile(resample, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows, columns in ((5, 7), (9, 3), (3, 4)):
        posemb = randn(1, 13, 6).requires_grad_()
        eager, ours = resample(posemb, rows, columns), compiled(posemb, rows, columns)
        torch.testing.assert_close(ours, eager, rtol=0, atol=5e-6)
        (ours,), (eager,) = (torch.autograd.grad(result.square().sum(), posemb) for result in (ours, eager))
        torch.testing.assert_close(ours, eager, rtol=0, atol=5e-5)


@pytest.mark.parametrize("name", NAMES)
def test_compile_every_convention(name):
    torch.compiler.reset()

    def resample(posemb):
        return vit_rs.resample_abs_pos_embed(posemb, (9, 5), (4, 4), convention=name)

    posemb = randn(1, 17, 6)
    ours = torch.compile(resample, fullgraph=True, backend="aot_eager")(posemb)
    torch.testing.assert_close(ours, resample(posemb), rtol=0, atol=5e-6)


def test_compile_reports_errors():
    torch.compiler.reset()
    compiled = torch.compile(vit_rs.resample_abs_pos_embed, backend="aot_eager")
    with pytest.raises(ValueError, match="convention 'jax' has antialias=False, got antialias=True"):
        compiled(randn(1, 17, 6), (5, 5), convention="jax", antialias=True)


# torch.export


class Everything(nn.Module):
    """Every operator, at sizes known when the graph is made."""

    def __init__(self, name="timm"):
        super().__init__()
        self.name = name
        self.kernel = nn.Parameter(randn(6, 3, 4, 4))
        self.posemb = nn.Parameter(randn(1, 10, 6))

    def forward(self, images):
        patches = vit_rs.patchify(images, 4, order="cpq", mean=[0.1, 0.2, 0.3], std=0.5)
        images = vit_rs.unpatchify(patches, (24, 32), 4, order="cpq")
        kernel = vit_rs.resample_patch_embed(self.kernel, 8)
        posemb = vit_rs.resample_abs_pos_embed(self.posemb, (3, 4), convention=self.name)
        tokens = nn.functional.conv2d(images, kernel, stride=8).flatten(2).transpose(1, 2) + posemb[:, 1:]
        matrix = vit_rs.interpolation_matrix(12, 5, convention=self.name)
        return matrix.float() @ tokens


@pytest.mark.parametrize(
    ("name", "strict"),
    [("timm", False), ("dino", True), slow("timm", True), slow("jax", False), slow("jax", True), slow("dino", False)],
)
def test_export_holds_no_operator_of_ours(name, strict):
    if strict and IN_TORCH_2_6:
        pytest.skip("a strict export cannot be told from a compilation there: operators stay in it")
    module, images = Everything(name), randn(2, 3, 24, 32)
    program = torch.export.export(module, (images,), strict=strict)
    assert operators_of(program) == set()
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), module(images), rtol=0, atol=1e-5)


@pytest.mark.skipif(IN_TORCH_2_6, reason="a strict export, the default there, keeps the operators")
def test_export_with_out():
    class Writing(nn.Module):
        def forward(self, images, out, back):
            vit_rs.patchify(images, 2, out=out)
            return vit_rs.unpatchify(out, (4, 6), 2, out=back) * 1.0

    images = randn(2, 3, 4, 6)
    outs = (torch.zeros(2, 6, 12), torch.zeros(2, 3, 4, 6))
    program = torch.export.export(Writing(), (images, *outs))
    assert operators_of(program) == set()
    assert torch.equal(program.module()(images, *outs), images)
    assert torch.equal(outs[0], vit_rs.patchify(images, 2))


class Dynamic(nn.Module):
    """A table resampled to the grid of whatever comes."""

    def __init__(self, name):
        super().__init__()
        self.name = name
        self.posemb = nn.Parameter(randn(1, 10, 3))

    def forward(self, images):
        grid = (images.shape[2] // 2, images.shape[3] // 2)
        posemb = vit_rs.resample_abs_pos_embed(self.posemb, grid, convention=self.name)
        return vit_rs.patchify(images, 2).unflatten(2, (4, 3)).sum(2) + posemb[:, 1:]


@pytest.mark.parametrize(
    ("name", "least", "strict"),
    [
        ("timm", 2, False),
        ("dino", 4, True),
        slow("timm", 2, True),
        slow("jax", 2, False),
        slow("jax", 2, True),
        slow("dino", 4, False),
    ],
)
def test_export_with_dynamic_sizes(name, least, strict):
    """pytorch#116306. The native grid is no case of its own in the graph, but with DINO's offset: left out there."""
    module = Dynamic(name).eval()
    batch, rows, columns = Dim("batch"), Dim("rows", min=least, max=64), Dim("columns", min=least, max=64)
    shapes = {"images": {0: batch, 2: 2 * rows, 3: 2 * columns}}
    program = torch.export.export(module, (randn(2, 3, 10, 12),), dynamic_shapes=shapes, strict=strict)
    kept = {"vit_rs.patchify.default", "vit_rs.interpolation_matrix.default"}  # by a strict export there
    assert operators_of(program) <= (kept if IN_TORCH_2_6 and strict else set())
    exported = program.module()
    for shape in ((3, 3, 16, 18), (1, 3, 8, 10), *(() if least > 2 else ((2, 3, 6, 6), (2, 3, 4, 14)))):
        images = randn(*shape)
        with torch.no_grad():
            torch.testing.assert_close(exported(images), module(images), rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", NAMES)
def test_traced_matrices(name):
    """What an exported graph of open sizes computes, in place of Rust; float64's rounding apart."""
    convention = GRID_CONVENTIONS[name]
    knobs = (convention.interpolation, convention.antialias, convention.align_corners, convention.a)
    for old, new in itertools.product((1, 2, 3, 7, 14, 16, 37), (1, 2, 5, 14, 24, 30, 32)):
        ours = traced_matrix(old, new, *knobs, None, convention.offset)
        expected = vit_rs.interpolation_matrix(old, new, convention=name)
        torch.testing.assert_close(ours, expected, rtol=0, atol=5e-14)
    if not convention.align_corners:
        ours = traced_matrix(7, 9, *knobs, 0.6)
        settings = dict(zip(("interpolation", "antialias", "align_corners", "a"), knobs, strict=True))
        torch.testing.assert_close(ours, vit_rs.interpolation_matrix(7, 9, **settings, scale=0.6), rtol=0, atol=5e-14)


@pytest.mark.parametrize("strict", [False, True])
def test_export_refuses_the_native_grid_as_its_example(strict):
    """A graph made of it would hold the table alone, for whatever size comes."""
    shapes = {"images": {2: 2 * Dim("rows", min=2, max=64), 3: 2 * Dim("columns", min=2, max=64)}}
    with pytest.raises(Exception, match="an example of another grid"):
        torch.export.export(Dynamic("dino").eval(), (randn(1, 3, 6, 6),), dynamic_shapes=shapes, strict=strict)


@pytest.mark.skipif(IN_TORCH_2_6, reason="it does not check there what the sizes must not be")
def test_export_refuses_what_it_would_get_wrong():
    """DINO leaves the native grid alone: no graph without a branch does that, so the sizes must exclude it."""
    module = Dynamic("dino").eval()
    shapes = {"images": {2: 2 * Dim("rows", max=64), 3: 2 * Dim("columns", max=64)}}
    with pytest.raises(Exception, match=r"Constraints violated|Guard failed"):
        torch.export.export(module, (randn(2, 3, 10, 12),), dynamic_shapes=shapes).module()(randn(2, 3, 6, 6))


# ONNX


class Larger(nn.Module):
    """A ViT made for 16 x 16 images, run on 24 x 32: its table is resampled in every forward."""

    def __init__(self, name):
        super().__init__()
        config = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5, "mlp_ratio": 2.0}
        native = VisionTransformer(ViTConfig(img_size=16, **config))
        self.vit = VisionTransformer(ViTConfig(img_size=(24, 32), **config))
        weights = native.state_dict()
        self.posemb = nn.Parameter(randn(*weights.pop("pos_embed").shape))
        self.vit.load_state_dict(weights, strict=False)
        self.name = name

    def forward(self, images):
        posemb = vit_rs.resample_abs_pos_embed(self.posemb, (6, 8), (4, 4), convention=self.name)
        return torch.func.functional_call(self.vit, {"pos_embed": posemb}, (images,))


class Given(nn.Module):
    """The table comes with the images: nothing of the resampling can be computed in advance."""

    def __init__(self, name):
        super().__init__()
        self.name = name

    def forward(self, posemb):
        return vit_rs.resample_abs_pos_embed(posemb, (6, 5), (4, 4), convention=self.name)


def run_onnx(module, inputs, path, **options):
    """Export and run; return what ONNX Runtime gives and the graph's operators, as domain and name."""
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    module.eval()
    torch.onnx.export(module, inputs, str(path), verbose=False, **options)
    graph = onnx.load(str(path)).graph
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {node.name: tensor.numpy() for node, tensor in zip(session.get_inputs(), inputs, strict=True)}
    [result] = session.run(None, feeds)
    return result, {(node.domain, node.op_type) for node in graph.node}


@pytest.mark.parametrize("name", ["timm", slow("jax"), slow("dino")])
def test_onnx_of_a_vit_at_another_size(name, tmp_path):
    """A ViT at a non-native size: dinov2#19, dinov2#288, dino#168, transformers#26790, PR transformers#33226.

    No Resize is in the graph, so nothing of onnxscript#1259 (another antialiasing), pytorch#177138 (another cubic),
    pytorch#80033, pytorch#119232, pytorch#128818, pytorch/vision#6806 (no symbolic of the antialiased modes), PR
    optimum#1580 (a cubic that ONNX Runtime refuses) or PR anomalib#3627 (antialiasing switched off to export).
    """
    pytest.importorskip("onnxscript")
    module, images = Larger(name), randn(2, 3, 24, 32)
    result, operators = run_onnx(module, (images,), tmp_path / "vit.onnx", dynamo=True)
    with torch.no_grad():
        np.testing.assert_allclose(result, module(images).numpy(), rtol=0, atol=1e-5)
    assert not {name for domain, name in operators if "vit" in domain or name in {"Resize", "Upsample"}}


@pytest.mark.parametrize("name", ["dino", slow("timm"), slow("jax"), slow("torchvision"), slow("flexi")])
def test_onnx_of_a_resampling(name, tmp_path):
    pytest.importorskip("onnxscript")
    posemb = randn(1, 17, 8)
    result, operators = run_onnx(Given(name), (posemb,), tmp_path / "table.onnx", dynamo=True)
    expected = vit_rs.resample_abs_pos_embed(posemb, (6, 5), (4, 4), convention=name)
    np.testing.assert_allclose(result, expected.numpy(), rtol=0, atol=1e-5)
    assert {domain for domain, _ in operators} == {""}
    assert ("", "Resize") not in operators
    assert ("", "MatMul") in operators


def test_onnx_of_everything(tmp_path):
    pytest.importorskip("onnxscript")
    module, images = Everything(), randn(2, 3, 24, 32)
    result, operators = run_onnx(module, (images,), tmp_path / "everything.onnx", dynamo=True)
    with torch.no_grad():
        expected = module(images)
    np.testing.assert_allclose(result, expected.numpy(), rtol=0, atol=1e-5 * expected.abs().max().item())
    assert {domain for domain, _ in operators} == {""}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*legacy TorchScript.*")
@pytest.mark.parametrize("name", ["timm", slow("dino")])
def test_onnx_by_tracing(name, tmp_path):
    """The older exporter, `dynamo=False`."""
    module, images = Everything(name), randn(2, 3, 24, 32)
    result, operators = run_onnx(module, (images,), tmp_path / "traced.onnx", dynamo=False)
    with torch.no_grad():
        expected = module(images)
    np.testing.assert_allclose(result, expected.numpy(), rtol=0, atol=1e-5 * expected.abs().max().item())
    assert {domain for domain, _ in operators} == {""}


class FromTheImages(nn.Module):
    """Sizes that a tracer hands over as tensors."""

    def forward(self, images, posemb):
        patches = vit_rs.patchify(images, 2)
        grid = (images.shape[2] // 2, images.shape[3] // 2)
        back = vit_rs.unpatchify(patches, images.shape[2:], 2)
        return vit_rs.resample_abs_pos_embed(posemb, grid)[:, 1:] + back.sum()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_trace_takes_sizes_of_tensors():
    module, inputs = FromTheImages(), (randn(2, 3, 8, 10), randn(1, 10, 3))
    traced = torch.jit.trace(module, inputs)
    assert "vit_rs::" not in str(traced.graph)
    torch.testing.assert_close(traced(*inputs), module(*inputs), rtol=0, atol=5e-6)
    with pytest.raises(TypeError, match=r"new_size must be an integer or \(height, width\), got 2.5"):
        torch.jit.trace(lambda posemb: vit_rs.resample_abs_pos_embed(posemb, 2.5), inputs[1:])
