"""resample_patch_embed against the whole pseudo-inverse, timm and big_vision's formula; properties; every error."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, example, given
from hypothesis import strategies as st

import vit_rs
from vit_rs.ops import _resample_operators
from vit_rs.ops.conventions import PATCH_CONVENTIONS

sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))
NAMES = list(PATCH_CONVENTIONS)
FILTERS = {"timm": ("bicubic", True), "timm_npz": ("bilinear", False), "flexi": ("bilinear", False)}


def kernel(size, dtype=torch.float64, channels=(4, 3)):
    generator = torch.Generator().manual_seed(size[0] * 100 + size[1])
    return torch.randn(*channels, *size, dtype=torch.float64, generator=generator).to(dtype)


def worst(got, expected):
    assert got.shape == expected.shape
    return ((got.double() - expected.double()).abs().max() / expected.abs().max()).item()


def by_basis_vectors(weights, new, resize):
    """Resize every basis patch, and invert the matrix of all of them: what FlexiViT's authors do, in float64."""
    old = weights.shape[2:]
    basis = np.eye(old[0] * old[1]).reshape(-1, *old)
    matrix = np.stack([resize(patch, new).ravel() for patch in basis]).T  # (new pixels, old pixels)
    inverse = np.linalg.pinv(matrix.T)
    return torch.from_numpy((weights.flatten(2).numpy() @ inverse.T).reshape(*weights.shape[:2], *new))


def by_tensorflow(patch, new):
    """`tf.image.resize(..., "bilinear")`: half-pixel positions, neighbours clamped to the border, no antialiasing.

    From `HalfPixelScaler` and `compute_interpolation_weights`, tensorflow/core/util/image_resizer_state.h and
    core/kernels/image/resize_bilinear_op.cc, which computes in float32; here in float64.
    """

    def weights(in_size, out_size):
        position = (np.arange(out_size) + 0.5) * (in_size / out_size) - 0.5
        lower = np.maximum(np.floor(position), 0).astype(int)
        upper = np.minimum(np.ceil(position), in_size - 1).astype(int)
        share = position - np.floor(position)
        identity = np.eye(in_size)
        return (1 - share)[:, None] * identity[lower] + share[:, None] * identity[upper]

    return weights(patch.shape[0], new[0]) @ patch @ weights(patch.shape[1], new[1]).T


def by_torch(interpolation, antialias):
    def resize(patch, new):
        grid = torch.from_numpy(patch)[None, None].expand(1, 2, -1, -1).contiguous(memory_format=torch.channels_last)
        return F.interpolate(grid, size=tuple(new), mode=interpolation, antialias=antialias)[0, 0].numpy()

    return resize


@pytest.mark.parity
@pytest.mark.parametrize("name", NAMES)
@given(sizes, sizes)
@example((16, 16), (8, 8))
@example((8, 8), (16, 16))
@example((1, 5), (5, 1))
@example((7, 3), (3, 1))
def test_parity_with_the_whole_pseudo_inverse(name, old, new):
    assume(old != new)
    weights = kernel(old)
    resize = by_tensorflow if name == "flexi" else by_torch(*FILTERS[name])
    expected = by_basis_vectors(weights, new, resize)
    ours = vit_rs.resample_patch_embed(weights, new, convention=name)
    assert ours.dtype == torch.float64
    assert worst(ours, expected) < 1e-9
    single = vit_rs.resample_patch_embed(weights.float(), new, convention=name)
    assert single.dtype == torch.float32
    assert worst(single, expected) < 2e-6


@pytest.mark.parity
@pytest.mark.parametrize("old", [(16, 16), (32, 32), (8, 12)])
@pytest.mark.parametrize("new", [(14, 14), (32, 32), (8, 8), (16, 10)])
@pytest.mark.parametrize(("interpolation", "antialias"), [("bicubic", True), ("bilinear", False)])
def test_parity_with_timm(old, new, interpolation, antialias):
    """Timm inverts the whole matrix in float32: these sizes put it 4e-6 off the float64 result, and ours 4e-7."""
    layers = pytest.importorskip("timm.layers")
    weights = kernel(old, torch.float32, (8, 3))
    theirs = layers.resample_patch_embed(weights, list(new), interpolation, antialias)
    ours = vit_rs.resample_patch_embed(weights, new, interpolation, antialias)
    if old == new:
        assert torch.equal(ours, theirs)
        return
    double = vit_rs.resample_patch_embed(weights.double(), new, interpolation, antialias)
    assert worst(ours, double) < 1e-6
    assert worst(ours, theirs) < max(2e-6, 1.2 * worst(theirs, double))
    name = "timm" if antialias else "timm_npz"
    assert torch.equal(ours, vit_rs.resample_patch_embed(weights, new, convention=name))


