"""BiT's ResNets: counts and names as published, numbers as timm's, all that a module of PyTorch must do."""

import copy
import json
import math
import pickle
from functools import partial

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import StdConv2d as TimmStdConv2d
from timm.layers import StdConv2dSame
from timm.models.resnetv2 import ResNetV2

from vit_rs.exceptions import ConfigError
from vit_rs.models import BiTResNet, ResNetConfig, VisionTransformer, ViTConfig, create_model, named_config
from vit_rs.models.catalogue import KINDS, build, kind_of
from vit_rs.models.resnet import ConvConfig, PreActBottleneck, StdConv2d

SMALL = ResNetConfig(layers=(2, 1), num_classes=5)
IMAGES = (2, 3, 32, 48)


def random_state(shapes: dict[str, torch.Size], seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of a trained network's scale, none of them zero or one; kernels have a mean, to be taken out."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if len(shape) == 1:
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


def small_model(seed: int = 0, **changes: object) -> BiTResNet:
    return with_random_state(BiTResNet(ResNetConfig.from_dict({**SMALL.to_dict(), **changes})), seed)


def timm_model(**changes: object) -> torch.nn.Module:
    """timm's class as its BiT models configure it, which take no other layers by name."""
    kinds = {"stem_type": "fixed", "conv_layer": partial(TimmStdConv2d, eps=1e-8)}
    return ResNetV2(**{"layers": (2, 1), "num_classes": 5, **kinds, **changes})


def on_meta(name: str, **overrides: object) -> BiTResNet:
    with torch.device("meta"):
        return create_model(name, **overrides)


def assert_equal_outputs(
    ours: torch.nn.Module, theirs: torch.nn.Module, images: torch.Tensor, *, single: bool = True
) -> None:
    """Logits within 1e-5 of the largest in float32 (with `single`); features within 1e-10 in float64."""
    with torch.inference_mode():
        if single:
            got, want = ours(images), theirs(images)
            assert (got - want).abs().max() <= 1e-5 * max(1.0, want.abs().max().item())
        images = images.double()
        got, want = ours.double().forward_features(images), theirs.double().forward_features(images)
        assert got.shape == want.shape
        assert (got - want).abs().max() <= 1e-10


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnetv2_50x1_bit", 25_549_352),
        ("resnetv2_50x2_bit", 97_988_712),
        ("resnetv2_50x3_bit", 217_319_080),
        ("resnetv2_101x1_bit", 44_541_480),
        ("resnetv2_101x3_bit", 387_934_888),
        ("resnetv2_152x1_bit", 60_185_128),
        ("resnetv2_152x2_bit", 236_335_208),
        ("resnetv2_152x4_bit", 936_533_224),
        ("resnetv2_200x3_bit", 568_633_000),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, count: int) -> None:
    assert sum(p.numel() for p in on_meta(name).parameters()) == count


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("resnetv2_50x1_bit", {}),
        ("resnetv2_50x1_bit", {"num_classes": 0, "in_chans": 4}),
        ("resnetv2_101x3_bit", {"num_classes": 21843}),
        ("resnetv2_152x4_bit", {}),
    ],
)
def test_state_dict_has_timms_names_shapes_and_order(name: str, changes: dict[str, int]) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name, **changes).state_dict()
    ours = on_meta(name, **changes).state_dict()
    assert [(k, v.shape) for k, v in ours.items()] == [(k, v.shape) for k, v in theirs.items()]


@pytest.mark.parity
def test_r50x1_at_224_equals_timms() -> None:
    ours, theirs = (with_random_state(make("resnetv2_50x1_bit")) for make in (on_meta, timm.create_model))
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert_equal_outputs(ours, theirs, images)


@pytest.mark.parity
@pytest.mark.parametrize("size", [(64, 96), (97, 61), (33, 2), (1, 1)])
@pytest.mark.parametrize(
    "changes", [{}, {"width_factor": 2, "layers": (1, 1, 1)}, {"in_chans": 1, "num_classes": 0, "layers": (1, 1, 1, 1)}]
)
def test_other_sizes_and_shapes_equal_timms(size: tuple[int, int], changes: dict[str, object]) -> None:
    """Odd sizes too: the padding is the same on all sides."""
    ours = small_model(**changes)
    theirs = with_random_state(timm_model(**changes))
    images = torch.randn(2, ours.config.in_chans, *size, generator=torch.Generator().manual_seed(0))
    # A map of one position norms two numbers per group: their float32 says little.
    assert_equal_outputs(ours, theirs, images, single=min(size) > 2)


