"""The Vision Transformer: what goes in and comes out, and training; its numbers are in test_models_vit_parity.py."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vit_rs import patchify
from vit_rs.models import VisionTransformer, ViTConfig
from vit_rs.models.encoder import DropPath

TINY = {"img_size": (12, 20), "patch_size": 4, "num_classes": 5, "embed_dim": 24, "depth": 3, "num_heads": 3}


@pytest.fixture
def tiny(filled):
    """Build a small model with weights of a trained one's scale."""
    return lambda **changes: filled(VisionTransformer(ViTConfig(**{**TINY, **changes})))


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_images_and_their_patches_give_the_same_bits(tiny, pool: str) -> None:
    model = tiny(global_pool=pool)
    images = torch.randn(3, 3, 12, 20)
    patches = patchify(images, 4, order="cpq")
    assert patches.shape == (3, 15, 48)
    with torch.inference_mode():
        assert torch.equal(model(images), model(patches))
        assert torch.equal(model(images), model(images.to(memory_format=torch.channels_last)))


def test_the_patch_embedding_is_the_convolution(tiny) -> None:
    model = tiny().double()
    images = torch.randn(2, 3, 12, 20, dtype=torch.float64)
    proj = model.patch_embed.proj
    want = F.conv2d(images, proj.weight, proj.bias, stride=4).flatten(2).transpose(1, 2)
    tokens, grid = model.patch_embed(images)
    assert grid == (3, 5)
    torch.testing.assert_close(tokens, want, rtol=0, atol=1e-12)


def test_class_token_pooling_ignores_nothing_and_average_ignores_the_class_token(tiny) -> None:
    tokens = torch.randn(2, 16, 24)
    other = tokens.clone()
    other[:, 0] += 1.0
    average = tiny(global_pool="avg")
    assert torch.equal(average.forward_head(tokens), average.forward_head(other))
    torch.testing.assert_close(
        average.forward_head(tokens, pre_logits=True), average.fc_norm(tokens[:, 1:].mean(1)), rtol=0, atol=0
    )
    token = tiny()
    assert torch.equal(token.forward_head(tokens, pre_logits=True), tokens[:, 0])


def test_the_pool_gathers_from_patches_only(tiny) -> None:
    model, tokens = tiny(global_pool="map", reg_tokens=1), torch.randn(2, 17, 24)
    other = tokens.clone()
    other[:, :2] += 1.0
    assert torch.equal(model.forward_head(tokens), model.forward_head(other))
    other[:, 2:] = tokens[:, 2:].flip(1)
    torch.testing.assert_close(model.forward_head(tokens), model.forward_head(other))  # a set, in any order


def test_a_distilled_model_averages_its_heads(tiny) -> None:
    model, tokens = tiny(distilled=True), torch.randn(2, 17, 24)
    expected = (model.head(tokens[:, 0]) + model.head_dist(tokens[:, 1])) / 2
    assert torch.equal(model.forward_head(tokens), expected)
    assert torch.equal(model.forward_head(tokens, pre_logits=True), (tokens[:, 0] + tokens[:, 1]) / 2)


def test_tokens_stand_in_order(tiny) -> None:
    model = tiny(distilled=True, reg_tokens=2, no_embed_class=True, depth=1)
    block = model.blocks[0]
    block.forward = lambda x, *_: x  # the encoder's input as it is
    model.norm = torch.nn.Identity()
    images = torch.randn(1, 3, 12, 20)
    tokens = model.forward_features(images)[0]
    first = [model.cls_token[0], model.dist_token[0], model.reg_token[0]]
    patches = model.patch_embed(images)[0][0] + model.pos_embed[0]
    assert torch.equal(tokens, torch.cat([*first, patches]))


def test_forward_is_features_then_head(tiny) -> None:
    model, images = tiny(), torch.randn(2, 3, 12, 20)
    features = model.forward_features(images)
    assert features.shape == (2, 16, 24)
    assert torch.equal(model.forward_head(features), model(images))
    assert model(images[:0]).shape == (0, 5)


# Training


OPTIONS = [
    {},
    {"global_pool": "avg"},
    {"global_pool": "avg", "fc_norm": False, "class_token": False, "act": "gelu_tanh", "representation_size": 16},
    {"global_pool": "map", "reg_tokens": 2, "no_embed_class": True, "qk_norm": True},
    {"distilled": True, "init_values": 0.1},
    {"mlp": "swiglu", "fc_norm": True, "qkv_bias": False, "reg_tokens": 1},
]


