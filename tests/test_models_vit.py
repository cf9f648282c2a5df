"""The Vision Transformer: counts and names as published, numbers as timm's, the paper's initialisation."""

import copy
import json
import math
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F

from vit_rs import patchify
from vit_rs.exceptions import ConfigError
from vit_rs.models import VisionTransformer, ViTConfig, create_model
from vit_rs.models.encoder import DropPath

TINY = ViTConfig(img_size=(12, 20), patch_size=4, num_classes=5, embed_dim=24, depth=3, num_heads=3)


def random_state(shapes: dict[str, torch.Size], seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of a trained network's scale, none of them zero or one: every parameter shows in the logits."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else 1
        scale = 0.1 if len(shape) < 2 or name in ("cls_token", "pos_embed") else fan_in**-0.5
        state[name] = values * scale + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return state


def tiny_model(seed: int = 0, **changes: object) -> VisionTransformer:
    model = VisionTransformer(ViTConfig.from_dict({**TINY.to_dict(), **changes}))
    model.load_state_dict(random_state({k: v.shape for k, v in model.state_dict().items()}, seed))
    return model.eval()


def timm_tiny(**changes: object) -> torch.nn.Module:
    return timm.models.VisionTransformer(
        img_size=(12, 20), patch_size=4, num_classes=5, embed_dim=24, depth=3, num_heads=3, **changes
    )


def on_meta(name: str, **overrides: object) -> VisionTransformer:
    with torch.device("meta"):
        return create_model(name, **overrides)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vit_tiny_patch16_224", 5_717_416),
        ("vit_small_patch16_224", 22_050_664),
        ("vit_base_patch16_224", 86_567_656),
        ("vit_base_patch16_384", 86_859_496),
        ("vit_base_patch32_224", 88_224_232),
        ("vit_large_patch16_224", 304_326_632),
        ("vit_huge_patch14_224", 632_045_800),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, count: int) -> None:
    assert sum(p.numel() for p in on_meta(name).parameters()) == count


@pytest.mark.parity
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_base_patch32_384", "vit_large_patch14_224"])
@pytest.mark.parametrize(
    "changes", [{"num_classes": 1000}, {"global_pool": "avg"}, {"num_classes": 0}, {"qkv_bias": False}]
)
def test_state_dict_has_timms_names_shapes_and_order(name: str, changes: dict[str, object]) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name, **changes).state_dict()
    ours = on_meta(name, **changes).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_small_patch16_224", {"img_size": 96}),
        ("vit_base_patch16_224", {"img_size": 64}),
        ("vit_small_patch16_224", {"img_size": 64, "depth": 3}),
        ("vit_base_patch16_224", {"img_size": 64, "depth": 2}),
        ("vit_tiny_patch16_224", {"img_size": (48, 80), "patch_size": (16, 8), "in_chans": 1}),
        ("vit_tiny_patch16_224", {"img_size": 64, "global_pool": "avg"}),
        ("vit_tiny_patch16_224", {"img_size": 64, "num_classes": 0, "qkv_bias": False, "mlp_ratio": 2.5}),
    ],
)
def test_logits_equal_timms(name: str, overrides: dict[str, object]) -> None:
    ours = on_meta(name, **overrides)
    with torch.device("meta"):
        theirs = timm.create_model(name, **overrides)
    state = random_state({k: v.shape for k, v in theirs.state_dict().items()})
    ours.load_state_dict(state, assign=True)
    theirs.load_state_dict(state, assign=True)
    images = torch.randn(2, ours.config.in_chans, *ours.config.image_hw, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        got, want = ours.eval()(images), theirs.eval()(images)
        assert (got - want).abs().max() <= 1e-5 * max(1.0, want.abs().max().item())
        if ours.config.embed_dim * ours.config.depth > 768 * 4:
            return  # twice the weights of the large models cost seconds and tell nothing new
        got, want = ours.double()(images.double()), theirs.double()(images.double())
        assert (got - want).abs().max() <= 1e-10


@pytest.mark.parity
def test_tanh_gelu_equals_timms() -> None:
    ours = tiny_model(act="gelu_tanh")
    theirs = timm.models.VisionTransformer(
        img_size=(12, 20),
        patch_size=4,
        num_classes=5,
        embed_dim=24,
        depth=3,
        num_heads=3,
        act_layer="gelu_tanh",
    )
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 12, 20)
    with torch.inference_mode():
        want = theirs.eval()(images)
        assert (ours(images) - want).abs().max() <= 1e-5 * max(1.0, want.abs().max().item())
        assert (tiny_model()(images) - want).abs().max() > 1e-5  # the other GELU is another function


