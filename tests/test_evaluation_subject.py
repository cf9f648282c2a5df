"""Models to examine: our own files and other people's, at their size and at another."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from vit_rs.checkpoints import load_pretrained, save_checkpoint
from vit_rs.evaluation import Preprocessing, open_subject
from vit_rs.evaluation.subject import model_digest
from vit_rs.exceptions import CheckpointError, ConfigError, DatasetError
from vit_rs.models import BiTResNet, ResNetConfig, VisionTransformer, ViTConfig

CONFIG = ViTConfig(img_size=16, patch_size=4, num_classes=3, embed_dim=12, depth=2, num_heads=3)
PREPROCESSING = Preprocessing((16, 16), crop=0.8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
METADATA = {
    "classes": ["a", "b", "c"],
    "preprocessing": PREPROCESSING.to_dict(),
    "split": {"holdout": 0.3, "split_seed": 5, "per_class": None},
}


@pytest.fixture
def model(randomised) -> VisionTransformer:
    return randomised(VisionTransformer(CONFIG))


def test_a_run_s_file_says_everything(tmp_path, model) -> None:
    save_checkpoint(tmp_path / "m.safetensors", model.train(), metadata=METADATA)
    subject = open_subject(tmp_path / "m.safetensors")
    assert subject.preprocessing == PREPROCESSING
    assert subject.classes == ("a", "b", "c")
    assert subject.split == METADATA["split"]
    assert (subject.path, subject.channels, subject.resampled) == (str(tmp_path / "m.safetensors"), 3, ())
    assert not any(module.training for module in subject.model.modules())
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(subject.model(images), model.eval()(images))
    subject.check_channels(3)
    with pytest.raises(DatasetError, match=r"takes images of 3 channel\(s\), got images of 1"):
        subject.check_channels(1)


def test_arguments_go_before_the_file(tmp_path, model) -> None:
    save_checkpoint(tmp_path / "m.safetensors", model, metadata=METADATA)
    subject = open_subject(
        tmp_path / "m.safetensors", resize="squash", crop=1.0, interpolation="bicubic", mean=(0.5,), std=(0.25,)
    )
    assert subject.preprocessing == Preprocessing((16, 16), "squash", 1.0, "bicubic", (0.5,), (0.25,))


def test_another_size_resamples_the_positions(tmp_path, model) -> None:
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, model, metadata=METADATA)
    subject = open_subject(path, img_size=(24, 32))
    assert subject.preprocessing == PREPROCESSING.at_size((24, 32))
    assert subject.resampled == ("pos_embed (4, 4) -> (6, 8)",)
    expected = VisionTransformer(ViTConfig(**{**CONFIG.to_dict(), "img_size": (24, 32)})).eval()
    load_pretrained(expected, path)
    images = torch.randn(2, 3, 24, 32)
    assert torch.equal(subject.model(images), expected(images))
    with pytest.raises(ConfigError, match="not divisible by patch_size"):
        open_subject(path, img_size=15)


def test_a_resnet_takes_any_size(tmp_path, randomised) -> None:
    model = randomised(BiTResNet(ResNetConfig(layers=(1, 1), num_classes=2)))
    save_checkpoint(tmp_path / "m.safetensors", model)
    subject = open_subject(tmp_path / "m.safetensors", img_size=40, mean=(0.5,), std=(0.5,))
    assert (subject.preprocessing.img_size, subject.classes, subject.split) == ((40, 40), None, {})
    assert open_subject(tmp_path / "m.safetensors", mean=(0.5,), std=(0.5,)).preprocessing.img_size == (224, 224)


def test_files_of_ours_without_what_is_needed(tmp_path, model) -> None:
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, model)
    with pytest.raises(CheckpointError, match="does not say how images are prepared for its model: give mean and std"):
        open_subject(path)
    assert open_subject(path, mean=(0.5,), std=(0.5,)).preprocessing == Preprocessing((16, 16))
    with pytest.raises(ConfigError, match=r"the model takes images of 3 channel\(s\), got 2 values"):
        open_subject(path, mean=(0.5, 0.5), std=(0.5, 0.5))
    with pytest.raises(ValueError, match="num_classes=3 is for the files of others, and needs a model's name"):
        open_subject(path, num_classes=3, mean=(0.5,), std=(0.5,))
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        open_subject(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["a", "b"]}, "2 names of classes for 3 outputs"),
        ({"classes": "abc"}, "expected classes as a list of names, got 'abc'"),
        ({"split": {"holdout": 0.2}}, "expected split as holdout, split_seed and per_class, got"),
        (
            {"split": {"holdout": "0.2", "split_seed": 0, "per_class": None}},
            "expected split with holdout between 0 and 1",
        ),
        ({"split": {"holdout": 0.2, "split_seed": -1, "per_class": None}}, "split_seed of at least 0"),
        ({"split": {"holdout": 0.2, "split_seed": 0, "per_class": "7"}}, "per_class of at least 1 or None"),
        ({"preprocessing": {"crop": 1}}, "preprocessing: unknown fields none, missing"),
        ({"preprocessing": 7}, "preprocessing: expected a dictionary, got 7"),
        ({"preprocessing": {**PREPROCESSING.to_dict(), "crop": 2}}, "crop must be above 0 and at most 1, got 2"),
    ],
)
def test_metadata_that_is_not_ours(tmp_path, model, changes, message) -> None:
    save_checkpoint(tmp_path / "m.safetensors", model, metadata={**METADATA, **changes})
    with pytest.raises((CheckpointError, ConfigError), match=message) as caught:
        open_subject(tmp_path / "m.safetensors")
    assert "m.safetensors" in str(caught.value)


@pytest.fixture(scope="module")
def timm_file(tmp_path_factory, randomised):
    """A file of timm's, and its model."""
    torch.manual_seed(0)
    peer = randomised(timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=7, depth=2))
    path = tmp_path_factory.mktemp("timm") / "vit.safetensors"
    save_file(peer.state_dict(), path)
    return path, peer


