"""Position encodings: formulas against transcriptions, sizes, and that each says where a patch is."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vit_rs import patchify
from vit_rs.exceptions import ConfigError
from vit_rs.models import VisionTransformer, ViTConfig, pos_encoding
from vit_rs.models.pos_encoding import RelativeKeys, rotary_table, rotate, sincos_2d

GRID = (3, 5)
TINY = ViTConfig(img_size=(12, 20), patch_size=4, num_classes=5, embed_dim=24, depth=3, num_heads=3)
FIXED = ("sincos2d_bv", "sincos2d_moco", "sincos2d_mae")
# The whole table of options: encoding, placement, and the parameters that it adds to a bag of patches.
TABLE = [
    ("none", "stem", 0),
    ("1d", "stem", 16 * 24),
    ("1d", "shared", 16 * 24),
    ("1d", "every", 3 * 16 * 24),
    ("2d", "stem", (3 + 5) * 12 + 24),
    ("2d", "shared", (3 + 5) * 12 + 24),
    ("2d", "every", 3 * ((3 + 5) * 12 + 24)),
    ("relative", "stem", 3 * 29 * 8),
    *((name, placement, 0) for name in FIXED for placement in ("stem", "shared")),
]


def model_of(pos_embed: str, placement: str = "stem", **changes: object) -> VisionTransformer:
    """A model whose every parameter is far from zero: what it gives depends on all of them."""
    torch.manual_seed(0)
    fields = {**TINY.to_dict(), "pos_embed": pos_embed, "pos_placement": placement, **changes}
    model = VisionTransformer(ViTConfig.from_dict(fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


# The whole table


@pytest.mark.parametrize(("pos_embed", "placement", "added"), TABLE)
def test_parameters_and_names(pos_embed: str, placement: str, added: int) -> None:
    model, bag = model_of(pos_embed, placement), model_of("none")
    assert sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in bag.parameters()) == added
    L = 3 if placement == "every" else 1
    expected = {
        "none": {},
        "2d": {"pos_embed_x": (L, 5, 12), "pos_embed_y": (L, 3, 12), "pos_embed_prefix": (L, 1, 24)},
        "relative": {f"blocks.{index}.attn.relative.table": (29, 8) for index in range(3)},
    }.get(pos_embed, {"pos_embed": (L, 16, 24)})
    state = model.state_dict()
    assert {name: tuple(state[name].shape) for name in state.keys() - bag.state_dict().keys()} == expected
    learned = {name for name in expected if pos_embed not in FIXED}
    assert model.no_weight_decay() == {"cls_token", *learned}


@pytest.mark.parametrize("no_embed_class", [False, True])
@pytest.mark.parametrize(("pos_embed", "placement", "_added"), TABLE)
def test_gradients_reach_every_table(pos_embed: str, placement: str, _added: int, no_embed_class: bool) -> None:
    # The class token, of the last layer, asks no relative key: the average of the patches does.
    pool = "avg" if pos_embed == "relative" else "token"
    changes = {"no_embed_class": no_embed_class, "reg_tokens": 2, "global_pool": pool}
    model = model_of(pos_embed, placement, **changes).double().train()
    F.cross_entropy(model(torch.randn(4, 3, 12, 20).double()), torch.arange(4)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 1e-9, name


@pytest.mark.parametrize(("pos_embed", "placement", "_added"), TABLE)
def test_overfits_one_batch(pos_embed: str, placement: str, _added: int) -> None:
    torch.manual_seed(0)
    fields = {**TINY.to_dict(), "pos_embed": pos_embed, "pos_placement": placement}
    model = VisionTransformer(ViTConfig.from_dict(fields))
    images, labels = torch.randn(10, 3, 12, 20), torch.arange(10) % 5
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    assert (model.eval()(images).argmax(1) == labels).all()


@pytest.mark.parametrize("rope", [False, True])
@pytest.mark.parametrize(("pos_embed", "placement", "_added"), TABLE)
def test_only_a_bag_of_patches_forgets_their_order(pos_embed: str, placement: str, _added: int, rope: bool) -> None:
    model = model_of(pos_embed, placement, rope=rope).double()
    patches = torch.randn(2, 15, 48, dtype=torch.float64)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features, permuted = model.forward_features(patches), model.forward_features(patches[:, order])
    class_token = (permuted[:, 0] - features[:, 0]).abs().max()
    same = (permuted[:, 1:] - features[:, 1:][:, order]).abs().max()
    if pos_embed == "none" and not rope:
        assert max(class_token, same) < 1e-12
    else:
        assert class_token > 1e-4
        assert same > 1e-4


# Learned tables


def test_a_2d_row_is_its_column_and_its_row() -> None:
    """The paper, appendix D.4: X and Y embeddings of width D/2 each, concatenated."""
    model = model_of("2d")
    images = torch.randn(2, 3, 12, 20)
    twin = model_of("1d")
    twin.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        for row, column in itertools.product(range(3), range(5)):
            pair = torch.cat((model.pos_embed_x[0, column], model.pos_embed_y[0, row]))
            twin.pos_embed[0, 1 + 5 * row + column] = pair
        twin.pos_embed[0, 0] = model.pos_embed_prefix[0, 0]
        torch.testing.assert_close(model(images), twin(images), rtol=0, atol=1e-6)


@pytest.mark.parametrize("no_embed_class", [False, True])
@pytest.mark.parametrize("placement", ["stem", "shared", "every"])
def test_placements(placement: str, no_embed_class: bool) -> None:
    """At the input of every layer, a table of its own or the same one; the tokens before the patches get theirs."""
    model = model_of("1d", placement, no_embed_class=no_embed_class, reg_tokens=2)
    images = torch.randn(2, 3, 12, 20)
    rows = F.pad(model.pos_embed, (0, 0, 3, 0)) if no_embed_class else model.pos_embed
    with torch.no_grad():
        prefix = torch.cat((model.cls_token, model.reg_token), dim=1).expand(2, -1, -1)
        x = torch.cat((prefix, model.patch_embed(images)[0]), dim=1)
        for index, block in enumerate(model.blocks):
            if index == 0 or placement != "stem":
                x = x + rows[index if placement == "every" else 0]
            x = block(x)
        torch.testing.assert_close(model.forward_features(images), model.norm(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("placement", ["every", "shared"])
@pytest.mark.parametrize("pos_embed", ["none", "relative", *FIXED])
def test_placements_need_a_table(pos_embed: str, placement: str) -> None:
    if pos_embed in FIXED and placement == "shared":
        pytest.skip("a fixed table may be shared")
    with pytest.raises(ConfigError, match=f"pos_placement '{placement}' needs a learned table, got '{pos_embed}'"):
        model_of(pos_embed, placement)


# Sines and cosines


def loop_table(grid: tuple[int, int], dim: int, variant: str) -> np.ndarray:
    """The definitions, an entry at a time."""
    gh, gw = grid
    steps = dim // 4
    table = np.empty((gh * gw, dim))
    for row, column, k in itertools.product(range(gh), range(gw), range(steps)):
        omega = 1 / 10000 ** (k / (steps - 1) if variant == "bv" else k / steps)
        first, second = (row, column) if variant == "moco" else (column, row)
        entries = (math.sin(first * omega), math.cos(first * omega), math.sin(second * omega), math.cos(second * omega))
        for part, entry in enumerate(entries):
            table[row * gw + column, part * steps + k] = entry
    return table


@pytest.mark.parametrize("variant", ["bv", "moco", "mae"])
@pytest.mark.parametrize(("grid", "dim"), [((3, 5), 24), ((14, 14), 64), ((1, 1), 8), ((7, 2), 192)])
def test_sincos_is_its_formula(variant: str, grid: tuple[int, int], dim: int) -> None:
    table = sincos_2d(grid, dim, variant)
    assert table.dtype == torch.float64
    np.testing.assert_allclose(table.numpy(), loop_table(grid, dim, variant), rtol=0, atol=1e-13)


def test_sincos_tables_by_their_relations() -> None:
    """How the published ones differ: order of the axes (meshgrid "ij" or "xy"), and the frequencies' last step."""
    bv, moco, mae = (sincos_2d((4, 6), 32, variant) for variant in ("bv", "moco", "mae"))
    swapped = sincos_2d((6, 4), 32, "mae").reshape(6, 4, 32).transpose(0, 1).flatten(0, 1)
    assert torch.equal(moco, swapped)  # rows and columns change their parts
    assert torch.equal(moco, torch.cat(mae.chunk(2, dim=1)[::-1], dim=1))
    lowest = [0, 8, 16, 24]  # k = 0: the same frequency, 1, in all
    assert torch.equal(bv[:, lowest], mae[:, lowest])
    assert (bv - mae).abs().max() > 0.1
    assert torch.equal(sincos_2d((1, 6), 32, "mae")[:, 16:24], torch.zeros(6, 8).double())  # first half: columns
    assert torch.equal(sincos_2d((6, 1), 32, "moco")[:, 16:24], torch.zeros(6, 8).double())  # first half: rows


