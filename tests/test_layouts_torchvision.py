"""torchvision's layout: the same outputs as its models, the names of its old files, the way back."""

import pytest
import torch

from vit_rs.checkpoints.layouts import find_section, layout_to_write, translate, translated_back
from vit_rs.exceptions import CheckpointError
from vit_rs.models import VisionTransformer, ViTConfig, create_model

torchvision = pytest.importorskip("torchvision")
pytestmark = pytest.mark.parity


def small(representation_size=None):
    """A ViT of torchvision and ours of the same size."""
    theirs = torchvision.models.VisionTransformer(
        64, 16, 2, 6, 384, 1024, num_classes=7, representation_size=representation_size
    )
    config = ViTConfig(
        img_size=64,
        embed_dim=384,
        depth=2,
        num_heads=6,
        mlp_ratio=1024 / 384,
        num_classes=7,
        representation_size=representation_size,
    )
    return theirs, VisionTransformer(config)


def base():
    """Two blocks of ViT-B/16, the rest whole, without drawing numbers that are replaced."""
    with torch.device("meta"):
        theirs, model = torchvision.models.vit_b_16(), create_model("vit_base_patch16_224", depth=2)
        theirs.encoder.layers = theirs.encoder.layers[:2]
    return theirs.to_empty(device="cpu"), model


@pytest.mark.parametrize("models", [small, lambda: small(24), base], ids=["small", "representation", "vit_b_16"])
def test_outputs_are_those_of_torchvision(models, randomised, weights_in_memory):
    theirs, model = models()
    randomised(theirs)
    translation = translate(find_section(weights_in_memory(theirs.state_dict())))
    assert translation.section.layout.name == "torchvision"
    assert not translation.unknown
    assert not translation.incomplete
    assert not translation.ignored
    model.eval().load_state_dict({ours: translation.read(ours) for ours in translation.sources}, assign=True)
    side = model.config.image_hw[0]
    images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert_near(model(images), theirs(images), 1e-5)
        if models is not base:
            # The library's own forward to the features: its head stands apart.
            theirs.heads = torch.nn.Identity()
            features = model.double().forward_features(images.double())[:, 0]
            assert_near(features, theirs.double()(images.double()), 1e-10)


def assert_near(got, want, tolerance):
    assert got.shape == want.shape
    error = (got - want).abs().max().item()
    assert error <= tolerance * max(1.0, want.abs().max().item()), error


def test_files_from_before_0_13_name_the_mlps_layers(randomised, weights_in_memory):
    state = randomised(small()[0]).state_dict()
    old = {key.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): state[key] for key in state}
    new, translation = (translate(find_section(weights_in_memory(tensors))) for tensors in (state, old))
    assert translation.sources.keys() == new.sources.keys()
    assert all(torch.equal(translation.read(ours), new.read(ours)) for ours in new.sources)
    assert translation.keys("blocks.1.mlp.fc2.bias") == ("encoder.layers.encoder_layer_1.mlp.linear_2.bias",)


def test_written_back_is_the_same(randomised, weights_in_memory):
    state = randomised(small(24)[0]).state_dict()
    translation = translate(find_section(weights_in_memory(state)))
    ours = {key: translation.read(key) for key in translation.sources}
    back = translated_back(ours, layout_to_write("torchvision", ours))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reg_tokens": 2}, "no place for reg_token"),
        ({"class_token": False, "global_pool": "avg", "fc_norm": False}, "cls_token is missing"),
        ({"pos_embed": "none"}, "pos_embed is missing"),
        ({"mlp": "swiglu"}, "got a gated MLP"),
    ],
)
def test_what_has_no_place_is_listed(fields, message):
    tensors = VisionTransformer(ViTConfig(img_size=32, embed_dim=48, depth=1, num_heads=3, **fields)).state_dict()
    with pytest.raises(CheckpointError, match=message):
        translated_back(tensors, layout_to_write("torchvision", tensors))