@pytest.mark.parity
def test_somebody_else_s_file_by_name(timm_file) -> None:
    path, peer = timm_file
    with pytest.raises(CheckpointError, match="does not say what model it holds: give the model's name"):
        open_subject(path)
    subject = open_subject(
        path, name="vit_tiny_patch16_224", img_size=32, num_classes=7, overrides={"depth": 2}, crop=1.0
    )
    assert subject.preprocessing == Preprocessing(
        (32, 32), crop=1.0, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
    assert subject.classes is None
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(subject.model(images), peer(images), rtol=1e-5, atol=1e-5)
    features = open_subject(path, name="vit_tiny_patch16_224", img_size=32, num_classes=0, overrides={"depth": 2})
    expected = peer.forward_head(peer.forward_features(images), pre_logits=True)
    torch.testing.assert_close(features.model(images), expected, rtol=1e-5, atol=1e-5)


def test_names_that_do_not_fit(timm_file, tmp_path) -> None:
    path, _ = timm_file
    with pytest.raises(CheckpointError, match="depth: got 2, expected 12"):
        open_subject(path, name="vit_tiny_patch16_224", img_size=32, num_classes=7)
    with pytest.raises(ConfigError, match="unknown model 'vit_minute'"):
        open_subject(path, name="vit_minute")
    with pytest.raises(ConfigError, match="has no field dept"):
        open_subject(path, name="vit_tiny_patch16_224", overrides={"dept": 2})
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        open_subject(tmp_path / "none", name="vit_tiny_patch16_224")


def test_heads_of_another_size_name_the_argument(timm_file) -> None:
    message = (
        r"got \(7, 192\), expected \(1000, 192\) \(num_classes says how many outputs the head has, 0 leaves it out"
    )
    with pytest.raises(CheckpointError, match=message):
        open_subject(timm_file[0], name="vit_tiny_patch16_224", overrides={"img_size": 32, "depth": 2})


def test_the_digest_is_that_of_the_function(tmp_path, model) -> None:
    save_checkpoint(tmp_path / "m.safetensors", model, metadata=METADATA)
    save_checkpoint(tmp_path / "other.safetensors", model)
    digest = open_subject(tmp_path / "m.safetensors").digest
    # Another file, another preparation of the images: the same model.
    assert open_subject(tmp_path / "other.safetensors", mean=(0.5,), std=(0.5,)).digest == digest == model_digest(model)
    assert open_subject(tmp_path / "m.safetensors", img_size=24).digest != digest
    with torch.no_grad():
        model.blocks[1].mlp.fc2.bias[3] += 1e-7
    assert model_digest(model) != digest
    tensors = load_file(tmp_path / "m.safetensors")
    other = VisionTransformer(ViTConfig(**{**CONFIG.to_dict(), "norm_eps": 1e-5}))
    other.load_state_dict(tensors)
    assert model_digest(other) != digest
