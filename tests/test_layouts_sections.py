"""Sections of a file and translations: what is found, what is chosen, what is an error, and that no key is lost."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vit_rs.checkpoints.files import open_weights
from vit_rs.checkpoints.layouts import (
    LAYOUTS,
    all_sections,
    find_section,
    layout_named,
    translate,
    translated_back,
)
from vit_rs.checkpoints.layouts.base import (
    CONV,
    HEADS_BIAS,
    HEADS_IN,
    HEADS_OUT,
    TRANSPOSED,
    Anatomy,
    Layout,
    Place,
    Rule,
    count_indices,
    own_anatomy,
)
from vit_rs.checkpoints.layouts.section import Section
from vit_rs.exceptions import CheckpointError
from vit_rs.models import VisionTransformer, ViTConfig

CONFIG = ViTConfig(img_size=32, embed_dim=12, depth=2, num_heads=3, num_classes=5)


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return VisionTransformer(CONFIG).state_dict()


def under(prefix, tensors):
    return {prefix + key: tensor for key, tensor in tensors.items()}


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "state_dict/model.", "model/", "backbone.", "a/b.c/d."]
)
def test_whatever_stands_before_the_keys_is_the_prefix(prefix, state, weights_in_memory):
    section = find_section(weights_in_memory({**under(prefix, state), "epoch": torch.tensor(3)}))
    assert (section.layout.name, section.prefix, section.wrapper) == ("timm", prefix, "")
    assert section.tensors.keys() - {"epoch"} == state.keys()
    assert section.file_key("norm.weight") == f"{prefix}norm.weight"
    assert torch.equal(section.read("norm.weight"), state["norm.weight"])


def test_a_file_of_torch_save_with_dictionaries_inside(tmp_path, state):
    path = tmp_path / "checkpoint.pth"
    teacher = {**under("backbone.", state), "head.mlp.0.weight": torch.zeros(4, 12)}
    torch.save({"student": under("module.", teacher), "teacher": teacher, "epoch": 3}, path)
    with open_weights(path) as file:
        assert [str(each) for each in all_sections(file)] == ["'student/module.' (dino)", "'teacher/' (dino)"]
        translation = translate(find_section(file))
        assert translation.section.prefix == "teacher/"
        assert translation.keys("norm.bias") == ("teacher/backbone.norm.bias",)
        assert torch.equal(translation.read("blocks.1.attn.qkv.weight"), state["blocks.1.attn.qkv.weight"])


def test_a_damaged_tensor_is_an_error_that_names_file_and_key(tmp_path, state):
    path = tmp_path / "checkpoint.pth"
    torch.save(state, path)
    content = bytearray(path.read_bytes())
    place = content.find(state["cls_token"].numpy().tobytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pth"), open_weights(path) as file:
        translate(find_section(file)).read("cls_token")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("teacher/", "student/module."),
        ("state_dict/", "state_dict_ema/"),
        ("model/", "model_ema/"),
        ("model/", "ema_model/"),
        ("module.base_encoder.", "module.momentum_encoder."),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_one_of_two_models_is_preferred(first, second, order, state, weights_in_memory):
    prefixes = [first, second][::order]
    file = weights_in_memory({key: tensor for prefix in prefixes for key, tensor in under(prefix, state).items()})
    assert find_section(file).prefix == first
    assert [each.prefix for each in all_sections(file)] == prefixes
    assert find_section(file, section=second).prefix == second
    # A dictionary's or module's name is enough, a part of a name is not.
    assert find_section(file, section=re.split(r"[./]", second)[0] if "encoder" not in second else second[:-1])
    with pytest.raises(CheckpointError, match=f"no section 't'; the file has '{prefixes[0]}' .timm., '{prefixes[1]}'"):
        find_section(file, section="t")


def test_equal_models_are_asked_for(state, weights_in_memory):
    file = weights_in_memory({**under("a.", state), **under("b.", state)})
    with pytest.raises(
        CheckpointError, match=r"weights.pth: several models: 'a\.' \(timm\), 'b\.' \(timm\): say which"
    ):
        find_section(file)
    assert find_section(file, section="b").prefix == "b."


def test_a_model_inside_of_another_belongs_to_itself(state, weights_in_memory):
    file = weights_in_memory({**state, **under("ema.", state)})
    whole, inner = all_sections(file)
    assert (whole.prefix, inner.prefix) == ("", "ema.")
    assert whole.tensors.keys() == inner.tensors.keys() == state.keys()
    assert find_section(file).prefix == ""


def test_a_wrapper_is_removed_and_what_stands_beside_it_stays(state, weights_in_memory):
    tensors = {
        **under("vit.", hf_names(state)),
        "classifier.weight": torch.zeros(5, 12),
        "vit.classifier.weight": torch.ones(5),
    }
    section = find_section(weights_in_memory(under("model.", tensors)))
    assert (section.layout.name, section.prefix, section.wrapper) == ("hf-vit", "model.", "vit.")
    assert section.file_key("layernorm.bias") == "model.vit.layernorm.bias"
    # Nothing is lost where both would have one name.
    assert section.file_key("classifier.weight") == "model.classifier.weight"
    assert translate(section).unknown == ("vit.classifier.weight",)
    assert find_section(weights_in_memory(under("model.", tensors)), section="model.vit.").prefix == "model."


def hf_names(state):
    return translated_back({key: state[key] for key in state if not key.startswith("head")}, layout_named("hf-vit"))


def test_two_spellings_of_one_name_are_both_kept(state, weights_in_memory):
    tensors = hf_names(state)
    tensors["layers.0.mlp.fc1.weight"] = torch.zeros(3)
    translation = translate(find_section(weights_in_memory(tensors)))
    assert translation.unknown == ("layers.0.mlp.fc1.weight",)
    assert translation.keys("blocks.0.mlp.fc1.weight") == ("encoder.layer.0.intermediate.dense.weight",)


def test_a_layout_that_is_asked_for_is_taken(state, weights_in_memory):
    section = find_section(weights_in_memory(state), layout="dino")
    assert (section.layout.name, section.layout.convention) == ("dino", "dino")
    with pytest.raises(ValueError, match=r"layout must be one of 'hf-dinov3', .*, got 'nonsense'"):
        find_section(weights_in_memory(state), layout="nonsense")
    with pytest.raises(CheckpointError, match=r"no model in the layout 'torchvision': .* ends in conv_proj.weight; "):
        find_section(weights_in_memory(state), layout="torchvision")


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"fc.weight": torch.zeros(2)},
        {"patch_embed.proj.weight": torch.zeros(2), "layers.0.blocks.0.norm1.weight": torch.zeros(2)},  # a Swin
        {"xpatch_embed.proj.weight": torch.zeros(2), "xblocks.0.norm1.weight": torch.zeros(2)},
    ],
)
def test_no_model_is_an_error_that_says_what_was_looked_for(tensors, weights_in_memory):
    with pytest.raises(CheckpointError, match=r"weights.pth: no model in any layout that is known: .*begin with: "):
        find_section(weights_in_memory(tensors))
    assert all_sections(weights_in_memory(tensors)) == []


def test_a_thousand_models_are_not_believed(weights_in_memory):
    tensors = {f"{index}.patch_embed.proj.weight": torch.zeros(1) for index in range(1000)}
    with pytest.raises(CheckpointError, match=r"1000 keys look like a model's first .*, expected at most 64"):
        find_section(weights_in_memory(tensors))


def test_an_index_beyond_the_number_of_keys_is_not_believed():
    keys = ["blocks.0.a", "blocks.0.b", "blocks.2.a", "blocks.4.a", "blocks.987654321987654321.a", "block.1.a"]
    assert count_indices(keys, r"blocks\.([0-9]+)\.") == 3
    keys = [f"stages.{stage}.blocks.{unit}.conv1.weight" for stage in (0, 2, 99) for unit in (0, 99, 1)]
    assert own_anatomy(dict.fromkeys(keys, ())).stages == (2, 0, 2)


def test_names_and_conventions_of_layouts():
    from vit_rs.ops.conventions import GRID_CONVENTIONS

    assert len({layout.name for layout in LAYOUTS}) == len(LAYOUTS)
    assert {layout.convention for layout in LAYOUTS} <= set(GRID_CONVENTIONS)


EVERY = [layout.name for layout in LAYOUTS]


@given(data=st.data())
def test_no_key_is_lost(data, weights_in_memory):
    """Of any subset of a layout's keys, with others added, each is used, incomplete, ignored or unknown."""
    layout = layout_named(data.draw(st.sampled_from(EVERY)))
    rules = list(layout.rules(Anatomy(2, (1, 1), gated=data.draw(st.booleans()))))
    known = sorted({key for rule in rules for key in rule.theirs})
    kept = data.draw(st.sets(st.sampled_from(known)))
    extra = data.draw(
        st.sets(st.sampled_from(["mask_token", "decoder.0.weight", "head.0.weight", "what", "blocks.9.x"]))
    )
    file = weights_in_memory({key: torch.zeros(1) for key in sorted(kept | extra)})
    section = Section(file, layout, "", "", file.tensors, {key: Place(key) for key in file.tensors})
    translation = translate(section)
    used = {key for source in translation.sources.values() for key in source.present}
    parts = {rule.ours: rule for rule in layout.rules(layout.anatomy(file.tensors))}
    partial = {key for ours in translation.incomplete for key in parts[ours].theirs} & file.tensors.keys()
    unknown, ignored = set(translation.unknown), set(translation.ignored)
    assert used | partial | unknown | ignored == file.tensors.keys()
    assert not used & (unknown | ignored)
    assert not unknown & ignored
    assert not translation.sources.keys() & translation.incomplete.keys()
    for ours, missing in translation.incomplete.items():
        assert not set(missing) & file.tensors.keys()
        assert set(missing) < set(parts[ours].theirs)


