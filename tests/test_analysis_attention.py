"""Attention weights, from models that never give them: against eager softmax; rollouts with known answers."""

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from vit_rs.analysis.attention import (
    attention_maps,
    attention_rollout,
    attention_weights,
    each_attention,
    output_attention,
    rollout,
    rollout_step,
    token_grid,
)
from vit_rs.exceptions import AttentionError
from vit_rs.models import HybridConfig, HybridViT, VisionTransformer, ViTConfig, create_model

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 5}
OPTIONS = {
    "plain": {},
    "average": {"global_pool": "avg", "class_token": False},
    "map": {"global_pool": "map", "class_token": False},
    "registers": {"reg_tokens": 3, "qk_norm": True, "init_values": 0.5, "mlp": "swiglu"},
    "distilled": {"distilled": True},
    "rotary": {"rope": True, "pos_embed": "none", "reg_tokens": 2},
    "relative": {"pos_embed": "relative"},
    "every": {"pos_embed": "2d", "pos_placement": "every"},
    "wide": {"img_size": (16, 40)},
}


def eager_weights(model: VisionTransformer, images: torch.Tensor) -> torch.Tensor:
    """Return (B, L, H, T, T) by the definition, from what enters each attention."""
    entered: list[tuple] = []
    hooks = [block.attn.register_forward_pre_hook(lambda _, inputs: entered.append(inputs)) for block in model.blocks]
    with torch.no_grad():
        model(images)
        for hook in hooks:
            hook.remove()
        layers = []
        for block, (x, grid, rotation) in zip(model.blocks, entered, strict=True):
            q, k, _ = block.attn.queries_keys_values(x, rotation)
            logits = torch.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5
            if block.attn.relative is not None:
                logits = logits + block.attn.relative(q, grid)
            exponents = (logits - logits.amax(dim=-1, keepdim=True)).exp()
            layers.append(exponents / exponents.sum(dim=-1, keepdim=True))
    return torch.stack(layers, dim=1)


@pytest.mark.parametrize("name", OPTIONS)
def test_weights_are_the_eager_softmax(name, randomised):
    model = randomised(VisionTransformer(ViTConfig(**{**SMALL, **OPTIONS[name]})))
    images = torch.randn(2, 3, *model.config.image_hw)
    want = eager_weights(model, images)
    got = attention_maps(model, images)
    tokens = model.config.num_prefix_tokens + model.config.num_patches
    assert got.shape == (2, 3, 4, tokens, tokens)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    assert got.std() > 1e-3  # far from uniform: a wrong order would show
    assert not got.requires_grad
    assert not got.is_inference()


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 2}),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 56, "depth": 2}),
        ("deit_tiny_distilled_patch16_224", {"img_size": 64, "depth": 2}),
        ("vit_tiny_r_s16_p8_224", {"img_size": 64, "depth": 2}),
    ],
)
def test_weights_are_timms_eager_ones(name, options, randomised):
    """Ours and timm's own model, watched, against timm's attention without the fused function.

    1e-6 in float32 of the same tokens, 1e-10 in float64 of the same images.
    """
    timm = pytest.importorskip("timm")
    theirs = randomised(timm.create_model(name, pretrained=False, **options))
    images = torch.randn(2, 3, options["img_size"], options["img_size"])
    entered: list[torch.Tensor] = []
    eager: list[torch.Tensor] = []
    for block in theirs.blocks:
        block.attn.fused_attn = False
        block.attn.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
        block.attn.attn_drop.register_forward_pre_hook(lambda _, inputs: eager.append(inputs[0]))
    watched = attention_maps(theirs, images)
    assert not eager  # fused while it is watched
    assert not any(block.attn.fused_attn for block in theirs.blocks)
    with torch.no_grad():
        for block, tokens in zip(theirs.blocks, entered.copy(), strict=True):
            block.attn(tokens)  # of the same tokens: the layers before round otherwise
    torch.testing.assert_close(watched, torch.stack(eager, dim=1), rtol=0, atol=1e-6)

    theirs, images = theirs.double(), images.double()
    eager.clear()
    with torch.no_grad():
        theirs(images)
    want = torch.stack(eager, dim=1)
    ours = create_model(name, **options).double()
    ours.load_state_dict(theirs.state_dict())
    for model in (theirs, ours):
        torch.testing.assert_close(attention_maps(model, images), want, rtol=0, atol=1e-10)
    assert token_grid(ours, images.shape[2:]) == token_grid(theirs, images.shape[2:])


