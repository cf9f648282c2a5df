"""resample_abs_pos_embed and interpolation_matrix against timm, F.interpolate and scipy; properties; every error."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

import vit_rs
from vit_rs import _reference
from vit_rs.ops import _resample_operators

# Largest differences, relative to the largest value of the table. torch computes sample positions in f32 where the
# grid is f32, and is for that alone up to 3e-6 off its own f64 result (without antialiasing, on long axes); ours are
# in f64. So we are held to 2e-6 of torch, or to torch's own error where that is more, and to 5e-7 of torch in f64.
TOLERANCE = 2e-6
TOLERANCE_OF_DOUBLE = 5e-7

grids = st.tuples(st.integers(1, 40), st.integers(1, 40))
filters = st.tuples(st.sampled_from(["bicubic", "bilinear"]), st.booleans())


def table(old, prefix=1, width=5, batch=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(old[0] * 100 + old[1])
    tokens = prefix + old[0] * old[1]
    return torch.randn(batch, tokens, width, dtype=torch.float64, generator=generator).to(dtype)


def worst(got, expected, posemb):
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    return ((got - expected).abs().max() / posemb.abs().max()).item()


@pytest.mark.parity
@given(grids, grids, filters, st.integers(0, 3), st.sampled_from([(1, 1), (3, 2), (33, 1), (260, 1)]))
@example((14, 14), (24, 24), ("bicubic", True), 1, (768, 1))
@example((37, 37), (16, 16), ("bicubic", True), 5, (384, 1))
@example((7, 3), (3, 1), ("bicubic", True), 0, (4, 1))
@example((1, 1), (40, 40), ("bicubic", False), 1, (4, 1))
@example((40, 40), (1, 1), ("bicubic", True), 1, (4, 1))
def test_parity_with_torch(old, new, mode, prefix, tables):
    (interpolation, antialias), (width, batch) = mode, tables
    posemb = table(old, prefix, width, batch)
    ours = vit_rs.resample_abs_pos_embed(posemb, new, old, prefix, interpolation, antialias)
    double = _reference.resample_abs_pos_embed(posemb.double(), new, old, prefix, interpolation, antialias)
    assert worst(ours.double(), double, posemb) < TOLERANCE_OF_DOUBLE
    torchs = _reference.resample_abs_pos_embed(posemb, new, old, prefix, interpolation, antialias)
    assert worst(ours, torchs, posemb) < max(TOLERANCE, 1.2 * worst(torchs.double(), double, posemb))
    assert torch.equal(ours[:, :prefix], posemb[:, :prefix])


@pytest.mark.parity
@given(grids, grids, filters)
def test_parity_in_double(old, new, mode):
    interpolation, antialias = mode
    posemb = table(old, dtype=torch.float64)
    ours = vit_rs.resample_abs_pos_embed(posemb, new, old, 1, interpolation, antialias)
    expected = _reference.resample_abs_pos_embed(posemb, new, old, 1, interpolation, antialias)
    assert worst(ours, expected, posemb) < 1e-12


@pytest.mark.parity
@pytest.mark.parametrize("old", [(14, 14), (16, 16), (7, 28), (37, 37), (1, 9)])
@pytest.mark.parametrize("new", [(24, 24), (14, 14), (14, 28), (28, 7), (9, 1), (1, 1), (33, 2)])
def test_parity_with_timm(old, new):
    layers = pytest.importorskip("timm.layers")
    for prefix in (0, 1, 5):
        for interpolation, antialias in (("bicubic", True), ("bicubic", False), ("bilinear", True)):
            posemb = table(old, prefix, 48)
            options = {"num_prefix_tokens": prefix, "interpolation": interpolation, "antialias": antialias}
            expected = layers.resample_abs_pos_embed(posemb, list(new), list(old), **options)
            double = _reference.resample_abs_pos_embed(posemb.double(), new, old, **options)
            tolerance = max(TOLERANCE, 1.2 * worst(expected.double(), double, posemb))
            ours = vit_rs.resample_abs_pos_embed(posemb, list(new), list(old), **options)
            assert worst(ours, expected, posemb) < tolerance
            assert worst(ours.double(), double, posemb) < TOLERANCE_OF_DOUBLE


@pytest.mark.parity
def test_timms_call_without_old_size():
    layers = pytest.importorskip("timm.layers")
    posemb = table((14, 14), 1, 32)
    assert (
        worst(vit_rs.resample_abs_pos_embed(posemb, (24, 24)), layers.resample_abs_pos_embed(posemb, [24, 24]), posemb)
        < TOLERANCE
    )
    assert torch.equal(vit_rs.resample_abs_pos_embed(posemb, 24), vit_rs.resample_abs_pos_embed(posemb, (24, 24)))


def test_one_column_wide():
    """7x3 -> 3x1, which the antialiased kernel of torch 2.15 gets wrong on contiguous NCHW: against sums in f64."""
    posemb = table((7, 3), 0, 4)
    vertical = vit_rs.ops.interpolation_matrix(7, 3)
    horizontal = vit_rs.ops.interpolation_matrix(3, 1)
    expected = torch.einsum("yh,xw,hwd->yxd", vertical, horizontal, posemb.double().view(7, 3, 4))
    ours = vit_rs.resample_abs_pos_embed(posemb, (3, 1), (7, 3), 0)
    torch.testing.assert_close(ours.double(), expected.view(1, 3, 4), rtol=0, atol=1e-6)


def test_grids_are_compared_not_token_counts():
    """Timm PR 2737: (2, 8) to (4, 4) has equal token counts."""
    posemb = table((2, 8))
    ours = vit_rs.resample_abs_pos_embed(posemb, (4, 4), (2, 8))
    assert not torch.equal(ours, posemb)
    expected = _reference.resample_abs_pos_embed(posemb, (4, 4), (2, 8))
    assert worst(ours, expected, posemb) < TOLERANCE


def test_equal_grids_give_a_copy():
    posemb = table((3, 4), 2)
    ours = vit_rs.resample_abs_pos_embed(posemb, (3, 4), (3, 4), 2)
    assert torch.equal(ours, posemb)
    ours += 1
    assert torch.equal(table((3, 4), 2), posemb)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_is_computed_in_single(dtype):
    posemb = table((14, 14), 1, 64, dtype=dtype)
    ours = vit_rs.resample_abs_pos_embed(posemb, (20, 11))
    assert ours.dtype == dtype
    assert torch.equal(ours, vit_rs.resample_abs_pos_embed(posemb.float(), (20, 11)).to(dtype))


@given(grids, grids, filters)
def test_properties(old, new, mode):
    posemb = table(old, 0)

    def resample(values):
        return vit_rs.resample_abs_pos_embed(values, new, old, 0, *mode)

    constant = torch.full_like(posemb, 3.0)
    torch.testing.assert_close(resample(constant), torch.full((1, new[0] * new[1], 5), 3.0), rtol=1e-6, atol=0)
    torch.testing.assert_close(resample(-2 * posemb), -2 * resample(posemb), rtol=0, atol=0)
    turned = posemb.view(1, *old, 5).transpose(1, 2).reshape(posemb.shape)
    transposed = vit_rs.resample_abs_pos_embed(turned, new[::-1], old[::-1], 0, *mode)
    expected = resample(posemb).view(1, *new, 5).transpose(1, 2).reshape(transposed.shape)
    torch.testing.assert_close(transposed, expected, rtol=0, atol=4e-6)


def test_batch_strides_and_threads():
    posemb = table((14, 14), 1, 96, batch=3)
    together = vit_rs.resample_abs_pos_embed(posemb, (30, 20))
    for one, ours in zip(posemb, together, strict=True):
        assert torch.equal(vit_rs.resample_abs_pos_embed(one[None], (30, 20))[0], ours)
    wide = torch.zeros(3, 197, 192)
    wide[..., ::2] = posemb
    assert torch.equal(vit_rs.resample_abs_pos_embed(wide[..., ::2], (30, 20)), together)
    threads = torch.get_num_threads()
    large = table((20, 20), 1, 768)
    try:
        torch.set_num_threads(1)
        one = vit_rs.resample_abs_pos_embed(large, (47, 31))
        torch.set_num_threads(3)
        assert torch.equal(vit_rs.resample_abs_pos_embed(large, (47, 31)), one)
    finally:
        torch.set_num_threads(threads)


@given(grids, grids, filters, st.sampled_from([torch.float32, torch.bfloat16]))
def test_dense_path_agrees(old, new, mode, dtype):
    posemb = table(old, 2, dtype=dtype, batch=2)
    ours = vit_rs.resample_abs_pos_embed(posemb, new, old, 2, *mode) if old != new else posemb
    dense = _resample_operators.resample_densely(posemb, new, old, 2, *mode)
    assert worst(dense, ours, posemb) < (TOLERANCE if dtype == torch.float32 else 2**-7)


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
    posemb = table((14, 14), 1, 64)
    ours = vit_rs.resample_abs_pos_embed(posemb.to(device), (20, 11))
    assert ours.device.type == device
    assert ours.shape == (1, 221, 64)
    if device == "cuda":
        assert worst(ours.cpu(), vit_rs.resample_abs_pos_embed(posemb, (20, 11)), posemb) < TOLERANCE


POSEMB = torch.zeros(1, 50, 8)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (
            (POSEMB[:, :40], (8, 8)),
            {},
            ValueError,
            "posemb has 40 tokens, 1 of them prefix; the other 39 are no square grid: give old_size=(rows, columns)",
        ),
        (
            (torch.zeros(1, 196, 8), (8, 8)),
            {},
            ValueError,
            "posemb has 196 tokens, 1 of them prefix; the other 195 are no square grid",
        ),
        (
            (POSEMB, (8, 8), (5, 10)),
            {},
            ValueError,
            "old_size 5x10 makes 50 tokens, but posemb has 50 tokens, 1 of them prefix: 49 in the grid",
        ),
        ((POSEMB, (8, 0)), {}, ValueError, "new_size must be at least 1, got 8x0"),
        ((POSEMB, (8,)), {}, ValueError, "new_size must be an integer or (height, width), got (8,)"),
        ((POSEMB, (8.5, 8)), {}, TypeError, "new_size must be an integer or (height, width), got (8.5, 8)"),
        ((POSEMB, None), {}, TypeError, "new_size must be an integer or (height, width), got None"),
        ((POSEMB, (8, 8), (-7, -7)), {}, ValueError, "old_size must be at least 1, got -7x-7"),
        ((POSEMB, (8, 8), None, 50), {}, ValueError, "num_prefix_tokens must be 0 to 49 for 50 tokens, got 50"),
        ((POSEMB, (8, 8), None, -1), {}, ValueError, "num_prefix_tokens must be 0 to 49 for 50 tokens, got -1"),
        (
            (POSEMB, (8, 8)),
            {"interpolation": "nearest"},
            ValueError,
            "interpolation must be one of 'bicubic', 'bilinear', got 'nearest'",
        ),
        (
            (POSEMB[0], (8, 8)),
            {},
            ValueError,
            "posemb must be (batch, tokens, width), none of them 0, got shape (50, 8)",
        ),
        ((POSEMB[..., :0], (8, 8)), {}, ValueError, "none of them 0, got shape (1, 50, 0)"),
        ((POSEMB[:0], (8, 8)), {}, ValueError, "none of them 0, got shape (0, 50, 8)"),
        (
            (POSEMB.long(), (8, 8)),
            {},
            TypeError,
            "posemb must be float16, bfloat16, float32 or float64, got torch.int64",
        ),
        ((np.zeros((1, 50, 8)), (8, 8)), {}, TypeError, "posemb must be a tensor, got ndarray"),
    ],
)
def test_errors(arguments, options, error, message):
    with pytest.raises(error) as raised:
        vit_rs.resample_abs_pos_embed(*arguments, **options)
    assert message in str(raised.value)


sizes = st.integers(1, 60)


@pytest.mark.parity
@given(sizes, sizes, st.sampled_from(["bicubic", "bilinear"]), st.sampled_from(["antialias", "plain", "corners"]))
def test_matrix_equals_torchs(in_size, out_size, interpolation, mode):
    settings_ = {"antialias": mode == "antialias", "align_corners": mode == "corners"}
    ours = vit_rs.ops.interpolation_matrix(in_size, out_size, interpolation=interpolation, **settings_)
    assert ours.dtype == torch.float64
    assert ours.shape == (out_size, in_size)
    expected = _reference.interpolation_matrix(in_size, out_size, interpolation=interpolation, **settings_)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(ours.sum(1), torch.ones(out_size, dtype=torch.float64), rtol=0, atol=1e-14)


@pytest.mark.parity
@given(sizes, st.floats(0.2, 4.0), st.sampled_from(["bicubic", "bilinear"]), st.booleans())
def test_matrix_with_a_scale(in_size, factor, interpolation, antialias):
    out_size = math.floor(in_size * factor)
    assume(out_size >= 1)
    assume(out_size != in_size)  # torch copies then, whatever the scale
    settings_ = {"interpolation": interpolation, "antialias": antialias, "scale": 1.0 / factor}
    ours = vit_rs.ops.interpolation_matrix(in_size, out_size, **settings_)
    expected = _reference.interpolation_matrix(in_size, out_size, **settings_)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)


@pytest.mark.parity
def test_aligned_bilinear_is_scipys_zoom():
    ndimage = pytest.importorskip("scipy.ndimage")
    grid = np.random.default_rng(0).standard_normal((7, 9))
    options = {"interpolation": "bilinear", "antialias": False, "align_corners": True}
    for rows, columns in ((14, 18), (3, 4), (7, 20)):
        vertical = vit_rs.ops.interpolation_matrix(7, rows, **options).numpy()
        horizontal = vit_rs.ops.interpolation_matrix(9, columns, **options).numpy()
        zoomed = ndimage.zoom(grid, (rows / 7, columns / 9), order=1)
        np.testing.assert_allclose(vertical @ grid @ horizontal.T, zoomed, rtol=0, atol=1e-12)


def test_matrix_takes_a_cubic_coefficient():
    plain = vit_rs.ops.interpolation_matrix(5, 9, antialias=False)
    assert torch.equal(plain, vit_rs.ops.interpolation_matrix(5, 9, antialias=False, a=-0.75, convention="hf"))
    pillow = vit_rs.ops.interpolation_matrix(5, 9, antialias=False, a=-0.5)
    assert not torch.allclose(plain, pillow)
    # Enlarging, antialiasing changes nothing inside but the coefficient; at the border it renormalises.
    torch.testing.assert_close(pillow[4:5], vit_rs.ops.interpolation_matrix(5, 9)[4:5], rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 3), {}, "in_size must be at least 1, got 0"),
        ((3, -1), {}, "out_size must be at least 1, got -1"),
        ((1, 2**24 + 1), {}, "cannot resample 1 samples to 16777217: both must be 1 to 16777216"),
        ((2**14, 2**14), {}, "a matrix of 16384x16384 values is larger than 134217728"),
        ((3, 4), {"interpolation": "lanczos"}, "interpolation must be one of 'bicubic', 'bilinear', got 'lanczos'"),
        ((3, 9), {"scale": 2.0}, "scale 2.0 puts output sample 3 of 9 outside the 3 input samples"),
    ],
)
def test_matrix_errors(arguments, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        vit_rs.ops.interpolation_matrix(*arguments, **options)
