"""patchify and unpatchify against torch's reshape, permute, Conv2d and torchvision; properties; every error."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import vit_rs
from vit_rs import _reference

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
DTYPES = [
    torch.uint8,
    torch.int16,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.int64,
    torch.float64,
    torch.bool,
    torch.complex64,
    torch.complex128,
]


def drawn(shape, dtype, seed=0):
    values = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed))
    return values.to(torch.uint8) if dtype == torch.uint8 else (values / 64 - 2).to(dtype)


@st.composite
def geometries(draw):
    side = st.integers(1, 5) | st.sampled_from([7, 8, 14, 16])
    P, Q = draw(side), draw(side)
    B, rows, columns = draw(st.integers(0, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    C = draw(st.sampled_from([1, 2, 3, 4, 7]))
    order, layout = draw(st.sampled_from(["pqc", "cpq"])), draw(st.sampled_from(["NCHW", "NHWC"]))
    shape = (B, C, rows * P, columns * Q) if layout == "NCHW" else (B, rows * P, columns * Q, C)
    return shape, (P, Q), order, layout


def by_slices(images, P, Q, order, layout):
    """Each patch cut out by hand: no reshape to get wrong."""
    images = images if layout == "NCHW" else images.movedim(3, 1)
    B, C, H, W = images.shape
    patches = [
        images[:, :, y : y + P, x : x + Q].permute((0, 2, 3, 1) if order == "pqc" else (0, 1, 2, 3))
        for y in range(0, H, P)
        for x in range(0, W, Q)
    ]
    return torch.stack(patches, 1).reshape(B, (H // P) * (W // Q), P * Q * C)


@pytest.mark.parity
@given(geometries(), st.sampled_from(DTYPES), st.sampled_from([None, 1, 3]))
def test_parity_and_round_trip(geometry, dtype, num_threads):
    shape, (P, Q), order, layout = geometry
    images = drawn(shape, dtype)
    options = {"order": order, "layout": layout}
    patches = vit_rs.patchify(images, (P, Q), **options, num_threads=num_threads)
    assert patches.dtype == dtype
    assert patches.is_contiguous()
    assert torch.equal(patches, by_slices(images, P, Q, order, layout))
    assert torch.equal(patches, _reference.patchify(images, (P, Q), **options))
    size = shape[2:] if layout == "NCHW" else shape[1:3]
    back = vit_rs.unpatchify(patches, size, (P, Q), **options, num_threads=num_threads)
    assert torch.equal(back, images)
    assert torch.equal(_reference.unpatchify(patches, size, (P, Q), **options), images)


@pytest.mark.parity
@given(
    geometries(),
    st.sampled_from([torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.booleans(),
)
def test_conversion_equals_the_reference(geometry, dtype, target, normalize):
    shape, (P, Q), order, layout = geometry
    images = drawn(shape, dtype)
    C = shape[1] if layout == "NCHW" else shape[3]
    mean = [0.1 + 0.15 * c for c in range(C)] if normalize else [0.0] * C
    std = [0.3 - 0.02 * c for c in range(C)] if normalize else [1.0] * C
    options = {"order": order, "layout": layout, "dtype": target}
    given_ = {"mean": mean, "std": std} if normalize else {}
    patches = vit_rs.patchify(images, (P, Q), **options, **given_)
    converts = normalize or dtype != target
    expected = _reference.patchify(
        images, (P, Q), **options, mean=mean if converts else None, std=std if converts else None
    )
    assert patches.dtype == target
    assert torch.equal(patches, expected)


@pytest.mark.parity
def test_uint8_equals_torchvision():
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    images = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    scaled = functional.to_dtype(images, torch.float32, scale=True)
    normalized = functional.normalize(scaled, MEAN, STD)
    for order in ("pqc", "cpq"):
        ours = vit_rs.patchify(images, 4, mean=MEAN, std=STD, order=order)
        assert torch.equal(ours, vit_rs.patchify(normalized, 4, order=order))
        ours = vit_rs.patchify(images, 4, dtype=torch.float32, order=order)
        assert torch.equal(ours, vit_rs.patchify(scaled, 4, order=order))
        ours = vit_rs.patchify(scaled, 4, mean=MEAN, std=STD, order=order)
        assert torch.equal(ours, vit_rs.patchify(normalized, 4, order=order))


def test_half_is_rounded_once():
    images = drawn((2, 3, 8, 8), torch.uint8)
    single = vit_rs.patchify(images, 4, mean=MEAN, std=STD)
    assert single.dtype == torch.float32
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(vit_rs.patchify(images, 4, mean=MEAN, std=STD, dtype=dtype), single.to(dtype))


def test_one_number_serves_all_channels():
    images = drawn((1, 3, 4, 4), torch.float32)
    ours = vit_rs.patchify(images, 2, mean=0.5, std=[0.25])
    assert torch.equal(ours, (vit_rs.patchify(images, 2) - 0.5) / 0.25)
    assert torch.equal(vit_rs.patchify(images, 2, std=2), vit_rs.patchify(images, 2) / 2)
    assert torch.equal(vit_rs.patchify(images, 2, mean=2), vit_rs.patchify(images, 2) - 2)


def test_special_values_survive():
    bits = torch.tensor([0x7F800001, 0x7FC00001, -0x80000000, 0x7F800000], dtype=torch.int32)
    patches = vit_rs.patchify(bits.view(torch.float32).view(1, 1, 2, 2), 1)
    assert torch.equal(patches.flatten().view(torch.int32), bits)


@pytest.mark.parity
def test_cpq_is_a_convolutions_order():
    images, kernel = drawn((2, 3, 12, 20), torch.float64), drawn((5, 3, 4, 5), torch.float64, 1)
    convolved = F.conv2d(images, kernel, stride=(4, 5)).flatten(2).mT
    patches = vit_rs.patchify(images, (4, 5), order="cpq")
    torch.testing.assert_close(patches @ kernel.flatten(1).T, convolved, rtol=1e-12, atol=1e-12)
    assert torch.equal(patches, F.unfold(images, (4, 5), stride=(4, 5)).mT)


@pytest.mark.parametrize("order", ["pqc", "cpq"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_threads_do_not_matter(layout, order):
    images = drawn((12, 3, 160, 160) if layout == "NCHW" else (12, 160, 160, 3), torch.float32)
    options = {"order": order, "layout": layout}
    one = vit_rs.patchify(images, 16, **options, num_threads=1)
    assert torch.equal(one, vit_rs.patchify(images, 16, **options, num_threads=3))
    assert torch.equal(one, _reference.patchify(images, (16, 16), **options))
    assert torch.equal(images, vit_rs.unpatchify(one, 160, 16, **options, num_threads=3))
    large = drawn((1, 3, 480, 320) if layout == "NCHW" else (1, 480, 320, 3), torch.float64)
    one = vit_rs.patchify(large, (16, 8), **options, num_threads=1)
    assert torch.equal(one, vit_rs.patchify(large, (16, 8), **options, num_threads=2))
    size = large.shape[2:] if layout == "NCHW" else large.shape[1:3]
    assert torch.equal(large, vit_rs.unpatchify(one, size, (16, 8), **options, num_threads=2))


def test_strides():
    images = drawn((2, 3, 8, 12), torch.float32)
    expected = vit_rs.patchify(images, 4)
    assert torch.equal(vit_rs.patchify(images.contiguous(memory_format=torch.channels_last), 4), expected)
    planes_first = images.permute(0, 2, 3, 1)
    assert torch.equal(vit_rs.patchify(planes_first, 4, layout="NHWC"), expected)
    wide = torch.zeros(2, 3, 8, 24)
    wide[..., ::2] = images
    assert torch.equal(vit_rs.patchify(wide[..., ::2], 4), expected)
    assert torch.equal(vit_rs.patchify(images[:1].expand(5, -1, -1, -1), 4), expected[:1].expand(5, -1, -1))
    patches = torch.zeros(2, 6, 96)
    patches[..., ::2] = expected
    assert torch.equal(vit_rs.unpatchify(patches[..., ::2], (8, 12), 4), images)


def test_results_never_alias():
    images = torch.zeros(1, 4, 4, 3)
    for patch in (1, 4):
        for device_kernel in (vit_rs.patchify, _reference.patchify):
            patches = device_kernel(images, (patch, patch), layout="NHWC")
            patches += 1
            assert not images.any()
    patches = torch.zeros(1, 16, 3)
    for device_kernel in (vit_rs.unpatchify, _reference.unpatchify):
        images = device_kernel(patches, (4, 4), (1, 1), layout="NHWC")
        images += 1
        assert not patches.any()


def test_out():
    images = drawn((2, 3, 8, 8), torch.uint8)
    out = torch.empty(2, 4, 48)
    assert vit_rs.patchify(images, 4, mean=MEAN, std=STD, out=out) is out
    assert torch.equal(out, vit_rs.patchify(images, 4, mean=MEAN, std=STD))
    out = torch.empty(2, 4, 48, dtype=torch.float64)
    assert vit_rs.patchify(images, 4, dtype=torch.float64, out=out) is out
    assert torch.equal(out, vit_rs.patchify(images, 4, dtype=torch.float64))
    patches = vit_rs.patchify(images, 4)
    back = torch.empty(2, 8, 8, 3, dtype=torch.uint8)
    assert vit_rs.unpatchify(patches, 8, 4, layout="NHWC", out=back) is back
    assert torch.equal(back.movedim(3, 1), images)
    empty = torch.empty(0, 4, 48, dtype=torch.uint8)
    assert vit_rs.patchify(images[:0], 4, out=empty) is empty


def test_numpy():
    images = drawn((2, 3, 8, 8), torch.uint8)
    array = images.numpy()
    for view in (array, np.ascontiguousarray(array[:, :, ::-1])[:, :, ::-1]):
        patches = vit_rs.patchify(view, 4)
        assert isinstance(patches, np.ndarray)
        assert np.array_equal(patches, vit_rs.patchify(images, 4).numpy())
    assert np.array_equal(vit_rs.unpatchify(patches, 8, 4), array)
    frozen = array.copy()
    frozen.flags.writeable = False
    assert np.array_equal(vit_rs.patchify(frozen, 4), patches)
    unaligned = np.frombuffer(b"\0" + np.arange(16, dtype=np.float32).tobytes(), np.float32, offset=1)
    assert not unaligned.flags.aligned
    assert vit_rs.patchify(unaligned.reshape(1, 1, 4, 4), 2)[0, 1].tolist() == [2, 3, 6, 7]
    halves = vit_rs.patchify(array, 4, mean=MEAN, std=STD, dtype=np.float16)
    assert halves.dtype == np.float16
    assert np.array_equal(halves, vit_rs.patchify(images, 4, mean=MEAN, std=STD, dtype=torch.float16).numpy())
    out = np.empty((2, 4, 48), np.float32)
    assert vit_rs.patchify(array, 4, mean=MEAN, std=STD, out=out) is out
    assert np.array_equal(out, vit_rs.patchify(array, 4, mean=MEAN, std=STD))
    with pytest.raises(TypeError, match="numpy has no bfloat16: give a tensor, or another dtype"):
        vit_rs.patchify(array, 4, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match="out must be a numpy array as the input is, got Tensor"):
        vit_rs.patchify(array, 4, out=torch.empty(2, 4, 48))
    with pytest.raises(TypeError, match="out must be a tensor as the input is, got ndarray"):
        vit_rs.patchify(images, 4, out=out)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out must be writeable"):
        vit_rs.patchify(array, 4, mean=MEAN, out=out)


IMAGES = torch.zeros(1, 3, 32, 48)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((IMAGES, 15), {}, ValueError, "patches of 15x15 do not divide images of 32x48 (height x width)"),
        ((IMAGES, (16, 32)), {}, ValueError, "patches of 16x32 do not divide images of 32x48"),
        ((IMAGES[:, :, :0], 16), {}, ValueError, "patches of 16x16 do not divide images of 0x48"),
        ((IMAGES, 0), {}, ValueError, "patch_size must be at least 1, got 0x0"),
        ((IMAGES, (16, -1)), {}, ValueError, "patch_size must be at least 1, got 16x-1"),
        ((IMAGES, (16, 16, 16)), {}, ValueError, "patch_size must be an integer or (height, width), got (16, 16, 16)"),
        ((IMAGES, (16.0, 16.0)), {}, TypeError, "patch_size must be an integer or (height, width), got (16.0, 16.0)"),
        ((IMAGES, 16.0), {}, TypeError, "patch_size must be an integer or (height, width), got 16.0"),
        ((IMAGES[0], 16), {}, ValueError, "images must be (batch, channels, height, width), got shape (3, 32, 48)"),
        (
            (IMAGES[0], 16),
            {"layout": "NHWC"},
            ValueError,
            "images must be (batch, height, width, channels), got shape (3, 32, 48)",
        ),
        ((IMAGES[:, :0], 16), {}, ValueError, "images must have at least 1 channel, got shape (1, 0, 32, 48)"),
        (([[1]], 1), {}, TypeError, "images must be a tensor or a numpy array, got list"),
        ((IMAGES, 16), {"order": "qpc"}, ValueError, "order must be one of 'pqc', 'cpq', got 'qpc'"),
        ((IMAGES, 16), {"layout": "CHW"}, ValueError, "layout must be one of 'NCHW', 'NHWC', got 'CHW'"),
        ((IMAGES, 16), {"num_threads": 0}, ValueError, "num_threads must be None or at least 1, got 0"),
        ((IMAGES, 16), {"mean": [0.5, 0.5]}, ValueError, "mean must have 1 or 3 values, one for each channel, got 2"),
        ((IMAGES, 16), {"std": [0.5] * 4}, ValueError, "std must have 1 or 3 values, one for each channel, got 4"),
        ((IMAGES, 16), {"std": [0.5, 0, 0.5]}, ValueError, "std must not be 0, got [0.5, 0.0, 0.5]"),
        ((IMAGES, 16), {"mean": math.nan}, ValueError, "mean must be finite, got [nan, nan, nan]"),
        (
            (IMAGES.long(), 16),
            {"mean": 0.5},
            TypeError,
            "patchify converts uint8, float16, bfloat16, float32 and float64 images to a floating dtype, got torch.int",
        ),
        ((IMAGES, 16), {"dtype": torch.uint8}, TypeError, "got torch.float32 to torch.uint8"),
        ((IMAGES.byte(), 16), {"mean": 0.5, "dtype": torch.uint8}, TypeError, "got torch.uint8 to torch.uint8"),
        (
            (IMAGES, 16),
            {"out": torch.empty(1, 6, 767)},
            ValueError,
            "out must be contiguous, (1, 6, 768), torch.float32, on cpu; got contiguous, (1, 6, 767), torch.float32",
        ),
        (
            (IMAGES, 16),
            {"out": torch.empty(1, 6, 768).double()},
            ValueError,
            "got contiguous, (1, 6, 768), torch.float64",
        ),
        ((IMAGES, 16), {"out": torch.empty(1, 768, 6).mT}, ValueError, "got strided, (1, 6, 768)"),
        ((IMAGES, 16), {"out": torch.empty(1, 6, 768, device="meta")}, ValueError, "torch.float32, on meta"),
        ((IMAGES, 16), {"out": IMAGES.view(1, 6, 768)}, ValueError, "out shares memory with the input"),
        (
            (IMAGES, 16),
            {"out": torch.empty(1, 6, 768, requires_grad=True)},
            RuntimeError,
            "out= is not differentiable: call under torch.no_grad(), or without out",
        ),
    ],
)
def test_patchify_errors(arguments, options, error, message):
    with pytest.raises(error) as raised:
        vit_rs.patchify(*arguments, **options)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_threads": 2.5}, TypeError, "num_threads must be an integer, got 2.5"),
        ({"num_threads": "2"}, TypeError, "num_threads must be an integer, got '2'"),
        ({"num_threads": 10**30}, ValueError, "num_threads must be below 2**31, got 1000"),
        ({"mean": "0.5"}, TypeError, "mean must be a number or a sequence of numbers, got '0.5'"),
        ({"std": 1e-50}, ValueError, "std must not be 0 as a 32-bit float"),
        ({"mean": 1e300}, ValueError, "mean must be finite as 32-bit floats, got inf"),
        ({"patch_size": True}, TypeError, "patch_size must be an integer or (height, width), got True"),
        ({"images": IMAGES.to_sparse()}, TypeError, "images must be a dense tensor, got torch.sparse_coo"),
        (
            {
                "images": torch.zeros(1, 1, 2, 2, dtype=torch.complex64),
                "out": torch.zeros(1, 1, 4, dtype=torch.complex64).conj(),
            },
            ValueError,
            "out must hold its own values, got a conjugate or negative view",
        ),
    ],
)
def test_more_patchify_errors(options, error, message):
    size = 2 if "out" in options else 16
    with pytest.raises(error) as raised:
        vit_rs.patchify(**{"images": IMAGES, "patch_size": size, **options})
    assert message in str(raised.value)


def test_number_of_threads(monkeypatch):
    """The engine gets the number that was given, or torch's, read when the kernel runs."""
    from vit_rs.ops import _patch_operators, _resample_operators

    seen = []

    class Engine:
        def __getattr__(self, name):
            def called(*arguments, num_threads, **options):
                seen.append(num_threads)
                return getattr(vit_rs._core, name)(*arguments, num_threads=num_threads, **options)

            return called

    monkeypatch.setattr(_patch_operators, "_core", Engine())
    monkeypatch.setattr(_resample_operators, "_core", Engine())
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            vit_rs.unpatchify(vit_rs.patchify(IMAGES, 16), (32, 48), 16)
            vit_rs.patchify(IMAGES, 16, mean=0.5, num_threads=7)
            vit_rs.resample_abs_pos_embed(torch.zeros(1, 5, 2), 3)
            assert seen == [threads, threads, 7, threads]
            seen.clear()
    finally:
        torch.set_num_threads(before)


