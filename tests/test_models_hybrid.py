"""The hybrids of ResNet and Transformer: counts and names as published, numbers as timm's."""

import copy
import dataclasses
import json
import math
import pickle
from functools import partial

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import HybridEmbed, StdConv2dSame
from timm.models import VisionTransformer as TimmViT
from timm.models.resnetv2 import ResNetV2, create_resnetv2_stem

from vit_rs.exceptions import ConfigError
from vit_rs.models import HybridConfig, HybridViT, ViTConfig, create_model, named_config
from vit_rs.models.catalogue import build, kind_of
from vit_rs.models.resnet import Bottleneck, StdConv2d

SMALL = HybridConfig(
    img_size=(32, 48), num_classes=5, embed_dim=24, depth=2, num_heads=3, backbone_layers=(1, 1), patch_size=2
)
IMAGES = (2, 3, 32, 48)


def random_state(shapes: dict[str, torch.Size], seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of a trained network's scale, none of them zero or one; kernels have a mean, to be taken out."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if len(shape) == 1 or name in ("cls_token", "pos_embed"):
            values = 0.1 * values + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        elif "conv" in name:
            values = (values + 0.3) * math.prod(shape[1:]) ** -0.5
        else:
            values = values * math.prod(shape[1:]) ** -0.5
        state[name] = values
    return state


def with_random_state(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    model.load_state_dict(random_state({k: v.shape for k, v in model.state_dict().items()}, seed), assign=True)
    return model.eval()


def small_model(seed: int = 0, **changes: object) -> HybridViT:
    return with_random_state(HybridViT(HybridConfig.from_dict({**SMALL.to_dict(), **changes})), seed)


def timm_model(config: HybridConfig, **changes: object) -> torch.nn.Module:
    """timm's classes as its hybrids put them together, at any depth and size."""
    conv = partial(StdConv2dSame, eps=1e-8)
    kinds = {"in_chans": config.in_chans, "preact": False, "stem_type": "same", "conv_layer": conv}
    layers = config.backbone_layers
    backbone = (
        ResNetV2(layers=layers, num_classes=0, global_pool="", **kinds)
        if layers
        else create_resnetv2_stem(kinds.pop("in_chans"), **kinds)
    )
    names = ("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads")
    fields = {name: getattr(config, name) for name in names}
    return TimmViT(embed_layer=partial(HybridEmbed, backbone=backbone), **{**fields, **changes})


def on_meta(name: str, **overrides: object) -> HybridViT:
    with torch.device("meta"):
        return create_model(name, **overrides)


def assert_equal_outputs(
    ours: torch.nn.Module, theirs: torch.nn.Module, images: torch.Tensor, *, double: bool = True
) -> None:
    """Logits within 1e-5 of the largest in float32; features within 1e-10 in float64 (with `double`)."""
    with torch.inference_mode():
        got, want = ours(images), theirs(images)
        assert (got - want).abs().max() <= 1e-5 * max(1.0, want.abs().max().item())
        if double:
            images = images.double()
            got, want = ours.double().forward_features(images), theirs.double().forward_features(images)
            assert got.shape == want.shape
            assert (got - want).abs().max() <= 1e-10
    ours.float()
    theirs.float()


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vit_tiny_r_s16_p8_224", 6_337_704),
        ("vit_tiny_r_s16_p8_384", 6_355_944),
        ("vit_small_r26_s32_224", 36_431_912),
        ("vit_small_r26_s32_384", 36_468_392),
        ("vit_base_r26_s32_224", 101_383_976),
        ("vit_base_r50_s16_224", 98_659_112),
        ("vit_base_r50_s16_384", 98_950_952),
        ("vit_base_r50_s32_224", 110_945_832),
        ("vit_large_r50_s16_224", 316_483_624),
        ("vit_large_r50_s32_224", 328_994_856),
        ("vit_large_r50_s32_384", 329_092_136),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, count: int) -> None:
    assert sum(p.numel() for p in on_meta(name).parameters()) == count


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("vit_tiny_r_s16_p8_224", {}),
        ("vit_small_r26_s32_384", {"num_classes": 0, "in_chans": 1}),
        ("vit_base_r50_s16_224", {"num_classes": 1000}),
        ("vit_large_r50_s32_224", {"img_size": (64, 96)}),
    ],
)
def test_state_dict_has_timms_names_shapes_and_order(name: str, changes: dict[str, object]) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name, **changes).state_dict()
    ours = on_meta(name, **changes).state_dict()
    assert [(k, v.shape) for k, v in ours.items()] == [(k, v.shape) for k, v in theirs.items()]


