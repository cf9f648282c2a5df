"""Which rows and which grid a position table has: told, evident, or asked for."""

from __future__ import annotations

import pytest
import torch

from vit_rs.checkpoints.grids import (
    TableRows,
    Token,
    arranged,
    grid_of_image,
    patch_convention,
    prefix_tokens,
    require_finite,
    size_pair,
    table_rows,
)
from vit_rs.exceptions import CheckpointError

CLS, DIST = Token("cls_token", 0), Token("dist_token", 0)
REG = tuple(Token("reg_token", index) for index in range(4))
WORDS = {"where": "vit.pth: pos_embed", "ask": "pass img_size"}


def test_tokens_come_in_the_models_order() -> None:
    shapes = {"reg_token": (1, 4, 8), "pos_embed": (1, 9, 8), "dist_token": (1, 1, 8), "cls_token": (1, 1, 8)}
    assert prefix_tokens(shapes) == (CLS, DIST, *REG)
    assert prefix_tokens({}) == ()


@pytest.mark.parametrize(
    ("count", "tokens", "standard", "options", "rows"),
    [
        (197, (CLS,), 1, {}, ((CLS,), (14, 14))),
        (197, (CLS,), 1, {"told": (14, 14)}, ((CLS,), (14, 14))),
        (197, (CLS,), 1, {"told": (7, 28)}, ((CLS,), (7, 28))),
        (197, (CLS,), 1, {"target": (24, 24)}, ((CLS,), (14, 14))),
        (196, (), 0, {}, ((), (14, 14))),
        (196, (CLS,), 0, {}, ((), (14, 14))),
        (196, (CLS,), 1, {"told": (14, 14)}, ((), (14, 14))),
        (196, (CLS,), 1, {"told": (15, 13)}, ((CLS,), (15, 13))),
        (196, (CLS,), 1, {"embedded": 0}, ((), (14, 14))),
        (198, (CLS, DIST), 2, {}, ((CLS, DIST), (14, 14))),
        (1370, (CLS, *REG), 1, {}, ((CLS,), (37, 37))),
        (1369, (CLS, *REG), 0, {}, ((), (37, 37))),
        (1374, (CLS, *REG), 0, {"embedded": 5}, ((CLS, *REG), (37, 37))),
        (241, (CLS,), 1, {"told": (12, 20)}, ((CLS,), (12, 20))),
        (2, (CLS,), 1, {}, ((CLS,), (1, 1))),
    ],
)
def test_rows_that_are_known(
    count: int, tokens: tuple[Token, ...], standard: int, options: dict[str, object], rows: tuple[object, object]
) -> None:
    assert table_rows(count, tokens, standard=standard, **options, **WORDS) == TableRows(*rows)


@pytest.mark.parametrize(
    ("count", "tokens", "standard", "options"),
    [
        (196, (CLS,), 1, {}),  # 14 x 14 without a row for the class token, or 13 x 15 with one
        (17, (CLS,), 1, {"target": (2, 8)}),  # 4 x 4, or the 2 x 8 of the model
        (197, (CLS,), 1, {"target": (7, 28)}),
        (241, (CLS,), 1, {}),
        (241, (CLS,), 1, {"target": (12, 20)}),
        (1, (CLS,), 1, {}),
        (9, (CLS, *REG), 0, {}),  # 3 x 3, or 2 x 2 after five tokens
        (1374, (CLS, *REG), 0, {}),
        (0, (), 0, {}),
    ],
)
def test_rows_that_are_asked_for(
    count: int, tokens: tuple[Token, ...], standard: int, options: dict[str, object]
) -> None:
    with pytest.raises(CheckpointError, match=rf"^vit\.pth: pos_embed has {count} rows.*: pass img_size$"):
        table_rows(count, tokens, standard=standard, **options, **WORDS)


def test_rows_that_the_grid_told_cannot_have() -> None:
    with pytest.raises(CheckpointError, match=r"has 200 rows; a grid of 14x14 has 196, and .* 0 or 1 .* not 4"):
        table_rows(200, (CLS,), standard=1, told=(14, 14), **WORDS)
    with pytest.raises(CheckpointError, match="has 17 rows; a grid of 5x5 has 25"):
        table_rows(17, (CLS,), standard=1, told=(5, 5), **WORDS)