def test_the_default_is_timms():
    weights = kernel((8, 8))
    assert torch.equal(
        vit_rs.resample_patch_embed(weights, 16), vit_rs.resample_patch_embed(weights, (16, 16), convention="timm")
    )


@pytest.mark.parametrize("name", NAMES)
@given(st.tuples(st.integers(1, 6), st.integers(1, 6)), st.tuples(st.integers(0, 6), st.integers(0, 6)))
def test_tokens_stay_where_patches_grow(name, old, more):
    """The paper's point, section 3.4: the new kernel sees in a larger patch what the old one saw in the patch."""
    new = (old[0] + more[0], old[1] + more[1])
    weights = kernel(old)
    patches = torch.randn(5, 3, *old, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    options = {"interpolation": FILTERS[name][0], "antialias": FILTERS[name][1]}
    vertical, horizontal = (vit_rs.interpolation_matrix(old[i], new[i], **options) for i in (0, 1))
    resized = vertical @ patches @ horizontal.T
    tokens = torch.einsum("oihw,nihw->no", weights, patches)
    ours = torch.einsum("oihw,nihw->no", vit_rs.resample_patch_embed(weights, new, convention=name), resized)
    torch.testing.assert_close(ours, tokens, rtol=0, atol=1e-10)


def test_tokens_of_an_image():
    """A convolution over an image whose every patch is resized, patch size with it."""
    images = torch.randn(2, 3, 24, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = kernel((8, 8))
    tokens = F.conv2d(images, weights, stride=8)
    matrix = vit_rs.interpolation_matrix(8, 14)
    patches = vit_rs.patchify(images, 8, order="cpq").reshape(2 * 12, 3, 8, 8)
    larger = vit_rs.unpatchify((matrix @ patches @ matrix.T).reshape(2, 12, -1), (42, 56), 14, order="cpq")
    ours = F.conv2d(larger, vit_rs.resample_patch_embed(weights, 14), stride=14)
    torch.testing.assert_close(ours, tokens, rtol=0, atol=1e-10)


def test_shrinking_is_the_least_squares_solution():
    weights = kernel((7, 6), channels=(2, 1))
    ours = vit_rs.resample_patch_embed(weights, (4, 5)).flatten(1)  # (2, 20)
    vertical, horizontal = vit_rs.interpolation_matrix(7, 4), vit_rs.interpolation_matrix(6, 5)
    matrix = torch.kron(vertical, horizontal).T  # (42, 20): what B^T makes of a kernel
    solution = torch.linalg.lstsq(matrix, weights.flatten(1).T).solution
    torch.testing.assert_close(ours, solution.T, rtol=0, atol=1e-10)


def test_one_pixel_is_spread_evenly():
    weights = kernel((1, 1))
    torch.testing.assert_close(vit_rs.resample_patch_embed(weights, 4), weights.expand(4, 3, 4, 4) / 16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype):
    weights = kernel((8, 8), dtype)
    ours = vit_rs.resample_patch_embed(weights, 12)
    assert ours.dtype == dtype
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    assert torch.equal(ours, vit_rs.resample_patch_embed(weights.to(compute), 12).to(dtype))
    raised = vit_rs.resample_patch_embed(weights, 12, compute_dtype=torch.float64)
    assert torch.equal(raised, vit_rs.resample_patch_embed(weights.double(), 12).to(dtype))
    lowered = vit_rs.resample_patch_embed(weights, 12, compute_dtype=torch.float32)
    assert torch.equal(lowered, vit_rs.resample_patch_embed(weights.float(), 12).to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(vit_rs.resample_patch_embed(weights, 12), ours)


def test_equal_sizes_give_a_copy():
    weights = kernel((4, 6))
    ours = vit_rs.resample_patch_embed(weights, (4, 6))
    assert torch.equal(ours, weights)
    ours += 1
    assert torch.equal(weights, kernel((4, 6)))
    transposed = weights.transpose(2, 3)
    assert vit_rs.resample_patch_embed(transposed, (6, 4)).is_contiguous()
    assert torch.equal(
        vit_rs.resample_patch_embed(transposed, (5, 3)), vit_rs.resample_patch_embed(transposed.contiguous(), (5, 3))
    )


def test_knobs():
    weights = kernel((4, 4))
    plain = vit_rs.resample_patch_embed(weights, 6, antialias=False)
    assert torch.equal(plain, vit_rs.resample_patch_embed(weights, 6, antialias=False, a=-0.75))
    assert worst(vit_rs.resample_patch_embed(weights, 6, antialias=False, a=-0.5), plain) > 1e-3
    aligned = vit_rs.resample_patch_embed(weights, 6, antialias=False, align_corners=True)
    assert worst(aligned, plain) > 1e-3

    def resize(patch, new):
        grid = torch.from_numpy(patch)[None, None].expand(1, 2, -1, -1).contiguous(memory_format=torch.channels_last)
        return F.interpolate(grid, size=tuple(new), mode="bicubic", align_corners=True)[0, 0].numpy()

    assert worst(aligned, by_basis_vectors(weights, (6, 6), resize)) < 1e-9


@pytest.mark.parametrize(("old", "new"), [((3, 4), (5, 2)), ((2, 2), (2, 2)), ((1, 3), (4, 4))])
def test_gradcheck(old, new):
    weights = kernel(old, channels=(2, 1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: vit_rs.resample_patch_embed(x, new), weights)
    assert torch.autograd.gradgradcheck(lambda x: vit_rs.resample_patch_embed(x, new), weights)


def test_opcheck():
    torch.library.opcheck(torch.ops.vit_rs.patch_resize_matrix.default, (5, 8))
    torch.library.opcheck(torch.ops.vit_rs.patch_resize_matrix.default, (8, 5, "bilinear", False, True, None))


def test_the_inverse_is_computed_once():
    """pytorch-image-models PR 2721: the pseudo-inverse was made anew in every forward pass."""
    _resample_operators._patch_weights.cache_clear()
    weights = kernel((16, 16), torch.float32)
    first = vit_rs.resample_patch_embed(weights, 14)
    for _ in range(3):
        assert torch.equal(vit_rs.resample_patch_embed(weights, 14), first)
    assert _resample_operators._patch_weights.cache_info().misses == 1
    # What is kept cannot be changed by what was given out.
    torch.ops.vit_rs.patch_resize_matrix(16, 14, "bicubic", True, False, -0.5).zero_()
    assert torch.equal(vit_rs.resample_patch_embed(weights, 14), first)


@pytest.mark.parametrize(
    "device",
    [
        pytest.param(
            "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
        ),
        "meta",
    ],
)
def test_other_devices(device):
    weights = kernel((8, 8), torch.float32)
    ours = vit_rs.resample_patch_embed(weights.to(device), (12, 5))
    assert ours.device.type == device
    assert ours.shape == (4, 3, 12, 5)
    if device == "cuda":
        assert worst(ours.cpu(), vit_rs.resample_patch_embed(weights, (12, 5))) < 2e-6


KERNEL = torch.zeros(4, 3, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((np.zeros((4, 3, 8, 8)), 4), {}, TypeError, "patch_embed must be a tensor, got ndarray"),
        (
            (KERNEL.int(), 4),
            {},
            TypeError,
            "patch_embed must be float16, bfloat16, float32 or float64, got torch.int32",
        ),
        (
            (KERNEL[0], 4),
            {},
            ValueError,
            "patch_embed must be (out channels, in channels, height, width), none of them 0, got shape (3, 8, 8)",
        ),
        (
            (KERNEL[:, :0], 4),
            {},
            ValueError,
            "patch_embed must be (out channels, in channels, height, width), none of them 0, got shape (4, 0, 8, 8)",
        ),
        ((KERNEL, (4, 0)), {}, ValueError, "new_size must be at least 1, got 4x0"),
        ((KERNEL, (4, 4, 4)), {}, ValueError, "new_size must be an integer or (height, width), got (4, 4, 4)"),
        ((KERNEL, 4.0), {}, TypeError, "new_size must be an integer or (height, width), got 4.0"),
        (
            (KERNEL, 4),
            {"convention": "dino"},
            ValueError,
            "convention must be one of 'timm', 'timm_npz', 'flexi', got 'dino'",
        ),
        (
            (KERNEL, 4),
            {"convention": "flexi", "antialias": True},
            ValueError,
            "convention 'flexi' has antialias=False, got antialias=True",
        ),
        (
            (KERNEL, 4, "lanczos"),
            {},
            ValueError,
            "interpolation must be one of 'bicubic', 'bilinear', got 'lanczos'",
        ),
        (
            (KERNEL, 4),
            {"align_corners": True},
            ValueError,
            "align_corners and antialias exclude each other: give antialias=False",
        ),
        (
            (KERNEL, 4, "bilinear"),
            {"a": -0.5},
            ValueError,
            "a belongs to bicubic interpolation, got a=-0.5 with 'bilinear'",
        ),
        (
            (KERNEL, 4),
            {"compute_dtype": torch.float16},
            ValueError,
            "compute_dtype must be None, torch.float32 or torch.float64, got torch.float16",
        ),
    ],
)
def test_errors(arguments, options, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        vit_rs.resample_patch_embed(*arguments, **options)