@pytest.mark.parity
@pytest.mark.parametrize(
    "name", ["vit_tiny_r_s16_p8_224", pytest.param("vit_small_r26_s32_224", marks=pytest.mark.slow)]
)
def test_published_models_equal_timms(name: str) -> None:
    """At the native size, and at two others, where the table is resampled: timm does that in float32 always."""
    ours = with_random_state(on_meta(name, dynamic_img_size=True))
    theirs = with_random_state(timm.create_model(name, dynamic_img_size=True))
    generator = torch.Generator().manual_seed(0)
    assert_equal_outputs(ours, theirs, torch.randn(1, 3, 224, 224, generator=generator))
    for size in ((96, 160), (256, 256)):
        assert_equal_outputs(ours, theirs, torch.randn(1, 3, *size, generator=generator), double=False)


@pytest.mark.parity
@pytest.mark.parametrize(
    "changes",
    [
        {"img_size": 224},
        {"img_size": (48, 96), "in_chans": 1},
        {"img_size": 64, "patch_size": (1, 2)},
        {"img_size": (64, 32), "backbone_layers": (), "patch_size": 8},
        {"img_size": (64, 128), "backbone_layers": (1, 1, 1, 1)},
    ],
)
def test_small_r50_s16_equals_timms(changes: dict[str, object]) -> None:
    ours = small_model(**{"backbone_layers": (2, 1, 1), "patch_size": 1, "embed_dim": 48, **changes})
    theirs = with_random_state(timm_model(ours.config))
    size = ours.config.image_hw
    images = torch.randn(2, ours.config.in_chans, *size, generator=torch.Generator().manual_seed(0))
    assert_equal_outputs(ours, theirs, images)


@pytest.mark.parity
@pytest.mark.parametrize("size", [(100, 70), (33, 51)])
@pytest.mark.parametrize("layers", [(), (1, 1, 1)])
def test_sizes_that_nothing_divides_are_padded_as_in_timm(size: tuple[int, int], layers: tuple[int, ...]) -> None:
    ours = small_model(img_size=size, backbone_layers=layers, patch_size=1)
    theirs = with_random_state(timm_model(ours.config))
    assert ours.config.grid_size == tuple(theirs.patch_embed.grid_size)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    assert_equal_outputs(ours, theirs, images)


@pytest.mark.parity
def test_another_input_size_is_set_as_in_timm() -> None:
    """Position table and kernel are resampled, not square and of another patch; float32, in which timm resamples."""
    ours = small_model(img_size=64, patch_size=2)
    theirs = with_random_state(timm_model(ours.config))
    ours.patch_embed.proj.weight.requires_grad_(False)
    for sizes in ({"img_size": (96, 48)}, {"img_size": (64, 32), "patch_size": 1}):
        ours.set_input_size(**sizes)
        theirs.set_input_size(**sizes)
        assert ours.config.grid_size == ours.patch_embed.grid_size == tuple(theirs.patch_embed.grid_size)
        images = torch.randn(2, 3, *sizes["img_size"], generator=torch.Generator().manual_seed(0))
        assert_equal_outputs(ours, theirs, images, double=False)
    assert not ours.patch_embed.proj.weight.requires_grad
    before = copy.deepcopy(ours.state_dict())
    with pytest.raises(ConfigError, match="which is not divisible by patch_size 3x3"):
        ours.set_input_size(patch_size=3)
    assert all(torch.equal(before[name], value) for name, value in ours.state_dict().items())


def test_the_class_token_and_the_average_work_behind_a_resnet() -> None:
    """Registers, average, no class token: what `VisionTransformer` can, a hybrid can."""
    images = torch.randn(*IMAGES)
    model = small_model(global_pool="avg", class_token=False, reg_tokens=2)
    assert model(images).shape == (2, 5)
    assert model.forward_features(images).shape == (2, 2 + 6, 24)
    [layer] = model.get_intermediate_layers(images, 1, reshape=True)
    assert layer.shape == (2, 24, 2, 3)


def test_width_multiplies_the_resnets_channels() -> None:
    model = small_model(width_factor=2)
    assert model.patch_embed.backbone.stem.conv.weight.shape == (128, 3, 7, 7)
    assert model.patch_embed.proj.weight.shape == (24, 1024, 2, 2)
    assert model(torch.randn(*IMAGES)).shape == (2, 5)


