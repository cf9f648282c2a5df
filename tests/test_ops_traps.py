"""What went wrong elsewhere when position embeddings were resampled: each with the thread that reported it.

Compilers and exporters have theirs in test_ops_export.py, pseudo-inverses in test_ops_patch_embed.py.
"""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import vit_rs
from vit_rs.ops import _resample_operators
from vit_rs.ops.conventions import GRID_CONVENTIONS

NAMES = list(GRID_CONVENTIONS)


def table(old, prefix=1, width=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(old[0] * 100 + old[1])
    return torch.randn(1, prefix + old[0] * old[1], width, dtype=torch.float64, generator=generator).to(dtype)


def by_matrices(posemb, old, new, name, prefix=1):
    vertical, horizontal = (vit_rs.interpolation_matrix(old[i], new[i], convention=name) for i in (0, 1))
    grid = posemb.double()[:, prefix:].reshape(1, *old, -1)
    grid = torch.einsum("yh,xw,bhwd->byxd", vertical, horizontal, grid).flatten(1, 2)
    return torch.cat([posemb[:, :prefix].double(), grid], 1)


# Sizes


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("side", "patch", "pixels"),
    [(14, 16, px) for px in (976, 1840, 1952)] + [(37, 14, px) for px in (546, 602, 1092, 1204, 1610, 1722)],
)
def test_sizes_that_scale_factors_miss(side, patch, pixels, name):
    """dinov2#336 and PR dinov2#378: floor(side * (pixels / patch / side)) is one too small at these sizes."""
    new = pixels // patch
    missed = math.floor(side * (float(new) / math.sqrt(side * side)))
    assert missed == new - 1  # what the 0.1 was added for
    posemb = table((side, side), width=1)
    ours = vit_rs.resample_abs_pos_embed(posemb, (new, new), convention=name)
    assert ours.shape == (1, 1 + new * new, 1)
    torch.testing.assert_close(
        ours.double(),
        by_matrices(posemb, (side, side), (new, new), name),
        rtol=0,
        atol=2e-6 * posemb.abs().max().item(),
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("new", [(8, 14), (24, 7), (14, 28), (1, 14), (5, 1)])
def test_new_grid_is_not_square(new, name):
    """dino#8, dino#36, dinov2#333: a rectangular image after a square pre-training."""
    posemb = table((14, 14))
    ours = vit_rs.resample_abs_pos_embed(posemb, new, convention=name)
    assert ours.shape == (1, 1 + new[0] * new[1], 4)
    expected = by_matrices(posemb, (14, 14), new, name)
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("old", [(7, 28), (10, 6), (1, 9)])
def test_old_grid_is_not_square(old, name):
    """timm#2190, PR timm#2317, PR timm#652, dinov2#506: a square was assumed, or asserted, of the old grid."""
    posemb = table(old)
    ours = vit_rs.resample_abs_pos_embed(posemb, (8, 8), old, convention=name)
    torch.testing.assert_close(ours.double(), by_matrices(posemb, old, (8, 8), name), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("old", "new"), [((2, 8), (4, 4)), ((4, 4), (2, 8)), ((14, 14), (7, 28))])
def test_equal_token_counts_are_not_equal_grids(old, new, name):
    """PR timm#2737: (2, 8) to (4, 4) came back unchanged."""
    posemb = table(old)
    ours = vit_rs.resample_abs_pos_embed(posemb, new, old, convention=name)
    assert ours.shape == posemb.shape
    assert not torch.allclose(ours, posemb, atol=1e-2)
    torch.testing.assert_close(ours.double(), by_matrices(posemb, old, new, name), rtol=0, atol=1e-5)


def test_a_grid_that_does_not_make_the_tokens_is_refused():
    """transformers#30579 lists dozens of models; the sizes are checked here rather than reshaped away."""
    message = "old_size 14x13 makes 182 tokens, but posemb has 197 tokens, 1 of them prefix: 196 in the grid"
    with pytest.raises(ValueError, match=re.escape(message)):
        vit_rs.resample_abs_pos_embed(table((14, 14)), (16, 16), (14, 13))


# Prefix tokens


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("name", NAMES)
def test_prefix_tokens_are_carried(prefix, name):
    """PR timm#1365: class token, distillation token, registers, or none; they are no part of the grid."""
    posemb = table((6, 6), prefix, dtype=torch.bfloat16)
    ours = vit_rs.resample_abs_pos_embed(posemb, (9, 4), None, prefix, convention=name)
    assert torch.equal(ours[:, :prefix], posemb[:, :prefix])
    alone = vit_rs.resample_abs_pos_embed(posemb[:, prefix:], (9, 4), None, 0, convention=name)
    assert torch.equal(ours[:, prefix:], alone)


def test_the_class_token_is_never_guessed():
    """PR vision_transformer#317: 196 tokens are 14x14, not a class token and 195."""
    assert vit_rs.resample_abs_pos_embed(torch.zeros(1, 196, 4), (16, 16), None, 0).shape == (1, 256, 4)
    assert vit_rs.resample_abs_pos_embed(torch.zeros(1, 197, 4), (16, 16), None, 1).shape == (1, 257, 4)
    with pytest.raises(ValueError, match="posemb has 196 tokens, 1 of them prefix; the other 195 are no square grid"):
        vit_rs.resample_abs_pos_embed(torch.zeros(1, 196, 4), (16, 16))
    with pytest.raises(ValueError, match="posemb has 197 tokens, 0 of them prefix; the other 197 are no square grid"):
        vit_rs.resample_abs_pos_embed(torch.zeros(1, 197, 4), (16, 16), num_prefix_tokens=0)


# Rows and columns


@pytest.mark.parametrize("name", NAMES)
def test_rows_come_first(name):
    """dinov2#456, PR dinov2#440, lightly-train PR 189, WAFT#2: width and height under each other's names."""
    rows = torch.arange(6.0).repeat_interleave(4).view(1, 24, 1)  # a table that knows its row alone
    ours = vit_rs.resample_abs_pos_embed(rows, (9, 2), (6, 4), 0, convention=name).view(9, 2)
    torch.testing.assert_close(ours[:, 0], ours[:, 1], rtol=0, atol=2e-6)
    assert (ours.diff(dim=0) >= -1e-6).all()
    assert ours[-1, 0] - ours[0, 0] > 4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("old", "new"), [((6, 4), (9, 7)), ((14, 14), (5, 20)), ((3, 8), (8, 3))])
