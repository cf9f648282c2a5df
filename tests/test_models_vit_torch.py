"""The Vision Transformer as a citizen of PyTorch: compiled, copied, cast, on the meta device, with another head."""

import copy
import pickle

import pytest
import torch

from vit_rs import patchify
from vit_rs.exceptions import ConfigError
from vit_rs.models import VisionTransformer, ViTConfig

TINY = {"img_size": (12, 20), "patch_size": 4, "num_classes": 5, "embed_dim": 24, "depth": 3, "num_heads": 3}


@pytest.fixture
def tiny(filled):
    """Build a small model with weights of a trained one's scale."""
    return lambda **changes: filled(VisionTransformer(ViTConfig(**{**TINY, **changes})))


OPTIONS = [
    {"class_token": False, "global_pool": "avg", "fc_norm": False, "qk_norm": True, "pos_embed": "relative"},
    {"global_pool": "map", "reg_tokens": 2, "no_embed_class": True, "init_values": 0.1, "pos_placement": "every"},
    {"distilled": True, "qkv_bias": False, "pos_embed": "2d", "pos_placement": "shared"},
    {"mlp": "swiglu", "fc_norm": True, "rope": True, "pos_embed": "none", "num_heads": 2},
    {"act": "gelu_tanh", "representation_size": 7, "dynamic_img_size": True},
]


@pytest.mark.parametrize("changes", [{}, *OPTIONS])
def test_gradient_checkpointing_changes_no_gradient(tiny, changes) -> None:
    gradients = []
    for enable in (False, True):
        model = tiny(drop_path_rate=0.5, proj_drop_rate=0.1, **changes).train()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(0)
        model(torch.ones(4, 3, 12, 20)).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_compiles_without_graph_breaks(tiny) -> None:
    torch._dynamo.reset()
    model = tiny(depth=1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    images = torch.randn(2, 3, 12, 20)
    logits = compiled(images)
    torch.testing.assert_close(logits, model(images), rtol=0, atol=1e-6)
    torch.testing.assert_close(compiled(patchify(images, 4, order="cpq")), logits, rtol=0, atol=1e-6)


# The position encodings of the others are compiled in test_models_positions_graphs.py.
@pytest.mark.parametrize(
    "changes",
    [
        *OPTIONS[1:3],
        *(pytest.param(changes, marks=pytest.mark.slow) for changes in (OPTIONS[0], *OPTIONS[3:])),
        {"checkpointing": True},
    ],
)
def test_options_compile_forward_and_backward(tiny, changes) -> None:
    changes = dict(changes)
    checkpointing = changes.pop("checkpointing", False)
    torch._dynamo.reset()
    model = tiny(**{"depth": 2 if changes.get("pos_placement") else 1, **changes}).train()
    model.set_grad_checkpointing(checkpointing)
    images = torch.randn(2, 3, *((16, 8) if model.config.dynamic_img_size else (12, 20)))
    gradients = []
    for call in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        logits = call(images)
        logits.square().sum().backward()
        gradients.append([logits.detach(), *(p.grad for p in model.parameters())])
    for compiled, eager in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("changes", OPTIONS)
def test_functional_call_takes_other_weights(tiny, changes) -> None:
    model, images = tiny(**changes), torch.randn(2, 3, 12, 20)
    other = VisionTransformer(model.config)
    got = torch.func.functional_call(other, dict(model.state_dict()), images)
    torch.testing.assert_close(got, model(images), rtol=0, atol=1e-6)
    assert (other(images) - got).abs().max() > 0.1


@pytest.mark.parametrize("changes", OPTIONS)
def test_bfloat16_models_run_and_train(tiny, changes) -> None:
    model, images = tiny(**changes), torch.randn(2, 3, 12, 20)
    expected = model(images).detach()
    logits = model.bfloat16()(images.bfloat16())
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected, rtol=0.1, atol=0.1)
    logits.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("changes", [{}, *OPTIONS])
def test_copies_and_pickles(tiny, changes) -> None:
    model, images = tiny(**changes), torch.randn(1, 3, 12, 20)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.config == model.config
        assert torch.equal(other(images), model(images))
        assert repr(other) == repr(model)
        with torch.no_grad():
            other.patch_embed.proj.bias.add_(torch.arange(24.0))
        assert not torch.equal(other(images), model(images))


def test_autocast_runs_in_bfloat16(tiny) -> None:
    model, images = tiny(), torch.randn(2, 3, 12, 20)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    assert logits.dtype == torch.bfloat16
    with torch.no_grad():
        torch.testing.assert_close(logits.float(), model(images), rtol=0.1, atol=0.1)


# Another head


def test_a_new_head_is_zero_and_the_configuration_follows(tiny) -> None:
    model, images = tiny(init_head_bias=-2.0).double(), torch.randn(2, 3, 12, 20).double()
    features = model.forward_features(images)
    model.reset_classifier(7)
    assert model.get_classifier() is model.head
    assert (model.num_classes, model.config.num_classes, model.head.weight.dtype) == (7, 7, torch.float64)
    assert not model.head.training
    assert torch.equal(model(images), torch.full((2, 7), -2.0, dtype=torch.float64))
    assert torch.equal(model.forward_features(images), features)
    twin = VisionTransformer(model.config).double()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(images), model(images))
    model.reset_classifier(0)
    assert torch.equal(model(images), features[:, 0])


@pytest.mark.parametrize("norm", [None, True, False])
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_pooling_changes_and_the_norm_stays(tiny, norm, pool) -> None:
    """As in timm: the final norm's weights are trained for the place where it stands."""
    model, images = tiny(global_pool="map", fc_norm=norm), torch.randn(2, 3, 12, 20)
    tokens, after = model.forward_features(images), model.config.norms_pooled
    model.reset_classifier(0, pool)
    pooled = tokens[:, 0] if pool == "token" else tokens[:, 1:].mean(1)
    torch.testing.assert_close(model(images), model.fc_norm(pooled))
    assert model.config.norms_pooled == after
    assert not any(name.startswith("attn_pool") for name in model.state_dict())
    twin = VisionTransformer(model.config).eval()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(images), model(images))


def test_a_distilled_model_gets_two_new_heads(tiny) -> None:
    model = tiny(distilled=True)
    model.reset_classifier(2)
    assert model.get_classifier() == (model.head, model.head_dist)
    assert [tuple(head.weight.shape) for head in model.get_classifier()] == [(2, 24), (2, 24)]


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, (3, "map"), "global_pool='map' needs an attention pool, which this model was built without"),
        ({}, (3, "max"), "global_pool must be one of token, avg, map, got 'max'"),
        ({}, (-1,), "num_classes must be at least 0, got -1"),
        ({"class_token": False, "global_pool": "avg"}, (3, "token"), "reads the class token, but class_token is false"),
        ({"distilled": True}, (3, "avg"), "distilled=True reads two tokens"),
    ],
)
def test_heads_that_do_not_fit_are_refused(tiny, changes, arguments, message) -> None:
    model = tiny(**changes)
    config, head = model.config, model.head
    with pytest.raises(ConfigError, match=message):
        model.reset_classifier(*arguments)
    assert model.config is config
    assert model.head is head