@pytest.mark.parity
@pytest.mark.parametrize("n", [1, 2, [0, 2], [-1, 0]])
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_intermediate_layers_equal_timms(n: int | list[int], pool: str) -> None:
    ours = tiny_model(global_pool=pool)
    theirs = timm_tiny(global_pool=pool)
    theirs.load_state_dict(ours.state_dict())
    theirs.eval()
    images = torch.randn(2, 3, 12, 20)
    with torch.inference_mode():
        got = ours.get_intermediate_layers(images, n, reshape=True, return_prefix_tokens=True, norm=True)
        want = theirs.get_intermediate_layers(images, n, reshape=True, return_prefix_tokens=True, norm=True)
        assert len(got) == len(want)
        for pair, expected in zip(got, want, strict=True):
            assert pair[0].shape == (2, 24, 3, 5)
            for tensor, reference in zip(pair, expected, strict=True):
                torch.testing.assert_close(tensor, reference, rtol=1e-5, atol=1e-5)
        flat = ours.get_intermediate_layers(images, n)
        assert [x.shape for x in flat] == [(2, 15, 24)] * len(got)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_images_and_their_patches_give_the_same_bits(pool: str) -> None:
    model = tiny_model(global_pool=pool)
    images = torch.randn(3, 3, 12, 20)
    patches = patchify(images, 4, order="cpq")
    assert patches.shape == (3, 15, 48)
    with torch.inference_mode():
        assert torch.equal(model(images), model(patches))
        assert torch.equal(model(images), model(images.to(memory_format=torch.channels_last)))


def test_the_patch_embedding_is_the_convolution() -> None:
    model = tiny_model().double()
    images = torch.randn(2, 3, 12, 20, dtype=torch.float64)
    proj = model.patch_embed.proj
    want = F.conv2d(images, proj.weight, proj.bias, stride=4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.patch_embed(images), want, rtol=0, atol=1e-12)


def test_class_token_pooling_ignores_nothing_and_average_ignores_the_class_token() -> None:
    tokens = torch.randn(2, 16, 24)
    other = tokens.clone()
    other[:, 0] += 1.0
    average = tiny_model(global_pool="avg")
    assert torch.equal(average.forward_head(tokens), average.forward_head(other))
    torch.testing.assert_close(
        average.forward_head(tokens, pre_logits=True), average.fc_norm(tokens[:, 1:].mean(1)), rtol=0, atol=0
    )
    token = tiny_model()
    assert torch.equal(token.forward_head(tokens, pre_logits=True), tokens[:, 0])


def test_forward_is_features_then_head() -> None:
    model, images = tiny_model(), torch.randn(2, 3, 12, 20)
    features = model.forward_features(images)
    assert features.shape == (2, 16, 24)
    assert torch.equal(model.forward_head(features), model(images))
    assert model(images[:0]).shape == (0, 5)


# Initialisation


def test_initialisation_is_that_of_jax() -> None:
    torch.manual_seed(0)
    config = ViTConfig(img_size=64, patch_size=8, embed_dim=192, depth=2, num_heads=3, init_head_bias=-6.9)
    model = VisionTransformer(config)
    D, hidden = 192, 768

    def check_uniform(kernel: torch.Tensor, fan_in: int, fan_out: int) -> None:
        bound = math.sqrt(6.0 / (fan_in + fan_out))
        assert kernel.abs().max() <= bound
        assert kernel.abs().max() > 0.99 * bound
        assert kernel.std().item() == pytest.approx(bound / math.sqrt(3.0), rel=0.02)

    for block in model.blocks:
        for kernel in block.attn.qkv.weight.split(D):  # each D x D by itself, not the fused 3D x D
            check_uniform(kernel, D, D)
        check_uniform(block.attn.proj.weight, D, D)
        check_uniform(block.mlp.fc1.weight, D, hidden)
        check_uniform(block.mlp.fc2.weight, hidden, D)
        assert not block.attn.qkv.bias.any()
        assert not block.attn.proj.bias.any()
        for bias in (block.mlp.fc1.bias, block.mlp.fc2.bias):
            assert bias.std().item() == pytest.approx(1e-6, rel=0.2)
    patch = model.patch_embed.proj.weight
    lecun = math.sqrt(1.0 / (3 * 8 * 8))
    assert patch.std().item() == pytest.approx(lecun, rel=0.02)  # after the cut, as flax corrects for it
    assert patch.abs().max() <= 2.0 * lecun / 0.87962566 + 1e-7
    assert not model.patch_embed.proj.bias.any()
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert not model.cls_token.any()
    assert not model.head.weight.any()
    assert torch.equal(model.head.bias, torch.full((1000,), -6.9))
    assert torch.equal(model.norm.weight, torch.ones(D))


