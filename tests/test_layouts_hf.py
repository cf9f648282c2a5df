"""Hugging Face's layouts: the same outputs as transformers' models, names of files and of memory, the way back."""

import pytest
import torch

from vit_rs.checkpoints.layouts import find_section, layout_to_write, translate, translated_back
from vit_rs.exceptions import CheckpointError
from vit_rs.models import VisionTransformer, ViTConfig

transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")
pytestmark = pytest.mark.parity

SIDE = 64
SIZE = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": SIDE, "patch_size": 16}
DENSE = {**SIZE, "intermediate_size": 160}
OURS = {"img_size": SIDE, "embed_dim": 96, "depth": 2, "num_heads": 3, "mlp_ratio": 160 / 96}
DINOV2 = {**OURS, "mlp_ratio": 2.0, "init_values": 1.0, "num_classes": 0}
DINOV3 = {
    **OURS,
    "init_values": 1.0,
    "num_classes": 0,
    "norm_eps": 1e-5,
    "reg_tokens": 3,
    "pos_embed": "none",
    "rope": True,
}
# transformers packs DINOv2's gated MLP to two thirds of the ratio, in steps of 8: 2 / 3 of 2 x 96, to 128.
SWIGLU = {**DINOV2, "mlp": "swiglu", "mlp_ratio": 2 * 128 / 96}


def peer(kind, **fields):
    """Build a model of transformers of a kind, with random numbers still to come."""
    config = {"vit": "ViT", "deit": "DeiT", "dinov2": "Dinov2", "reg": "Dinov2WithRegisters", "dinov3": "DINOv3ViT"}
    family, _, head = kind.partition(" ")
    name = config[family]
    return getattr(transformers, f"{name}{head or 'Model'}")(getattr(transformers, f"{name}Config")(**fields))


CLASSES = {"num_labels": 7}
REGISTERS = {**SIZE, "mlp_ratio": 2, "num_register_tokens": 3}
HEAD = {"num_classes": 7}
CASES = {
    "vit": ("hf-vit", "vit", DENSE, {**OURS, "num_classes": 0, "norm_eps": 1e-12, "representation_size": 96}),
    "vit classes": ("hf-vit", "vit ForImageClassification", {**DENSE, **CLASSES}, {**OURS, **HEAD, "norm_eps": 1e-12}),
    "vit masked": ("hf-vit", "vit ForMaskedImageModeling", DENSE, {**OURS, "num_classes": 0, "norm_eps": 1e-12}),
    "deit": (
        "hf-deit",
        "deit ForImageClassificationWithTeacher",
        {**DENSE, **CLASSES},
        {**OURS, **HEAD, "distilled": True, "norm_eps": 1e-12},
    ),
    "dinov2": ("hf-dinov2", "dinov2", {**SIZE, "mlp_ratio": 2}, DINOV2),
    "dinov2 classes": ("hf-dinov2", "dinov2 ForImageClassification", {**SIZE, "mlp_ratio": 2, **CLASSES}, DINOV2),
    "dinov2 gated": ("hf-dinov2", "dinov2", {**SIZE, "mlp_ratio": 2, "use_swiglu_ffn": True}, SWIGLU),
    "dinov2 registers": ("hf-dinov2-reg", "reg", REGISTERS, {**DINOV2, "reg_tokens": 3, "no_embed_class": True}),
    "dinov3": ("hf-dinov3", "dinov3", {**DENSE, "num_register_tokens": 3}, DINOV3),
    "dinov3 gated": (
        "hf-dinov3",
        "dinov3",
        {**DENSE, "num_register_tokens": 3, "use_gated_mlp": True, "hidden_act": "silu"},
        {**DINOV3, "mlp": "swiglu", "mlp_ratio": 2 * 160 / 96},
    ),
}


@pytest.fixture(scope="module")
def file_of(tmp_path_factory):
    """Save a model as transformers does and read the file's tensors."""

    def saved(model):
        folder = tmp_path_factory.mktemp("hf")
        model.save_pretrained(folder)
        return safetensors_torch.load_file(folder / "model.safetensors")

    return saved


def read_all(translation):
    assert not translation.unknown
    assert not translation.incomplete
    tensors = {}
    for ours in translation.sources:
        tensors[ours] = translation.read(ours)
        assert tuple(tensors[ours].shape) == translation.shape(ours)
    return tensors


def as_we_hold(tensors, config):
    """Bring what this layout keeps apart into our model: rows of the table for tokens that have none with us."""
    if config.no_embed_class:
        table = tensors["pos_embed"]
        tensors = {**tensors, "cls_token": tensors["cls_token"] + table[:, :1], "pos_embed": table[:, 1:]}
    return tensors