@pytest.mark.parametrize("changes", OPTIONS)
def test_overfits_one_batch(changes) -> None:
    torch.manual_seed(0)
    model = VisionTransformer(ViTConfig(**{**TINY, **changes}))
    images, labels = torch.randn(10, 3, 12, 20), torch.arange(10) % 5
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = F.cross_entropy(model(images), labels)
    assert first.item() == pytest.approx(math.log(5), abs=1e-6)  # a zero head knows nothing
    for _ in range(80):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    assert (model.eval()(images).argmax(1) == labels).all()


@pytest.mark.parametrize("changes", OPTIONS)
def test_every_parameter_gets_a_gradient(tiny, changes) -> None:
    model = tiny(**changes).double().train()
    F.cross_entropy(model(torch.randn(4, 3, 12, 20).double()), torch.arange(4)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_dropout_acts_in_training_only(tiny) -> None:
    images = torch.randn(2, 3, 12, 20)
    for rate in ("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"):
        model = tiny(**{rate: 0.5})
        assert torch.equal(model(images), tiny()(images)), rate
        torch.manual_seed(0)
        assert not torch.equal(model.train()(images), tiny()(images)), rate


def test_drop_path_drops_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    x = torch.ones(4000, 3, 2)
    y = DropPath(0.25).train()(x)
    assert torch.equal(y, y[:, :1, :1].expand_as(y))  # a sample goes as a whole
    assert y.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert y.mean().item() == pytest.approx(1.0, abs=0.05)
    assert DropPath(0.25).eval()(x) is x


def test_drop_path_grows_linearly_with_depth(tiny) -> None:
    model = tiny(drop_path_rate=0.2)
    assert [b.drop_path1.rate for b in model.blocks] == pytest.approx([0.0, 0.1, 0.2])
    assert [b.drop_path2.rate for b in model.blocks] == pytest.approx([0.0, 0.1, 0.2])
    single = tiny(depth=1, drop_path_rate=0.2)
    assert single.blocks[0].drop_path1.rate == 0.0


def test_no_weight_decay_names_parameters(tiny) -> None:
    assert tiny().no_weight_decay() == {"pos_embed", "cls_token"}
    model = tiny(distilled=True, reg_tokens=1, pos_embed="relative")
    tables = {f"blocks.{block}.attn.relative.table" for block in range(3)}
    assert model.no_weight_decay() == {"cls_token", "dist_token", "reg_token", *tables}
    assert tiny(class_token=False, global_pool="avg", pos_embed="sincos2d_bv").no_weight_decay() == set()
    pooled = tiny(global_pool="map")
    assert "attn_pool.latent" in dict(pooled.named_parameters())
    assert pooled.no_weight_decay() == {"pos_embed", "cls_token"}


def test_blocks_are_numbered_by_any_integer(tiny) -> None:
    model, images = tiny().eval(), torch.randn(1, 3, 12, 20)
    for n, same in ((np.int64(2), 2), (np.array([0, -1]), [0, -1]), ([np.int32(1)], [1]), (range(2), [0, 1])):
        pairs = zip(model.get_intermediate_layers(images, n), model.get_intermediate_layers(images, same), strict=True)
        assert all(torch.equal(got, want) for got, want in pairs)
    for n in (1.0, [1.5], "1"):
        with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
            model.get_intermediate_layers(images, n)


# Errors


@pytest.mark.parametrize(
    "shape",
    [(2, 3, 12, 24), (2, 1, 12, 20), (3, 12, 20), (2, 15, 47), (2, 14, 48), (12, 20), (2, 3, 1, 12, 20)],
)
def test_wrong_shapes_say_got_and_expected(tiny, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected images \(B, 3, 12, 20\) or patches \(B, 15, 48\)") as error:
        tiny()(torch.zeros(shape))
    assert f"got {shape}" in str(error.value)


def test_integer_images_are_refused(tiny) -> None:
    with pytest.raises(TypeError, match=r"expected floating-point images or patches, got torch\.uint8"):
        tiny()(torch.zeros(1, 3, 12, 20, dtype=torch.uint8))


@pytest.mark.parametrize("n", [0, 4, [3], [-4]])
def test_blocks_that_do_not_exist_are_refused(tiny, n: int | list[int]) -> None:
    with pytest.raises(ValueError, match="3"):
        tiny().get_intermediate_layers(torch.zeros(1, 3, 12, 20), n)