def test_initialisation_is_a_function_of_the_seed() -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(VisionTransformer(TINY).state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not torch.equal(states[0]["pos_embed"], states[2]["pos_embed"])


# Training


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_overfits_one_batch(pool: str) -> None:
    torch.manual_seed(0)
    model = VisionTransformer(ViTConfig.from_dict({**TINY.to_dict(), "global_pool": pool}))
    images, labels = torch.randn(10, 3, 12, 20), torch.arange(10) % 5
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = F.cross_entropy(model(images), labels)
    assert first.item() == pytest.approx(math.log(5), abs=1e-6)  # a zero head knows nothing
    for _ in range(60):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    assert (model.eval()(images).argmax(1) == labels).all()


def test_every_parameter_gets_a_gradient() -> None:
    model = tiny_model().double().train()
    F.cross_entropy(model(torch.randn(4, 3, 12, 20).double()), torch.arange(4)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for enable in (False, True):
        model = tiny_model(drop_path_rate=0.5, proj_drop_rate=0.1).train()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(0)
        model(torch.ones(4, 3, 12, 20)).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_dropout_acts_in_training_only() -> None:
    images = torch.randn(2, 3, 12, 20)
    for rate in ("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"):
        model = tiny_model(**{rate: 0.5})
        assert torch.equal(model(images), tiny_model()(images)), rate
        torch.manual_seed(0)
        assert not torch.equal(model.train()(images), tiny_model()(images)), rate


def test_drop_path_drops_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    x = torch.ones(4000, 3, 2)
    y = DropPath(0.25).train()(x)
    assert torch.equal(y, y[:, :1, :1].expand_as(y))  # a sample goes as a whole
    assert y.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert y.mean().item() == pytest.approx(1.0, abs=0.05)
    assert DropPath(0.25).eval()(x) is x


def test_drop_path_grows_linearly_with_depth() -> None:
    model = tiny_model(drop_path_rate=0.2)
    assert [b.drop_path1.rate for b in model.blocks] == pytest.approx([0.0, 0.1, 0.2])
    assert [b.drop_path2.rate for b in model.blocks] == pytest.approx([0.0, 0.1, 0.2])
    single = tiny_model(depth=1, drop_path_rate=0.2)
    assert single.blocks[0].drop_path1.rate == 0.0


def test_no_weight_decay_names_parameters() -> None:
    model = tiny_model()
    assert model.no_weight_decay() == {"pos_embed", "cls_token"}
    assert model.no_weight_decay() <= dict(model.named_parameters()).keys()


# A citizen of PyTorch


def test_compiles_without_graph_breaks() -> None:
    model = tiny_model(depth=1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    images = torch.randn(2, 3, 12, 20)
    logits = compiled(images)
    torch.testing.assert_close(logits, model(images), rtol=0, atol=1e-6)
    torch.testing.assert_close(compiled(patchify(images, 4, order="cpq")), logits, rtol=0, atol=1e-6)
    logits.square().sum().backward()
    assert model.pos_embed.grad is not None


def test_copies_and_pickles() -> None:
    model, images = tiny_model(), torch.randn(1, 3, 12, 20)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.config == model.config
        assert torch.equal(other(images), model(images))
        with torch.no_grad():
            other.cls_token.add_(1.0)
        assert not torch.equal(other(images), model(images))


def test_autocast_runs_in_bfloat16() -> None:
    model, images = tiny_model(), torch.randn(2, 3, 12, 20)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    assert logits.dtype == torch.bfloat16
    with torch.no_grad():
        torch.testing.assert_close(logits.float(), model(images), rtol=0.1, atol=0.1)


# Configuration and errors


def test_names_stand_for_configurations() -> None:
    config = ViTConfig.from_name("vit_small_patch8_64", num_classes=7, depth=2)
    assert (config.embed_dim, config.num_heads, config.depth, config.num_classes) == (384, 6, 2, 7)
    assert (config.grid_size, config.num_patches, config.patch_dim) == ((8, 8), 64, 192)
    assert create_model("vit_tiny_patch16_224", img_size=32, depth=1).config.grid_size == (2, 2)


def test_configurations_survive_json() -> None:
    config = ViTConfig(img_size=(32, 64), patch_size=[8, 16], mlp_ratio=3, global_pool="avg")
    assert config.patch_size == (8, 16)
    assert ViTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert ViTConfig(img_size=(224, 224)) == ViTConfig(img_size=224)
    assert hash(config) == hash(ViTConfig.from_dict(config.to_dict()))


def test_mlp_width_is_timms_and_exact() -> None:
    assert ViTConfig(embed_dim=1152, num_heads=16, mlp_ratio=3.7362).mlp_hidden_dim == 4304
    assert ViTConfig(embed_dim=1408, num_heads=16, mlp_ratio=48 / 11).mlp_hidden_dim == 6144
    for hidden in range(100, 400):
        assert ViTConfig(embed_dim=102, num_heads=1, mlp_ratio=hidden / 102).mlp_hidden_dim == hidden


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"img_size": 225}, r"img_size 225x225 is not divisible by patch_size 16x16.*224 or 240 high"),
        ({"img_size": (32, 8)}, r"img_size 32x8 .*32 high, 16 wide"),
        ({"img_size": 0}, "img_size must be at least 1, got 0"),
        ({"img_size": (1, 2, 3)}, r"img_size must be one integer or \(height, width\), got \(1, 2, 3\)"),
        ({"patch_size": "16"}, "patch_size must be an integer, got '16'"),
        ({"num_heads": 5}, "embed_dim 768 is not divisible by num_heads 5"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"depth": 2.0}, r"depth must be an integer, got 2\.0"),
        ({"in_chans": True}, "in_chans must be an integer, got True"),
        ({"num_classes": -1}, "num_classes must be at least 0, got -1"),
        ({"global_pool": "max"}, "global_pool must be one of token, avg, got 'max'"),
        ({"act": "relu"}, "act must be one of gelu, gelu_tanh, got 'relu'"),
        ({"qkv_bias": 1}, "qkv_bias must be true or false, got 1"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate must be in \[0, 1\), got 1\.0"),
        ({"drop_rate": float("nan")}, "drop_rate must be a finite number, got nan"),
        ({"mlp_ratio": 0.001}, r"mlp_ratio 0\.001 .*no hidden unit"),
    ],
)
def test_bad_configurations_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        ViTConfig(**changes)
    assert isinstance(error.value, ValueError)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["vit_medium_patch16_224", "vit_base_16_224", "resnet50", "", "vit_base_patch16"])