def test_flax_standardisation_reaches_every_kernel() -> None:
    model = small_model(standardization="flax")
    assert {m.eps for m in model.modules() if isinstance(m, StdConv2d)} == {1e-5}
    images = torch.randn(*IMAGES)
    difference = (model(images) - small_model()(images)).abs().max()
    assert 1e-6 < difference < 1e-2


# Initialisation and training


def test_initialisation_is_that_of_vision_transformer() -> None:
    torch.manual_seed(0)
    model = HybridViT(SMALL)
    for name, parameter in model.patch_embed.backbone.named_parameters():
        if "conv" in name:
            fan_in = math.prod(parameter.shape[1:])
            assert parameter.std().item() == pytest.approx(fan_in**-0.5, rel=0.05), name
        elif name.endswith("norm3.weight"):
            assert not parameter.any(), name
        else:
            assert (parameter == (1.0 if name.endswith("weight") else 0.0)).all(), name
    assert model.patch_embed.proj.weight.std().item() == pytest.approx((512 * 4) ** -0.5, rel=0.05)
    assert not model.head.weight.any()
    assert sum(isinstance(module, Bottleneck) for module in model.modules()) == 2


def test_overfits_one_batch() -> None:
    torch.manual_seed(0)
    model = HybridViT(SMALL)
    images, labels = torch.randn(10, 3, 32, 48), torch.arange(10) % 5
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    assert F.cross_entropy(model(images), labels).item() == pytest.approx(math.log(5), abs=1e-6)
    for _ in range(40):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    assert (model.eval()(images).argmax(1) == labels).all()


@pytest.mark.parity
def test_gradients_equal_timms() -> None:
    ours = small_model().double()
    theirs = with_random_state(timm_model(ours.config)).double()
    images = torch.randn(*IMAGES, dtype=torch.float64)
    for model in (ours, theirs):
        model.train()(images).square().sum().backward()
    for (name, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0, name
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-9, atol=1e-10, msg=name)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for enable in (False, True):
        model = small_model(drop_path_rate=0.5).train()
        model.set_grad_checkpointing(enable)
        assert {stage.grad_checkpointing for stage in model.patch_embed.backbone.stages} == {enable}
        torch.manual_seed(0)
        model(torch.ones(*IMAGES)).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_no_weight_decay_names_the_transformers_parameters() -> None:
    assert small_model().no_weight_decay() == {"pos_embed", "cls_token"}


# A citizen of PyTorch


