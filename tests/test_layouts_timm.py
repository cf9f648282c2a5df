"""timm's layout and its relatives': the same outputs as timm's models, published names of other projects, and back."""

import contextlib
from argparse import Namespace

import pytest
import torch

from vit_rs.checkpoints.files import open_weights
from vit_rs.checkpoints.layouts import find_section, layout_to_write, translate, translated_back
from vit_rs.exceptions import CheckpointError
from vit_rs.models import VisionTransformer, ViTConfig

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.parity

SIDE = 64
TINY = {"img_size": SIDE, "depth": 2, "num_classes": 7}
OURS = {**TINY, "embed_dim": 192, "num_heads": 3}
SMALL = {**TINY, "embed_dim": 384, "num_heads": 6}
DINOV3 = {**SMALL, "pos_embed": "none", "rope": True, "init_values": 1.0, "reg_tokens": 4, "norm_eps": 1e-5}
# Name and arguments of timm's model, our configuration, the layout.
CASES = {
    "class token": ("vit_tiny_patch16_224", TINY, OURS, "timm"),
    "whole": ("vit_small_patch16_224", {}, {"embed_dim": 384, "num_heads": 6}, "timm"),
    "average": (
        "vit_tiny_patch16_224",
        {**TINY, "global_pool": "avg", "class_token": False},
        {**OURS, "global_pool": "avg", "class_token": False},
        "timm",
    ),
    "map": (
        "vit_tiny_patch16_224",
        {**TINY, "global_pool": "map", "class_token": False},
        {**OURS, "global_pool": "map", "class_token": False},
        "timm",
    ),
    "norms": (
        "vit_tiny_patch16_224",
        {**TINY, "qk_norm": True, "init_values": 0.1},
        {**OURS, "qk_norm": True, "init_values": 0.1},
        "timm",
    ),
    "distilled": ("deit_tiny_distilled_patch16_224", TINY, {**OURS, "distilled": True}, "timm"),
    "registers": (
        "vit_small_patch14_reg4_dinov2",
        {**TINY, "patch_size": 16},
        {**SMALL, "init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True},
        "timm",
    ),
    "gated": (
        "vit_giant_patch14_dinov2",
        {**TINY, "patch_size": 16, "embed_dim": 192, "num_heads": 3},
        {**OURS, "init_values": 1e-5, "mlp": "swiglu", "mlp_ratio": 2.66667 * 2},
        "timm",
    ),
    "dinov3": ("vit_small_patch16_dinov3", TINY, {**DINOV3, "qkv_bias": False, "fc_norm": False}, "timm-dinov3"),
    "dinov3 bias": ("vit_small_patch16_dinov3_qkvb", TINY, {**DINOV3, "fc_norm": False}, "timm-dinov3"),
    "dinov3 gated": (
        "vit_small_plus_patch16_dinov3_qkvb",
        TINY,
        {**DINOV3, "fc_norm": False, "mlp": "swiglu", "mlp_ratio": 8.0},
        "timm-dinov3",
    ),
}
for fields in CASES.values():
    if fields[3] == "timm-dinov3":
        fields[2]["global_pool"] = "avg"


def read_all(translation):
    assert not translation.unknown
    assert not translation.incomplete
    tensors = {}
    for ours in translation.sources:
        tensors[ours] = translation.read(ours)
        assert tuple(tensors[ours].shape) == translation.shape(ours)
    return tensors


def assert_near(got, want, tolerance):
    assert got.shape == want.shape
    error = (got - want).abs().max().item()
    assert error <= tolerance * max(1.0, want.abs().max().item()), error


def assert_same_outputs(theirs, tensors, config):
    """Logits in float32, all tokens in float64."""
    images = torch.randn(1, 3, *config.image_hw, generator=torch.Generator().manual_seed(1))
    model = VisionTransformer(config).eval()
    model.load_state_dict(tensors)
    with torch.no_grad():
        assert_near(model(images), theirs(images), 1e-5)
        got = model.double().forward_features(images.double())
        # timm's rotary angles are float32.
        assert_near(got, theirs.double().forward_features(images.double()), 1e-6 if config.rope else 1e-10)


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_timm_and_names_go_back(case, randomised, weights_in_memory):
    name, fields, ours, layout = CASES[case]
    theirs = randomised(timm.create_model(name, **fields))
    state = theirs.state_dict()
    section = find_section(weights_in_memory(state))
    assert section.layout.name == layout
    translation = translate(section)
    assert not translation.ignored
    tensors = read_all(translation)
    assert layout_to_write("timm", tensors).name == layout
    back = translated_back(tensors, section.layout)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    assert_same_outputs(theirs, tensors, ViTConfig(**ours))


@pytest.mark.parametrize(
    "name", ["vit_small_r26_s32_224", "vit_tiny_r_s16_p8_224", "vit_base_r50_s16_224", "resnetv2_50x1_bit"]
)
def test_hybrids_and_resnets_have_timms_names(name, weights_in_memory):
    with torch.device("meta"):
        state = timm.create_model(name).state_dict()
    translation = translate(find_section(weights_in_memory(state)))
    assert not translation.unknown
    assert translation.sources.keys() == state.keys()
    assert all(translation.keys(key) == (key,) for key in state)
    assert layout_to_write("timm", state) is translation.section.layout
    assert translated_back(state, translation.section.layout).keys() == state.keys()


def renamed(key, words):
    for ours, theirs in words.items():
        key = key.replace(ours, theirs)
    return key


def published(project, state):
    """Name a timm model's tensors as a project's own files do, with all else that stands in them."""
    noise = torch.Generator().manual_seed(2)

    def more(*shape):
        return torch.randn(*shape, generator=noise)

    D = 192
    bare = {key: tensor for key, tensor in state.items() if not key.startswith("head.")}
    if project == "deit":
        return {f"model/{key}": tensor for key, tensor in state.items()}
    if project == "deit3":
        names = {key: key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2") for key in state}
        return {f"model/{names[key]}": tensor for key, tensor in state.items()}
    if project == "mae":
        decoder = {
            "mask_token": more(1, 1, 64),
            "decoder_embed.weight": more(64, D),
            "decoder_embed.bias": more(64),
            "decoder_pos_embed": more(1, 17, 64),
            "decoder_blocks.0.norm1.weight": more(64),
            "decoder_blocks.0.attn.qkv.weight": more(192, 64),
            "decoder_norm.weight": more(64),
            "decoder_pred.weight": more(768, 64),
        }
        return {f"model/{key}": tensor for key, tensor in {**bare, **decoder}.items()}
    if project == "moco-v3":
        projector = {"head.0.weight": more(64, D), "head.1.running_mean": more(64), "head.7.running_var": more(8)}
        encoders = {f"base_encoder.{key}": tensor for key, tensor in {**bare, **projector}.items()}
        encoders |= {f"momentum_encoder.{key}": more(*tensor.shape) for key, tensor in {**bare, **projector}.items()}
        encoders["predictor.0.weight"] = more(64, 64)
        return {f"state_dict/module.{key}": tensor for key, tensor in encoders.items()}
    if project == "dino":
        head = {"head.mlp.0.weight": more(64, D), "head.last_layer.weight_g": more(9, 1)}
        network = {**{f"backbone.{key}": tensor for key, tensor in bare.items()}, **head}
        student = {f"student/module.{key}": more(*tensor.shape) for key, tensor in network.items()}
        return {
            **student,
            **{f"teacher/{key}": tensor for key, tensor in network.items()},
            "dino_loss/center": more(1, 9),
        }
    if project.startswith("dinov2"):
        words = {"reg_token": "register_tokens", "blocks.": "blocks.0."}
        if state["blocks.0.mlp.fc1.weight"].shape[0] != state["blocks.0.mlp.fc2.weight"].shape[1]:
            words |= {".mlp.fc1.": ".mlp.w12.", ".mlp.fc2.": ".mlp.w3."}
        found = {"mask_token": more(1, D), **{renamed(key, words): tensor for key, tensor in bare.items()}}
        if "register_tokens" in found:  # timm has added the class token's position into it
            found["mask_token"] = more(1, 384)
            found["pos_embed"] = torch.cat((more(1, 1, 384), found["pos_embed"]), dim=1)
        return found
    assert project == "dinov3"
    words = {
        "gamma_1": "ls1.gamma",
        "gamma_2": "ls2.gamma",
        "reg_token": "storage_tokens",
        "fc1_g": "w1",
        "fc1_x": "w2",
    }
    found = {"mask_token": more(1, 384), "rope_embed.periods": more(16), "local_cls_norm.weight": more(384)}
    if "blocks.0.mlp.fc1_g.weight" in state:
        words["fc2"] = "w3"
    for name, tensor in bare.items():
        key = renamed(name, words)
        if key.endswith("attn.q_bias"):
            block = key.removesuffix("attn.q_bias")
            found[f"{block}attn.qkv.bias"] = torch.cat((tensor, more(384), state[f"{block}attn.v_bias"]))
            found[f"{block}attn.qkv.bias_mask"] = torch.ones(3 * 384)
        elif not key.endswith("attn.v_bias"):
            found[key] = tensor
    return found


def nested(tensors):
    """Put what stands before a slash into a dictionary of that name, beside what such files hold too."""
    whole = {"epoch": 3, "args": Namespace(lr=1e-3)} if any("/" in key for key in tensors) else {}
    for key, tensor in tensors.items():
        part, slash, name = key.rpartition("/")
        (whole.setdefault(part, {}) if slash else whole)[name] = tensor
    return whole


@pytest.fixture
def opened():
    with contextlib.ExitStack() as stack:
        yield lambda path: stack.enter_context(open_weights(path))


# Name and arguments of timm's model, prefix of the section, why the rest is ignored.
PROJECTS = {
    "deit": ("vit_tiny_patch16_224", {}, "model/", set()),
    "deit3": ("deit3_small_patch16_224", {}, "model/", set()),
    "mae": (
        "vit_tiny_patch16_224",
        {},
        "model/",
        {"mask token of the pre-training", "decoder of the pre-training"},
    ),
    "moco-v3": ("vit_tiny_patch16_224", {}, "state_dict/module.base_encoder.", {"projector of the pre-training"}),
    "dino": ("vit_tiny_patch16_224", {}, "teacher/", {"projection head of the pre-training"}),
    "dinov2": ("vit_small_patch14_dinov2", {"patch_size": 16}, "", {"mask token of the pre-training"}),
    "dinov2 gated": (
        "vit_giant_patch14_dinov2",
        {"patch_size": 16, "embed_dim": 192, "num_heads": 3},
        "",
        {"mask token of the pre-training"},
    ),
    "dinov2-reg": ("vit_small_patch14_reg4_dinov2", {"patch_size": 16}, "", {"mask token of the pre-training"}),
    "dinov3": (
        "vit_small_patch16_dinov3_qkvb",
        {},
        "",
        {
            "mask token of the pre-training",
            "rotary frequencies, which follow from the configuration",
            "buffer that takes the keys' bias away",
            "norm of the pre-training's local crops",
        },
    ),
}
PROJECTS["dinov3 gated"] = ("vit_small_plus_patch16_dinov3_qkvb", *PROJECTS["dinov3"][1:])


@pytest.mark.parametrize("project", PROJECTS)
def test_published_names_make_the_model_that_was_named_so(project, randomised, weights_in_memory, tmp_path, opened):
    name, fields, prefix, reasons = PROJECTS[project]
    model = randomised(timm.create_model(name, **{**TINY, **fields}))
    layout = project.removesuffix(" gated")
    state = model.state_dict()
    path = tmp_path / "checkpoint.pth"
    torch.save(nested(published(layout, state)), path)
    file = opened(path)
    section = find_section(file, layout="deit" if project == "deit" else None)
    assert (section.layout.name, section.prefix) == (layout, prefix)
    translation = translate(section)
    assert set(translation.ignored.values()) == reasons
    tensors = read_all(translation)
    # The way back, without what was ignored; the biases of keys that have no effect stay as they are read.
    back = translated_back(tensors, section.layout)
    assert set(back) == set(section.tensors) - set(translation.ignored)
    for ours in translation.sources:
        assert torch.equal(
            torch.cat([back[key].flatten() for key in translation.sources[ours].present]), tensors[ours].flatten()
        )
        assert translation.written(ours, tensors[ours]).keys() == set(translation.keys(ours))
    # timm's model knows the same tensors under timm's names.
    want = translate(find_section(weights_in_memory(state)))
    for ours in tensors.keys() | {key for key in want.sources if not key.startswith("head.")}:
        if (project, ours) == ("dinov2-reg", "pos_embed"):
            assert torch.equal(tensors[ours][:, 1:], want.read(ours))
            assert section.layout.prefix_rows(section.tensors) == 1
        else:
            assert torch.equal(tensors[ours], want.read(ours)), ours


@pytest.mark.parametrize("project", ["dinov2 gated", "dinov2-reg", "dinov3", "dinov3 gated"])
def test_timm_reads_published_names_alike(project, randomised, weights_in_memory):
    """timm's own converters of these projects' files are an independent reading of their names."""
    from timm.models import eva, vision_transformer

    name, fields, *_ = PROJECTS[project]
    source = randomised(timm.create_model(name, **{**TINY, **fields}))
    if "dinov2" in project:
        convert, names = vision_transformer.checkpoint_filter_fn, ("blocks.0.", "blocks.")
    else:
        convert, names = eva.checkpoint_filter_fn, ("", "")
    file = published(project.removesuffix(" gated"), source.state_dict())
    theirs = timm.create_model(name, **{**TINY, **fields, "num_classes": 0}).eval()
    theirs.load_state_dict(convert({key.replace(*names): tensor.clone() for key, tensor in file.items()}, theirs))
    tensors = read_all(translate(find_section(weights_in_memory(file))))
    registers = 4 if "reg_token" in tensors else 0
    fields = {"mlp": "swiglu", "mlp_ratio": 16 / 3 if "dinov2" in project else 8.0} if "gated" in project else {}
    table = tensors.get("pos_embed")
    if registers and table is not None:
        tensors |= {"cls_token": tensors["cls_token"] + table[:, :1], "pos_embed": table[:, 1:]}
        fields |= {"no_embed_class": True}
    if table is None:
        fields |= {"pos_embed": "none", "rope": True, "norm_eps": 1e-5}
    D = tensors["cls_token"].shape[-1]
    config = ViTConfig(
        img_size=SIDE,
        depth=2,
        embed_dim=D,
        num_heads=D // 64,
        num_classes=0,
        init_values=1.0,
        reg_tokens=registers,
        **fields,
    )
    model = VisionTransformer(config).eval()
    model.load_state_dict(tensors)
    images = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert_near(model.forward_features(images), theirs.forward_features(images), 1e-5)


def test_sections_of_training_files_can_be_chosen(randomised, weights_in_memory):
    state = randomised(timm.create_model("vit_tiny_patch16_224", **TINY)).state_dict()
    dino = weights_in_memory(published("dino", state))
    assert find_section(dino, section="student").prefix == "student/module."
    assert find_section(dino, section="teacher/backbone.").prefix == "teacher/"
    moco = weights_in_memory(published("moco-v3", state))
    assert (
        find_section(moco, section="state_dict/module.momentum_encoder").prefix == "state_dict/module.momentum_encoder."
    )
    averaged = {
        f"{part}/module.{key}": tensor for part in ("state_dict", "state_dict_ema") for key, tensor in state.items()
    }
    assert find_section(weights_in_memory(averaged)).prefix == "state_dict/module."
    assert find_section(weights_in_memory(averaged), section="state_dict_ema").prefix == "state_dict_ema/module."


def test_a_file_of_old_timm_has_a_representation_layer(weights_in_memory):
    config = ViTConfig(img_size=32, embed_dim=48, depth=1, num_heads=3, representation_size=8)
    state = VisionTransformer(config).state_dict()
    translation = translate(find_section(weights_in_memory(state)))
    assert translation.section.layout.name == "timm"
    assert translation.sources.keys() == state.keys()


@pytest.mark.parametrize("fields", [{"pos_embed": "2d"}, {"pos_embed": "relative"}])
def test_encodings_that_timm_lacks_are_ours(fields, weights_in_memory):
    state = VisionTransformer(ViTConfig(img_size=32, embed_dim=48, depth=2, num_heads=3, **fields)).state_dict()
    translation = translate(find_section(weights_in_memory(state)))
    assert translation.section.layout.name == "vit-rs"
    assert not translation.unknown
    assert translation.sources.keys() == state.keys()
    with pytest.raises(
        CheckpointError, match=r"the layout timm cannot hold this model: no place for (pos_embed_|blocks)"
    ):
        translated_back(state, layout_to_write("timm", state))


def test_timm_has_one_table():
    config = ViTConfig(img_size=32, embed_dim=48, depth=2, num_heads=3, pos_placement="every")
    state = VisionTransformer(config).state_dict()
    with pytest.raises(CheckpointError, match="pos_embed: got 2 tables, expected one"):
        translated_back(state, layout_to_write("timm", state))


@pytest.mark.parametrize(
    ("name", "fields", "rows"),
    [
        ("vit_tiny_patch16_224", {}, 1),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}, 0),
        ("deit_tiny_distilled_patch16_224", {}, 2),
        ("vit_small_patch14_reg4_dinov2", {}, 0),
    ],
)
def test_rows_before_the_grid_are_those_of_timms_models(name, fields, rows, weights_in_memory):
    model = timm.create_model(name, **{**TINY, "patch_size": 16, **fields})
    section = find_section(weights_in_memory(model.state_dict()))
    assert section.layout.prefix_rows(section.tensors) == rows == model.pos_embed.shape[1] - (SIDE // 16) ** 2


@pytest.mark.parametrize(
    ("name", "unknown"),
    [
        ("beit_base_patch16_224", "blocks.0.attn.relative_position_bias_table"),
        ("vit_base_patch16_rope_224", "blocks.0.gamma_1"),
    ],
)
def test_others_with_factors_are_not_taken_for_dinov3(name, unknown, randomised, weights_in_memory):
    """BEiT's relative places would be lost, and the rotary ViT's frequencies are others."""
    model = randomised(timm.create_model(name, img_size=32, depth=1, embed_dim=64, num_heads=1))
    translation = translate(find_section(weights_in_memory(model.state_dict())))
    assert translation.section.layout.name != "timm-dinov3"
    assert unknown in translation.unknown


def test_a_bias_of_another_shape_is_an_error_of_the_file(randomised, weights_in_memory):
    name, fields, *_ = PROJECTS["dinov3"]
    state = published("dinov3", randomised(timm.create_model(name, **{**TINY, **fields})).state_dict())
    for shape in ((), (3, 384)):
        file = weights_in_memory({**state, "blocks.0.attn.qkv.bias": torch.zeros(shape)})
        with pytest.raises(CheckpointError, match=r"blocks\.0\.attn\.qkv\.bias"):
            translate(find_section(file)).read("blocks.0.attn.qkv.bias")