@pytest.mark.parametrize("prefix", [{}, {"reg_tokens": 2}, {"no_embed_class": True}])
@pytest.mark.parametrize("name", FIXED)
def test_sincos_is_a_buffer_with_zero_prefix_rows(name: str, prefix: dict[str, object]) -> None:
    config = ViTConfig.from_dict({**TINY.to_dict(), "pos_embed": name, **prefix})
    model = VisionTransformer(config)
    assert "pos_embed" not in dict(model.named_parameters())
    rows = config.embedded_prefix_tokens
    expected = sincos_2d(GRID, 24, name.removeprefix("sincos2d_"))
    assert not model.state_dict()["pos_embed"][0, :rows].any()
    torch.testing.assert_close(model.pos_embed[0, rows:], expected.float(), rtol=0, atol=0)


def test_sincos_refuses() -> None:
    with pytest.raises(ValueError, match="variant must be one of bv, moco, mae, got 'simple'"):
        sincos_2d((2, 2), 8, "simple")
    with pytest.raises(ValueError, match="dim must be a multiple of 4, got 6"):
        sincos_2d((2, 2), 6, "mae")


@pytest.mark.parity
def test_sincos_is_timms() -> None:
    """timm's one table, in float32, is MoCo v3's on a square."""
    from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed

    theirs = build_sincos2d_pos_embed([5, 5], 64)
    ours = sincos_2d((5, 5), 64, "moco").float()
    parts = theirs.reshape(25, 2, 2, 16)  # (N, sin or cos, axis, K)
    candidates = [parts.flatten(1), parts.transpose(1, 2).flatten(1)]
    assert min((ours - candidate).abs().max().item() for candidate in candidates) < 1e-6