def test_transposed_grids_give_the_transpose(old, new, name):
    """dinov2#456: two swaps that cancel are right for squares only."""
    posemb = table(old, 0)
    turned = posemb.view(1, *old, 4).transpose(1, 2).reshape(posemb.shape)
    ours = vit_rs.resample_abs_pos_embed(turned, new[::-1], old[::-1], 0, convention=name)
    expected = vit_rs.resample_abs_pos_embed(posemb, new, old, 0, convention=name)
    expected = expected.view(1, *new, 4).transpose(1, 2).reshape(ours.shape)
    torch.testing.assert_close(ours, expected, rtol=0, atol=5e-6)


# Shortcuts


@pytest.mark.parametrize("name", NAMES)
def test_the_shortcut_returns_the_table(name):
    """candle#2286: where nothing had to be resampled, the tokens came back in place of the table."""
    posemb = table((14, 14))
    ours = vit_rs.resample_abs_pos_embed(posemb, (14, 14), convention=name)
    assert torch.equal(ours, posemb)
    assert ours.data_ptr() != posemb.data_ptr()
    (gradient,) = torch.autograd.grad(
        vit_rs.resample_abs_pos_embed(posemb.requires_grad_(), (14, 14), convention=name).sum(), posemb
    )
    assert torch.equal(gradient, torch.ones_like(posemb))


# dtypes


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single_and_kept(dtype, name):
    """transformers#28868, PR transformers#28504, #35411 and #41701, PR timm#1890, unilm#1056.

    No half kernel ("compute_indices_weights_cubic" not implemented for 'Half'), weights rounded to half, or a float32
    table that takes the activations with it.
    """
    posemb = table((14, 14), 1, 16, dtype=dtype)
    ours = vit_rs.resample_abs_pos_embed(posemb, (20, 11), convention=name)
    assert ours.dtype == dtype
    single = vit_rs.resample_abs_pos_embed(posemb.float(), (20, 11), convention=name)
    assert torch.equal(ours, single.to(dtype))
    half_ulp = torch.finfo(dtype).eps / 2
    exact = by_matrices(posemb, (14, 14), (20, 11), name)
    assert ((ours.double() - exact).abs() <= half_ulp * exact.abs() + 2e-6 * posemb.abs().max()).all()
    (gradient,) = torch.autograd.grad(
        vit_rs.resample_abs_pos_embed(posemb.requires_grad_(), (20, 11), convention=name).sum(), posemb
    )
    assert gradient.dtype == dtype