def test_a_tensor_without_one_of_its_parts_is_incomplete(state, weights_in_memory):
    tensors = hf_names(state)
    del tensors["encoder.layer.1.attention.attention.key.weight"]
    translation = translate(find_section(weights_in_memory(tensors)))
    missing = "encoder.layer.1.attention.attention.key.weight"
    assert translation.incomplete == {"blocks.1.attn.qkv.weight": (missing,)}
    assert translation.unknown == ()


def test_shapes_that_cannot_be_joined_are_an_error_before_anything_is_read(state, weights_in_memory):
    tensors = hf_names(state)
    tensors["encoder.layer.0.attention.attention.key.weight"] = torch.zeros(12, 7)
    file = weights_in_memory(tensors)
    file.held = {}
    translation = translate(find_section(file))
    message = (
        r"weights.pth: shapes that cannot make blocks.0.attn.qkv.weight in the layout hf-vit: .*key.weight \(12, 7\)"
    )
    for method in (translation.shape, translation.read):
        with pytest.raises(CheckpointError, match=message):
            method("blocks.0.attn.qkv.weight")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_other_numbers_than_floating_point_are_an_error(dtype, state, weights_in_memory):
    file = weights_in_memory({**state, "cls_token": state["cls_token"].to(dtype)})
    with pytest.raises(CheckpointError, match=rf"weights.pth: cls_token: got {dtype}, expected floating point"):
        translate(find_section(file)).read("cls_token")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_stays(dtype, state, weights_in_memory):
    tensors = {key: tensor.to(dtype) for key, tensor in hf_names(state).items()}
    translation = translate(find_section(weights_in_memory(tensors)))
    assert translation.read("blocks.0.attn.qkv.bias").dtype == dtype