# Relative keys


@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize("grid", [(1, 1), (1, 4), (3, 5), (4, 2)])
def test_relative_keys_are_a_double_loop(grid: tuple[int, int], prefix: int) -> None:
    torch.manual_seed(0)
    N, d = grid[0] * grid[1], 6
    keys = RelativeKeys(grid, d).double()
    q = torch.randn(2, 3, prefix + N, d, dtype=torch.float64)
    expected = torch.zeros(2, 3, prefix + N, prefix + N, dtype=torch.float64)
    for i, j in itertools.product(range(N), range(N)):
        r = keys.table[(i - j) + N - 1]
        expected[:, :, prefix + i, prefix + j] = (q[:, :, prefix + i] * r).sum(-1) / math.sqrt(d)
    torch.testing.assert_close(keys(q, grid), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_relative_attention_is_softmax_of_both_products(qk_norm: bool) -> None:
    model = model_of("relative", qk_norm=qk_norm).double()
    attn = model.blocks[0].attn
    x = torch.randn(2, 16, 24, dtype=torch.float64)
    with torch.no_grad():
        q, k, v = attn.queries_keys_values(x)
        logits = q @ k.transpose(-2, -1) / math.sqrt(8)
        for i, j in itertools.product(range(15), range(15)):
            logits[:, :, 1 + i, 1 + j] += q[:, :, 1 + i] @ attn.relative.table[i - j + 14] / math.sqrt(8)
        expected = attn.proj((logits.softmax(-1) @ v).transpose(1, 2).reshape(2, 16, 24))
        torch.testing.assert_close(attn(x, GRID), expected, rtol=0, atol=1e-12)


# Rotary angles


@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (16, 9)])
def test_rotary_table_is_its_formula(grid: tuple[int, int]) -> None:
    d, theta = 16, 100.0
    table = rotary_table(grid, d, theta=theta, dtype=torch.float64, device=torch.device("cpu"))
    assert table.shape == (2, grid[0] * grid[1], d)
    for row, column in itertools.product(range(grid[0]), range(grid[1])):
        y, x = 2 * (row + 0.5) / grid[0] - 1, 2 * (column + 0.5) / grid[1] - 1
        angles = [2 * math.pi * c * theta ** -(4 * k / d) for c in (y, x) for k in range(d // 4)] * 2
        got = table[:, row * grid[1] + column].numpy()
        np.testing.assert_allclose(got, [np.cos(angles), np.sin(angles)], rtol=0, atol=1e-14)


def test_rotation_keeps_lengths_and_prefix_and_turns_by_the_difference() -> None:
    grid, d = (3, 4), 8
    rotation = rotary_table(grid, d, theta=100.0, dtype=torch.float64, device=torch.device("cpu"))
    x = torch.randn(2, 3, 14, d, dtype=torch.float64)
    turned = rotate(x, rotation)
    assert torch.equal(turned[:, :, :2], x[:, :, :2])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), rtol=0, atol=1e-13)
    q, k = torch.randn(2, d, dtype=torch.float64)
    product = rotate(q.expand(1, 1, 12, d), rotation)[0, 0] @ rotate(k.expand(1, 1, 12, d), rotation)[0, 0].T
    places = [(i // 4, i % 4) for i in range(12)]
    by_difference: dict[tuple[int, int], float] = {}
    for i, j in itertools.product(range(12), range(12)):
        difference = (places[i][0] - places[j][0], places[i][1] - places[j][1])
        assert by_difference.setdefault(difference, product[i, j].item()) == pytest.approx(product[i, j].item())
    assert max(by_difference.values()) - min(by_difference.values()) > 0.1


def test_rotary_tables_are_kept_and_serve_training() -> None:
    """A table that was made in inference mode could not be saved for a backward pass."""
    model = model_of("none", rope=True, img_size=(8, 36))
    images = torch.randn(1, 3, 8, 36)
    with torch.inference_mode():
        model(images)
    model(images).sum().backward()
    arguments = {"theta": 100.0, "dtype": torch.float32, "device": torch.device("cpu")}
    assert rotary_table((2, 9), 8, **arguments) is rotary_table((2, 9), 8, **arguments)


def test_large_rotary_tables_are_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"theta": 100.0, "dtype": torch.float32, "device": torch.device("cpu")}
    for grid, expected in (((128, 128), True), ((128, 129), False)):  # of heads of 64: 2**21 values, and more
        same = rotary_table(grid, 64, **arguments) is rotary_table(grid, 64, **arguments)
        assert same == expected
    kept = rotary_table((3, 5), 16, **arguments)
    monkeypatch.setattr(pos_encoding, "_KEPT_VALUES", 2 * 15 * 16 - 1)
    anew = rotary_table((3, 5), 16, **arguments)
    assert anew is not kept
    assert torch.equal(anew, kept)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rotation_keeps_half_precision(dtype: torch.dtype) -> None:
    rotation = rotary_table(GRID, 8, theta=100.0, dtype=torch.float32, device=torch.device("cpu"))
    x = torch.randn(1, 2, 16, 8).to(dtype)
    assert rotate(x, rotation).dtype == dtype
    torch.testing.assert_close(rotate(x, rotation).float(), rotate(x.float(), rotation), rtol=0.01, atol=0.01)


@pytest.mark.parity
@pytest.mark.parametrize("size", [(48, 48), (32, 80)])
def test_rotation_is_dinov3s_in_transformers(size: tuple[int, int]) -> None:
    modeling = pytest.importorskip("transformers.models.dinov3_vit.modeling_dinov3_vit")
    config = modeling.DINOv3ViTConfig(hidden_size=96, num_attention_heads=3, patch_size=16, image_size=48)
    images = torch.zeros(1, 3, *size)
    cos, sin = modeling.DINOv3ViTRopePositionEmbedding(config).eval()(images)
    grid = (size[0] // 16, size[1] // 16)
    ours = rotary_table(grid, 32, theta=config.rope_theta, dtype=torch.float32, device=torch.device("cpu"))
    torch.testing.assert_close(ours[0], cos, rtol=0, atol=1e-6)  # theirs has float32's angles, up to 2 pi
    torch.testing.assert_close(ours[1], sin, rtol=0, atol=1e-6)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        q, k = torch.randn(2, 2, 3, 5 + grid[0] * grid[1], 32).to(dtype)
        rotation = rotary_table(grid, 32, theta=config.rope_theta, dtype=dtype, device=torch.device("cpu"))
        theirs = modeling.apply_rotary_pos_emb(q, k, *rotation)
        for got, want in zip((rotate(q, rotation), rotate(k, rotation)), theirs, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=tolerance)


@pytest.mark.parity
@pytest.mark.parametrize("size", [(48, 48), (32, 80)])
def test_a_rotary_model_is_dinov3_in_transformers(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    modeling = pytest.importorskip("transformers.models.dinov3_vit.modeling_dinov3_vit")
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 96}
    config = modeling.DINOv3ViTConfig(**sizes, patch_size=16, image_size=48, num_register_tokens=2, key_bias=True)
    theirs = modeling.DINOv3ViTModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    fields = {"img_size": 48, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3, "mlp_ratio": 2.0}
    rotary = {"pos_embed": "none", "rope": True, "rope_theta": config.rope_theta, "dynamic_img_size": True}
    ours = VisionTransformer(
        ViTConfig(**fields, **rotary, reg_tokens=2, init_values=1.0, norm_eps=config.layer_norm_eps, num_classes=0)
    ).eval()
    ours.load_state_dict(renamed_from_dinov3(theirs.state_dict()))
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        want = theirs(images).last_hidden_state
        assert (ours.forward_features(images) - want).abs().max() <= 1e-5 * max(1.0, want.abs().max().item())
        # Theirs makes the angles in float32 always; with float64's, the models agree to its rounding.
        centres = modeling.get_patches_center_coordinates
        in_double = lambda h, w, dtype, device: centres(h, w, dtype=torch.float64, device=device)  # noqa: E731
        monkeypatch.setattr(modeling, "get_patches_center_coordinates", in_double)
        ours, theirs = ours.double(), theirs.double()
        exponents = torch.arange(0, 1, 4 / 16, dtype=torch.float64)
        theirs.rope_embeddings.inv_freq = 1 / config.rope_theta**exponents
        got, want = ours.forward_features(images.double()), theirs(images.double()).last_hidden_state
        assert (got - want).abs().max() <= 1e-10


def renamed_from_dinov3(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {
        "cls_token": state["embeddings.cls_token"],
        "reg_token": state["embeddings.register_tokens"],
        **{f"patch_embed.proj.{part}": state[f"embeddings.patch_embeddings.{part}"] for part in ("weight", "bias")},
        **{f"norm.{part}": state[f"norm.{part}"] for part in ("weight", "bias")},
    }
    parts = {
        "norm1": "norm1",
        "norm2": "norm2",
        "attn.proj": "attention.o_proj",
        "mlp.fc1": "mlp.up_proj",
        "mlp.fc2": "mlp.down_proj",
    }
    for index in range(2):
        block, theirs = f"blocks.{index}", next(key for key in state if f"layer.{index}." in key).split("layer.")[0]
        theirs = f"{theirs}layer.{index}"
        for part in ("weight", "bias"):
            qkv = [state[f"{theirs}.attention.{name}_proj.{part}"] for name in "qkv"]
            renamed[f"{block}.attn.qkv.{part}"] = torch.cat(qkv)
            for ours, name in parts.items():
                renamed[f"{block}.{ours}.{part}"] = state[f"{theirs}.{name}.{part}"]
        for scale in (1, 2):
            renamed[f"{block}.ls{scale}.gamma"] = state[f"{theirs}.layer_scale{scale}.lambda1"]
    return renamed


def test_images_and_patches_agree_under_every_encoding() -> None:
    images = torch.randn(2, 3, 12, 20)
    for pos_embed, placement, _ in TABLE:
        model = model_of(pos_embed, placement, rope=True)
        with torch.no_grad():
            assert torch.equal(model(images), model(patchify(images, 4, order="cpq"))), (pos_embed, placement)
