"""The operators as citizens of PyTorch: opcheck, gradients, compilation, tracing, autocast, other devices."""

from __future__ import annotations

import doctest
import gc

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck

import vit_rs
from vit_rs import _reference
from vit_rs.ops import patches, resampling

OPERATORS = torch.ops.vit_rs
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# opcheck looks at the gradients of tensors that it made itself.
opcheck_warns = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


def images(shape=(2, 3, 8, 12), dtype=torch.float32, requires_grad=False):
    values = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0))
    values = values.byte() if dtype == torch.uint8 else (values / 100).to(dtype)
    return values.requires_grad_(requires_grad)


EACH_ONCE = [
    ("pqc", "NCHW"),
    ("cpq", "NHWC"),
    pytest.param("pqc", "NHWC", marks=pytest.mark.slow),
    pytest.param("cpq", "NCHW", marks=pytest.mark.slow),
]


@opcheck_warns
@pytest.mark.parametrize(("order", "layout"), EACH_ONCE)
@pytest.mark.parametrize("requires_grad", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_opcheck_patchify(order, layout, requires_grad):
    batch = images((2, 3, 8, 12) if layout == "NCHW" else (2, 8, 12, 3), requires_grad=requires_grad)
    torch.library.opcheck(OPERATORS.patchify.default, (batch, [4, 6], order, layout))
    normalized = (batch, [4, 6], order, layout, MEAN, STD, torch.float32, 2)
    torch.library.opcheck(OPERATORS.patchify.default, normalized)
    patches = vit_rs.patchify(batch.detach(), (4, 6), order=order, layout=layout).requires_grad_(requires_grad)
    torch.library.opcheck(OPERATORS.unpatchify.default, (patches, [8, 12], [4, 6], order, layout, 1))


@opcheck_warns
def test_opcheck_with_out():
    batch = images(dtype=torch.uint8)
    out = torch.empty(2, 4, 72)
    arguments = (batch, [4, 6], "pqc", "NCHW", MEAN, STD, torch.float32, None)
    torch.library.opcheck(OPERATORS.patchify_out.default, (*arguments, out))
    back = torch.empty(2, 3, 8, 12)
    torch.library.opcheck(OPERATORS.unpatchify_out.default, (out, [8, 12], [4, 6], "pqc", "NCHW", None, back))


@opcheck_warns
@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in (torch.float32, torch.float64))],
)
def test_opcheck_resampling(dtype):
    posemb = torch.randn(2, 13, 5, dtype=dtype, requires_grad=True)
    resample = OPERATORS.resample_abs_pos_embed.default
    torch.library.opcheck(resample, (posemb, [5, 2], [3, 4], 1, "bicubic", True))
    torch.library.opcheck(resample, (posemb, [5, 2], [3, 4], 1, "bilinear", False, True, None, None, 0.0, None))
    stepped = ("bicubic", False, False, -0.6, [0.5, 0.7], 0.0, torch.float64)
    torch.library.opcheck(resample, (posemb, [5, 2], [3, 4], 1, *stepped))
    shifted = ("bicubic", False, False, -0.75, None, 0.1, torch.float32)
    torch.library.opcheck(resample, (posemb, [5, 2], [3, 4], 1, *shifted))


@opcheck_warns
def test_opcheck_interpolation_matrix():
    torch.library.opcheck(OPERATORS.interpolation_matrix.default, (5, 8, "bilinear", False, True))
    torch.library.opcheck(OPERATORS.interpolation_matrix.default, (5, 8, "bicubic", False, False, -0.75, None, 0.1))


@pytest.mark.parametrize(("order", "layout"), EACH_ONCE)
def test_gradcheck(order, layout):
    shape = (2, 3, 4, 6) if layout == "NCHW" else (2, 4, 6, 3)
    batch = images(shape, torch.float64, requires_grad=True)

    def plain(x):
        return vit_rs.patchify(x, (2, 3), order=order, layout=layout)

    def normalized(x):
        return vit_rs.patchify(x, (2, 3), order=order, layout=layout, mean=MEAN, std=STD)

    def back(x):
        return vit_rs.unpatchify(x, (4, 6), (2, 3), order=order, layout=layout)

    assert gradcheck(plain, batch)
    assert gradgradcheck(plain, batch)
    assert gradcheck(normalized, batch)
    patches = plain(batch).detach().requires_grad_()
    assert gradcheck(back, patches)
    assert gradgradcheck(back, patches)


