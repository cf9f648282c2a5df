"""Google's ViTs as .npz, written by hand in every spelling there was, against an independent transcription and peers.

`weights` makes the tensors with flax's names and axes of today; a `File` says how a file of another age differs.
No two axes of a tensor are equal, heads and their width neither, so that a wrong transpose cannot go unseen.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from vit_rs.checkpoints.files import open_weights, write_npz
from vit_rs.checkpoints.layouts.google import BIG_VISION, NAFLEX
from vit_rs.checkpoints.layouts.section import find_section
from vit_rs.checkpoints.layouts.translation import translate, translated_back
from vit_rs.exceptions import CheckpointError
from vit_rs.models import HybridConfig, HybridViT, VisionTransformer, ViTConfig

HEADS, WIDTH, HIDDEN, CLASSES = 3, 12, 20, 5
PATCH, IMAGE = (4, 6), (8, 18)  # a grid of 2 x 3

PRE_LINEN = (
    (r"(encoderblock\w*)/MultiHeadDotProductAttention_0", r"\1/MultiHeadDotProductAttention_1"),
    (r"(encoderblock\w*)/LayerNorm_1", r"\1/LayerNorm_2"),
    (r"(encoderblock\w*)/MlpBlock_0", r"\1/MlpBlock_3"),
)


def weights(
    *, rows=6, cls=False, pool=False, representation=None, head=True, patch=PATCH, chans=3, stages=None, root=8, seed=0
):
    """Return a ViT's tensors by big_vision's names of today; with `stages` a hybrid's of vision_transformer."""
    rng = np.random.default_rng(seed)
    made = {}

    def add(name, *shape):
        made[name] = (rng.standard_normal(shape) * 0.2 + 0.3).astype(np.float32)

    def norm(name):
        add(f"{name}/scale", WIDTH)
        add(f"{name}/bias", WIDTH)

    def dense(name, inner, outer):
        add(f"{name}/kernel", inner, outer)
        add(f"{name}/bias", outer)

    def block(name, norms):
        for part in ("query", "key", "value"):
            add(f"{name}/MultiHeadDotProductAttention_0/{part}/kernel", WIDTH, HEADS, WIDTH // HEADS)
            add(f"{name}/MultiHeadDotProductAttention_0/{part}/bias", HEADS, WIDTH // HEADS)
        add(f"{name}/MultiHeadDotProductAttention_0/out/kernel", HEADS, WIDTH // HEADS, WIDTH)
        add(f"{name}/MultiHeadDotProductAttention_0/out/bias", WIDTH)
        for index in range(norms):
            norm(f"{name}/LayerNorm_{index}")
        dense(f"{name}/MlpBlock_0/Dense_0", WIDTH, HIDDEN)
        dense(f"{name}/MlpBlock_0/Dense_1", HIDDEN, WIDTH)

    chans = add_resnet(add, stages, root, chans) if stages is not None else chans
    add("embedding/kernel", *patch, chans, WIDTH)
    add("embedding/bias", WIDTH)
    add("pos_embedding", 1, rows, WIDTH)
    if cls:
        add("cls", 1, 1, WIDTH)
    for index in range(2):
        block(f"Transformer/encoderblock_{index}", 2)
    norm("Transformer/encoder_norm")
    if pool:
        add("MAPHead_0/probe", 1, 1, WIDTH)
        block("MAPHead_0", 1)
    if representation:
        dense("pre_logits", WIDTH, representation)
    if head:
        dense("head", representation or WIDTH, CLASSES)
    return made


def add_resnet(add, stages, root, chans):
    """Add a hybrid's ResNet; returns its channels."""

    def convolution(conv, norm, side, inner, outer):
        add(f"{conv}/kernel", side, side, inner, outer)
        add(f"{norm}/scale", outer)
        add(f"{norm}/bias", outer)

    convolution("conv_root", "gn_root", 7, chans, root)
    chans = root
    for stage, units in enumerate(stages):
        middle = root * 2**stage
        for unit in range(units):
            name = f"block{stage + 1}/unit{unit + 1}"
            convolution(f"{name}/conv1", f"{name}/gn1", 1, chans, middle)
            convolution(f"{name}/conv2", f"{name}/gn2", 3, middle, middle)
            convolution(f"{name}/conv3", f"{name}/gn3", 1, middle, 4 * middle)
            if unit == 0:
                convolution(f"{name}/conv_proj", f"{name}/gn_proj", 1, chans, 4 * middle)
            chans = 4 * middle
    return chans


def transcribed(made):
    """Return these tensors under timm's names with torch's axes, by NumPy alone."""
    ours = {}

    def dense(name, theirs):
        ours[f"{name}.weight"] = np.moveaxis(made[f"{theirs}/kernel"], 0, 1)
        ours[f"{name}.bias"] = made[f"{theirs}/bias"]

    def norm(name, theirs):
        ours[f"{name}.weight"], ours[f"{name}.bias"] = made[f"{theirs}/scale"], made[f"{theirs}/bias"]

    def block(name, theirs, parts, norms, attention="attn."):
        theirs_attention = f"{theirs}/MultiHeadDotProductAttention_0"
        for ours_part, part in parts.items():
            kernels = [made[f"{theirs_attention}/{key}/kernel"] for key in part]
            biases = [made[f"{theirs_attention}/{key}/bias"] for key in part]
            rows = [kernel[:, h, d] for kernel in kernels for h in range(HEADS) for d in range(WIDTH // HEADS)]
            ours[f"{name}{attention}{ours_part}.weight"] = np.stack(rows)
            ours[f"{name}{attention}{ours_part}.bias"] = np.concatenate([bias.reshape(-1) for bias in biases])
        out = made[f"{theirs_attention}/out/kernel"]
        columns = [out[h, d] for h in range(HEADS) for d in range(WIDTH // HEADS)]
        ours[f"{name}{attention}proj.weight"] = np.stack(columns, axis=1)
        ours[f"{name}{attention}proj.bias"] = made[f"{theirs_attention}/out/bias"]
        for ours_norm, theirs_norm in norms.items():
            norm(name + ours_norm, f"{theirs}/{theirs_norm}")
        dense(f"{name}mlp.fc1", f"{theirs}/MlpBlock_0/Dense_0")
        dense(f"{name}mlp.fc2", f"{theirs}/MlpBlock_0/Dense_1")

    def convolution(name, theirs):
        ours[name] = np.moveaxis(np.moveaxis(made[theirs], 2, 0), 3, 0)

    convolution("patch_embed.proj.weight", "embedding/kernel")
    ours["patch_embed.proj.bias"] = made["embedding/bias"]
    ours["pos_embed"] = made["pos_embedding"]
    if "cls" in made:
        ours["cls_token"] = made["cls"]
    for index in range(2):
        norms = {"norm1": "LayerNorm_0", "norm2": "LayerNorm_1"}
        block(f"blocks.{index}.", f"Transformer/encoderblock_{index}", {"qkv": ("query", "key", "value")}, norms)
    norm("norm", "Transformer/encoder_norm")
    if "MAPHead_0/probe" in made:
        ours["attn_pool.latent"] = made["MAPHead_0/probe"]
        parts = {"q": ("query",), "kv": ("key", "value")}
        block("attn_pool.", "MAPHead_0", parts, {"norm": "LayerNorm_0"}, attention="")
    for name, theirs in (("pre_logits.fc", "pre_logits"), ("head", "head")):
        if f"{theirs}/kernel" in made:
            dense(name, theirs)
    for key in [key for key in made if re.match(r"(block\d|conv_root|gn_root)", key)]:
        name = key.replace("conv_root", "stem/conv").replace("gn_root", "stem/norm")
        name = re.sub(r"block(\d)/unit(\d)", lambda m: f"stages/{int(m[1]) - 1}/blocks/{int(m[2]) - 1}", name)
        name = (
            name.replace("conv_proj", "downsample/conv").replace("gn_proj", "downsample/norm").replace("/gn", "/norm")
        )
        name = name.replace("/kernel", "/weight").replace("/scale", "/weight").replace("/", ".")
        if not any(block.startswith("block1") for block in made):
            name = name.removeprefix("stem.")
        name = "patch_embed.backbone." + name
        if made[key].ndim == 4:
            convolution(name, key)
        else:
            ours[name] = made[key]
    return ours


@dataclass(frozen=True)
class File:
    """How a file spells today's names, and what it should be taken for."""

    layout: str
    options: dict = field(default_factory=dict)
    prefix: str = ""
    spelling: tuple = ()
    positions: str = "pos_embedding"
    prefix_rows: int = 0
    stacked: bool = False
    others: tuple = ()

    def spelled(self, made):
        """Return the tensors by the file's names."""
        found = {}
        if self.stacked:
            made = dict(made)
            for key in [key for key in made if "encoderblock_0" in key]:
                layers = [made.pop(key.replace("encoderblock_0", f"encoderblock_{index}")) for index in range(2)]
                made[key.replace("encoderblock_0", "encoderblock")] = np.stack(layers)
        for key, value in made.items():
            name = self.positions if key == "pos_embedding" else key
            for today, then in self.spelling:
                name = re.sub(today, then, name)
            found[self.prefix + name] = value
        return found | {key: np.full((2, 3), 0.5, np.float32) for key in self.others}


IN_ENCODER = "Transformer/posembed_input/pos_embedding"
FILES = {
    "the paper's": File(
        "vision_transformer",
        {"rows": 7, "cls": True, "representation": 8},
        spelling=PRE_LINEN,
        positions=IN_ENCODER,
        prefix_rows=1,
    ),
    "an optimiser's target": File(
        "vision_transformer",
        {"rows": 7, "cls": True},
        prefix="opt/target/",
        spelling=PRE_LINEN,
        positions=IN_ENCODER,
        prefix_rows=1,
        others=("opt/state/step", "opt/state/param_states/embedding/kernel/momentum"),
    ),
    "vision_transformer's of today": File(
        "vision_transformer", {"rows": 7, "cls": True}, positions=IN_ENCODER, prefix_rows=1
    ),
    "vision_transformer's average": File("vision_transformer", spelling=PRE_LINEN, positions=IN_ENCODER),
    "big_vision's before 2022": File(
        "vision_transformer", {"rows": 7, "cls": True}, positions="Transformer/pos_embedding", prefix_rows=1
    ),
    "big_vision's of the time between": File("big_vision", {"rows": 10, "cls": True}, prefix_rows=1),
    "big_vision's class token": File("big_vision", {"cls": True}, prefix="params/"),
    "big_vision's average": File("big_vision", {"representation": 8}, prefix="params/"),
    "big_vision's plain": File("big_vision"),
    "big_vision's MAP head": File("big_vision", {"pool": True}, prefix="params/"),
    "MAP at the root": File("big_vision", {"pool": True}, spelling=(("MAPHead_0/", ""),)),
    "MAP at the root before Linen": File(
        "vision_transformer",
        {"pool": True},
        spelling=(
            ("MAPHead_0/MultiHeadDotProductAttention_0", "MultiHeadDotProductAttention_2"),
            ("MAPHead_0/LayerNorm_0", "LayerNorm_3"),
            ("MAPHead_0/MlpBlock_0", "MlpBlock_4"),
            ("MAPHead_0/probe", "probe"),
            *PRE_LINEN,
        ),
        positions=IN_ENCODER,
    ),
    "SigLIP's image tower": File(
        "big_vision",
        {"pool": True, "head": False},
        prefix="params/img/",
        others=("params/t", "params/txt/Embed_0/embedding", "params/txt/head/kernel"),
    ),
    "scan": File("big_vision", {"pool": True}, prefix="params/", stacked=True),
    "hybrid": File(
        "vision_transformer",
        {"rows": 7, "cls": True, "patch": (1, 1), "stages": (1, 2)},
        spelling=PRE_LINEN,
        positions=IN_ENCODER,
        prefix_rows=1,
    ),
    "hybrid, root alone": File(
        "vision_transformer",
        {"rows": 7, "cls": True, "patch": (2, 3), "stages": ()},
        spelling=PRE_LINEN,
        positions=IN_ENCODER,
        prefix_rows=1,
    ),
}


def read(path):
    """Return our tensors, and what was said of them."""
    with open_weights(path) as file:
        translation = translate(find_section(file))
        return {ours: translation.read(ours).clone() for ours in translation.sources}, translation


def saved(path, arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_every_spelling_is_read_and_written_back(tmp_path, file):
    made = weights(**file.options)
    state, translation = read(saved(tmp_path / "file.npz", file.spelled(made)))
    section = translation.section
    assert (section.layout.name, section.prefix) == (file.layout, file.prefix)
    assert section.layout.convention == "jax"
    assert section.layout.prefix_rows(section.tensors) == file.prefix_rows
    assert not translation.unknown
    expected = transcribed(made)
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(state[key].numpy(), value, err_msg=key)
        assert translation.shape(key) == value.shape
    write_npz(tmp_path / "back.npz", translated_back(state, section.layout, heads=HEADS))
    written = FILES["the paper's" if file.layout == "vision_transformer" else "big_vision's plain"].spelled(made)
    with np.load(tmp_path / "back.npz") as back:
        assert set(back) == written.keys()
        for key, value in written.items():
            np.testing.assert_array_equal(back[key], value, err_msg=key)


def config(file, **options):
    """Return the configuration of ours that takes a file."""
    made, rows = file.options, file.prefix_rows
    return ViTConfig(
        img_size=IMAGE,
        patch_size=PATCH,
        embed_dim=WIDTH,
        depth=2,
        num_heads=HEADS,
        mlp_ratio=HIDDEN / WIDTH,
        num_classes=CLASSES if made.get("head", True) else 0,
        class_token=made.get("cls", False),
        no_embed_class=made.get("cls", False) and not rows,
        global_pool="map" if made.get("pool") else "token" if made.get("cls") else "avg",
        fc_norm=False,
        representation_size=made.get("representation"),
        **options,
    )


def peer(settings):
    """Return timm's model of a configuration of ours."""
    return timm.models.VisionTransformer(
        img_size=settings.img_size,
        patch_size=settings.patch_size,
        embed_dim=WIDTH,
        depth=2,
        num_heads=HEADS,
        mlp_ratio=settings.mlp_ratio,
        num_classes=settings.num_classes,
        class_token=settings.class_token,
        no_embed_class=settings.no_embed_class,
        global_pool=settings.global_pool,
        fc_norm=False,
    )


def images(size=IMAGE):
    return torch.from_numpy(np.random.default_rng(1).standard_normal((2, 3, *size)).astype(np.float32))


def assert_close(ours, theirs):
    """Within 1e-5 of the largest, or of 1: the bound for logits in float32."""
    bound = 1e-5 * max(1.0, theirs.abs().max().item())
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=bound)


# timm reads neither a table at "Transformer/pos_embedding" nor a representation layer, nor a MAP head at the root.
@pytest.mark.parity
@pytest.mark.parametrize(
    "name",
    [
        "an optimiser's target",
        "vision_transformer's average",
        "big_vision's class token",
        "big_vision's plain",
        "big_vision's MAP head",
        "SigLIP's image tower",
        "scan",
    ],
)
def test_logits_are_timm_s(tmp_path, name):
    file = FILES[name]
    path = saved(tmp_path / "file.npz", file.spelled(weights(**file.options)))
    settings = config(file)
    model, theirs = VisionTransformer(settings).eval(), peer(settings).eval()
    model.load_state_dict(read(path)[0])
    theirs.load_pretrained(str(path))
    with torch.no_grad():
        assert_close(model(images()), theirs(images()))


BY_JAX = ("the paper's", "big_vision's average", "big_vision's MAP head")


@pytest.fixture(scope="module")
def jax_logits(tmp_path_factory):
    """Logits of jax's forward pass by the file's name, in float64."""
    # Imported there alone: jax warns of every later fork of a process that has imported it.
    if find_spec("jax") is None:
        pytest.skip("no jax")
    folder = tmp_path_factory.mktemp("jax")
    np.save(folder / "images.npy", images().double().permute(0, 2, 3, 1).numpy())
    for index, name in enumerate(BY_JAX):
        saved(folder / f"{index}.npz", weights(**FILES[name].options))
    subprocess.run([sys.executable, Path(__file__).with_name("flax_vit.py"), folder], check=True)
    return {name: torch.from_numpy(np.load(folder / f"{index}.npy")) for index, name in enumerate(BY_JAX)}


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("name", BY_JAX)
def test_logits_are_jax_s(tmp_path, jax_logits, name):
    file = FILES[name]
    path = saved(tmp_path / "file.npz", file.spelled(weights(**file.options)))
    model = VisionTransformer(config(file, act="gelu_tanh")).eval().double()
    model.load_state_dict(read(path)[0])
    with torch.no_grad():
        torch.testing.assert_close(model(images().double()), jax_logits[name], rtol=0.0, atol=1e-10)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["hybrid", "hybrid, root alone"])
def test_hybrids_are_timm_s(tmp_path, name):
    file = FILES[name]
    stages, patch = file.options["stages"], file.options["patch"]
    path = saved(tmp_path / "file.npz", file.spelled(weights(**file.options | {"root": 64})))
    convolution = partial(timm.layers.StdConv2dSame, eps=1e-8)
    if stages:
        backbone = timm.models.ResNetV2(
            stages, num_classes=0, global_pool="", stem_type="same", preact=False, conv_layer=convolution
        )
    else:
        backbone = timm.models.resnetv2.create_resnetv2_stem(3, stem_type="same", preact=False, conv_layer=convolution)
    stride = 8 if stages else 4
    sizes = {
        "img_size": (2 * stride * patch[0], 3 * stride * patch[1]),
        "patch_size": patch,
        "embed_dim": WIDTH,
        "depth": 2,
        "num_heads": HEADS,
        "mlp_ratio": HIDDEN / WIDTH,
        "num_classes": CLASSES,
    }
    theirs = timm.models.VisionTransformer(**sizes, embed_layer=partial(timm.layers.HybridEmbed, backbone=backbone))
    theirs.load_pretrained(str(path))
    state, translation = read(path)
    expected = theirs.state_dict()
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(state[key], value), key
    section = translation.section
    assert section.layout.patch_pixels(section.tensors, patch) == (stride * patch[0], stride * patch[1])
    model = HybridViT(HybridConfig(**sizes, backbone_layers=stages)).eval()
    model.load_state_dict(state)
    pixels = images(sizes["img_size"])
    with torch.no_grad():
        assert_close(model(pixels), theirs.eval()(pixels))


def test_group_norms_with_four_axes_are_read(tmp_path):
    file = FILES["hybrid"]
    made = weights(**file.options)
    arrays = {
        key: value[None, None, None] if re.search(r"gn\w+/", key) else value
        for key, value in file.spelled(made).items()
    }
    state, _ = read(saved(tmp_path / "file.npz", arrays))
    for key, value in transcribed(made).items():
        np.testing.assert_array_equal(state[key].numpy(), value, err_msg=key)


def test_bfloat16_keeps_its_bits(tmp_path):
    file = FILES["big_vision's MAP head"]
    made = {key: value.view(np.uint32) >> 16 for key, value in weights(**file.options).items()}
    arrays = {key: value.astype(np.uint16).view("V2") for key, value in file.spelled(made).items()}
    state, translation = read(saved(tmp_path / "file.npz", arrays))
    assert {value.dtype for value in state.values()} == {torch.bfloat16}
    for key, value in transcribed({key: value.astype(np.uint16) for key, value in made.items()}).items():
        np.testing.assert_array_equal(state[key].contiguous().view(torch.uint16).numpy(), value, err_msg=key)
    write_npz(tmp_path / "back.npz", translated_back(state, translation.section.layout, heads=HEADS))
    with np.load(tmp_path / "back.npz") as back:
        assert set(back) == made.keys()
        for key, value in made.items():
            assert back[key].dtype == "V2"
            np.testing.assert_array_equal(back[key].view(np.uint16), value, err_msg=key)


def test_naflex_has_dense_patches_and_a_grid(tmp_path):
    made = weights(rows=9, pool=True, head=False, patch=(5, 5))
    dense = {
        "embedding/kernel": made["embedding/kernel"].reshape(75, WIDTH),
        "pos_embedding": made["pos_embedding"].reshape(3, 3, WIDTH),
    }
    arrays = made | dense
    prefixed = {"params/img/" + key: value for key, value in arrays.items()}
    state, translation = read(saved(tmp_path / "file.npz", prefixed))
    layout = translation.section.layout
    assert layout is NAFLEX
    assert (layout.convention, layout.prefix_rows(translation.section.tensors)) == ("siglip2", 0)
    for key, value in transcribed(made).items():
        np.testing.assert_array_equal(state[key].numpy(), value, err_msg=key)
    back = translated_back(state, NAFLEX, heads=HEADS)
    assert back.keys() == arrays.keys()
    for key, value in arrays.items():
        np.testing.assert_array_equal(back[key].numpy(), value, err_msg=key)
    state["pos_embed"] = torch.zeros(1, 6, WIDTH)
    with pytest.raises(CheckpointError, match=r"expected the table \(1, N, D\) of a square grid, got \(1, 6, 12\)"):
        translated_back(state, NAFLEX, heads=HEADS)
    prefixed["params/img/embedding/kernel"] = np.zeros((72, WIDTH), np.float32)
    with pytest.raises(CheckpointError, match=r"cannot make patch_embed.proj.weight .*embedding/kernel \(72, 12\)"):
        read(saved(tmp_path / "file.npz", prefixed))


def test_sin_cos_files_have_no_table(tmp_path):
    made = weights()
    del made["pos_embedding"]
    state, translation = read(saved(tmp_path / "file.npz", made))
    assert translation.section.layout is BIG_VISION
    assert BIG_VISION.prefix_rows(translation.section.tensors) == 0
    assert "pos_embed" not in state


def test_what_no_rule_covers_is_unknown(tmp_path):
    file = FILES["the paper's"]
    arrays = file.spelled(weights(**file.options))
    # Both spellings of one module; a block behind a gap; no part of a ViT.
    extra = ("Transformer/encoderblock_1/LayerNorm_1/scale", "Transformer/encoderblock_4000000000/MlpBlock_3/x", "y")
    path = saved(tmp_path / "file.npz", arrays | {key: np.ones(WIDTH, np.float32) for key in extra})
    state, translation = read(path)
    assert set(translation.unknown) == set(extra)
    np.testing.assert_array_equal(
        state["blocks.1.norm2.weight"].numpy(), arrays["Transformer/encoderblock_1/LayerNorm_2/scale"]
    )


def test_arrays_of_all_layers_are_read_once(tmp_path, monkeypatch):
    file = FILES["scan"]
    path = saved(tmp_path / "file.npz", file.spelled(weights(**file.options)))
    reads = []
    with open_weights(path) as opened:
        section = find_section(opened)
        whole = opened.read
        monkeypatch.setattr(opened, "read", lambda key: (reads.append(key), whole(key))[1])
        translation = translate(section)
        for ours in translation.sources:
            translation.read(ours)
        assert sorted(reads) == sorted(opened.tensors)


@pytest.mark.parametrize("shape", [(10**9, 0), (1025,), ()])
def test_layers_are_believed_within_reason(tmp_path, shape):
    file = FILES["scan"]
    arrays = file.spelled(weights(**file.options))
    arrays["params/Transformer/encoderblock/x"] = np.zeros(shape, np.float32)
    _, translation = read(saved(tmp_path / "file.npz", arrays))
    assert translation.unknown == ("Transformer/encoderblock/x",)


def test_adam_s_moments_are_no_models(tmp_path):
    made = weights()
    arrays = {"params/" + key: value for key, value in made.items()}
    for moment in ("mu", "nu"):
        arrays |= {f"opt/0/{moment}/{key}": np.zeros_like(value) for key, value in made.items()}
    _, translation = read(saved(tmp_path / "file.npz", arrays))
    assert translation.section.prefix == "params/"


def test_a_missing_part_is_named(tmp_path):
    file = FILES["the paper's"]
    arrays = file.spelled(weights(**file.options))
    gone = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/key/bias"
    del arrays[gone]
    state, translation = read(saved(tmp_path / "file.npz", arrays))
    assert "blocks.1.attn.qkv.bias" not in state
    assert translation.incomplete == {"blocks.1.attn.qkv.bias": (gone,)}
