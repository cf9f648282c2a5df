"""Optimizers and their groups, moving average, mixup, cutmix and losses: each against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import timm.optim
import torch
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vit_rs.methods import EMA, Supervised
from vit_rs.models import BiTResNet, ResNetConfig, VisionTransformer, ViTConfig, create_model
from vit_rs.training import OptimConfig
from vit_rs.training.optim import build_optimizer, layer_numbers, parameter_groups, set_schedule


def small_vit() -> VisionTransformer:
    return VisionTransformer(
        ViTConfig(img_size=8, patch_size=4, in_chans=1, num_classes=3, embed_dim=8, depth=1, num_heads=2)
    )


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


def plain(name, weights, groups, config):
    """Yield after each step of an optimizer written out, one parameter at a time, in float64."""
    first, second = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    for step in range(1, 6):
        gradients = yield
        for w, g, m, v, group in zip(weights, gradients, first, second, groups, strict=True):
            rate, decay = config.lr * group["lr_scale"], group["weight_decay"]
            if name == "sgd":
                m.mul_(config.momentum).add_(g + decay * w)
                w.sub_(rate * m)
                continue
            w.mul_(1 - rate * decay)
            m.lerp_(g, 1 - config.betas[0])
            v.lerp_(g * g, 1 - config.betas[1])
            mean, square = m / (1 - config.betas[0] ** step), v / (1 - config.betas[1] ** step)
            w.sub_(rate * mean / (square.sqrt() + config.eps))
    yield


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_five_steps_follow_the_optimizer_s_definition(name):
    torch.manual_seed(0)
    config = OptimConfig(name=name, lr=0.01, weight_decay=0.3, layer_decay=0.7, betas=(0.8, 0.95), momentum=0.8)
    optimizer = build_optimizer(small_vit(), config)
    groups = [group for group in optimizer.param_groups for _ in group["params"]]
    weights = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    expected = [weight.detach().double().clone() for weight in weights]
    set_schedule(optimizer, learning_rate=config.lr, weight_decay=config.weight_decay)
    reference = plain(name, expected, groups, config)
    next(reference)
    for _ in range(5):
        # Drawn gradients: those of the loss are rounding noise for the keys' bias, which Adam would magnify.
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        reference.send([weight.grad.double() for weight in weights])
        optimizer.step()
    for weight, other in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.double(), other, rtol=1e-5, atol=1e-6)


def test_the_fused_optimizers_are_torch_s():
    for name, kind in (("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)):
        optimizer = build_optimizer(small_vit(), OptimConfig(name=name))
        assert type(optimizer) is kind
        assert optimizer.defaults["fused"]


def test_the_schedule_reaches_every_group():
    optimizer = build_optimizer(small_vit(), OptimConfig(name="lars", layer_decay=0.5))
    set_schedule(optimizer, learning_rate=8.0, weight_decay=0.25)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [
        *((2.0, 0.25), (2.0, 0.0)),
        *((4.0, 0.25), (4.0, 0.0)),
        *((8.0, 0.25), (8.0, 0.0)),
    ]


def test_layers_are_embedding_blocks_and_head():
    options = {"reg_tokens": 1, "global_pool": "map", "representation_size": 4}
    layers = layer_numbers(VisionTransformer(ViTConfig(embed_dim=8, depth=2, num_heads=1, **options)))
    assert {name for name, layer in layers.items() if layer == 0} == {
        *("cls_token", "reg_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")
    }
    assert layers["blocks.0.norm1.weight"] == 1
    assert layers["blocks.1.mlp.fc2.bias"] == 2
    last = {name.split(".")[0] for name, layer in layers.items() if layer == 3}
    assert last == {"norm", "attn_pool", "pre_logits", "head"}


def test_a_hybrid_s_resnet_is_a_part_of_its_embedding():
    with torch.device("meta"):
        layers = layer_numbers(create_model("vit_base_r50_s16_224", depth=1))
    backbone = {layer for name, layer in layers.items() if name.startswith("patch_embed.")}
    assert any(".blocks." in name and layer == 0 for name, layer in layers.items())
    assert (backbone, layers["blocks.0.norm1.weight"], layers["head.weight"]) == ({0}, 1, 2)


def test_a_resnet_s_layers_are_its_stages():
    with torch.device("meta"):
        layers = layer_numbers(BiTResNet(ResNetConfig()))
    assert layers["stem.conv.weight"] == 0
    assert layers["stages.0.blocks.0.conv1.weight"] == 1
    assert layers["stages.3.blocks.2.conv3.weight"] == 4
    assert layers["norm.weight"] == layers["head.fc.bias"] == 5


def test_a_model_without_layers_is_refused():
    with pytest.raises(ValueError, match=r"expected a model with parameters under blocks\.0 or stages\.0, got Linear"):
        layer_numbers(torch.nn.Linear(1, 1))


@pytest.mark.parity
def test_layer_wise_scales_are_timm_s():
    with torch.device("meta"):
        ours = create_model("vit_tiny_patch16_224")
        theirs = timm.create_model("vit_tiny_patch16_224")
    groups = timm.optim.param_groups_layer_decay(
        theirs, weight_decay=0.3, layer_decay=0.75, no_weight_decay_list=theirs.no_weight_decay()
    )
    names = [{id(p): name for name, p in model.named_parameters()} for model in (ours, theirs)]
    scales = [
        {known[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in listed for p in group["params"]}
        for known, listed in zip(names, (parameter_groups(ours, 0.3, layer_decay=0.75), groups), strict=True)
    ]
    # timm counts the norm after the blocks to the last of them; here, as in BEiT and MAE, it is the head's.
    for name in ("norm.weight", "norm.bias"):
        assert (scales[0].pop(name), scales[1].pop(name)) == ((1.0, 0.0), (0.75, 0.0))
    assert scales[0] == scales[1]
    assert scales[0]["pos_embed"] == (pytest.approx(0.75**13), 0.0)


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


def test_the_moving_average_is_torch_s_own():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    ema = EMA(model, 0.5)
    # 0.5 is below the warm-up's decay, (1 + n) / (10 + n), from the eighth update on.
    for _ in range(8):
        ema.update(model)
    twin = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    twin.update_parameters(ema.model)  # its first update copies
    for _ in range(5):
        with torch.no_grad():
            model.weight += torch.randn(2, 3)
        ema.update(model)
        twin.update_parameters(model)
    assert torch.equal(ema.model.weight, twin.module.weight)


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


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_sigmoid_loss_is_the_classes_own_cross_entropy(smoothing):
    images, labels = batch()
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(126, 6))
    method = Supervised(mixup=0.5, label_smoothing=smoothing, activation="sigmoid", seed=(3,))
    mixed = method.mix(images, labels, step=2)
    one_hot = F.one_hot(labels, 6) * mixed.share + F.one_hot(mixed.partner_labels, 6) * (1 - mixed.share)
    target = (1 - smoothing) * one_hot + smoothing / 6
    expected = F.binary_cross_entropy_with_logits(model(mixed.images), target, reduction="none").sum(1).mean()
    torch.testing.assert_close(method.loss(model, images, labels, step=2), expected)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_the_loss_of_no_images_is_zero(activation):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    loss = Supervised(activation=activation).loss(model, torch.zeros(0, 1, 2, 2), torch.zeros(0).long(), step=0)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(model[1].weight.grad, torch.zeros(3, 4))


def test_parts_of_a_batch_are_the_batch():
    images, labels = batch()
    mixed = Supervised(mixup=0.5).mix(images, labels, step=0)
    parts = mixed.split(4)
    assert [len(part.labels) for part in parts] == [2, 2, 1, 1]
    for whole, *pieces in zip(mixed[:3], *(part[:3] for part in parts), strict=True):
        assert torch.equal(torch.cat(pieces), whole)
    assert [len(part.labels) for part in mixed.split(7)] == [1] * 6 + [0]
    assert mixed.split(1)[0].images is mixed.images
