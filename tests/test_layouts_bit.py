"""BiT's ResNets as .npz, written by hand as Big Transfer's and big_vision's files are, against timm's loader."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import timm
import torch

from vit_rs.checkpoints.files import open_weights
from vit_rs.checkpoints.layouts.bit import BIG_TRANSFER, BIG_VISION_BIT, units_of_stages
from vit_rs.checkpoints.layouts.google import BIG_VISION, VISION_TRANSFORMER
from vit_rs.checkpoints.layouts.known import google_layout
from vit_rs.checkpoints.layouts.section import find_section
from vit_rs.checkpoints.layouts.translation import translate, translated_back
from vit_rs.exceptions import CheckpointError
from vit_rs.models import BiTResNet, ResNetConfig

STAGES, ROOT, CLASSES = (1, 10), 64, 5


def weights(*, head=True):
    """Return the tensors of a BiT ResNet of two stages by Big Transfer's names: kernels (height, width, in, out)."""
    rng = np.random.default_rng(0)
    made = {}

    def add(name, *shape):
        made["resnet/" + name] = (rng.standard_normal(shape) * 0.2 + 0.3).astype(np.float32)

    def norm(name, width):
        add(f"{name}/gamma", width)
        add(f"{name}/beta", width)

    add("root_block/standardized_conv2d/kernel", 7, 7, 3, ROOT)
    width = ROOT
    for stage, units in enumerate(STAGES):
        middle = ROOT * 2**stage
        for unit in range(units):
            name = f"block{stage + 1}/unit{unit + 1:02d}"
            for place, side, inner, outer in (("a", 1, width, middle), ("b", 3, middle, middle), ("c", 1, middle, 0)):
                norm(f"{name}/{place}/group_norm", inner)
                add(f"{name}/{place}/standardized_conv2d/kernel", side, side, inner, outer or 4 * middle)
            if unit == 0:
                add(f"{name}/a/proj/standardized_conv2d/kernel", 1, 1, width, 4 * middle)
            width = 4 * middle
    norm("group_norm", width)
    if head:
        add("head/conv2d/kernel", 1, 1, width, CLASSES)
        add("head/conv2d/bias", CLASSES)
    return made


def peer(classes=CLASSES):
    """Return timm's BiT of that size."""
    return timm.models.ResNetV2(
        STAGES,
        num_classes=classes,
        stem_type="fixed",
        conv_layer=partial(timm.layers.StdConv2d, eps=1e-8),
    )


def by_big_vision(made):
    """Return Big Transfer's tensors as big_vision stores them."""
    found = {}
    for key, value in made.items():
        name = key.removeprefix("resnet/").replace("/a/proj/standardized_conv2d", "/conv_proj")
        for number, place in enumerate("abc", 1):
            name = name.replace(f"/{place}/group_norm", f"/gn{number}")
            name = name.replace(f"/{place}/standardized_conv2d", f"/conv{number}")
        name = name.replace("root_block/standardized_conv2d", "root_block/conv_root").replace("head/conv2d", "head")
        if name.startswith("group_norm"):
            name = name.replace("group_norm", "norm-pre-head")
        name = name.replace("/gamma", "/scale").replace("/beta", "/bias")
        norm = "gn" in name or "norm-" in name
        found[name] = value[None, None, None] if norm else value[0, 0] if name == "head/kernel" else value
    return found


def numbered(made):
    """Return the tensors by names of a graph in which TensorFlow built other models before."""
    found = {}
    for key, value in made.items():
        name = key.replace("/standardized_conv2d/", f"/standardized_conv2d_{17 + len(found)}/")
        found[name.replace("c/group_norm/", "c/group_norm_3/").replace("/conv2d/", "/conv2d_1/")] = value
    return found


def read(path):
    with open_weights(path) as file:
        translation = translate(find_section(file))
        return {ours: translation.read(ours).clone() for ours in translation.sources}, translation


@pytest.mark.parity
@pytest.mark.parametrize("spelled", [dict, numbered, by_big_vision])
@pytest.mark.parametrize("head", [True, False])
def test_every_spelling_is_what_timm_reads(tmp_path, spelled, head):
    made = weights(head=head)
    np.savez(tmp_path / "plain.npz", **made)
    theirs = peer(CLASSES if head else 0)
    if head:
        theirs.load_pretrained(str(tmp_path / "plain.npz"))
    else:
        whole = peer()
        np.savez(tmp_path / "whole.npz", **weights())
        whole.load_pretrained(str(tmp_path / "whole.npz"))
        theirs.load_state_dict({key: value for key, value in whole.state_dict().items() if "head" not in key})
    np.savez(tmp_path / "spelled.npz", **spelled(made))
    state, translation = read(tmp_path / "spelled.npz")
    section = translation.section
    assert section.layout is (BIG_VISION_BIT if spelled is by_big_vision else BIG_TRANSFER)
    assert section.layout.prefix_rows(section.tensors) == 0
    assert not translation.unknown
    expected = theirs.state_dict()
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(state[key], value), key
    model = BiTResNet(ResNetConfig(layers=STAGES, num_classes=CLASSES if head else 0)).eval()
    model.load_state_dict(state)
    pixels = torch.from_numpy(np.random.default_rng(1).standard_normal((1, 3, 40, 56)).astype(np.float32))
    with torch.no_grad():
        ours, reference = model(pixels), theirs.eval()(pixels)
    torch.testing.assert_close(ours, reference, rtol=0.0, atol=1e-5 * max(1.0, reference.abs().max().item()))
    written = by_big_vision(made) if spelled is by_big_vision else made
    back = translated_back(state, section.layout)
    assert back.keys() == written.keys()
    for key, value in written.items():
        np.testing.assert_array_equal(back[key].numpy(), value, err_msg=key)


def test_a_hybrid_s_norms_have_no_place(tmp_path):
    np.savez(tmp_path / "file.npz", **weights())
    state, _ = read(tmp_path / "file.npz")
    state["stages.0.blocks.0.downsample.norm.weight"] = torch.ones(128)
    with pytest.raises(CheckpointError, match=r"no place for stages.0.blocks.0.downsample.norm.weight"):
        translated_back(state, BIG_TRANSFER)


def test_units_end_at_the_first_gap():
    keys = [f"block{stage}/unit{unit}/conv1/kernel" for stage, unit in ((1, 1), (1, 2), (1, 4), (2, 1), (4, 1))]
    assert units_of_stages(keys) == (2, 1)
    assert units_of_stages([*keys, "resnet/block3/unit01/a/x", f"block{10**9}/unit1/x"]) == (2, 1, 1, 1)
    assert units_of_stages([]) == ()


def test_the_layout_that_is_written():
    tokens = {"patch_embed.proj.weight", "pos_embed", "cls_token"}
    hybrid = {"patch_embed.backbone.conv.weight", *tokens}
    assert google_layout(tokens, 1) is VISION_TRANSFORMER
    assert google_layout(tokens, 0) is BIG_VISION
    assert google_layout(hybrid, 1) is VISION_TRANSFORMER
    assert google_layout(hybrid, 0) is BIG_VISION
    assert google_layout(hybrid - {"cls_token"}, 0) is VISION_TRANSFORMER
    assert google_layout({"stem.conv.weight", "head.fc.weight"}, 0) is BIG_TRANSFER