@pytest.mark.parametrize("mode", ["training", "frozen"])
def test_a_model_is_left_as_it_was(mode):
    model = VisionTransformer(ViTConfig(**SMALL, proj_drop_rate=0.5, drop_path_rate=0.5))
    model.train(mode == "training")
    model.blocks[1].eval()
    modes = [module.training for module in model.modules()]
    images = torch.randn(2, 3, 32, 32)
    seen: list[int] = []
    got = each_attention(model, images, lambda layer, _: seen.append(layer))
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert seen == [0, 1, 2]
    with torch.no_grad():
        assert torch.equal(model.eval()(images), got)


def test_an_error_of_the_function_goes_through():
    model = VisionTransformer(ViTConfig(**SMALL)).train()

    def fail(layer, weights):
        raise KeyError(layer)

    with pytest.raises(KeyError):
        each_attention(model, torch.randn(1, 3, 32, 32), fail)
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with torch.no_grad():
        model(torch.randn(1, 3, 32, 32))  # nothing is watched any more


def test_only_one_layers_weights_live():
    model = VisionTransformer(ViTConfig(**{**SMALL, "depth": 6}))
    alive: list[weakref.ref] = []

    def visit(layer, weights):
        assert not [number for number, ref in enumerate(alive) if ref() is not None]
        alive.append(weakref.ref(weights))

    gc.disable()  # counted references alone must free them
    try:
        each_attention(model, torch.randn(1, 3, 32, 32), visit)
    finally:
        gc.enable()
    assert len(alive) == 6


def test_layers_are_chosen():
    model = VisionTransformer(ViTConfig(**SMALL))
    images = torch.randn(1, 3, 32, 32)
    whole = attention_maps(model, images)
    assert torch.equal(attention_maps(model, images, layers=[-1, 0]), whole[:, [2, 0]])
    assert torch.equal(attention_maps(model, images, layers=range(1, 2)), whole[:, 1:2])
    for layers, message in (([3], r"layers \[3\] do not exist: the model has 3"), ([], "no layer is asked for")):
        with pytest.raises(ValueError, match=message):
            attention_maps(model, images, layers=layers)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_weights_of_queries_and_keys(dtype):
    q, k = torch.randn(2, 3, 5, 8, dtype=dtype), torch.randn(2, 3, 7, 8, dtype=dtype)
    exact = (q.double() @ k.double().transpose(-2, -1)) * 8**-0.5
    got = attention_weights(q, k)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(got.double(), exact.softmax(-1), rtol=0, atol=tolerance)
    bias = torch.randn(3, 5, 7, dtype=dtype)
    want = (exact * 8**0.5 * 0.1 + bias.double()).softmax(-1)
    torch.testing.assert_close(attention_weights(q, k, scale=0.1, bias=bias).double(), want, rtol=0, atol=tolerance)
    shown = torch.tensor([True, False, True, True, False, True, True])
    hidden = attention_weights(q, k, bias=shown)
    assert hidden[..., ~shown].max() == 0
    torch.testing.assert_close(hidden[..., shown].double(), exact[..., shown].softmax(-1), rtol=0, atol=tolerance)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(attention_weights(q, k), got)


