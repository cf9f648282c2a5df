"""The Vision Transformer's options beside timm's: the same names in the same order, and the same numbers."""

from functools import partial

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import SwiGLUPacked

from vit_rs.models import VisionTransformer, ViTConfig, create_model
from vit_rs.models.presets import PRESETS

pytestmark = pytest.mark.parity

TINY = {"img_size": (12, 20), "patch_size": 4, "num_classes": 5, "embed_dim": 24, "depth": 3, "num_heads": 3}

OPTIONS = {
    "plain": {},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "positions of patches only": {"no_embed_class": True},
    "no positions": {"pos_embed": "none"},
    "registers": {"reg_tokens": 3},
    "registers, positions of patches only": {"reg_tokens": 2, "no_embed_class": True},
    "registers alone": {"reg_tokens": 2, "class_token": False, "global_pool": "avg"},
    "average": {"global_pool": "avg"},
    "average, norm before": {"global_pool": "avg", "fc_norm": False},
    "token, norm after": {"fc_norm": True},
    "map": {"global_pool": "map"},
    "map, norm after": {"global_pool": "map", "fc_norm": True},
    "map without a class token": {"global_pool": "map", "class_token": False, "act": "gelu_tanh"},
    "normed queries and keys": {"qk_norm": True},
    "layer scale": {"init_values": 1e-5},
    "swiglu": {"mlp": "swiglu"},
    "tanh": {"act": "gelu_tanh"},
    "another epsilon": {"norm_eps": 0.01, "qk_norm": True, "global_pool": "map"},
    "distilled": {"distilled": True},
    "distilled, positions of patches only": {"distilled": True, "no_embed_class": False, "init_values": 0.1},
    "no biases, no head": {"qkv_bias": False, "num_classes": 0},
    "distilled, no head": {"distilled": True, "num_classes": 0},
}


def timm_peer(config: ViTConfig) -> torch.nn.Module:
    """Build timm's model of the same configuration."""
    cls = timm.models.deit.VisionTransformerDistilled if config.distilled else timm.models.VisionTransformer
    same = ("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio")
    same += ("qkv_bias", "qk_norm", "init_values", "class_token", "reg_tokens", "no_embed_class", "dynamic_img_size")
    same += ("global_pool", "fc_norm", "drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate")
    options = {name: getattr(config, name) for name in same}
    if config.mlp == "swiglu":
        options |= {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU}
    else:
        options["act_layer"] = config.act
    return cls(
        pos_embed="none" if config.pos_embed == "none" else "learn",
        drop_path_rate=config.drop_path_rate,
        norm_layer=partial(torch.nn.LayerNorm, eps=config.norm_eps),
        **options,
    )


def pair_of(filled, config: ViTConfig) -> tuple[VisionTransformer, torch.nn.Module]:
    """Return our model and timm's with the same weights."""
    theirs = filled(timm_peer(config))
    ours = VisionTransformer(config).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def images_of(config: ViTConfig, hw: tuple[int, int] | None = None, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, config.in_chans, *(hw or config.image_hw), generator=generator)


def assert_close(got: torch.Tensor, want: torch.Tensor) -> None:
    """float32 within 1e-5 of the largest (at least 1): sums in another order; float64 within 1e-10."""
    assert got.shape == want.shape
    bound = 1e-10 if got.dtype == torch.float64 else 1e-5 * max(1.0, want.abs().max().item())
    assert (got - want).abs().max().item() <= bound


@pytest.mark.parametrize("name", OPTIONS)
def test_options_have_timms_names_and_numbers(filled, name):
    config = ViTConfig(**{**TINY, **OPTIONS[name]})
    ours, theirs = pair_of(filled, config)
    assert [(key, value.shape) for key, value in ours.state_dict().items()] == [
        (key, value.shape) for key, value in theirs.state_dict().items()
    ]
    images = images_of(config)
    with torch.inference_mode():
        assert_close(ours(images), theirs(images))
        assert_close(ours.forward_features(images), theirs.forward_features(images))
        ours, theirs, images = ours.double(), theirs.double(), images.double()
        assert_close(ours.forward_features(images), theirs.forward_features(images))
        tokens = theirs.forward_features(images)
        assert_close(ours.forward_head(tokens, pre_logits=True), theirs.forward_head(tokens, pre_logits=True))
        assert_close(ours(images), theirs(images))