def test_unknown_names_list_the_sizes(name: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown model.*tiny, small, base, large, huge"):
        create_model(name)


def test_unknown_fields_are_named() -> None:
    with pytest.raises(TypeError, match="no field image_size"):
        create_model("vit_tiny_patch16_224", image_size=32)
    with pytest.raises(ConfigError, match="no field colour"):
        ViTConfig.from_dict({"colour": 1})


@pytest.mark.parametrize(
    "shape",
    [(2, 3, 12, 24), (2, 1, 12, 20), (3, 12, 20), (2, 15, 47), (2, 14, 48), (12, 20), (2, 3, 1, 12, 20)],
)
def test_wrong_shapes_say_got_and_expected(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected images \(B, 3, 12, 20\) or patches \(B, 15, 48\)") as error:
        tiny_model()(torch.zeros(shape))
    assert f"got {shape}" in str(error.value)


def test_integer_images_are_refused() -> None:
    with pytest.raises(TypeError, match=r"expected floating-point images or patches, got torch\.uint8"):
        tiny_model()(torch.zeros(1, 3, 12, 20, dtype=torch.uint8))


@pytest.mark.parametrize("n", [0, 4, [3], [-4]])
def test_blocks_that_do_not_exist_are_refused(n: int | list[int]) -> None:
    with pytest.raises(ValueError, match="3"):
        tiny_model().get_intermediate_layers(torch.zeros(1, 3, 12, 20), n)
