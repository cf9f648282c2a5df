"""Filters' principal components and models' position tables: planted ones are found, every model's are what it adds."""

import itertools
import math
import re

import numpy as np
import pytest
import timm
import torch

from vit_rs.analysis import (
    neighbour_similarity,
    patch_filters,
    position_note,
    position_similarity,
    position_tables,
)
from vit_rs.models import BiTResNet, HybridConfig, HybridViT, ResNetConfig, VisionTransformer, ViTConfig
from vit_rs.models.pos_encoding import sincos_2d

# Patch filters


def planted(filters: int, patch: tuple[int, int, int], spreads: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Filters that are one mean plus orthogonal patterns, whose coefficients have exactly these deviations."""
    size = math.prod(patch)
    patterns = torch.linalg.qr(torch.randn(size, len(spreads), dtype=torch.float64)).Q.T
    coefficients = torch.randn(filters, len(spreads), dtype=torch.float64)
    coefficients = torch.linalg.qr(coefficients - coefficients.mean(0)).Q * torch.tensor(spreads, dtype=torch.float64)
    mean = torch.randn(size, dtype=torch.float64)
    return (mean + coefficients @ patterns).reshape(filters, *patch), patterns.reshape(-1, *patch)


@pytest.mark.parametrize(("filters", "patch"), [(64, (3, 4, 4)), (20, (3, 8, 8)), (48, (1, 2, 7)), (30, (3, 5, 3))])
def test_planted_filters_are_found(filters: int, patch: tuple[int, int, int]) -> None:
    spreads = [5.0, 3.0, 2.0, 1.0]
    weight, patterns = planted(filters, patch, spreads)
    found = patch_filters(weight.float(), count=4)
    assert found.components.shape == (4, *patch)
    assert (found.components.dtype, found.mean.dtype) == (torch.float32, torch.float32)
    for component, pattern in zip(found.components, patterns.float(), strict=True):
        sign = torch.sign((component * pattern).sum())
        torch.testing.assert_close(component, sign * pattern, rtol=0, atol=1e-5)
        assert component.flatten()[component.abs().argmax()] > 0
    ratio = found.explained_variance_ratio
    assert (ratio.shape, ratio.dtype) == ((min(filters, math.prod(patch)),), torch.float64)
    want = torch.tensor(spreads, dtype=torch.float64).square()
    torch.testing.assert_close(ratio[:4], want / want.sum(), rtol=0, atol=1e-6)
    assert ratio[4:].max() < 1e-12
    assert ratio.sum().item() == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(found.mean, weight.mean(0).float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("filters", "patch"), [(64, (3, 4, 4)), (10, (3, 4, 4)), (13, (1, 2, 5)), (6, (2, 1, 1))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_components_are_the_covariance_s_eigenvectors(
    filters: int, patch: tuple[int, int, int], dtype: torch.dtype
) -> None:
    weight = (torch.randn(filters, *patch) + 0.5).to(dtype).requires_grad_()
    found = patch_filters(weight, count=5)
    values, vectors = np.linalg.eigh(np.cov(weight.detach().double().flatten(1).numpy().T))
    values, vectors = values[::-1], vectors.T[::-1]
    rank = min(filters, math.prod(patch))
    assert found.components.shape == (min(5, rank), *patch)
    assert not found.components.requires_grad
    np.testing.assert_allclose(found.explained_variance_ratio, values[:rank] / values.sum(), rtol=0, atol=1e-12)
    for component, vector in zip(found.components.flatten(1).numpy(), vectors, strict=False):
        np.testing.assert_allclose(abs(component @ vector), 1.0, rtol=0, atol=1e-6)
    gram = found.components.flatten(1) @ found.components.flatten(1).T
    torch.testing.assert_close(gram, torch.eye(len(gram)), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parity
def test_components_are_scikit_learn_s() -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    weight = torch.randn(40, 3, 4, 6) * torch.linspace(0.1, 2.0, 6)
    found = patch_filters(weight)
    peer = decomposition.PCA(n_components=28).fit(weight.double().flatten(1).numpy())
    np.testing.assert_allclose(found.explained_variance_ratio[:28], peer.explained_variance_ratio_, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.mean.flatten(), peer.mean_, rtol=0, atol=1e-6)
    for component, other in zip(found.components.flatten(1).numpy(), peer.components_, strict=True):
        np.testing.assert_allclose(component, other * np.sign(component @ other), rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, -3e30])
def test_filters_that_do_not_differ_have_no_variance(value: float) -> None:
    found = patch_filters(torch.full((6, 3, 2, 2), value))
    assert found.explained_variance_ratio.tolist() == [0.0] * 6
    assert found.components.shape == (6, 3, 2, 2)
    assert found.components.isfinite().all()
    torch.testing.assert_close(found.mean, torch.full((3, 2, 2), value))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_scale_does_not_matter(scale: float) -> None:
    weight = torch.randn(9, 1, 2, 2)
    want, got = patch_filters(weight), patch_filters(weight * scale)
    torch.testing.assert_close(got.components, want.components, rtol=0, atol=1e-5)
    torch.testing.assert_close(got.explained_variance_ratio, want.explained_variance_ratio, rtol=0, atol=1e-6)


def test_more_components_than_there_are() -> None:
    weight = torch.randn(5, 3, 8, 8)
    found = patch_filters(weight, count=100)
    assert found.components.shape == (5, 3, 8, 8)  # four directions and one of no variance
    assert found.explained_variance_ratio[4] < 1e-20
    assert patch_filters(torch.randn(1, 1, 2, 2)).explained_variance_ratio.tolist() == [0.0]


@pytest.mark.parametrize(
    ("weight", "count", "message"),
    [
        (torch.zeros(4, 3, 2), 28, r"expected a floating-point patch embedding \(D, C, p, q\), got \(4, 3, 2\)"),
        (torch.zeros(0, 3, 2, 2), 28, r"got \(0, 3, 2, 2\)"),
        (torch.zeros(4, 3, 2, 2, dtype=torch.int64), 28, r"got \(4, 3, 2, 2\) of torch.int64"),
        (torch.zeros(4, 3, 2, 2), 0, "count must be at least 1, got 0"),
        (torch.tensor([[[[1.0, math.nan]]], [[[math.inf, 0.0]]]]), 2, r"\(2, 1, 1, 2\) has 2 values that are not"),
    ],
)
def test_filters_refuse_what_they_cannot_decompose(weight: torch.Tensor, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        patch_filters(weight, count)


# Position tables


@torch.no_grad()
def added(model: torch.nn.Module, image_hw: tuple[int, int]) -> list[torch.Tensor]:
    """What a model adds to its tokens before each block, seen from outside: all else is made zero."""
    tables = {id(value) for name, value in model.named_parameters() if name.split(".")[-1].startswith("pos_embed")}
    for parameter in model.parameters():
        if id(parameter) in tables:
            torch.nn.init.normal_(parameter)  # some models start with zeros
        else:
            parameter.zero_()
    seen = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0][0].clone()))
    model.eval()(torch.randn(1, 3, *image_hw))
    return [now - before for now, before in zip(seen, [torch.zeros_like(seen[0]), *seen], strict=False)]


def assert_adds(model: torch.nn.Module, image_hw: tuple[int, int], names: list[str], prefix: int) -> None:
    want = added(model, image_hw)
    found = position_tables(model)
    assert [table.name for table in found] == names
    shown = found * len(want) if names == ["every layer"] else found
    for table, step in zip(shown, want, strict=False):
        gh, gw = table.grid
        assert (table.num_prefix_tokens, table.table.shape[0]) == (prefix, prefix + gh * gw)
        assert not table.table.requires_grad
        # Prefix tokens without a position are added nothing.
        full = torch.nn.functional.pad(table.table, (0, 0, step.shape[0] - table.table.shape[0], 0))
        torch.testing.assert_close(full, step, rtol=0, atol=1e-5)
        assert position_similarity(table.table, table.grid, prefix).shape == (gh, gw, gh, gw)
    for step in want[len(shown) :]:
        assert step.abs().max() == 0.0
    assert position_note(model) is None


TINY = {"img_size": (8, 12), "patch_size": 4, "embed_dim": 8, "depth": 3, "num_heads": 2, "num_classes": 0}


@pytest.mark.parametrize(
    ("pos_embed", "placement"),
    [
        *itertools.product(["1d", "2d"], ["stem", "shared", "every"]),
        *itertools.product(["sincos2d_bv", "sincos2d_moco", "sincos2d_mae"], ["stem", "shared"]),
    ],
)
@pytest.mark.parametrize(
    ("tokens", "prefix"),
    [
        ({}, 1),
        ({"distilled": True, "reg_tokens": 2}, 4),
        ({"reg_tokens": 2, "no_embed_class": True}, 0),
        ({"class_token": False, "global_pool": "avg"}, 0),
    ],
)
def test_tables_are_what_the_model_adds(pos_embed: str, placement: str, tokens: dict, prefix: int) -> None:
    model = VisionTransformer(ViTConfig(**TINY, pos_embed=pos_embed, pos_placement=placement, **tokens))
    names = {"stem": ["input"], "shared": ["every layer"], "every": ["layer 1", "layer 2", "layer 3"]}[placement]
    assert [table.grid for table in position_tables(model)] == [(2, 3)] * len(names)
    if pos_embed.startswith("sincos"):
        [fixed] = position_tables(model)
        want = sincos_2d((2, 3), 8, pos_embed.removeprefix("sincos2d_")).float()
        torch.testing.assert_close(fixed.table[prefix:], want, rtol=0, atol=1e-6)
        assert fixed.table[:prefix].abs().sum() == 0.0
    assert_adds(model, (8, 12), names, prefix)


def test_tables_of_hybrids_have_the_feature_map_s_grid() -> None:
    config = HybridConfig(
        img_size=(32, 48), backbone_layers=(1, 1), embed_dim=8, depth=1, num_heads=2, num_classes=0, patch_size=2
    )
    model = HybridViT(config)
    assert position_tables(model)[0].grid == (2, 3)
    assert_adds(model, (32, 48), ["input"], 1)


def test_a_table_of_rows_and_columns_is_as_the_paper_has_it() -> None:
    model = VisionTransformer(ViTConfig(**TINY, pos_embed="2d", class_token=False, global_pool="avg"))
    [table] = position_tables(model)
    for row in range(2):
        for column in range(3):
            want = torch.cat((model.pos_embed_x[0, column], model.pos_embed_y[0, row]))
            assert torch.equal(table.table[3 * row + column], want)


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({"pos_embed": "none"}, "has no position encoding: it sees its patches as a bag"),
        ({"pos_embed": "relative"}, "No table is added to the tokens: the attention .* offsets .*relative encoding"),
        ({"pos_embed": "none", "rope": True}, "No table is added to the tokens: .*rotary encoding"),
        ({"pos_embed": "relative", "rope": True}, "relative encoding.* and .*rotary encoding"),
    ],
)
def test_a_model_without_a_table_says_why(options: dict, note: str) -> None:
    model = VisionTransformer(ViTConfig(**TINY, **options))
    assert position_tables(model) == []
    assert re.search(note, position_note(model) or "")


def test_a_table_beside_rotations_says_so() -> None:
    model = VisionTransformer(ViTConfig(**TINY, rope=True))
    assert len(position_tables(model)) == 1
    assert re.match("Beside the table, queries and keys are rotated", position_note(model) or "")


VIT = {"depth": 1, "embed_dim": 12, "num_heads": 1, "img_size": (32, 48), "num_classes": 0}


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "options", "prefix"),
    [
        ("vit_tiny_patch16_224", {}, 1),
        ("vit_tiny_patch16_224", {"reg_tokens": 3}, 4),
        ("vit_tiny_patch16_224", {"reg_tokens": 3, "no_embed_class": True}, 0),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg", "dynamic_img_size": True}, 0),
        ("deit_tiny_distilled_patch16_224", {}, 2),
        ("vit_tiny_r_s16_p8_224", {"img_size": (64, 96)}, 1),
        ("naflexvit_base_patch16_gap", {"img_size": None, "pos_embed_grid_size": (2, 3), "reg_tokens": 0}, 0),
        ("naflexvit_base_patch16_gap", {"img_size": None, "pos_embed_grid_size": (2, 3), "pos_embed": "factorized"}, 0),
    ],
)
def test_tables_of_timm_s_models(name: str, options: dict, prefix: int) -> None:
    options = {key: value for key, value in {**VIT, **options}.items() if value is not None}
    model = timm.create_model(name, **options)
    image_hw = options.get("img_size", (32, 48))
    assert position_tables(model)[0].grid == (2, 3)
    assert_adds(model, image_hw, ["input"], prefix)


@pytest.mark.parametrize(
    ("name", "options", "note"),
    [
        ("vit_tiny_patch16_224", {"pos_embed": "none"}, "sees its patches as a bag"),
        ("naflexvit_base_patch16_gap", {"pos_embed": "none"}, "sees its patches as a bag"),
        ("eva02_tiny_patch14_224", {"img_size": 28, "use_abs_pos_emb": False}, "^No table .*rotary"),
        ("eva02_tiny_patch14_224", {"img_size": 28}, "^Beside the table, .*rotary"),
        ("beit_base_patch16_224", {"img_size": 32}, "^No table .*relative"),
        ("vit_relpos_small_patch16_224", {"img_size": 32}, "^No table .*relative"),
        ("xcit_nano_12_p16_224", {"img_size": 32, "num_heads": 4}, "Xcit has no position table that is known here"),
    ],
)
def test_notes_on_timm_s_models(name: str, options: dict, note: str) -> None:
    model = timm.create_model(name, **{**VIT, "img_size": 32, **options})
    assert re.search(note, position_note(model) or "")
    assert bool(position_tables(model)) == note.startswith("^Beside")


def test_models_whose_tables_are_not_known() -> None:
    resnet = BiTResNet(ResNetConfig(layers=(1,), num_classes=0))
    assert position_tables(resnet) == []
    assert position_note(resnet) == "BiTResNet has no position table that is known here."
    stranger = torch.nn.Module()
    stranger.pos_embed = torch.nn.Parameter(torch.zeros(1, 5, 4))
    stranger.patch_embed = torch.nn.Module()
    # No grid; more patches than rows; channels before the patches, as of timm's PiT.
    for grid, shape in ((None, (1, 5, 4)), ((2, 3), (1, 5, 4)), ((2, 3), (1, 4, 2, 3))):
        stranger.patch_embed.grid_size = grid
        stranger.pos_embed = torch.nn.Parameter(torch.zeros(shape))
        assert position_tables(stranger) == []
        assert position_note(stranger) == "Module has no position table that is known here."


# Similarity of neighbours


def test_neighbours_of_a_smooth_table_are_similar():
    """Angles that grow by 0.5 along both axes: the similarity is the mean of both steps' cosines."""
    x, y = torch.arange(5).repeat(4) * 0.5, torch.arange(4).repeat_interleave(5) * 0.5
    table = torch.stack((x.cos(), x.sin(), y.cos(), y.sin()), dim=1)
    found = neighbour_similarity(position_similarity(table, (4, 5), 0))
    edges = 4 * 4 + 3 * 5
    assert found.neighbours == pytest.approx((math.cos(0.5) + 1) / 2, abs=1e-6)
    assert found.by_chance == pytest.approx(2 * edges / (20 * 19))
    assert found.nearest == 1.0
    pairs = [(abs(a % 5 - b % 5), abs(a // 5 - b // 5)) for a in range(20) for b in range(20)]
    others = [(math.cos(0.5 * dx) + math.cos(0.5 * dy)) / 2 for dx, dy in pairs if dx + dy > 1]
    assert found.others == pytest.approx(np.mean(others), abs=1e-6)


def test_mirrored_tables_have_no_near_neighbours():
    """Columns alike in pairs of mirror images: the most similar patch is the mirrored one, but in the middle."""
    table = torch.eye(4)[torch.tensor([0, 1, 1, 0])].repeat(2, 1)
    table[4:] = -table[4:]
    found = neighbour_similarity(position_similarity(table, (2, 4), 0))
    assert found.nearest == 0.5
    assert found.neighbours == pytest.approx((2 * 1 + 4 * -1) / 10)


@pytest.mark.parametrize(
    ("shape", "message"), [((2, 3, 3, 2), "expected similarities"), ((1, 2, 1, 2), "a grid of 1x2 patches has no")]
)
def test_neighbours_need_a_grid(shape, message):
    with pytest.raises(ValueError, match=message):
        neighbour_similarity(torch.zeros(shape))