# Which filter


def keys(x, a):
    """Keys' cubic convolution."""
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


@pytest.mark.parametrize(("name", "a"), [("timm", -0.5), ("dinov2_reg", -0.5), ("hf", -0.75), ("mae", -0.75)])
def test_which_cubic(name, a):
    """pytorch#177138: -0.75 without and -0.5 with antialiasing; an exporter wrote the former for both."""
    row = vit_rs.interpolation_matrix(8, 16, convention=name)[7]  # at 3.25: between samples 3 and 4
    expected = torch.zeros(8, dtype=torch.float64)
    expected[2:6] = torch.tensor([keys(3.25 - j, a) for j in (2, 3, 4, 5)])
    torch.testing.assert_close(row, expected, rtol=0, atol=1e-15)


def test_the_same_model_has_different_tables():
    """PR transformers#35411, dinov2 hub/backbones.py: hub weights, their ports and the register variants differ."""
    posemb = table((37, 37), 1, 8)
    tables = [
        vit_rs.resample_abs_pos_embed(posemb, (16, 16), convention=name) for name in ("dinov2", "hf", "dinov2_reg")
    ]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert (tables[i] - tables[j]).abs().max() > 0.05


def test_bilinear_shrinks_the_embeddings():
    """PR timm#750: without fine-tuning the smaller norm costs accuracy. Here it is a choice that has a name."""
    posemb = table((14, 14), 0, 64)

    def mean_norm(name):
        return vit_rs.resample_abs_pos_embed(posemb, (24, 24), None, 0, convention=name).norm(dim=-1).mean()

    assert mean_norm("timm_npz") < 0.9 * mean_norm("hf") < 0.9 * 1.1 * posemb.norm(dim=-1).mean()


def test_the_edge_under_aligned_corners_and_without():
    """dinov2#468: corners that are not aligned treat the edge of a table otherwise than its middle.

    From 224 to 96 pixels, 16 to 6 positions, the corners' own embeddings are read whole where corners are aligned. Else
    they have a small part of their neighbours' share, so of the gradient too, and with DINO's offset the two edges
    differ. Antialiasing evens it out.
    """
    reach = {name: vit_rs.interpolation_matrix(16, 6, convention=name).sum(0) for name in NAMES}
    for name in ("jax", "torchvision"):
        assert reach[name][[0, -1]].equal(torch.ones(2, dtype=torch.float64))
    for name in ("hf", "dino", "timm_npz"):
        assert reach[name][0] < 0.2 < 0.8 * reach[name][1]
    assert reach["hf"][0] == pytest.approx(reach["hf"][-1])
    assert reach["dino"][-1] < 0.0 < reach["dino"][0]
    assert reach["dinov2_reg"].max() < 1.5 * reach["dinov2_reg"].min()
    # Enlarging, new positions outside the outermost old one all take its value; aligned, there are none.
    outside = {name: vit_rs.interpolation_matrix(6, 16, convention=name)[:2, 0] for name in ("timm_npz", "jax")}
    assert outside["timm_npz"][0] == 1.0
    assert outside["timm_npz"][1] > 0.9
    assert outside["jax"][1] < 0.7


def test_one_column_wide():
    """7x3 to 3x1, which the antialiased float path of torch 2.15 gets wrong on contiguous NCHW."""
    posemb = table((7, 3), 0)
    ours = vit_rs.resample_abs_pos_embed(posemb, (3, 1), (7, 3), 0)
    torch.testing.assert_close(ours.double(), by_matrices(posemb, (7, 3), (3, 1), "timm", 0), rtol=0, atol=1e-6)
    grid = posemb.view(1, 7, 3, 4).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    theirs = F.interpolate(grid, size=(3, 1), mode="bicubic", antialias=True)
    torch.testing.assert_close(ours, theirs.permute(0, 2, 3, 1).reshape(1, 3, 4), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("old", "new"), [(16, 30), (24, 22), (24, 42), (26, 12)])
