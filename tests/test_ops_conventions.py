"""The named conventions, each against the function it is named after; the knobs; every error of theirs.

The functions are called where their package is a test dependency (timm, torchvision, scipy, torch). The others are
written down here from their published formulas.
"""

from __future__ import annotations

import math
import re
from dataclasses import FrozenInstanceError, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, example, given
from hypothesis import strategies as st

import vit_rs
from vit_rs.ops.conventions import GRID_CONVENTIONS, PATCH_CONVENTIONS

# Largest differences, relative to the largest value of the table. In float32 the originals round positions and weights,
# which costs some of them more than 2e-6 against their own float64 result: then that error bounds the difference.
TOLERANCE = 2e-6
TOLERANCE_OF_DOUBLE = 5e-7

grids = st.tuples(st.integers(1, 40), st.integers(1, 40))
NAMES = list(GRID_CONVENTIONS)
SAME_NUMBERS = [{"flexi", "siglip2"}, {"dino", "dinov2"}, {"timm", "dinov2_reg"}, {"hf", "mae"}]


def table(old, prefix=1, width=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(old[0] * 100 + old[1])
    return torch.randn(1, prefix + old[0] * old[1], width, dtype=torch.float64, generator=generator).to(dtype)


def worst(got, expected, posemb):
    assert got.shape == expected.shape
    return ((got.double() - expected.double()).abs().max() / posemb.abs().max()).item()


def interpolated(posemb, old, new, **options):
    """F.interpolate, as projects call it, channels-last in memory: torch 2.15 errs otherwise, see test_ops_traps."""
    grid = posemb[:, 1:].reshape(1, *old, -1).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    size = {} if "scale_factor" in options else {"size": new}
    grid = F.interpolate(grid, **size, **options)
    assert grid.shape[2:] == new
    return torch.cat([posemb[:, :1], grid.permute(0, 2, 3, 1).reshape(1, new[0] * new[1], -1)], 1)


def by_timm(**options):
    def call(posemb, old, new):
        if posemb.dtype == torch.float64:  # timm computes in float32
            return interpolated(posemb, old, new, mode=options.get("interpolation", "bicubic"), antialias=not options)
        layers = pytest.importorskip("timm.layers")
        return layers.resample_abs_pos_embed(posemb, list(new), list(old), **options)

    return call


def by_torch(**options):
    return lambda posemb, old, new: interpolated(posemb, old, new, mode="bicubic", **options)


def by_dino(posemb, old, new):
    w0, h0 = new[0] + 0.1, new[1] + 0.1
    return interpolated(posemb, old, new, mode="bicubic", scale_factor=(w0 / old[0], h0 / old[1]))


def by_torchvision(posemb, old, new):
    if old[0] != old[1] or new[0] != new[1]:  # its function takes squares alone
        return interpolated(posemb, old, new, mode="bicubic", align_corners=True)
    module = pytest.importorskip("torchvision.models.vision_transformer")
    state = module.interpolate_embeddings(new[0] * 16, 16, {"encoder.pos_embedding": posemb})
    return state["encoder.pos_embedding"]


def by_scipy(posemb, old, new):
    """vision_transformer and big_vision; "nearest" keeps scipy's last row from zero, and changes nothing else."""
    ndimage = pytest.importorskip("scipy.ndimage")
    grid = posemb[0, 1:].reshape(*old, -1).numpy()
    zoom = (new[0] / old[0], new[1] / old[1], 1)
    zoomed = torch.from_numpy(ndimage.zoom(grid, zoom, order=1, mode="nearest"))
    return torch.cat([posemb[:, :1], zoomed.reshape(1, new[0] * new[1], -1)], 1)


def by_jax(posemb, old, new):
    """`jax.image.resize(..., "linear")`: the formula of `compute_weight_mat`, jax/_src/image/scale.py.

    Equal to `jax.image.resize` and to `jax.image.scale_and_translate` of jax 0.10.2 within 3e-14, in float64, over 400
    drawn pairs of grids up to 40 x 40. jax leaves alone the axes that do not change, for which this is the identity.
    """

    def weights(in_size, out_size):
        inverse_scale = in_size / out_size
        kernel_scale = max(inverse_scale, 1.0)
        sample = (np.arange(out_size) + 0.5) * inverse_scale - 0.5
        triangle = np.maximum(0.0, 1.0 - np.abs(sample[:, None] - np.arange(in_size)) / kernel_scale)
        return (triangle / triangle.sum(1, keepdims=True)).astype(grid.dtype)

    grid = posemb[0, 1:].reshape(*old, -1).numpy()
    resized = np.einsum("yh,xw,hwd->yxd", weights(old[0], new[0]), weights(old[1], new[1]), grid)
    return torch.cat([posemb[:, :1], torch.from_numpy(resized).reshape(1, new[0] * new[1], -1)], 1)


ORIGINALS = {
    "timm": by_timm(),
    "timm_npz": by_timm(interpolation="bilinear", antialias=False),
    "jax": by_scipy,
    "flexi": by_jax,
    "siglip2": by_jax,
    "dino": by_dino,
    "dinov2": by_dino,
    "dinov2_reg": by_torch(antialias=True),
    "hf": by_torch(align_corners=False),
    "mae": by_torch(align_corners=False),
    "torchvision": by_torchvision,
}


def test_every_convention_has_an_original():
    assert ORIGINALS.keys() == GRID_CONVENTIONS.keys()


@pytest.mark.parity
@pytest.mark.parametrize("name", NAMES)
@given(old=grids, new=grids)
@example(old=(14, 14), new=(24, 24))
@example(old=(14, 14), new=(14, 20))
@example(old=(37, 37), new=(16, 16))
@example(old=(1, 1), new=(40, 40))
@example(old=(40, 40), new=(1, 1))
@example(old=(7, 3), new=(3, 1))
@example(old=(16, 16), new=(30, 30))
def test_parity_with_the_original(name, old, new):
    assume(old != new)  # the originals leave an equal grid alone, before they come to these functions
    original, posemb = ORIGINALS[name], table(old)
    double = original(posemb.double(), old, new)
    ours = vit_rs.resample_abs_pos_embed(posemb, new, old, convention=name)
    assert ours.dtype == torch.float32
    assert worst(ours, double, posemb) < TOLERANCE_OF_DOUBLE
    theirs = original(posemb, old, new)
    assert worst(ours, theirs, posemb) < max(TOLERANCE, 1.2 * worst(theirs, double, posemb))
    ours = vit_rs.resample_abs_pos_embed(posemb.double(), new, old, convention=name)
    assert worst(ours, double, posemb) < 1e-12
    vertical, horizontal = (
        vit_rs.interpolation_matrix(old[axis], new[axis], convention=name).unflatten(0, (-1, 1)) for axis in (0, 1)
    )
    grid = posemb.double()[0, 1:].reshape(*old, -1)
    product = torch.einsum("yoh,xow,hwd->yxd", vertical, horizontal, grid).reshape(1, new[0] * new[1], -1)
    assert worst(product, double[:, 1:], posemb) < 1e-12


@pytest.mark.parity
def test_parity_with_timms_default():
    """No convention is timm's, `resample_abs_pos_embed` called alike."""
    layers = pytest.importorskip("timm.layers")
    posemb = table((14, 14), width=48)
    ours = vit_rs.resample_abs_pos_embed(posemb, [24, 20], None, 1, "bicubic", True)
    assert worst(ours, layers.resample_abs_pos_embed(posemb, [24, 20], None, 1, "bicubic", True), posemb) < TOLERANCE
    assert torch.equal(ours, vit_rs.resample_abs_pos_embed(posemb, (24, 20)))
    assert torch.equal(ours, vit_rs.resample_abs_pos_embed(posemb, (24, 20), convention="timm"))


@pytest.mark.parametrize(("old", "new"), [((14, 14), (24, 24)), ((14, 14), (9, 11)), ((3, 5), (4, 9))])
def test_which_conventions_share_their_numbers(old, new):
    posemb = table(old, width=16)
    resampled = {name: vit_rs.resample_abs_pos_embed(posemb, new, old, convention=name) for name in NAMES}
    for one, other in combinations(NAMES, 2):
        same = {one, other} in SAME_NUMBERS
        if not same and {one, other} <= {"timm_npz", "flexi", "siglip2"} and new > old:
            same = True  # bilinear: antialiasing tells where the grid shrinks
        assert torch.equal(resampled[one], resampled[other]) == same, (one, other)
        assert same or worst(resampled[one], resampled[other], posemb) > 1e-3, (one, other)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equal_grids_give_a_copy(name, dtype):
    posemb = table((3, 4), 2, dtype=dtype)
    ours = vit_rs.resample_abs_pos_embed(posemb, (3, 4), (3, 4), 2, convention=name)
    assert torch.equal(ours, posemb)
    ours += 1
    assert torch.equal(posemb, table((3, 4), 2, dtype=dtype))


def test_an_own_scale_or_offset_applies_to_equal_grids():
    posemb = table((3, 4), dtype=torch.float64)
    shifted = vit_rs.resample_abs_pos_embed(posemb, (3, 4), (3, 4), antialias=False, offset=0.1)
    assert worst(shifted, by_dino(posemb, (3, 4), (3, 4)), posemb) < 1e-12
    assert not torch.equal(shifted, posemb)
    steps = (3 / 3.1, 4 / 4.1)
    scaled = vit_rs.resample_abs_pos_embed(posemb, (3, 4), (3, 4), antialias=False, scale=steps)
    assert torch.equal(scaled, shifted)
    assert torch.equal(vit_rs.resample_abs_pos_embed(posemb, (3, 4), (3, 4), offset=0.0), posemb)
    assert torch.equal(vit_rs.resample_abs_pos_embed(posemb, (3, 4), (3, 4), scale=1.0), posemb)


def test_an_axis_that_keeps_its_size_moves_under_dino():
    """An equal grid is left alone, an equal axis is not: the matrix of n to n is not the identity."""
    identity = torch.eye(14, dtype=torch.float64)
    for name in NAMES:
        matrix = vit_rs.interpolation_matrix(14, 14, convention=name)
        assert torch.allclose(matrix, identity, rtol=0, atol=1e-12) == (name not in {"dino", "dinov2"})
    posemb = table((14, 14))
    ours = vit_rs.resample_abs_pos_embed(posemb, (14, 20), convention="dino")
    assert worst(ours, by_dino(posemb, (14, 14), (14, 20)), posemb) < TOLERANCE


@pytest.mark.parametrize("name", ["jax", "torchvision"])
@given(old=st.integers(1, 40), new=st.integers(2, 40))
def test_aligned_corners_stay(name, old, new):
    matrix = vit_rs.interpolation_matrix(old, new, convention=name)
    torch.testing.assert_close(matrix[0], torch.eye(old, dtype=torch.float64)[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(matrix[-1], torch.eye(old, dtype=torch.float64)[-1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@given(old=st.integers(1, 50), new=st.integers(1, 50))
def test_rows_sum_to_one_and_mirror(name, old, new):
    matrix = vit_rs.interpolation_matrix(old, new, convention=name)
    torch.testing.assert_close(matrix.sum(1), torch.ones(new, dtype=torch.float64), rtol=0, atol=1e-14)
    if GRID_CONVENTIONS[name].offset == 0.0 and (new > 1 or name not in {"jax", "torchvision"}):
        torch.testing.assert_close(matrix.flip(0, 1), matrix, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name):
    posemb = table((3, 4), 2, dtype=torch.float64).requires_grad_()
    for new in ((5, 2), (1, 6)):
        assert torch.autograd.gradcheck(
            lambda x, new=new: vit_rs.resample_abs_pos_embed(x, new, (3, 4), 2, convention=name), posemb
        )


def test_gradcheck_of_the_knobs():
    posemb = table((3, 4), dtype=torch.float64).requires_grad_()
    for knobs in ({"a": -0.6}, {"scale": (0.7, 0.9)}, {"offset": 0.3}, {"antialias": False, "align_corners": True}):
        assert torch.autograd.gradcheck(
            lambda x, knobs=knobs: vit_rs.resample_abs_pos_embed(x, (4, 5), (3, 4), **knobs), posemb
        )


@pytest.mark.parametrize("name", ["dino", "siglip2", "torchvision"])
def test_the_gradient_is_torchs(name):
    posemb = table((14, 14), width=8).requires_grad_()
    cotangent = torch.randn(1, 1 + 20 * 9, 8, generator=torch.Generator().manual_seed(0))
    (ours,) = torch.autograd.grad(vit_rs.resample_abs_pos_embed(posemb, (20, 9), convention=name), posemb, cotangent)
    if name == "siglip2":
        theirs = interpolated(posemb, (14, 14), (20, 9), mode="bilinear", antialias=True)
    else:
        theirs = ORIGINALS[name](posemb, (14, 14), (20, 9))
    (expected,) = torch.autograd.grad(theirs, posemb, cotangent)
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-5)


@pytest.mark.parity
@given(grids, grids, st.sampled_from(["bicubic", "bilinear"]), st.sampled_from(["plain", "antialias", "corners"]))
def test_knobs_are_torchs(old, new, interpolation, mode):
    posemb = table(old, dtype=torch.float64)
    knobs = {"antialias": mode == "antialias", "align_corners": mode == "corners"}
    ours = vit_rs.resample_abs_pos_embed(posemb, new, old, interpolation=interpolation, **knobs)
    assert worst(ours, interpolated(posemb, old, new, mode=interpolation, **knobs), posemb) < 1e-12


@pytest.mark.parity
@given(grids, grids, st.floats(1e-3, 0.9), st.sampled_from(["bicubic", "bilinear"]), st.booleans())
def test_scale_and_offset_are_torchs_scale_factor(old, new, offset, interpolation, antialias):
    assume(old != new)  # torch then copies
    # Whatever the factor, torch leaves an axis that keeps its size alone, but for plain bicubic: for DINO's.
    assume((interpolation, antialias) == ("bicubic", False) or (old[0] != new[0] and old[1] != new[1]))
    posemb = table(old, dtype=torch.float64)
    options = {"interpolation": interpolation, "antialias": antialias}
    factors = tuple((n + offset) / o for o, n in zip(old, new, strict=True))
    expected = interpolated(posemb, old, new, mode=interpolation, antialias=antialias, scale_factor=factors)
    ours = vit_rs.resample_abs_pos_embed(posemb, new, old, **options, offset=offset)
    assert worst(ours, expected, posemb) < 1e-11
    steps = tuple(1.0 / factor for factor in factors)
    assert worst(vit_rs.resample_abs_pos_embed(posemb, new, old, **options, scale=steps), expected, posemb) < 1e-11
    matrix = vit_rs.interpolation_matrix(old[0], new[0], **options, offset=offset)
    assert torch.equal(matrix, vit_rs.interpolation_matrix(old[0], new[0], **options, scale=old[0] / (new[0] + offset)))


def test_one_scale_serves_both_axes():
    posemb = table((6, 6))
    one = vit_rs.resample_abs_pos_embed(posemb, (9, 8), scale=0.65)
    assert torch.equal(one, vit_rs.resample_abs_pos_embed(posemb, (9, 8), scale=[0.65, 0.65]))
    assert not torch.equal(one, vit_rs.resample_abs_pos_embed(posemb, (9, 8), scale=(0.65, 0.75)))


def test_the_cubic_coefficient_is_free():
    posemb = table((6, 6), dtype=torch.float64)
    pillow = vit_rs.resample_abs_pos_embed(posemb, (9, 8), antialias=False, a=-0.5)
    torchs = vit_rs.resample_abs_pos_embed(posemb, (9, 8), antialias=False)
    assert torch.equal(torchs, vit_rs.resample_abs_pos_embed(posemb, (9, 8), antialias=False, a=-0.75))
    assert worst(pillow, torchs, posemb) > 1e-3


def test_what_repeats_the_convention_may_be_given():
    posemb = table((6, 6))
    expected = vit_rs.resample_abs_pos_embed(posemb, (9, 8), convention="dino")
    options = {"interpolation": "bicubic", "antialias": False, "align_corners": False, "a": -0.75, "offset": 0.1}
    assert torch.equal(vit_rs.resample_abs_pos_embed(posemb, (9, 8), convention="dino", **options), expected)
    assert torch.equal(vit_rs.resample_abs_pos_embed(posemb, (9, 8), **options), expected)
    for name, convention in GRID_CONVENTIONS.items():
        given_ = {field: getattr(convention, field) for field in ("interpolation", "antialias", "align_corners", "a")}
        assert vit_rs.interpolation_matrix(5, 8, convention=name, **given_).shape == (8, 5)


def test_conventions_are_frozen():
    with pytest.raises(FrozenInstanceError):
        GRID_CONVENTIONS["timm"].antialias = False
    assert replace(GRID_CONVENTIONS["hf"], offset=0.1) == GRID_CONVENTIONS["dino"]
    assert set(PATCH_CONVENTIONS) == {"timm", "timm_npz", "flexi"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["timm", "jax", "dino"])
def test_compute_dtype(name, dtype):
    posemb = table((14, 14), 3, 16, dtype=torch.float64).to(dtype)

    def resample(values, compute_dtype=None):
        options = {"convention": name, "compute_dtype": compute_dtype}
        return vit_rs.resample_abs_pos_embed(values, (20, 11), (14, 14), 3, **options)

    own = torch.float64 if dtype == torch.float64 else torch.float32
    assert torch.equal(resample(posemb), resample(posemb, own))
    for compute in (torch.float32, torch.float64):
        ours = resample(posemb, compute)
        assert ours.dtype == dtype
        assert torch.equal(ours[:, :3], posemb[:, :3])  # whatever the grid is computed in
        assert torch.equal(ours[:, 3:], resample(posemb.to(compute))[:, 3:].to(dtype))
    if dtype == torch.float64:
        assert worst(resample(posemb, torch.float32), resample(posemb), posemb) > 1e-9
        assert torch.autograd.gradcheck(
            lambda x: resample(x, torch.float32), posemb.requires_grad_(), eps=1e-2, atol=1e-4, fast_mode=True
        )


def test_timm_lowers_a_double_table():
    layers = pytest.importorskip("timm.layers")
    posemb = table((14, 14), 1, 16, dtype=torch.float64)
    theirs = layers.resample_abs_pos_embed(posemb, [20, 11])
    lowered = vit_rs.resample_abs_pos_embed(posemb, (20, 11), compute_dtype=torch.float32)
    assert worst(lowered, theirs, posemb) < TOLERANCE
    assert torch.equal(theirs.float()[:, 1:].double(), theirs[:, 1:])
    assert torch.equal(lowered.float()[:, 1:].double(), lowered[:, 1:])
    assert torch.equal(lowered[:, :1], theirs[:, :1])


KNOWN = ", ".join(map(repr, NAMES))
ERRORS = [
    ({"convention": "clip"}, f"convention must be one of {KNOWN}, got 'clip'"),
    ({"convention": "dino", "antialias": True}, "convention 'dino' has antialias=False, got antialias=True"),
    ({"convention": "timm", "antialias": False}, "convention 'timm' has antialias=True, got antialias=False"),
    (
        {"convention": "jax", "interpolation": "bicubic"},
        "convention 'jax' has interpolation='bilinear', got interpolation='bicubic'",
    ),
    ({"convention": "jax", "align_corners": False}, "convention 'jax' has align_corners=True, got align_corners=False"),
    ({"convention": "hf", "a": -0.5}, "convention 'hf' has a=-0.75, got a=-0.5"),
    ({"convention": "flexi", "a": -0.5}, "convention 'flexi' has a=None, got a=-0.5"),
    ({"convention": "dinov2", "offset": 0.0}, "convention 'dinov2' has offset=0.1, got offset=0.0"),
    ({"convention": "hf", "offset": 0.1}, "convention 'hf' has offset=0.0, got offset=0.1"),
    ({"convention": "dino", "scale": 0.5}, "convention 'dino' derives its scale from the sizes, got scale=0.5"),
    ({"interpolation": "nearest"}, "interpolation must be one of 'bicubic', 'bilinear', got 'nearest'"),
    ({"align_corners": True}, "align_corners and antialias exclude each other: give antialias=False"),
    (
        {"align_corners": True, "antialias": False, "scale": 0.5},
        "align_corners sets the step itself and excludes scale, got scale=0.5",
    ),
    (
        {"align_corners": True, "antialias": False, "offset": 0.1},
        "align_corners sets the step itself and excludes offset, got offset=0.1",
    ),
    ({"scale": 0.5, "offset": 0.1}, "scale and offset exclude each other, got scale=0.5 and offset=0.1"),
    ({"a": math.nan}, "a must be finite, got nan"),
    ({"a": math.inf}, "a must be finite, got inf"),
    ({"a": -0.5, "interpolation": "bilinear"}, "a belongs to bicubic interpolation, got a=-0.5 with 'bilinear'"),
    ({"scale": math.inf}, "scale must be finite and above 0, got inf"),
    ({"scale": math.nan}, "scale must be finite and above 0, got nan"),
    ({"scale": 0.0}, "scale must be finite and above 0, got 0.0"),
    ({"scale": -1.0}, "scale must be finite and above 0, got -1.0"),
    ({"offset": math.nan}, "offset must be finite, got nan"),
    ({"offset": -math.inf}, "offset must be finite, got -inf"),
]


@pytest.mark.parametrize(("options", "message"), ERRORS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_errors_of_tables(options, message, device):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        vit_rs.resample_abs_pos_embed(torch.zeros(1, 10, 4, device=device), (3, 4), **options)


@pytest.mark.parametrize(("options", "message"), ERRORS)
def test_errors_of_matrices(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        vit_rs.interpolation_matrix(3, 4, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"offset": -3.0}, ValueError, "new_size plus offset must be above 0, got 3x4 and offset=-3.0"),
        ({"scale": (0.5, 0.0)}, ValueError, "scale must be finite and above 0, got (0.5, 0.0)"),
        ({"scale": (0.5,)}, ValueError, "scale must be a number or (rows, columns), got (0.5,)"),
        ({"scale": "half"}, TypeError, "scale must be a number or (rows, columns), got 'half'"),
        ({"a": "-0.5"}, TypeError, "a must be a number, got '-0.5'"),
        ({"offset": [0.1]}, TypeError, "offset must be a number, got [0.1]"),
        ({"convention": ["jax"]}, ValueError, f"convention must be one of {KNOWN}, got ['jax']"),
        ({"num_prefix_tokens": 1.0}, TypeError, "num_prefix_tokens must be an integer, got 1.0"),
        ({"scale": (30.0, 0.5)}, ValueError, "scale 30.0 puts output sample 2 of 3 outside the 3 input samples"),
        (
            {"compute_dtype": "float32"},
            TypeError,
            "compute_dtype must be None, torch.float32 or torch.float64, got 'float32'",
        ),
        (
            {"compute_dtype": torch.bfloat16},
            ValueError,
            "compute_dtype must be None, torch.float32 or torch.float64, got torch.bfloat16",
        ),
    ],
)
def test_more_errors_of_tables(options, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        vit_rs.resample_abs_pos_embed(torch.zeros(1, 10, 4), (3, 4), **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"offset": -4.5}, ValueError, "out_size plus offset must be above 0, got 4 and offset=-4.5"),
        ({"scale": (0.5, 0.5)}, TypeError, "scale must be a number, got (0.5, 0.5)"),
    ],
)
def test_more_errors_of_matrices(options, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        vit_rs.interpolation_matrix(3, 4, **options)


def test_sizes_of_matrices_are_integers():
    assert vit_rs.interpolation_matrix(np.int64(3), np.int32(4)).shape == (4, 3)
    with pytest.raises(TypeError, match=r"^in_size must be an integer, got 3\.0$"):
        vit_rs.interpolation_matrix(3.0, 4)


def sine_cosine(side, width):
    """MAE's table: the row in the first half, the column in the second."""
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], 1)
    rows, columns = axis[:, None].expand(-1, side, -1), axis[None].expand(side, -1, -1)
    return torch.cat([rows, columns], 2).reshape(1, side * side, width).float()


def test_the_documented_differences():
    """docs/position-embeddings.md, "What a wrong one costs"."""
    page = Path(__file__).parent.parent / "docs" / "position-embeddings.md"
    block = page.read_text(encoding="utf-8").split("<!-- differences:begin -->")[1].split("<!-- differences:end -->")[0]
    lines = block.strip().splitlines()
    header, _, *rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]
    rough = torch.randn(1, 14 * 14, 768, generator=torch.Generator().manual_seed(0))
    resampled = [
        {name: vit_rs.resample_abs_pos_embed(posemb, 24, None, 0, convention=name) for name in header[1:]}
        for posemb in (rough, sine_cosine(14, 768))
    ]
    for i, (one, *cells) in enumerate(rows):
        for j, (other, cell) in enumerate(zip(header[1:], cells, strict=True)):
            if i == j:
                assert not cell
                continue
            results = resampled[0 if j > i else 1]
            difference = (results[one] - results[other]).abs()
            mean, largest = map(float, cell.split(", "))
            assert difference.mean().item() == pytest.approx(mean, abs=6e-4), (one, other)
            assert difference.max().item() == pytest.approx(largest, abs=6e-3), (one, other)