def test_autocast_models_give_float32_weights(randomised):
    model = randomised(VisionTransformer(ViTConfig(**SMALL)))
    images = torch.randn(2, 3, 32, 32)
    exact = attention_maps(model, images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = attention_maps(model, images)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.sum(-1), torch.ones(got.shape[:-1]), rtol=0, atol=1e-5)
    torch.testing.assert_close(got, exact, rtol=0, atol=0.05)


# Rollout


def random_weights(layers: int, tokens: int = 6, heads: int = 3) -> list[torch.Tensor]:
    return [torch.randn(2, heads, tokens, tokens, dtype=torch.float64).mul(2).softmax(-1) for _ in range(layers)]


def test_rollout_of_identity_is_identity():
    identity = torch.eye(7).expand(2, 4, 7, 7)
    assert torch.equal(rollout([identity] * 5), torch.eye(7).expand(2, 7, 7))


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_rollout_of_uniform_attention(layers):
    """(U/2 + I/2)^L = U + (I - U) / 2^L, for U U = U."""
    uniform = torch.full((1, 2, 4, 4), 0.25, dtype=torch.float64)
    want = uniform[:, 0] + (torch.eye(4) - uniform[:, 0]) / 2**layers
    torch.testing.assert_close(rollout([uniform] * layers), want, rtol=0, atol=1e-15)


def test_rollout_is_the_product_of_the_layers():
    weights = random_weights(4)
    want = np.eye(6)[None].repeat(2, axis=0)
    for layer in weights:
        mean = layer.numpy().mean(axis=1) + np.eye(6)
        want = (mean / mean.sum(axis=2, keepdims=True)) @ want
    got = rollout(iter(weights))
    np.testing.assert_allclose(got.numpy(), want, atol=1e-14)
    torch.testing.assert_close(got.sum(-1), torch.ones(2, 6, dtype=torch.float64))
    assert not torch.allclose(got, rollout(weights[::-1]))  # the order of the layers shows
    with pytest.raises(ValueError, match="no layer"):
        rollout([])


@pytest.mark.parametrize("name", ["plain", "average", "registers", "wide"])
def test_rollout_of_a_model(name, randomised):
    model = randomised(VisionTransformer(ViTConfig(**{**SMALL, **OPTIONS[name]})))
    images = torch.randn(2, 3, *model.config.image_hw)
    maps, prefix = attention_maps(model, images), model.config.num_prefix_tokens
    rolled = rollout(maps.unbind(1))
    rows = rolled[:, prefix:, prefix:].mean(1) if name == "average" else rolled[:, 0, prefix:]
    got = attention_rollout(model, images)
    assert got.shape == (2, *model.config.grid_size)
    torch.testing.assert_close(got.flatten(1), rows, rtol=0, atol=1e-6)


# Grids


def test_grids_of_our_models():
    plain = VisionTransformer(ViTConfig(**{**SMALL, "reg_tokens": 2}))
    assert token_grid(plain, (32, 32)) == ((4, 4), (8, 8), 3, True)
    dynamic = VisionTransformer(ViTConfig(**SMALL, dynamic_img_size=True))
    assert token_grid(dynamic, (16, 40)) == ((2, 5), (8, 8), 1, True)
    assert attention_rollout(dynamic, torch.randn(1, 3, 16, 40)).shape == (1, 2, 5)
    average = VisionTransformer(ViTConfig(**SMALL, global_pool="avg"))  # with a class token that nobody reads
    assert token_grid(average, (32, 32)) == ((4, 4), (8, 8), 1, False)
    options = {**SMALL, "img_size": 64, "patch_size": 1, "backbone_layers": (1, 1)}
    hybrid = HybridViT(HybridConfig(**options))
    assert token_grid(hybrid, (64, 64)) == ((8, 8), (8, 8), 1, True)
    for model, size in ((plain, (32, 40)), (dynamic, (16, 41))):
        with pytest.raises(ValueError, match=rf"takes images of 32x32, got {size[0]}x{size[1]}"):
            token_grid(model, size)