def test_the_grid_of_an_image() -> None:
    assert grid_of_image(224, (16, 16)) == (14, 14)
    assert grid_of_image((192, 320), (16, 16)) == (12, 20)
    assert grid_of_image((96, 64), (1, 2), (16, 16)) == (6, 2)
    assert grid_of_image(100, (1, 1), (32, 32)) == (4, 4)  # a ResNet rounds up
    with pytest.raises(ValueError, match="img_size 224x100 is not divisible by the patch size 16x16"):
        grid_of_image((224, 100), (16, 16))
    with pytest.raises(ValueError, match=r"size 96x96 is not divisible by the patch size 4x4 \(of a .* map of 6x6\)"):
        grid_of_image(96, (4, 4), (16, 16), "size")


@pytest.mark.parametrize("size", [0, -1, True, 2.0, (1, 2, 3), (4, 0), (4, "4")])
def test_sizes_are_positive_integers(size: object) -> None:
    with pytest.raises(ValueError, match="img_size must be one positive integer or"):
        size_pair(size, "img_size")


def numbered(rows: int, tables: int = 1) -> torch.Tensor:
    return torch.arange(1.0, 1 + tables * rows * 2).reshape(tables, rows, 2)


def test_rows_move_without_another_function() -> None:
    table = numbered(5)
    tokens = {"cls_token": torch.full((1, 1, 2), 10.0), "reg_token": torch.full((1, 4, 2), 20.0)}
    same = arranged(table, (CLS,), (CLS,), tokens)
    assert same.table is table
    assert same[1:] == ({}, (), (), ())

    merged = arranged(table, (CLS,), (), tokens)
    assert torch.equal(merged.table, table[:, 1:])
    assert torch.equal(merged.tokens["cls_token"], table[:, :1] + 10)
    assert (merged.merged, merged.filled, merged.dropped) == (("cls_token",), (), ())
    assert torch.equal(tokens["cls_token"], torch.full((1, 1, 2), 10.0))  # the file's own is not written to

    filled = arranged(table, (CLS,), (CLS, *REG), tokens)
    assert torch.equal(filled.table[:, [0, 5, 6, 7, 8]], table)
    assert not filled.table[:, 1:5].any()
    assert (filled.merged, filled.filled, filled.dropped) == ((), ("reg_token",), ())

    registers = arranged(numbered(9), (CLS, *REG), (CLS,), tokens)
    assert torch.equal(registers.tokens["reg_token"], numbered(9)[:, 1:5] + 20)
    assert torch.equal(registers.table, numbered(9)[:, [0, 5, 6, 7, 8]])
    assert registers.merged == ("reg_token",)

    dropped = arranged(numbered(6), (CLS, DIST), (CLS,), tokens)
    assert torch.equal(dropped.table, numbered(6)[:, [0, 2, 3, 4, 5]])
    assert (dropped.merged, dropped.filled, dropped.dropped) == ((), (), ("dist_token",))


def test_rows_of_every_layer_are_filled_but_not_merged() -> None:
    tokens = {"cls_token": torch.ones(1, 1, 2)}
    assert arranged(numbered(4, 3), (), (CLS,), tokens).table.shape == (3, 5, 2)
    with pytest.raises(ValueError, match="a row of 3 tables cannot be added to cls_token"):
        arranged(numbered(5, 3), (CLS,), (), tokens)


def test_patch_kernels_go_with_their_projects_tables() -> None:
    assert [patch_convention(name) for name in ("timm", "timm_npz", "jax", "flexi", "siglip2", "dinov2", "hf")] == [
        "timm",
        "timm_npz",
        "flexi",
        "flexi",
        "flexi",
        "timm",
        "timm",
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_values_that_are_no_numbers_are_found(value: float, dtype: torch.dtype) -> None:
    tensor = torch.ones(3, 5, dtype=dtype)
    require_finite(tensor, "x")
    require_finite(torch.full((70000,), 6e4, dtype=dtype), "x")  # whose sum overflows in float16
    tensor[1, 2] = value
    with pytest.raises(CheckpointError, match=r"^vit\.pth: head\.bias: 1 of 15 values are NaN or infinite$"):
        require_finite(tensor, "vit.pth: head.bias")
    tensor[2, 2] = -value
    with pytest.raises(CheckpointError, match="2 of 15 values"):
        require_finite(tensor, "x")
