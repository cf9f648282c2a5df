"""What Google's layouts have no place for, and what they make of drawn models and of shapes that fit nothing."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from vit_rs.checkpoints.files import TensorInfo, open_weights, write_npz
from vit_rs.checkpoints.layouts.bit import BIG_TRANSFER, BIG_VISION_BIT
from vit_rs.checkpoints.layouts.google import BIG_VISION, NAFLEX, VISION_TRANSFORMER
from vit_rs.checkpoints.layouts.known import google_layout
from vit_rs.checkpoints.layouts.section import find_section
from vit_rs.checkpoints.layouts.translation import translate, translated_back
from vit_rs.exceptions import CheckpointError
from vit_rs.models import BiTResNet, HybridConfig, HybridViT, ResNetConfig, VisionTransformer, ViTConfig

HEADS, WIDTH = 3, 12
OURS = {"embed_dim": WIDTH, "depth": 1, "num_heads": HEADS, "img_size": 8, "patch_size": 4, "num_classes": 5}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reg_tokens": 2}, "no place for reg_token"),
        ({"init_values": 0.1}, "no place for blocks.0.ls1.gamma, blocks.0.ls2.gamma"),
        ({"qk_norm": True}, "no place for blocks.0.attn.q_norm.weight"),
        ({"distilled": True}, "no place for dist_token, head_dist.weight"),
        ({"global_pool": "avg"}, "no place for fc_norm.weight, fc_norm.bias"),
        ({"mlp": "swiglu"}, "blocks.0.mlp.fc1.weight: got the two halves of a gated MLP"),
        ({"qkv_bias": False}, "blocks.0.attn.qkv.bias: got none"),
        ({"pos_embed": "2d"}, "no place for pos_embed_x, pos_embed_y"),
        ({"pos_placement": "every", "depth": 2}, "pos_embed: got 2 tables, expected one"),
    ],
)
@pytest.mark.parametrize("layout", [VISION_TRANSFORMER, BIG_VISION], ids=lambda layout: layout.name)
def test_what_has_no_place_is_listed(layout, options, message):
    state = VisionTransformer(ViTConfig(**(OURS | options))).state_dict()
    with pytest.raises(CheckpointError, match=re.escape(message)):
        translated_back(state, layout, heads=HEADS)


def test_heads_are_never_guessed():
    state = VisionTransformer(ViTConfig(**OURS)).state_dict()
    with pytest.raises(CheckpointError, match=r"blocks.0.attn.qkv.weight.*number the source does not say"):
        translated_back(state, VISION_TRANSFORMER)
    with pytest.raises(CheckpointError, match="width 12 is not divisible by 5 heads"):
        translated_back(state, VISION_TRANSFORMER, heads=5)


@pytest.mark.parametrize(
    ("rows", "cls", "expected"),
    [(9, True, 0), (10, True, 1), (10, False, 0), (6, True, 0), (2, True, 1), (1, True, 0), (5, True, 1)],
)
def test_a_class_row_at_the_root_is_told_by_a_square_and_one(rows, cls, expected):
    tensors = {"pos_embedding": TensorInfo((1, rows, WIDTH), torch.float32)}
    if cls:
        tensors["cls"] = TensorInfo((1, 1, WIDTH), torch.float32)
    assert BIG_VISION.prefix_rows(tensors) == expected


def read(path):
    with open_weights(path) as file:
        translation = translate(find_section(file))
        assert not translation.unknown
        return {ours: translation.read(ours).clone() for ours in translation.sources}


def drawn_values(model, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(value.shape, generator=generator).to(dtype) for key, value in model.state_dict().items()}


@st.composite
def configs(draw):
    heads, patch = draw(st.integers(1, 3)), (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    pool = draw(st.sampled_from(["token", "avg", "map"]))
    cls = pool == "token"
    return ViTConfig(
        img_size=(patch[0] * draw(st.integers(1, 3)), patch[1] * draw(st.integers(1, 3))),
        patch_size=patch,
        in_chans=draw(st.integers(1, 4)),
        num_classes=draw(st.integers(0, 3)),
        embed_dim=heads * draw(st.integers(1, 3)),
        depth=draw(st.integers(1, 3)),
        num_heads=heads,
        mlp_ratio=draw(st.sampled_from([1.0, 3.0])),
        class_token=cls,
        no_embed_class=cls and draw(st.booleans()),
        global_pool=pool,
        fc_norm=False,
        representation_size=draw(st.sampled_from([None, 3])),
    )


@given(configs(), st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
def test_what_is_written_is_read_bit_for_bit(tmp_path_factory, config, dtype):
    path = tmp_path_factory.mktemp("drawn") / "model.npz"
    state = drawn_values(VisionTransformer(config), dtype)
    layout = google_layout(state, config.embedded_prefix_tokens)
    write_npz(path, translated_back(state, layout, heads=config.num_heads))
    back = read(path)
    assert back.keys() == state.keys()
    for key, value in state.items():
        assert back[key].dtype == dtype
        assert torch.equal(back[key], value), key


@pytest.mark.parametrize("stages", [(), (1,), (1, 2)])
def test_hybrids_and_resnets_come_back(tmp_path, stages):
    sizes = {"embed_dim": WIDTH, "depth": 1, "num_heads": HEADS, "img_size": (16, 32), "num_classes": 2}
    models = [HybridViT(HybridConfig(**sizes, backbone_layers=stages))]
    if stages:
        models.append(BiTResNet(ResNetConfig(layers=stages, num_classes=2)))
    for model in models:
        state = drawn_values(model)
        write_npz(tmp_path / "model.npz", translated_back(state, google_layout(state, 1), heads=HEADS))
        back = read(tmp_path / "model.npz")
        assert back.keys() == state.keys()
        assert all(torch.equal(back[key], value) for key, value in state.items())


STATES = (
    drawn_values(VisionTransformer(ViTConfig(**OURS))),
    drawn_values(VisionTransformer(ViTConfig(**OURS, class_token=False, global_pool="map"))),
    drawn_values(BiTResNet(ResNetConfig(layers=(1,), num_classes=2))),
)
HEAD = sorted(STATES[2]).index("head.fc.weight")


@example(HEAD, 2, BIG_VISION_BIT, [2, 8, 1, 1, 3])
@given(
    st.integers(0, 99),
    st.sampled_from(range(len(STATES))),
    st.sampled_from([VISION_TRANSFORMER, BIG_VISION, NAFLEX, BIG_TRANSFER, BIG_VISION_BIT]),
    st.lists(st.integers(0, 7), max_size=5),
)
def test_shapes_that_fit_nothing_are_checkpoint_errors(number, index, layout, shape):
    state = STATES[index]
    key = sorted(state)[number % len(state)]
    message = layout.name
    try:
        translated_back(state | {key: torch.zeros(shape)}, layout, heads=HEADS)
    except CheckpointError as error:
        message = str(error)
    assert layout.name in message


@given(st.data(), st.sampled_from(range(len(STATES))), st.lists(st.integers(0, 7), max_size=5))
def test_files_of_such_shapes_too(tmp_path_factory, data, index, shape):
    state = STATES[index]
    path = tmp_path_factory.mktemp("shapes") / "model.npz"
    arrays = translated_back(state, google_layout(state, int("cls_token" in state)), heads=HEADS)
    key = data.draw(st.sampled_from(sorted(arrays)))
    write_npz(path, arrays | {key: torch.zeros(shape)})
    message = str(path)
    with open_weights(path) as file:
        try:
            translation = translate(find_section(file))
            section = translation.section
            section.layout.prefix_rows(section.tensors)
            section.layout.patch_pixels(section.tensors, (4, 4))
            for ours in translation.sources:
                translation.read(ours)
        except CheckpointError as error:
            message = str(error)
    assert str(path) in message