def test_grids_of_timms_models():
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", img_size=(32, 64), class_token=False, global_pool="avg")
    assert token_grid(model, (32, 64)) == ((2, 4), (16.0, 16.0), 0, False)
    with pytest.raises(ValueError, match="takes images of 32x64, got 64x64"):
        token_grid(model, (64, 64))
    dynamic = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True)
    assert token_grid(dynamic, (32, 64)) == ((2, 4), (16.0, 16.0), 1, True)
    # A patch that does not divide the image: 4 and 8 pixels are cut off, patches stay 14 pixels apart.
    uneven = timm.create_model("vit_small_patch14_dinov2", img_size=(32, 64), depth=1)
    assert token_grid(uneven, (32, 64)) == ((2, 4), (14, 14), 1, True)
    hybrid = timm.create_model("vit_tiny_r_s16_p8_224", img_size=(64, 32), depth=1)
    assert token_grid(hybrid, (64, 32)) == ((2, 1), (32.0, 32.0), 1, True)


def test_output_attention_reads_what_the_model_reads():
    weights = torch.rand(2, 3, 8, 8)
    model = VisionTransformer(ViTConfig(**{**SMALL, "img_size": (16, 24), "reg_tokens": 1}))
    tokens = token_grid(model, (16, 24))
    assert torch.equal(output_attention(weights, tokens), weights[..., 0, 2:].reshape(2, 3, 2, 3))
    patches = output_attention(weights, tokens._replace(reads_class_token=False))
    torch.testing.assert_close(patches, weights[..., 2:, 2:].mean(-2).reshape(2, 3, 2, 3))
    with pytest.raises(ValueError, match=r"expected weights of 2 \+ 2\*3 tokens, got \(7, 7\)"):
        output_attention(torch.rand(7, 7), tokens)


# What cannot be watched


class OneBlock(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.blocks = nn.ModuleList([block])

    def forward(self, x):
        return self.blocks[0](x)


class Twice(nn.Module):
    def __init__(self, *shapes: tuple[int, ...], **options):
        super().__init__()
        self.shapes, self.options = shapes, options

    def forward(self, x):
        for shape in self.shapes:
            kv = torch.zeros(*shape[:2], self.options.get("keys", shape[2]), shape[3])
            causal = self.options.get("is_causal", False)
            nn.functional.scaled_dot_product_attention(torch.zeros(shape), kv, kv, is_causal=causal)
        return x


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (Twice(), "block 0 called F.scaled_dot_product_attention 0 times, expected once"),
        (Twice((1, 2, 3, 4), (1, 2, 3, 4)), "called F.scaled_dot_product_attention 2 times"),
        (Twice((1, 2, 3, 4), keys=5), r"expected attention of all tokens to all, got queries \(1, 2, 3, 4\), keys"),
        (Twice((1, 2, 3, 4), is_causal=True), "is_causal=True"),
    ],
)
def test_other_attention_is_refused(block, message):
    with pytest.raises(AttentionError, match=message):
        each_attention(OneBlock(block), torch.zeros(1), lambda *_: None)


def test_blocks_run_in_another_order_are_refused():
    model = OneBlock(Twice((1, 2, 3, 4)))
    model.blocks.append(Twice((1, 2, 3, 4)))
    with pytest.raises(AttentionError, match=r"blocks ran in the order \[0\], expected each of 2 once, in order"):
        each_attention(model, torch.zeros(1), lambda *_: None)


def test_models_without_blocks_are_refused():
    with pytest.raises(AttentionError, match="Linear has no list of Transformer blocks"):
        each_attention(nn.Linear(2, 2), torch.zeros(1, 2), lambda *_: None)
    with pytest.raises(AttentionError, match="no ViT of one grid"):
        token_grid(OneBlock(nn.Linear(2, 2)), (2, 2))


def test_steps_of_a_rollout():
    first, second = random_weights(2)
    assert torch.equal(rollout_step(rollout_step(None, first), second), rollout([first, second]))