class Stacked(Layout):
    """All layers of a kind in one array, heads apart: every form, and places on a first axis."""

    name = "stacked"
    convention = "jax"
    anchor = "root"
    forms = (("w", TRANSPOSED), ("c", CONV), ("q", HEADS_IN), ("qb", HEADS_BIAS), ("o", HEADS_OUT))

    def recognises(self, tensors):
        return "layers/w" in tensors

    def views(self, tensors):
        found = {}
        for key, info in tensors.items():
            if key.startswith("layers/"):
                found |= {f"{key}/{layer}": Place(key, layer) for layer in range(info.shape[0])}
            else:
                found[key] = Place(key)
        return found

    def anatomy(self, tensors):
        return Anatomy(sum(key.startswith("layers/w/") for key in tensors))

    def rules(self, anatomy):
        for layer in range(anatomy.depth):
            for name, form in self.forms:
                yield Rule(f"blocks.{layer}.{name}", (f"layers/{name}/{layer}",), form)


def test_layers_that_share_an_array_and_heads_apart(monkeypatch, weights_in_memory):
    layout = Stacked()
    monkeypatch.setattr(Stacked, "recognises", lambda self, tensors: True)
    monkeypatch.setattr("vit_rs.checkpoints.layouts.section.LAYOUTS", (layout,))
    shapes = {"w": (12, 20), "c": (5, 4, 3, 12), "q": (12, 3, 4), "qb": (3, 4), "o": (3, 4, 12)}
    arrays = {f"layers/{name}": torch.randn(2, *shape) for name, shape in shapes.items()}
    section = find_section(weights_in_memory({**arrays, "root": torch.zeros(1)}))
    assert section.tensors["layers/w/1"].shape == (12, 20)
    assert section.file_key("layers/w/1") == "layers/w"
    translation = translate(section)
    assert translation.unknown == ("root",)
    ours = {key: translation.read(key) for key in translation.sources}
    want = {"w": (20, 12), "c": (12, 3, 5, 4), "q": (12, 12), "qb": (12,), "o": (12, 12)}
    assert {key: tuple(tensor.shape) for key, tensor in ours.items() if key[7] == "1"} == {
        f"blocks.1.{name}": shape for name, shape in want.items()
    }
    assert translation.form("blocks.0.q") == "heads joined, transposed"
    back = translated_back(ours, layout, heads=3)
    assert all(torch.equal(back[f"layers/{name}/1"], arrays[f"layers/{name}"][1]) for name in shapes)
    with pytest.raises(
        CheckpointError, match=r"blocks.0.q: this layout splits the heads, .*; .*blocks.1.o: this layout"
    ):
        translated_back(ours, layout)
    with pytest.raises(CheckpointError, match="width 12 is not divisible by 5 heads"):
        translated_back(ours, layout, heads=5)
    with pytest.raises(CheckpointError, match=r"weights.pth: layers/w/0 has no array of its own in the file"):
        translation.written("blocks.0.w", ours["blocks.0.w"])


def test_a_part_that_cannot_be_split_is_an_error(state):
    tensors = {key: tensor for key, tensor in state.items() if not key.startswith("head.")}
    tensors["blocks.1.attn.qkv.bias"] = torch.zeros(35)
    with pytest.raises(CheckpointError, match=r"blocks.1.attn.qkv.bias: got shape \(35,\), expected 3 equal parts"):
        translated_back(tensors, layout_named("hf-vit"))