@pytest.mark.parity
@pytest.mark.parametrize("size", [(64, 64), (31, 50), (57, 45)])
def test_tensorflows_padding_equals_timms(size: tuple[int, int]) -> None:
    ours = small_model(padding="same", layers=(1, 1, 1))
    theirs = timm_model(layers=(1, 1, 1), stem_type="same", conv_layer=partial(StdConv2dSame, eps=1e-8))
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    assert_equal_outputs(ours, with_random_state(theirs), images)
    other = small_model(layers=(1, 1, 1)).forward_features(images)
    assert (ours.float().forward_features(images) - other).abs().max() > 0.1


@pytest.mark.parity
def test_gradients_equal_timms() -> None:
    ours, theirs = small_model().double(), with_random_state(timm_model()).double()
    images = torch.randn(*IMAGES, dtype=torch.float64)
    for model in (ours, theirs):
        model.train()(images).square().sum().backward()
    for (name, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0, name
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-9, atol=1e-10, msg=name)


# Standardised kernels


@pytest.mark.parametrize("kind", ["timm", "bit", "flax"])
def test_kernels_are_standardised_as_their_source_writes_it(kind: str) -> None:
    """Within 1e-12 in float64 of each project's formula, for kernels of deviations 1 to 1e-4."""
    conv = StdConv2d(4, 3, 3, ConvConfig("fixed", kind)).double()
    rng = np.random.default_rng(0)
    kernel = rng.normal(0.5, 1.0, (3, 4, 3, 3)) * np.array([1.0, 1e-2, 1e-4]).reshape(3, 1, 1, 1)
    centred = kernel - kernel.mean((1, 2, 3), keepdims=True)
    variance = np.square(centred).mean((1, 2, 3), keepdims=True)
    want = {
        "timm": centred / np.sqrt(variance + 1e-8),
        "bit": centred / np.sqrt(variance + 1e-10),
        "flax": centred / (np.sqrt(variance) + 1e-5),
    }[kind]
    images = torch.randn(2, 4, 5, 7, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.copy_(torch.from_numpy(kernel))
        got = conv(images)
    torch.testing.assert_close(got, F.conv2d(images, torch.from_numpy(want), padding=1), rtol=0, atol=1e-11)


def test_standardisations_differ_in_the_fourth_digit() -> None:
    """Why there is a choice: on kernels as they are drawn, far above float32's rounding, and below a thousandth."""
    images, features = torch.randn(*IMAGES).double(), {}
    for kind in ("timm", "bit", "flax"):
        features[kind] = small_model(standardization=kind).double().forward_features(images)
    scale = features["timm"].abs().max()
    assert 1e-8 < (features["bit"] - features["timm"]).abs().max() / scale < 1e-5
    assert 1e-5 < (features["flax"] - features["timm"]).abs().max() / scale < 1e-3


def test_a_constant_kernel_gives_zeros_and_finite_gradients() -> None:
    for kind in ("timm", "bit", "flax"):
        conv = StdConv2d(2, 2, 3, ConvConfig("fixed", kind))
        torch.nn.init.constant_(conv.weight, 0.25)
        out = conv(torch.randn(1, 2, 4, 4))
        out.sum().backward()
        assert out.abs().max() < 1e-3
        assert conv.weight.grad.isfinite().all()


def test_a_kernels_mean_and_scale_do_not_matter() -> None:
    model, other = small_model().double(), small_model().double()
    images = torch.randn(*IMAGES, dtype=torch.float64)
    with torch.no_grad():
        for module in other.modules():
            if isinstance(module, StdConv2d):
                module.weight.mul_(3.0).add_(1.0)
    torch.testing.assert_close(model(images), other(images), rtol=0, atol=1e-4)


# Initialisation and training


def test_initialisation_is_that_of_big_vision() -> None:
    torch.manual_seed(0)
    model = BiTResNet(ResNetConfig(layers=(1, 1)))
    for name, parameter in model.named_parameters():
        if "conv" in name:
            fan_in = math.prod(parameter.shape[1:])
            assert parameter.std().item() == pytest.approx(fan_in**-0.5, rel=0.05), name
        elif "norm" in name:
            assert (parameter == (1.0 if name.endswith("weight") else 0.0)).all(), name
        else:
            assert not parameter.any(), name
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(BiTResNet(SMALL).state_dict()["stem.conv.weight"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_overfits_one_batch() -> None:
    torch.manual_seed(0)
    model = BiTResNet(ResNetConfig(layers=(1, 1), num_classes=5))
    images, labels = torch.randn(10, 3, 24, 24), torch.arange(10) % 5
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    assert F.cross_entropy(model(images), labels).item() == pytest.approx(math.log(5), abs=1e-6)
    for _ in range(25):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    assert (model.eval()(images).argmax(1) == labels).all()


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for enable in (False, True):
        model = small_model(drop_path_rate=0.5).train()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(0)
        model(torch.ones(*IMAGES)).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parity
def test_drop_path_grows_with_depth_as_in_timm() -> None:
    model = small_model(layers=(2, 3), drop_path_rate=0.2)
    rates = [module.drop_path.rate for module in model.modules() if isinstance(module, PreActBottleneck)]
    theirs = timm_model(layers=(2, 3), drop_path_rate=0.2)
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
    dropping = [module.drop_prob for module in theirs.modules() if isinstance(module, timm.layers.DropPath)]
    assert rates[1:] == pytest.approx(dropping)


def test_dropout_acts_in_training_only() -> None:
    images = torch.randn(*IMAGES)
    for rate in ("drop_rate", "drop_path_rate"):
        model = small_model(**{rate: 0.5})
        assert torch.equal(model(images), small_model()(images)), rate
        torch.manual_seed(0)
        assert not torch.equal(model.train()(images), small_model()(images)), rate


# A citizen of PyTorch


def test_forward_is_features_then_head() -> None:
    model, images = small_model(), torch.randn(*IMAGES)
    features = model.forward_features(images)
    assert features.shape == (2, 512, 4, 6)
    assert torch.equal(model.forward_head(features), model(images))
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), features.mean((2, 3)))
    assert torch.equal(small_model(num_classes=0)(images), model.forward_head(features, pre_logits=True))
    assert model(images[:0]).shape == (0, 5)
    assert model.no_weight_decay() == set()


def test_a_new_head_is_zero_and_known_to_the_configuration() -> None:
    model = small_model().double()
    model.reset_classifier(7)
    assert (model.config.num_classes, model.num_classes) == (7, 7)
    assert model.get_classifier().weight.dtype == torch.float64
    assert not model(torch.randn(*IMAGES).double()).any()
    model.reset_classifier(0)
    assert model(torch.randn(*IMAGES).double()).shape == (2, 512)
    model.reset_classifier(3, global_pool="avg")
    assert model(torch.randn(*IMAGES).double()).shape == (2, 3)
    model.reset_classifier(0, None)
    with pytest.raises(ConfigError, match="num_classes must be at least 0"):
        model.reset_classifier(-1)
    with pytest.raises(ConfigError, match="global_pool must be one of avg, got 'token'"):
        model.reset_classifier(2, "token")
    assert model.num_classes == 0


def test_channels_last_is_the_same_function() -> None:
    model, images = small_model(), torch.randn(*IMAGES)
    want = model(images)
    model.to(memory_format=torch.channels_last)
    got = model(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_compiles_without_graph_breaks() -> None:
    model = small_model(layers=(1,))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    images = torch.randn(1, 3, 24, 33)
    logits = compiled(images)
    torch.testing.assert_close(logits, model(images), rtol=0, atol=1e-5)
    logits.square().sum().backward()
    assert model.stem.conv.weight.grad.abs().max() > 0


@pytest.mark.slow  # a hybrid's, in which is a ResNet, is not
def test_exports_to_onnx(tmp_path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, images = small_model(layers=(1,), standardization="flax"), torch.randn(2, 3, 24, 33)
    torch.onnx.export(model, (images,), str(tmp_path / "bit.onnx"), verbose=False, dynamo=True)
    session = onnxruntime.InferenceSession(str(tmp_path / "bit.onnx"), providers=["CPUExecutionProvider"])
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
        assert model.bfloat16()(images.bfloat16()).dtype == torch.bfloat16


# Configuration, names and errors


def test_names_stand_for_configurations() -> None:
    assert named_config("resnetv2_50x1_bit") == ResNetConfig()
    assert named_config("resnetv2_200x3_bit", in_chans=1) == ResNetConfig((3, 24, 36, 3), 3, in_chans=1)
    with pytest.raises(ConfigError, match=r"unknown model 'resnetv2_51x1_bit': .*resnetv2_DEPTHxWIDTH_bit"):
        named_config("resnetv2_51x1_bit")
    with pytest.raises(ConfigError, match="unknown model 'resnetv2_50x5_bit'"):
        named_config("resnetv2_50x5_bit")
    with pytest.raises(TypeError, match="ResNetConfig has no field img_size"):
        create_model("resnetv2_50x1_bit", img_size=224)


def test_configurations_survive_json() -> None:
    config = ResNetConfig(layers=[1, 2], width_factor=2, padding="same", standardization="bit", drop_path_rate=0.1)
    assert config.layers == (1, 2)
    assert ResNetConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ConfigError, match="ResNetConfig has no field depth"):
        ResNetConfig.from_dict({"depth": 50})


def test_kinds_of_models_are_built_from_what_a_file_says() -> None:
    model = build("bit", json.loads(json.dumps(SMALL.to_dict())))
    assert isinstance(model, BiTResNet)
    assert model.config == SMALL
    assert (kind_of(model), kind_of(SMALL)) == ("bit", "bit")
    with torch.device("meta"):
        assert isinstance(build("vit", {"depth": 1}), VisionTransformer)
    assert kind_of(ViTConfig()) == "vit"
    assert set(KINDS) == {"vit", "hybrid", "bit"}
    with pytest.raises(ConfigError, match="unknown kind of model 'cnn': expected one of hybrid, vit, bit"):
        build("cnn", {})
    with pytest.raises(TypeError, match="expected one of our models or its configuration, got Linear"):
        kind_of(torch.nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": ()}, r"layers must be the numbers of blocks of 1 to 4 stages, got \(\)"),
        ({"layers": (1, 1, 1, 1, 1)}, "layers must be the numbers of blocks of 1 to 4 stages"),
        ({"layers": 50}, "layers must be the numbers of blocks of 1 to 4 stages, got 50"),
        ({"layers": (3, 0)}, r"layers\[1\] must be at least 1, got 0"),
        ({"layers": (3, 1.5)}, r"layers\[1\] must be an integer, got 1.5"),
        ({"width_factor": 0}, "width_factor must be at least 1, got 0"),
        ({"in_chans": 0}, "in_chans must be at least 1, got 0"),
        ({"num_classes": -1}, "num_classes must be at least 0, got -1"),
        ({"padding": "valid"}, "padding must be one of fixed, same, got 'valid'"),
        ({"standardization": "jax"}, "standardization must be one of timm, bit, flax, got 'jax'"),
        ({"drop_rate": 1.0}, r"drop_rate must be in \[0, 1\), got 1.0"),
        ({"drop_path_rate": -0.1}, r"drop_path_rate must be in \[0, 1\), got -0.1"),
    ],
)
def test_wrong_values_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ResNetConfig(**changes)


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 1, 32, 32), (2, 3, 32, 0), (2, 32, 32, 3)])
def test_wrong_shapes_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected images \(B, 3, height, width\), got \("):
        small_model()(torch.zeros(shape))


def test_integers_are_refused() -> None:
    with pytest.raises(TypeError, match=r"expected floating-point images, got torch.uint8: scale them first"):
        small_model()(torch.zeros(IMAGES, dtype=torch.uint8))