@pytest.mark.parametrize("names", ["in files", "in memory"])
@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_transformers(case, names, file_of, randomised, weights_in_memory):
    layout, kind, fields, ours = CASES[case]
    theirs = randomised(peer(kind, **fields))
    tensors = file_of(theirs) if names == "in files" else theirs.state_dict()
    section = find_section(weights_in_memory(tensors))
    assert (section.layout.name, section.prefix) == (layout, "")
    config = ViTConfig(**ours)
    held = read_all(translate(section))
    images = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = theirs(images)
        if config.num_classes or config.representation_size:
            logits = filled(config, held)(images)
            assert_near(logits, want.logits if config.num_classes else want.pooler_output, 1e-5)
        features = theirs.double()(images.double(), output_hidden_states=True)
        # A model with a head gives what comes before the norm; transformers takes rotary angles in float32.
        norm = next(each for name, each in theirs.named_modules() if name.rpartition(".")[2] in ("layernorm", "norm"))
        reference = features.last_hidden_state if "last_hidden_state" in features else norm(features.hidden_states[-1])
        got = filled(config, {key: tensor.double() for key, tensor in held.items()}).forward_features(images.double())
        assert_near(got, reference, 1e-6 if config.rope else 1e-10)


def filled(config, tensors):
    model = VisionTransformer(config).to(tensors["cls_token"].dtype).eval()
    model.load_state_dict(as_we_hold(tensors, config))
    return model


def assert_near(got, want, tolerance):
    assert got.shape == want.shape
    error = (got - want).abs().max().item()
    assert error <= tolerance * max(1.0, want.abs().max().item()), error


@pytest.mark.parametrize("case", CASES)
def test_written_back_is_the_file_but_for_what_was_ignored(case, file_of, randomised, weights_in_memory):
    layout, kind, fields, _ = CASES[case]
    tensors = file_of(randomised(peer(kind, **fields)))
    section = find_section(weights_in_memory(tensors))
    translation = translate(section)
    ours = read_all(translation)
    assert layout_to_write("hf", ours).name == layout
    back = translated_back(ours, section.layout)
    # A model without a classifier goes under the base model's names.
    wrapper = "" if "head.weight" in ours else section.wrapper
    want = {
        key.removeprefix(wrapper): tensor
        for key, tensor in tensors.items()
        if key.removeprefix(section.wrapper) not in translation.ignored
    }
    assert back.keys() == want.keys()
    for key, tensor in want.items():
        assert torch.equal(back[key], tensor), key


def test_what_is_ignored_has_a_reason(file_of, weights_in_memory):
    fields = {**DENSE, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    mae = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**fields))
    translation = translate(find_section(weights_in_memory(file_of(mae))))
    assert not translation.unknown
    assert set(translation.ignored.values()) == {"decoder of the pre-training"}
    assert "decoder.decoder_pos_embed" in translation.section.layout.more_tables(translation.section.tensors)
    model = peer("reg ForImageClassification", **REGISTERS)
    translation = translate(find_section(weights_in_memory(file_of(model))))
    assert set(translation.ignored) == {"embeddings.mask_token", "classifier.weight", "classifier.bias"}


def test_the_pooler_is_what_a_model_may_do_without(file_of, weights_in_memory):
    translation = translate(find_section(weights_in_memory(file_of(peer("vit", **DENSE)))))
    layout = translation.section.layout
    assert [ours for ours in translation.sources if layout.optional(ours)] == [
        "pre_logits.fc.weight",
        "pre_logits.fc.bias",
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"qk_norm": True}, "no place for blocks.0.attn.q_norm.weight, blocks.0.attn.q_norm.bias"),
        ({"class_token": False, "global_pool": "avg"}, "cls_token is missing"),
        ({"pos_placement": "every"}, "pos_embed: got 2 tables, expected one"),
        ({"mlp": "swiglu"}, "got a gated MLP, expected a plain one"),
        ({"representation_size": 8}, "got pre_logits.fc and head, expected one of them"),
        ({"init_values": 0.1}, "no place for head.weight, head.bias"),
        (
            {"init_values": 0.1, "pos_embed": "none", "rope": True, "num_classes": 0},
            "blocks.0.attn.qkv.bias: no place for layer.0.attention.k_proj.bias, which is not zero",
        ),
    ],
)
def test_what_has_no_place_is_listed(fields, message, randomised):
    model = randomised(VisionTransformer(ViTConfig(**{**OURS, **fields, "num_classes": fields.get("num_classes", 3)})))
    tensors = model.state_dict()
    layout = layout_to_write("hf", tensors)
    with pytest.raises(CheckpointError, match=rf"the layout {layout.name} cannot hold this model: .*{message}"):
        translated_back(tensors, layout)
