"""Mean attention distance: closed forms, brute force, and models over batches."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vit_rs.analysis.attention import attention_maps
from vit_rs.analysis.distance import attention_distance, grid_distances, mean_attention_distance
from vit_rs.models import HybridConfig, HybridViT, VisionTransformer, ViTConfig, create_model

GRIDS = [(1, 1), (4, 4), (3, 7), (14, 14)]


def shifted_left(grid):
    """Return weights (N, N) of a head that looks at the left neighbour, and in column 0 at itself."""
    gh, gw = grid
    weights = torch.zeros(gh * gw, gh * gw, dtype=torch.float64)
    for row in range(gh):
        for column in range(gw):
            weights[row * gw + column, row * gw + max(0, column - 1)] = 1.0
    return weights


def mean_pair_distance(grid, token_hw):
    places = [(y * token_hw[0], x * token_hw[1]) for y in range(grid[0]) for x in range(grid[1])]
    return np.mean([math.dist(a, b) for a in places for b in places])


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("token_hw", [(16, 16), (8, 14.5)])
def test_closed_forms(grid, token_hw):
    count = grid[0] * grid[1]
    identity = torch.eye(count, dtype=torch.float64).expand(2, 3, -1, -1)
    assert attention_distance(identity, grid, token_hw, num_prefix_tokens=0).abs().max() == 0
    uniform = torch.full((1, 1, count, count), 1 / count, dtype=torch.float64)
    got = attention_distance(uniform, grid, token_hw, num_prefix_tokens=0).item()
    assert got == pytest.approx(mean_pair_distance(grid, token_hw), rel=1e-12)
    left = attention_distance(shifted_left(grid)[None, None], grid, token_hw, num_prefix_tokens=0).item()
    assert left == pytest.approx((grid[1] - 1) / grid[1] * token_hw[1], rel=1e-12)


@pytest.mark.parametrize("prefix", [1, 5])
def test_the_prefix_is_cut_and_only_renormalised_when_asked(prefix):
    grid, count = (3, 4), 12
    uniform = torch.full((1, 1, prefix + count, prefix + count), 1 / (prefix + count), dtype=torch.float64)
    pairs = mean_pair_distance(grid, (16, 16))
    options = {"num_prefix_tokens": prefix}
    assert attention_distance(uniform, grid, (16, 16), **options).item() == pytest.approx(
        pairs * count / (count + prefix), rel=1e-12
    )
    renormalised = attention_distance(uniform, grid, (16, 16), renormalize=True, **options)
    assert renormalised.item() == pytest.approx(pairs, rel=1e-12)
    # All of a query's weight on the prefix: nothing is gathered from the image, in both.
    absorbed = torch.zeros(1, 1, prefix + count, prefix + count)
    absorbed[..., 0] = 1.0
    for renormalize in (False, True):
        assert attention_distance(absorbed, grid, (16, 16), renormalize=renormalize, **options).item() == 0.0


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_brute_force(prefix, renormalize):
    grid, (height, width) = (3, 5), (16.0, 8.0)
    weights = torch.randn(2, 3, prefix + 15, prefix + 15).mul(2).softmax(-1)
    want = np.zeros((2, 3))
    for image, head in np.ndindex(2, 3):
        for query in range(15):
            row = weights[image, head, prefix + query].tolist()[prefix:]
            whole = sum(row) if renormalize else 1.0
            for key, weight in enumerate(row):
                dy, dx = (query // 5 - key // 5) * height, (query % 5 - key % 5) * width
                want[image, head] += weight / whole * math.hypot(dy, dx) / 15
    got = attention_distance(weights, grid, (height, width), num_prefix_tokens=prefix, renormalize=renormalize)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), want, rtol=2e-6)


@given(
    gh=st.integers(1, 5),
    gw=st.integers(1, 5),
    prefix=st.integers(0, 2),
    seed=st.integers(0, 2**31),
    sharp=st.floats(0, 9),
)
def test_distances_lie_within_the_grid(gh, gw, prefix, seed, sharp):
    generator = torch.Generator().manual_seed(seed)
    count = prefix + gh * gw
    weights = torch.randn(1, 2, count, count, generator=generator, dtype=torch.float64).mul(sharp).softmax(-1)
    paper, divided = (
        attention_distance(weights, (gh, gw), (4.0, 6.0), num_prefix_tokens=prefix, renormalize=renormalize)
        for renormalize in (False, True)
    )
    diagonal = math.hypot(4.0 * (gh - 1), 6.0 * (gw - 1))
    assert ((paper >= 0) & (paper <= divided + 1e-12) & (divided <= diagonal + 1e-9)).all()
    if not prefix:
        torch.testing.assert_close(paper, divided)


def test_grid_distances():
    got = grid_distances((2, 3), (10.0, 4.0))
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, got.T)
    assert got[0].tolist() == [0.0, 4.0, 8.0, 10.0, math.hypot(10, 4), math.hypot(10, 8)]
    with pytest.raises(ValueError, match=r"must be above 0, got \(0, 3\) and \(1, 1\)"):
        grid_distances((0, 3), (1, 1))


def test_weights_of_another_grid_are_refused():
    with pytest.raises(ValueError, match=r"expected weights of 1 \+ 2\*2 tokens, got \(1, 1, 4, 4\)"):
        attention_distance(torch.zeros(1, 1, 4, 4), (2, 2), (16, 16))


# Of models

VIT = ViTConfig(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4, reg_tokens=1, num_classes=3)
HYBRID = HybridConfig(
    img_size=64, patch_size=1, backbone_layers=(1, 1), embed_dim=32, depth=2, num_heads=2, num_classes=3
)


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("model", [VisionTransformer(VIT), HybridViT(HYBRID)], ids=["vit", "hybrid"])
def test_a_model_over_images(model, renormalize, randomised):
    randomised(model)
    config = model.config
    images = torch.randn(5, 3, *config.image_hw)
    maps = attention_maps(model, images)  # (5, L, H, T, T)
    want = attention_distance(
        maps.double(),
        config.grid_size,
        config.token_hw,
        num_prefix_tokens=config.num_prefix_tokens,
        renormalize=renormalize,
    ).mean(0)
    got = mean_attention_distance(model, images, renormalize=renormalize)
    assert got.shape == (config.depth, config.num_heads)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, want, rtol=1e-5, atol=0)
    assert want.std() > 0.05
    labels = torch.zeros(5)
    for batches in (
        images.split(2),
        [(images[:4], labels[:4]), (images[:0], labels[:0]), (images[4:], labels[4:])],
        (image[None] for image in images),
    ):
        torch.testing.assert_close(
            mean_attention_distance(model, batches, renormalize=renormalize), got, rtol=1e-6, atol=0
        )


def test_batches_may_differ_in_size():
    model = create_model("vit_tiny_patch16_224", img_size=32, depth=1, dynamic_img_size=True).eval()
    wide, square = torch.randn(3, 3, 32, 64), torch.randn(1, 3, 32, 32)
    both = mean_attention_distance(model, [wide, square])
    parts = mean_attention_distance(model, wide), mean_attention_distance(model, square)
    torch.testing.assert_close(both, (3 * parts[0] + parts[1]) / 4)


@pytest.mark.parametrize("batches", [[], [torch.zeros(0, 3, 32, 32)]])
def test_no_images(batches):
    with pytest.raises(ValueError, match="no images to measure attention on"):
        mean_attention_distance(VisionTransformer(VIT), batches)