@pytest.mark.parametrize(("old", "new"), [((3, 4), (5, 2)), ((1, 3), (3, 1)), ((2, 2), (2, 2))])
@pytest.mark.parametrize(("interpolation", "antialias"), [("bicubic", True), ("bicubic", False), ("bilinear", True)])
def test_gradcheck_resample(old, new, interpolation, antialias):
    posemb = torch.randn(2, 2 + old[0] * old[1], 3, dtype=torch.float64, requires_grad=True)

    def resample(x):
        return vit_rs.resample_abs_pos_embed(x, new, old, 2, interpolation, antialias)

    assert gradcheck(resample, posemb)
    assert gradgradcheck(resample, posemb)


def test_each_is_the_others_gradient():
    batch = images(requires_grad=True)
    cotangent = torch.randn(2, 4, 72)
    (gradient,) = torch.autograd.grad(vit_rs.patchify(batch, (4, 6)), batch, cotangent)
    assert torch.equal(gradient, vit_rs.unpatchify(cotangent, (8, 12), (4, 6)))
    (gradient,) = torch.autograd.grad(vit_rs.patchify(batch, (4, 6), std=STD, dtype=torch.bfloat16), batch, cotangent)
    expected = vit_rs.unpatchify(cotangent.bfloat16().float(), (8, 12), (4, 6)) / torch.tensor(STD).view(-1, 1, 1)
    assert gradient.dtype == torch.float32
    assert torch.equal(gradient, expected)
    patches = vit_rs.patchify(batch, (4, 6)).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(vit_rs.unpatchify(patches, (8, 12), (4, 6)), patches, batch.detach())
    assert torch.equal(gradient, patches)


