"""Schedule, optimizer groups, moving average, mixup and cutmix: each against its closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vit_rs.methods import EMA, Supervised
from vit_rs.models import VisionTransformer, ViTConfig
from vit_rs.training import OptimConfig
from vit_rs.training.optim import build_optimizer, parameter_groups
from vit_rs.training.schedule import learning_rate


def small_vit() -> VisionTransformer:
    return VisionTransformer(
        ViTConfig(img_size=8, patch_size=4, in_chans=1, num_classes=3, embed_dim=8, depth=1, num_heads=2)
    )


def test_learning_rate_follows_the_closed_form():
    rates = [learning_rate(s, 100, peak=2.0, final=0.5, warmup_steps=10) for s in range(100)]
    for step in range(10):
        assert rates[step] == pytest.approx(2.0 * (step + 1) / 11)
    for step in range(10, 100):
        expected = 0.5 + 0.75 * (1 + math.cos(math.pi * (step - 10) / 90))
        assert rates[step] == pytest.approx(expected)
    assert rates[10] == 2.0


def test_linear_and_constant_decay():
    assert learning_rate(0, 10, peak=1.0, decay="linear") == 1.0
    assert learning_rate(5, 10, peak=1.0, final=0.2, decay="linear") == pytest.approx(0.6)
    assert learning_rate(10, 10, peak=1.0, final=0.2, decay="linear") == pytest.approx(0.2)
    assert learning_rate(9, 10, peak=1.0, decay="constant") == 1.0


def test_a_warm_up_longer_than_the_stage_only_rises():
    rates = [learning_rate(s, 5, peak=1.0, warmup_steps=20) for s in range(5)]
    assert rates == sorted(rates)
    assert max(rates) < 1.0


def test_only_matrices_are_decayed():
    model = small_vit()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, kept = parameter_groups(model, 0.3)
    assert decayed["weight_decay"] == 0.3
    assert kept["weight_decay"] == 0.0
    decayed_names = {names[id(parameter)] for parameter in decayed["params"]}
    assert {
        "patch_embed.proj.weight",
        "blocks.0.attn.qkv.weight",
        "blocks.0.mlp.fc1.weight",
        "head.weight",
    } <= decayed_names
    assert all(name.endswith("weight") and "norm" not in name for name in decayed_names)
    kept_names = {names[id(parameter)] for parameter in kept["params"]}
    assert {"cls_token", "pos_embed", "blocks.0.norm1.weight", "head.bias"} <= kept_names
    assert len(decayed_names) + len(kept_names) == len(names)


@pytest.mark.parametrize(
    "options",
    [
        {"distilled": True, "reg_tokens": 2, "pos_placement": "every"},
        {"pos_embed": "2d", "pos_placement": "shared"},
        {"pos_embed": "relative", "global_pool": "map"},
    ],
)
def test_tokens_and_tables_are_not_decayed(options):
    model = VisionTransformer(ViTConfig(img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, **options))
    parameters = dict(model.named_parameters())
    _, kept = parameter_groups(model, 0.3)
    kept_ids = {id(parameter) for parameter in kept["params"]}
    assert {id(parameters[name]) for name in model.no_weight_decay()} <= kept_ids
    assert any(parameters[name].ndim > 1 for name in model.no_weight_decay())


def test_frozen_parameters_are_left_out():
    model = small_vit()
    model.patch_embed.requires_grad_(False)
    count = sum(len(group["params"]) for group in parameter_groups(model, 0.1))
    assert count == len(list(model.parameters())) - 2


def test_the_fused_optimizer_follows_adamw():
    torch.manual_seed(0)
    model, config = small_vit(), OptimConfig(lr=0.01, weight_decay=0.3)
    twin = small_vit()
    twin.load_state_dict(model.state_dict())
    optimizers = [
        build_optimizer(model, config),
        torch.optim.AdamW(parameter_groups(twin, 0.3), lr=0.01, fused=False, foreach=False),
    ]
    for _ in range(3):
        # Drawn gradients: those of the loss are rounding noise for the keys' bias, which Adam would magnify.
        for one, other in zip(model.parameters(), twin.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_moving_average_follows_its_definition():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    ema = EMA(model, 0.9)
    expected = model.weight.detach().clone().double()
    for update in range(1, 40):
        with torch.no_grad():
            model.weight += torch.randn(2, 3)
        ema.update(model)
        decay = min(0.9, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * model.weight.detach().double()
    torch.testing.assert_close(ema.model.weight.double(), expected, rtol=1e-5, atol=1e-5)
    assert not ema.model.training
    assert not ema.model.weight.requires_grad


def test_a_restored_moving_average_goes_on_to_the_bit():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    whole = EMA(model, 0.99)
    whole.update(model)
    resumed = EMA(model, 0.99)
    resumed.load_state_dict(whole.state_dict())
    with torch.no_grad():
        model.weight += 1.0
    whole.update(model)
    resumed.update(model)
    assert torch.equal(whole.model.weight, resumed.model.weight)


def test_a_decay_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match=r"decay must lie between 0 and 1, got 1\.0"):
        EMA(torch.nn.Linear(1, 1), 1.0)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(6, 2, 9, 7, generator=generator), torch.tensor([0, 1, 2, 3, 4, 5])


def test_without_mixing_the_loss_is_cross_entropy():
    images, labels = batch()
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(126, 6))
    method = Supervised(label_smoothing=0.1)
    assert method.mix(images, labels, step=0).images is images
    expected = F.cross_entropy(model(images), labels, label_smoothing=0.1)
    assert torch.equal(method.loss(model, images, labels, step=0), expected)


@pytest.mark.parametrize("step", range(5))
def test_mixup_blends_images_and_labels_alike(step):
    images, labels = batch()
    mixed = Supervised(mixup=0.8).mix(images, labels, step=step)
    order = mixed.partner_labels  # the labels are the positions
    assert sorted(order.tolist()) == labels.tolist()
    assert 0.0 <= mixed.share <= 1.0
    torch.testing.assert_close(mixed.images, mixed.share * images + (1 - mixed.share) * images[order])


@pytest.mark.parametrize("step", range(20))
def test_cutmix_pastes_a_rectangle_of_the_target_s_area(step):
    images, labels = batch()
    before = images.clone()
    mixed = Supervised(cutmix=1.0).mix(images, labels, step=step)
    assert torch.equal(images, before)
    partner = images[mixed.partner_labels]
    moved = mixed.partner_labels != labels
    pasted = (mixed.images == partner).all(dim=1)[moved]
    kept = (mixed.images == images).all(dim=1)[moved]
    assert (pasted | kept).all()
    if moved.any():
        area = pasted[0].float().mean().item()
        assert area == pytest.approx(1 - mixed.share)
        rows, columns = pasted[0].any(dim=1), pasted[0].any(dim=0)
        assert rows.sum() * columns.sum() == pasted[0].sum()


def test_mixed_targets_are_weighed_by_share():
    images, labels = batch()
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(126, 6))
    method = Supervised(mixup=0.5, label_smoothing=0.1, seed=(3,))
    mixed = method.mix(images, labels, step=2)
    one_hot = F.one_hot(labels, 6) * mixed.share + F.one_hot(mixed.partner_labels, 6) * (1 - mixed.share)
    target = 0.9 * one_hot + 0.1 / 6
    expected = -(target * model(mixed.images).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(method.loss(model, images, labels, step=2), expected)


def test_mixing_depends_on_seed_and_step_alone():
    images, labels = batch()
    method = Supervised(mixup=0.5, cutmix=0.5, seed=(1, 2))
    torch.manual_seed(0)
    first = method.mix(images, labels, step=7)
    np.random.default_rng(0)
    torch.manual_seed(1)
    again = method.mix(images, labels, step=7)
    assert torch.equal(first.images, again.images)
    assert first.share == again.share
    others = [
        method.mix(images, labels, step=8),
        Supervised(mixup=0.5, cutmix=0.5).mix(images, labels, step=7),
    ]
    assert all(other.share != first.share for other in others)


def test_with_both_on_each_is_drawn():
    images, labels = batch()
    method = Supervised(mixup=1.0, cutmix=1.0)
    kinds = set()
    for step in range(30):
        mixed = method.mix(images, labels, step=step)
        partner = images[mixed.partner_labels]
        kinds.add(bool(((mixed.images == images) | (mixed.images == partner)).all()))
    assert kinds == {True, False}


def test_mixup_and_cutmix_make_an_image_of_the_same_kind():
    images, labels = torch.full((3, 1, 1, 1), 0.5), torch.tensor([0, 1, 1])
    for method in (Supervised(mixup=1.0), Supervised(cutmix=1.0)):
        for step in range(10):
            assert torch.equal(method.mix(images, labels, step=step).images, images)