def test_numbers_of_numpy_and_torch():
    images = IMAGES.to(torch.uint8)
    expected = vit_rs.patchify(images, 16, mean=0.5, std=[0.25, 0.5, 1.0])
    for half in (np.float32(0.5), np.array(0.5), torch.tensor(0.5), np.array([0.5]), (0.5, 0.5, 0.5)):
        for std in (np.array([0.25, 0.5, 1.0]), torch.tensor([0.25, 0.5, 1.0])):
            assert torch.equal(vit_rs.patchify(images, 16, mean=half, std=std), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_out_may_not_share_memory_of_strided_images(dtype):
    memory = torch.zeros(2 * 3 * 32 * 48, dtype=dtype)
    images = memory.view(2, 3, 32, 48)
    for source, out in ((images[..., ::2], memory[100 : 100 + 2 * 3 * 32 * 24]), (images, memory)):
        P = (16, 12)
        patches = out.view(2, -1, 3 * 16 * 12)
        for options in ({}, {"mean": 0.5}):
            with pytest.raises(ValueError, match="out shares memory with the input"):
                vit_rs.patchify(source, P, out=patches, **options)


def test_numpy_arrays_that_torch_refuses():
    images = np.arange(2 * 3 * 4 * 4, dtype=np.float32).reshape(2, 3, 4, 4)
    expected = vit_rs.patchify(images, 2)
    assert np.array_equal(vit_rs.patchify(images.astype(">f4"), 2), expected)
    raw = np.empty(expected.nbytes + 1, np.uint8)[1:]
    for out in (
        raw.view(np.float32).reshape(expected.shape),
        np.empty_like(expected)[:, ::-1],
        np.empty(expected.shape, ">f4"),
        np.broadcast_to(np.float32(0), expected.shape),
    ):
        with pytest.raises(ValueError, match="out must be writeable, aligned, contiguous and of native byte order"):
            vit_rs.patchify(images, 2, out=out)


PATCHES = torch.zeros(1, 6, 768)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((PATCHES, 32, 16), {}, ValueError, "images of 32x32 have 2x2 = 4 patches of 16x16, got 6 patches"),
        ((PATCHES, (32, 40), 16), {}, ValueError, "patches of 16x16 do not divide images of 32x40 (height x width)"),
        ((PATCHES[..., :700], (32, 48), 16), {}, ValueError, "a patch of 16x16 has a multiple of 256 values, got 700"),
        ((PATCHES[..., :0], (32, 48), 16), {}, ValueError, "a patch of 16x16 has a multiple of 256 values, got 0"),
        ((PATCHES[0], (32, 48), 16), {}, ValueError, "patches must be (batch, patches, values), got shape (6, 768)"),
        ((PATCHES, "32", 16), {}, TypeError, "image_size must be an integer or (height, width), got '32'"),
        ((PATCHES, (32, 48), 16), {"order": "hwc"}, ValueError, "order must be one of 'pqc', 'cpq', got 'hwc'"),
        ((PATCHES, (32, 48), 16), {"layout": "HWC"}, ValueError, "layout must be one of 'NCHW', 'NHWC', got 'HWC'"),
        ((PATCHES, (32, 48), 16), {"num_threads": -2}, ValueError, "num_threads must be None or at least 1, got -2"),
        ((3.0, (32, 48), 16), {}, TypeError, "patches must be a tensor or a numpy array, got float"),
        (
            (PATCHES, (32, 48), 16),
            {"out": torch.empty(1, 32, 48, 3)},
            ValueError,
            "out must be contiguous, (1, 3, 32, 48)",
        ),
        ((PATCHES, (32, 48), 16), {"out": PATCHES.view(1, 3, 32, 48)}, ValueError, "out shares memory with the input"),
        (
            (torch.zeros(1, 6, 768, requires_grad=True), (32, 48), 16),
            {"out": torch.empty(1, 3, 32, 48)},
            RuntimeError,
            "out= is not differentiable",
        ),
    ],
)
def test_unpatchify_errors(arguments, options, error, message):
    with pytest.raises(error) as raised:
        vit_rs.unpatchify(*arguments, **options)
    assert message in str(raised.value)