def test_gradient_of_resampling_equals_torchs():
    posemb = torch.randn(1, 197, 16, requires_grad=True)
    cotangent = torch.randn(1, 1 + 20 * 9, 16)
    (ours,) = torch.autograd.grad(vit_rs.resample_abs_pos_embed(posemb, (20, 9)), posemb, cotangent)
    torchs = _reference.resample_abs_pos_embed(posemb, (20, 9), (14, 14))
    (expected,) = torch.autograd.grad(torchs, posemb, cotangent)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def every_operator(x, posemb, rows):
    patches = vit_rs.patchify(x, 4, mean=MEAN, std=STD, order="cpq")
    back = vit_rs.unpatchify(vit_rs.patchify(x, (2, 4)), x.shape[2:], (2, 4))
    resampled = vit_rs.resample_abs_pos_embed(posemb, (rows, 3), (2, 4))
    return patches.sin(), back.cos(), resampled.sin()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("backend", "dynamic"),
    [
        ("aot_eager", True),
        pytest.param("aot_eager", False, marks=pytest.mark.slow),
        pytest.param("inductor", None, marks=pytest.mark.slow),
    ],
)
def test_compile(backend, dynamic):
    torch.compiler.reset()
    compiled = torch.compile(every_operator, fullgraph=True, backend=backend, dynamic=dynamic)
    for batch, height, width, rows in ((2, 8, 12, 5), (3, 16, 8, 4), (1, 4, 20, 6)):
        inputs = [torch.randn(batch, 3, height, width, requires_grad=True), torch.randn(1, 9, 6, requires_grad=True)]
        eager = every_operator(*inputs, rows)
        ours = compiled(*inputs, rows)
        torch.testing.assert_close(ours, eager, rtol=1e-5, atol=1e-5)
        eager = torch.autograd.grad(sum(map(torch.sum, eager)), inputs)
        ours = torch.autograd.grad(sum(map(torch.sum, ours)), inputs)
        torch.testing.assert_close(ours, eager, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compile_with_any_number_of_tokens():
    """The side of a square grid is found under a compiler too, which then knows the number of tokens as a symbol."""
    torch.compiler.reset()

    def resample(posemb):
        return vit_rs.resample_abs_pos_embed(posemb, 6, convention="hf")

    compiled = torch.compile(resample, fullgraph=True, backend="aot_eager", dynamic=True)
    for side in (7, 4, 5):
        posemb = torch.randn(1, 1 + side * side, 8)
        torch.testing.assert_close(compiled(posemb), resample(posemb), rtol=0, atol=2e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compile_with_out():
    torch.compiler.reset()
    batch = images(dtype=torch.uint8)

    def write(x, out, back):
        vit_rs.patchify(x, 4, mean=MEAN, std=STD, out=out)
        return vit_rs.unpatchify(out, (8, 12), 4, out=back) + 1

    out, back = torch.empty(2, 6, 48), torch.empty(2, 3, 8, 12)
    result = torch.compile(write, fullgraph=True, backend="aot_eager")(batch, out, back)
    expected = vit_rs.patchify(batch, 4, mean=MEAN, std=STD)
    assert torch.equal(out, expected)
    assert torch.equal(result, vit_rs.unpatchify(expected, (8, 12), 4) + 1)
    assert torch.equal(back, vit_rs.unpatchify(expected, (8, 12), 4))


def test_export_shows_matrix_products():
    class Table(torch.nn.Module):
        def forward(self, posemb):
            return vit_rs.resample_abs_pos_embed(posemb, (6, 5))

    posemb = torch.randn(1, 17, 8)
    program = torch.export.export(Table(), (posemb,))
    called = {str(node.target) for node in program.graph.nodes}
    assert "vit_rs.resample_abs_pos_embed.default" not in called
    ours = program.module()(posemb)
    torch.testing.assert_close(ours, vit_rs.resample_abs_pos_embed(posemb, (6, 5)), rtol=0, atol=2e-6)


@pytest.mark.parametrize("order", ["pqc", "cpq"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("device", ["meta", "fake", pytest.param("cuda", marks=[pytest.mark.gpu, NO_CUDA])])
def test_other_devices(device, layout, order):
    options = {"order": order, "layout": layout}
    shape = (2, 3, 8, 12) if layout == "NCHW" else (2, 8, 12, 3)
    expected = vit_rs.patchify(images(shape, torch.uint8), (4, 6), mean=MEAN, std=STD, **options)
    if device == "fake":
        with FakeTensorMode():
            patches = vit_rs.patchify(torch.empty(shape, dtype=torch.uint8), (4, 6), mean=MEAN, std=STD, **options)
            back = vit_rs.unpatchify(patches, (8, 12), (4, 6), **options)
            assert vit_rs.resample_abs_pos_embed(torch.empty(1, 10, 4), (2, 5)).shape == (1, 11, 4)
    else:
        batch = images(shape, torch.uint8).to(device)
        patches = vit_rs.patchify(batch, (4, 6), mean=MEAN, std=STD, **options)
        back = vit_rs.unpatchify(patches, (8, 12), (4, 6), **options)
        assert patches.device.type == device
    assert (patches.shape, patches.stride(), patches.dtype) == (expected.shape, expected.stride(), torch.float32)
    assert back.shape == shape
    if device == "cuda":
        assert torch.equal(patches.cpu(), expected)
        out = torch.empty_like(patches)
        assert vit_rs.patchify(batch, (4, 6), mean=MEAN, std=STD, **options, out=out) is out
        assert torch.equal(out.cpu(), expected)
        assert torch.equal(back.cpu(), vit_rs.unpatchify(expected, (8, 12), (4, 6), **options))


def test_torch_kernels_equal_the_cpu_kernels():
    """What runs on other devices, called here on the CPU."""
    from vit_rs.ops import _patch_operators

    batch = images(dtype=torch.uint8)
    arguments = (batch, [4, 6], "cpq", "NCHW", MEAN, STD, torch.bfloat16, None)
    expected = OPERATORS.patchify(*arguments)
    assert torch.equal(_patch_operators._patchify_torch(*arguments), expected)
    out = torch.empty_like(expected)
    _patch_operators._patchify_out_torch(*arguments, out)
    assert torch.equal(out, expected)
    arguments = (expected, [8, 12], [4, 6], "cpq", "NHWC", None)
    assert torch.equal(_patch_operators._unpatchify_torch(*arguments), OPERATORS.unpatchify(*arguments))
    out = torch.empty(2, 8, 12, 3, dtype=torch.bfloat16)
    _patch_operators._unpatchify_out_torch(*arguments, out)
    assert torch.equal(out, OPERATORS.unpatchify(*arguments))


def test_writing_into_a_saved_tensor_is_noticed():
    """As with torch's own out=: a graph that saved the old values must not be run backward."""
    for write in (
        lambda out: vit_rs.patchify(torch.zeros(2, 3, 16, 16), 4, out=out),
        lambda out: vit_rs.unpatchify(torch.zeros(2, 16, 48), 16, 4, out=out.view(2, 3, 16, 16)),
    ):
        buffer = torch.randn(2, 16, 48)
        factor = torch.randn(2, 16, 48, requires_grad=True)
        product = (factor * buffer).sum()
        version = buffer._version
        write(buffer)
        assert buffer._version > version
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.backward()


def transforms():
    def cut(x):
        return vit_rs.patchify(x, 2, mean=0.5, std=0.25)

    def join(x):
        return vit_rs.unpatchify(x.reshape(1, 4, 8), 4, 2, order="cpq")

    def resample(x):
        return vit_rs.resample_abs_pos_embed(x.reshape(1, 4, 8), (3, 2), num_prefix_tokens=0, convention="dino")

    def resize(x):
        return vit_rs.resample_patch_embed(x.reshape(1, 2, 4, 4), (2, 6))

    return [cut, join, resample, resize]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch.func itself
@pytest.mark.parametrize("function", transforms(), ids=lambda f: f.__name__)
def test_transforms_of_torch_func(function):
    x, tangent = torch.randn(2, 1, 2, 4, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(function, x)
    torch.testing.assert_close(torch.func.jacrev(function)(x), jacobian, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.func.jacfwd(function)(x), jacobian, rtol=0, atol=1e-12)
    value, forward = torch.func.jvp(function, (x,), (tangent,))
    torch.testing.assert_close(value, function(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(forward, torch.tensordot(jacobian, tangent, 4), rtol=0, atol=1e-12)
    with torch.autograd.forward_ad.dual_level():
        dual = function(torch.autograd.forward_ad.make_dual(x, tangent))
        assert torch.equal(torch.autograd.forward_ad.unpack_dual(dual).tangent, forward)
    batch = torch.stack([x, tangent, x + tangent])
    one_by_one = torch.stack([function(one) for one in batch])
    torch.testing.assert_close(torch.func.vmap(function)(batch), one_by_one, rtol=0, atol=1e-12)
    gradients = torch.func.vmap(torch.func.grad(lambda one: function(one).square().sum()))(batch)
    expected = torch.autograd.functional.jacobian(
        lambda xs: torch.stack([function(one).square().sum() for one in xs]).sum(), batch
    )
    torch.testing.assert_close(gradients, expected, rtol=0, atol=1e-12)


def test_autocast_leaves_the_table_alone():
    posemb = torch.randn(1, 17, 8, requires_grad=True)
    expected = vit_rs.resample_abs_pos_embed(posemb, (6, 5))
    (gradient,) = torch.autograd.grad(expected.square().sum(), posemb)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = vit_rs.resample_abs_pos_embed(posemb, (6, 5))
        assert torch.equal(ours, expected)
        assert torch.equal(torch.autograd.grad(ours.square().sum(), posemb)[0], gradient)
        double = vit_rs.resample_abs_pos_embed(posemb.double(), (6, 5))
    torch.testing.assert_close(double, expected.double(), rtol=0, atol=2e-6)


def test_subclasses_and_inference_mode():
    batch = images()
    expected = vit_rs.patchify(batch, 4)
    assert torch.equal(vit_rs.patchify(torch.nn.Parameter(batch), 4), expected)
    with torch.inference_mode():
        assert torch.equal(vit_rs.patchify(batch, 4), expected)
        out = torch.empty_like(expected)
        vit_rs.patchify(torch.nn.Parameter(batch), 4, out=out)
    assert torch.equal(out, expected)


def test_results_keep_no_input_alive():
    batch = images()
    patches = vit_rs.patchify(batch, 4)
    storage = batch.untyped_storage()
    assert patches.untyped_storage().data_ptr() != storage.data_ptr()
    del batch
    gc.collect()
    assert patches.sum() > 0


def test_examples():
    for module, examples in ((patches, 1), (resampling, 2)):
        results = doctest.testmod(module, verbose=False)
        assert results.attempted >= examples
        assert results.failed == 0