@pytest.mark.parametrize("name", OPTIONS)
def test_options_have_timms_gradients(filled, name):
    config = ViTConfig(**{**TINY, **OPTIONS[name]})
    found = []
    for model in pair_of(filled, config):
        images = images_of(config).double().requires_grad_()
        model.double()(images).square().sum().backward()
        found.append([images.grad, *(parameter.grad for parameter in model.parameters())])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def configs() -> st.SearchStrategy[ViTConfig]:
    """Small configurations that timm can build, too."""

    @st.composite
    def drawn(draw: st.DrawFn) -> ViTConfig:
        flag = st.booleans()
        P, Q = draw(st.integers(1, 5)), draw(st.integers(1, 5))
        heads, width = draw(st.integers(1, 4)), draw(st.integers(2, 6))
        class_token, mlp = draw(flag), draw(st.sampled_from(["mlp", "swiglu"]))
        distilled = class_token and draw(flag)
        pools = ["avg", *(["token"] if class_token else []), *(["map"] if mlp == "mlp" else [])]
        return ViTConfig(
            img_size=(P * draw(st.integers(1, 4)), Q * draw(st.integers(1, 4))),
            patch_size=(P, Q),
            in_chans=draw(st.integers(1, 4)),
            num_classes=draw(st.integers(0, 5)),
            embed_dim=heads * width,
            depth=draw(st.integers(1, 3)),
            num_heads=heads,
            mlp_ratio=2 * draw(st.integers(1, 4)),
            mlp=mlp,
            act="gelu" if mlp == "swiglu" else draw(st.sampled_from(["gelu", "gelu_tanh"])),
            qkv_bias=draw(flag),
            qk_norm=draw(flag),
            init_values=draw(st.sampled_from([None, 0.5])),
            norm_eps=draw(st.sampled_from([1e-6, 1e-5, 1e-12])),
            class_token=class_token,
            distilled=distilled,
            # timm's distilled model has neither registers nor a norm after pooling.
            reg_tokens=0 if distilled else draw(st.integers(0, 3)),
            no_embed_class=not distilled and draw(flag),
            pos_embed="1d" if distilled else draw(st.sampled_from(["1d", "none"])),
            global_pool="token" if distilled else draw(st.sampled_from(pools)),
            fc_norm=None if distilled else draw(st.sampled_from([None, True, False])),
        )

    return drawn()


@settings(derandomize=True)
@given(config=configs(), batch=st.integers(1, 3))
def test_any_configuration_equals_timms(filled, config, batch):
    ours, theirs = pair_of(filled, config)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    images = images_of(config, batch=batch).double()
    with torch.inference_mode():
        ours, theirs = ours.double(), theirs.double()
        features, reference = ours.forward_features(images), theirs.forward_features(images)
        # A norm over few channels of nearly equal values divides by next to nothing, and by it multiplies rounding.
        torch.testing.assert_close(features, reference, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        pytest.param("vit_tiny_patch16_224", {}, marks=pytest.mark.slow),
        ("vit_small_patch16_224", {}),
        pytest.param("vit_base_patch16_224", {"img_size": 64}, marks=pytest.mark.slow),
        ("vit_tiny_patch16_224", {"img_size": (48, 80), "patch_size": (16, 8), "in_chans": 1}),
        ("deit3_small_patch16_224", {"img_size": 64, "depth": 2}),
        ("deit_tiny_distilled_patch16_224", {"img_size": 64, "depth": 2}),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 56, "depth": 2}),
        ("vit_base_patch16_siglip_224", {"img_size": 64, "depth": 1}),
    ],
)
def test_named_models_equal_timms(filled, name, overrides):
    theirs = filled(timm.create_model(name, **overrides))
    with torch.device("meta"):
        ours = create_model(name, **overrides).eval()
    ours.load_state_dict(theirs.state_dict(), assign=True)
    images = images_of(ours.config)
    with torch.inference_mode():
        assert_close(ours(images), theirs(images))
        if ours.config.embed_dim * ours.config.depth > 768 * 4:
            return  # twice the weights of the large models cost seconds and tell nothing new
        ours, theirs, images = ours.double(), theirs.double(), images.double()
        assert_close(ours.forward_features(images), theirs.forward_features(images))
        assert_close(ours(images), theirs(images))


PUBLISHED = {  # counts of the papers' models (torchvision's metadata has some, too), and timm's of the presets
    "vit_tiny_patch16_224": 5_717_416,
    "vit_small_patch16_224": 22_050_664,
    "vit_base_patch16_224": 86_567_656,
    "vit_base_patch16_384": 86_859_496,
    "vit_base_patch32_224": 88_224_232,
    "vit_large_patch16_224": 304_326_632,
    "vit_huge_patch14_224": 632_045_800,
    "vit_giant_patch14_224": 1_012_611_432,
    "vit_gigantic_patch14_224": 1_844_440_680,
    "deit_base_distilled_patch16_224": 87_338_192,
    "deit3_medium_patch16_224": 38_849_512,
    "deit3_huge_patch14_224": 632_126_440,
    "vit_small_patch14_dinov2": 22_056_192,
    "vit_giant_patch14_reg4_dinov2": 1_136_483_840,
    "vit_so400m_patch14_siglip_224": 427_680_704,
    "vit_so400m_patch14_siglip_gap_384": 412_987_248,
    "vit_small_patch16_dinov3": 21_586_944,
    "vit_small_plus_patch16_dinov3": 28_683_264,
    "vit_huge_plus_patch16_dinov3": 840_509_440,
    "vit_7b_patch16_dinov3": 6_716_030_976,
}


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name):
    with torch.device("meta"):
        assert parameters(create_model(name)) == PUBLISHED[name]