def test_operator_checks_what_rust_relies_on():
    """The operators behind the functions can be called directly; Rust does not trust them."""
    with pytest.raises(ValueError, match="patches of 15x16 do not divide images of 32x48"):
        torch.ops.vit_rs.patchify(IMAGES, [15, 16])
    with pytest.raises(ValueError, match="order must be 'pqc' or 'cpq', got 'x'"):
        torch.ops.vit_rs.patchify(IMAGES, [16, 16], "x")
    with pytest.raises(ValueError, match="layout must be 'NCHW' or 'NHWC', got 'x'"):
        torch.ops.vit_rs.unpatchify(PATCHES, [32, 48], [16, 16], "pqc", "x")
    with pytest.raises(ValueError, match="expected buffers of 4608 values, got 3840 to read"):
        torch.ops.vit_rs.unpatchify(PATCHES[:, :5], [32, 48], [16, 16])
    with pytest.raises(ValueError, match=r"mean and std belong together, got \[0.5\] and None"):
        torch.ops.vit_rs.patchify(IMAGES, [16, 16], "pqc", "NCHW", [0.5])
    for dtype in (torch.float16, torch.int32):
        with pytest.raises(ValueError, match=r"without mean and std values keep their dtype, torch\.float32, got"):
            torch.ops.vit_rs.patchify(IMAGES, [16, 16], "pqc", "NCHW", None, None, dtype)
    with pytest.raises(ValueError, match="std must have 1 or 3 values"):
        torch.ops.vit_rs.patchify(IMAGES, [16, 16], "pqc", "NCHW", [0.5], [1.0, 1.0])