def test_channels_last_is_the_same_function() -> None:
    model, images = small_model(), torch.randn(*IMAGES)
    want = model(images)
    model.to(memory_format=torch.channels_last)
    got = model(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_compiles_without_graph_breaks() -> None:
    model = small_model(depth=1, backbone_layers=(1,), patch_size=4)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    images = torch.randn(*IMAGES)
    logits = compiled(images)
    torch.testing.assert_close(logits, model(images), rtol=0, atol=1e-5)
    logits.square().sum().backward()
    assert model.patch_embed.backbone.stem.conv.weight.grad.abs().max() > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch's own
@pytest.mark.parametrize("layers", [(1,), pytest.param((), marks=pytest.mark.slow)])
def test_exports_with_open_sizes(layers: tuple[int, ...]) -> None:
    """The native size, 32x32, is one of them, and no case of its own in the graph."""
    config = HybridConfig(
        img_size=32, num_classes=5, embed_dim=24, depth=1, num_heads=3, backbone_layers=layers, dynamic_img_size=True
    )
    model = with_random_state(HybridViT(config))
    batch, rows, columns = (torch.export.Dim(name, min=1, max=64) for name in ("batch", "rows", "columns"))
    shapes = {"x": {0: batch, 2: 4 * rows, 3: 4 * columns}}
    program = torch.export.export(model, (torch.randn(2, 3, 64, 64),), dynamic_shapes=shapes, strict=False)
    exported = program.module()
    for size in ((32, 32), (32, 64), (48, 48), (64, 64)):
        images = torch.randn(3, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(exported(images), model(images), rtol=0, atol=1e-5)


def test_exports_to_onnx(tmp_path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, images = small_model(depth=1), torch.randn(*IMAGES)
    torch.onnx.export(model, (images,), str(tmp_path / "hybrid.onnx"), verbose=False, dynamo=True)
    session = onnxruntime.InferenceSession(str(tmp_path / "hybrid.onnx"), providers=["CPUExecutionProvider"])
    [got] = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    np.testing.assert_allclose(got, model(images).detach().numpy(), rtol=0, atol=1e-5)


def test_copies_and_pickles() -> None:
    model, images = small_model(), torch.randn(*IMAGES)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.config == model.config
        assert torch.equal(other(images), model(images))


def test_autocast_runs_in_bfloat16() -> None:
    model, images = small_model(), torch.randn(*IMAGES)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    assert logits.dtype == torch.bfloat16
    logits.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        torch.testing.assert_close(logits.float(), model(images), rtol=0.1, atol=0.1)


# Configuration, names and errors


def test_tokens_stand_for_the_resnets_stride_times_the_patch() -> None:
    for name, pixels, grid in (
        ("vit_tiny_r_s16_p8_224", 32, 7),
        ("vit_small_r26_s32_224", 32, 7),
        ("vit_base_r50_s16_384", 16, 24),
    ):
        config = named_config(name)
        assert isinstance(config, HybridConfig)
        assert config.token_hw == (pixels, pixels)
        assert (config.grid_size, config.num_patches) == ((grid, grid), grid * grid)
    assert HybridConfig(img_size=224) == named_config("vit_base_r50_s16_224")
    assert create_model("vit_tiny_r_s16_p8_384", img_size=64, depth=1).config.grid_size == (2, 2)
    assert dataclasses.replace(SMALL, img_size=64).grid_size == (4, 4)
    assert HybridConfig(img_size=(100, 70), backbone_layers=(1, 1, 1, 1)).grid_size == (4, 3)


def test_configurations_survive_json() -> None:
    config = HybridConfig(img_size=(32, 64), backbone_layers=[1, 2], patch_size=[1, 2], standardization="flax")
    assert config.backbone_layers == (1, 2)
    assert HybridConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert HybridConfig() != ViTConfig()
    model = build("hybrid", json.loads(json.dumps(SMALL.to_dict())))
    assert isinstance(model, HybridViT)
    assert model.config == SMALL
    assert (kind_of(model), kind_of(SMALL)) == ("hybrid", "hybrid")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone_layers": (1, 1, 1, 1, 1)}, "backbone_layers must be the numbers of blocks of 0 to 4 stages"),
        ({"backbone_layers": 50}, "backbone_layers must be the numbers of blocks of 0 to 4 stages, got 50"),
        ({"backbone_layers": (2, 0)}, r"backbone_layers\[1\] must be at least 1, got 0"),
        ({"width_factor": 0}, "width_factor must be at least 1, got 0"),
        ({"standardization": "jax"}, "standardization must be one of timm, bit, flax, got 'jax'"),
        (
            {"img_size": (224, 100), "patch_size": 2},
            "img_size 224x100 gives a feature map of 14x7 at stride 16, which is not divisible by patch_size 2x2",
        ),
        ({"embed_dim": 100}, "embed_dim 100 is not divisible by num_heads 12"),
    ],
)
def test_wrong_values_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HybridConfig(**changes)


def test_unknown_names_list_the_hybrids() -> None:
    with pytest.raises(ConfigError, match=r"unknown model 'vit_small_r50_s16_224': .*vit_small_r26_s32, "):
        named_config("vit_small_r50_s16_224")
    with pytest.raises(TypeError, match="HybridConfig has no field layers"):
        create_model("vit_base_r50_s16_224", layers=(1,))
    with pytest.raises(TypeError, match="HybridViT needs a HybridConfig, got ViTConfig"):
        HybridViT(ViTConfig())


def test_wrong_inputs_are_named() -> None:
    model, dynamic = small_model(), small_model(dynamic_img_size=True)
    with pytest.raises(ValueError, match=r"images \(B, 3, height, width\), and no patches of them, got \(2, 6, 768\)"):
        model(torch.zeros(2, 6, 768))
    with pytest.raises(ValueError, match=r"expected images \(B, 3, height, width\), got \(2, 1, 32, 48\)"):
        model(torch.zeros(2, 1, 32, 48))
    with pytest.raises(ValueError, match=r"expected images of 32x48, got 48x32; dynamic_img_size=True takes other"):
        model(torch.zeros(2, 3, 48, 32))
    message = "expected images of multiples of 16 high and of 16 wide, or 32x48, got 40x48"
    with pytest.raises(ValueError, match=message):
        dynamic(torch.zeros(2, 3, 40, 48))
    with pytest.raises(TypeError, match=r"expected floating-point images, got torch.uint8"):
        model(torch.zeros(IMAGES, dtype=torch.uint8))
    assert dynamic(torch.zeros(2, 3, 16, 64)).shape == (2, 5)
