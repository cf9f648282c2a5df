"""Fresh weights: distributions as in the paper's own code and big_vision, a function of the seed."""

import math

import pytest
import torch

from vit_rs.models import VisionTransformer, ViTConfig

TINY = {"img_size": (12, 20), "patch_size": 4, "num_classes": 5, "embed_dim": 24, "depth": 3, "num_heads": 3}


def check_uniform(kernel: torch.Tensor, fan_in: int, fan_out: int) -> None:
    """Xavier: uniform up to sqrt(6 / (fan in + fan out))."""
    bound = math.sqrt(6.0 / (fan_in + fan_out))
    assert 0.99 * bound < kernel.abs().max() <= bound
    assert kernel.std().item() == pytest.approx(bound / math.sqrt(3.0), rel=0.02)


def check_lecun(kernel: torch.Tensor, fan_in: int) -> None:
    """flax's lecun_normal: of this deviation after the cut at two deviations, as flax corrects for it."""
    deviation = math.sqrt(1.0 / fan_in)
    assert kernel.std().item() == pytest.approx(deviation, rel=0.02)
    assert kernel.abs().max() <= 2.0 * deviation / 0.87962566 + 1e-7


def check_mlp_biases(mlp: torch.nn.Module) -> None:
    for bias in (mlp.fc1.bias, mlp.fc2.bias):
        assert bias.std().item() == pytest.approx(1e-6, rel=0.2)


D, HIDDEN = 192, 768


@pytest.fixture
def made():
    """Build a freshly initialised model, large enough for statistics."""

    def build(**changes: object) -> VisionTransformer:
        torch.manual_seed(0)
        sizes = {"img_size": 64, "patch_size": 8, "embed_dim": D, "depth": 2, "num_heads": 3}
        return VisionTransformer(ViTConfig(**{**sizes, **changes}))

    return build


def test_initialisation_is_that_of_jax(made) -> None:
    model = made(init_head_bias=-6.9)
    for block in model.blocks:
        for kernel in block.attn.qkv.weight.split(D):  # each D x D by itself, not the fused 3D x D
            check_uniform(kernel, D, D)
        check_uniform(block.attn.proj.weight, D, D)
        check_uniform(block.mlp.fc1.weight, D, HIDDEN)
        check_uniform(block.mlp.fc2.weight, HIDDEN, D)
        assert not block.attn.qkv.bias.any()
        assert not block.attn.proj.bias.any()
        check_mlp_biases(block.mlp)
    check_lecun(model.patch_embed.proj.weight, 3 * 8 * 8)
    assert not model.patch_embed.proj.bias.any()
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert not model.cls_token.any()
    assert not model.head.weight.any()
    assert torch.equal(model.head.bias, torch.full((1000,), -6.9))
    assert torch.equal(model.norm.weight, torch.ones(D))


def test_gate_and_value_are_drawn_each_by_itself(made) -> None:
    for block in made(mlp="swiglu").blocks:
        for kernel in block.mlp.fc1.weight.chunk(2):
            check_uniform(kernel, D, HIDDEN // 2)
        check_uniform(block.mlp.fc2.weight, HIDDEN // 2, D)
        check_mlp_biases(block.mlp)


def test_the_attention_pool_is_big_visions(made) -> None:
    pool = made(global_pool="map").attn_pool
    bound = math.sqrt(6.0 / (1 + D))  # Xavier over (1, 1, D)
    assert 0.9 * bound < pool.latent.abs().max() <= bound
    for kernel in (pool.q.weight, *pool.kv.weight.split(D), pool.proj.weight):
        check_uniform(kernel, D, D)
    check_uniform(pool.mlp.fc1.weight, D, HIDDEN)
    check_uniform(pool.mlp.fc2.weight, HIDDEN, D)
    assert not any(bias.any() for bias in (pool.q.bias, pool.kv.bias, pool.proj.bias, pool.norm.bias))
    check_mlp_biases(pool.mlp)


def test_tokens_scales_and_representation(made) -> None:
    model = made(reg_tokens=4, init_values=1e-5, qk_norm=True, representation_size=512)
    assert model.reg_token.std().item() == pytest.approx(0.02, rel=0.1)
    assert not torch.equal(model.reg_token[0, 0], model.reg_token[0, 1])
    for block in model.blocks:
        assert torch.equal(block.ls1.gamma, torch.full((D,), 1e-5))
        assert torch.equal(block.ls2.gamma, torch.full((D,), 1e-5))
        assert torch.equal(block.attn.q_norm.weight, torch.ones(64))
    check_lecun(model.pre_logits.fc.weight, D)
    assert not model.pre_logits.fc.bias.any()
    model = made(distilled=True, init_head_bias=-1.0)
    assert model.dist_token.std().item() == pytest.approx(0.02, rel=0.2)
    for head in (model.head, model.head_dist):
        assert not head.weight.any()
        assert torch.equal(head.bias, torch.full((1000,), -1.0))


def test_initialisation_is_a_function_of_the_seed() -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(VisionTransformer(ViTConfig(**TINY)).state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not torch.equal(states[0]["pos_embed"], states[2]["pos_embed"])


@pytest.mark.parametrize("changes", [{}, {"pos_embed": "sincos2d_mae"}, {"global_pool": "map", "init_values": 0.1}])
def test_initialisation_fills_a_model_from_the_meta_device(changes) -> None:
    config = ViTConfig(**{**TINY, **changes})
    ready = VisionTransformer(config)
    torch.manual_seed(0)
    ready.init_weights()
    with torch.device("meta"):
        model = VisionTransformer(config)
    assert all(parameter.is_meta for parameter in model.parameters())
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    model.init_weights()
    expected = ready.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