def by_depth(name: str) -> object:
    """Deep models are slow to build, even without memory, and differ from the others in nothing but numbers."""
    deep = PRESETS.get(name, {"depth": 12})["depth"] > 12
    return pytest.param(name, marks=pytest.mark.slow if deep else ())


@pytest.mark.parametrize("name", [by_depth(name) for name in ("vit_base_patch32_384", *PRESETS)])
def test_sizes_names_and_order_are_timms(name):
    with torch.device("meta"):
        ours = create_model(name)
        theirs = timm.create_model(name, num_classes=ours.num_classes)
    keys_biases = ours.config.depth * ours.config.embed_dim  # timm leaves them out, and they are zero
    assert parameters(ours) == parameters(theirs) + (keys_biases if name.endswith("_qkvb") else 0)
    if "dinov3" not in name:  # a class of its own in timm, with other names
        assert [(key, value.shape) for key, value in ours.state_dict().items()] == [
            (key, value.shape) for key, value in theirs.state_dict().items()
        ]


@pytest.mark.parametrize("changes", [{}, {"no_embed_class": True, "reg_tokens": 2}, {"distilled": True}])
@pytest.mark.parametrize("hw", [(12, 20), (24, 16), (8, 8)])
def test_other_sizes_equal_timms(filled, changes, hw):
    config = ViTConfig(**{**TINY, **changes}, dynamic_img_size=True)
    ours, theirs = pair_of(filled, config)
    images = images_of(config, hw)
    with torch.inference_mode():
        assert_close(ours(images), theirs(images))
        assert_close(ours.forward_features(images), theirs.forward_features(images))


@pytest.mark.parametrize("n", [1, 2, [0, 2], [-1, 0]])
@pytest.mark.parametrize(
    ("changes", "hw"),
    [
        ({}, (12, 20)),
        ({"global_pool": "avg"}, (12, 20)),
        ({"reg_tokens": 2, "init_values": 0.1}, (12, 20)),
        ({"dynamic_img_size": True, "reg_tokens": 2, "no_embed_class": True}, (24, 16)),
    ],
)
def test_intermediate_layers_equal_timms(filled, n, changes, hw):
    config = ViTConfig(**{**TINY, **changes})
    ours, theirs = pair_of(filled, config)
    images = images_of(config, hw)
    with torch.inference_mode():
        for norm in (False, True):
            got = ours.get_intermediate_layers(images, n, reshape=True, return_prefix_tokens=True, norm=norm)
            want = theirs.get_intermediate_layers(images, n, reshape=True, return_prefix_tokens=True, norm=norm)
            for mine, reference in zip(got, want, strict=True):
                assert mine[0].shape == (2, 24, hw[0] // 4, hw[1] // 4)
                for tensor, expected in zip(mine, reference, strict=True):
                    assert_close(tensor, expected)
            flat = ours.get_intermediate_layers(images, n, norm=norm)
            for tensor, expected in zip(flat, theirs.get_intermediate_layers(images, n, norm=norm), strict=True):
                assert_close(tensor, expected)


@pytest.mark.parametrize("rate", ["drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"])
@pytest.mark.parametrize("changes", [{}, {"distilled": True}, {"mlp": "swiglu", "global_pool": "avg"}])
def test_training_drops_what_timm_drops(filled, rate, changes):
    """The same seed draws the same masks in the same order, so that also training's outputs and gradients agree."""
    config = ViTConfig(**{**TINY, **changes, rate: 0.4})
    ours, theirs = pair_of(filled, config)
    images, outputs = images_of(config, batch=6), []
    for model in (ours.train(), theirs.train()):
        torch.manual_seed(3)
        logits = model(images)
        logits.square().sum().backward()
        outputs.append(logits.detach())
    assert_close(*outputs)
    with torch.no_grad():
        assert not torch.equal(ours.eval()(images), outputs[0])
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: name + text)


def test_tanh_gelu_is_another_function(filled):
    images = images_of(ViTConfig(**TINY))
    outputs = [filled(VisionTransformer(ViTConfig(**TINY, act=act)))(images) for act in ("gelu", "gelu_tanh")]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-5