def test_the_last_row_is_no_zero(old, new):
    """scipy#6713, scipy#4922: `scipy.ndimage.zoom(order=1)` ends in zeros where its last position rounds beyond 15.

    So do the tables that vision_transformer and big_vision make of 256 px at /16 for 480 px. The position meant there
    is the last sample itself, by the function's own formula, and scipy's mode="nearest" takes it.
    """
    ndimage = pytest.importorskip("scipy.ndimage")
    grid = np.random.default_rng(0).standard_normal((old, old, 3))
    ours = vit_rs.resample_abs_pos_embed(torch.from_numpy(grid).view(1, -1, 3), (new, new), None, 0, convention="jax")
    ours = ours.view(new, new, 3).numpy()
    zoomed = ndimage.zoom(grid, (new / old, new / old, 1), order=1)
    np.testing.assert_allclose(ours[:-1, :-1], zoomed[:-1, :-1], rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours[-1, -1], grid[-1, -1], rtol=0, atol=1e-12)
    nearest = ndimage.zoom(grid, (new / old, new / old, 1), order=1, mode="nearest")
    np.testing.assert_allclose(ours, nearest, rtol=0, atol=1e-12)


# Tables that are computed


def sin_cos(positions, width=32):
    """The sine-cosine embedding of one axis, MAE's frequencies."""
    frequencies = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angles = positions[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


@pytest.mark.parametrize("name", NAMES)
def test_sine_cosine_tables_are_resampled_too(name):
    """MAE-pytorch#39: a table of the new grid's own positions, in place of the resampled one, makes stripes.

    The resampled table is the embedding of the new positions in the old grid's units, up to the interpolation's error,
    away from the border.
    """
    old, new = 14, 24
    axis = sin_cos(torch.arange(old, dtype=torch.float64))
    posemb = torch.cat([axis[:, None].expand(-1, old, -1), axis[None].expand(old, -1, -1)], 2).reshape(1, old * old, -1)
    ours = vit_rs.resample_abs_pos_embed(posemb, (new, new), None, 0, convention=name).view(new, new, -1)
    convention = GRID_CONVENTIONS[name]
    steps = torch.arange(new, dtype=torch.float64)
    if convention.align_corners:
        positions = steps * (old - 1) / (new - 1)
    else:
        positions = (steps + 0.5) * old / (new + convention.offset) - 0.5
    inside = slice(3, -3)
    expected = sin_cos(positions)[inside]
    bound = 0.13 if convention.interpolation == "bilinear" else 0.06
    assert (ours[inside, inside, :32] - expected[:, None]).abs().max() < bound
    assert (ours[inside, inside, 32:] - expected[None]).abs().max() < bound
    own = sin_cos(steps)[inside]
    assert (ours[inside, inside, :32] - own[:, None]).abs().max() > 0.5


# Devices


class Called(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = set()
        self.moved = []  # dtypes of what went from the CPU to another device

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(str(function))
        device = (kwargs or {}).get("device")
        if device is not None and torch.device(device).type != "cpu":
            self.moved += [x.dtype for x in args if isinstance(x, torch.Tensor) and x.device.type == "cpu"]
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["timm", "dino", "jax"])
def test_devices_without_kernels_need_matrix_products_alone(name):
    """pytorch#141287: MPS has no antialiased bicubic, nor its backward; what runs there is matrix products.

    timm#2514 asks for a fast resampling to each image's own size: `interpolation_matrix` is what can be kept.
    """
    convention = GRID_CONVENTIONS[name]
    posemb = table((6, 6)).requires_grad_()
    knobs = (convention.interpolation, convention.antialias, convention.align_corners, convention.a)
    with Called() as called:
        ours = _resample_operators.resample_densely(posemb, (9, 4), (6, 6), 1, *knobs, None, convention.offset)
        ours.sum().backward()
    assert not [name for name in called.names if "upsample" in name or "grid_sampler" in name or "_pad" in name]
    assert called.names >= {"aten.bmm.default", "aten.cat.default"}
    expected = vit_rs.resample_abs_pos_embed(posemb, (9, 4), convention=name)
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-6)
    # MPS knows no float64: a matrix, made in it, is rounded before it leaves the CPU.
    place = {"dtype": torch.float32, "device": torch.device("meta")}
    with Called() as called:
        _resample_operators._fresh_matrix(6, 9, *knobs, None, convention.offset, **place)
    assert called.moved == [torch.float32]
