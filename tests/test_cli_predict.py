"""`vit-rs predict`: the model's own probabilities, in the order of the images, whatever some of them are."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from vit_rs.checkpoints import save_checkpoint
from vit_rs.cli import main
from vit_rs.data.folder import image_files
from vit_rs.evaluation import Preprocessing, open_subject, predict
from vit_rs.exceptions import CheckpointError, ConfigError, DatasetError
from vit_rs.models import VisionTransformer, ViTConfig, create_model

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
NAMES = ["ash", "elm", "fir"]


@pytest.fixture
def checkpoint(tmp_path, randomised):
    """A model file that says everything."""
    config = ViTConfig(img_size=16, patch_size=4, num_classes=3, embed_dim=12, depth=1, num_heads=3)
    model = randomised(VisionTransformer(config))
    preprocessing = Preprocessing((16, 16), mean=MEAN, std=STD).to_dict()
    save_checkpoint(tmp_path / "m.safetensors", model, metadata={"classes": NAMES, "preprocessing": preprocessing})
    return tmp_path / "m.safetensors"


@pytest.fixture
def images(tmp_path):
    """Five images of the model's own size, two of them in a folder below, and the second one damaged."""
    root, rng = tmp_path / "images", np.random.default_rng(0)
    (root / "deep").mkdir(parents=True)
    for name in ("a.png", "b.png", "c.png", "deep/d.PNG", "deep/e.png"):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(root / name, format="png")
    (root / "b.png").write_bytes((root / "b.png").read_bytes()[:200])
    (root / "notes.txt").touch()
    return root


def wanted(checkpoint, path):
    """Return the probabilities of an image that needs no resize, from its pixels alone."""
    pixels = torch.from_numpy(np.array(Image.open(path))).double() / 255
    normalised = ((pixels - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)[None]
    model = open_subject(checkpoint).model.double()
    with torch.inference_mode():
        return model(normalised)[0].softmax(0).tolist()


def test_probabilities_are_the_model_s(checkpoint, images, capsys):
    out = checkpoint.parent / "out.json"
    arguments = [
        "predict",
        str(checkpoint),
        str(images),
        str(images / "a.png"),
        "none.png",
        "--json",
        "--out",
        str(out),
    ]
    assert main([*arguments, "--batch-size", "2"]) == 1
    printed, errors = capsys.readouterr()
    record = json.loads(printed)
    assert json.loads(out.read_text()) == record
    names = ["a.png", "b.png", "c.png", "deep/d.PNG", "deep/e.png", "a.png"]
    paths = [*(str(images / name) for name in names), "none.png"]
    assert [item["image"] for item in record["predictions"]] == paths
    for path, item in zip(paths, record["predictions"], strict=True):
        if path.endswith(("b.png", "none.png")):
            assert item.keys() == {"image", "error"}
            assert path in item["error"]
            continue
        want = wanted(checkpoint, path)
        order = sorted(range(3), key=lambda output: -want[output])
        assert [each["output"] for each in item["classes"]] == order
        assert [each["class"] for each in item["classes"]] == [NAMES[output] for output in order]
        # float32 against float64
        assert [each["probability"] for each in item["classes"]] == pytest.approx([want[o] for o in order], abs=1e-5)
    assert [line.split(": ")[1] for line in errors.splitlines()] == ["error", "error"]
    assert errors.splitlines()[1].startswith("vit-rs: error: none.png")


def test_the_table(checkpoint, images, capsys):
    assert main(["predict", str(checkpoint), str(images / "deep"), "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(images / "deep/d.PNG")
    share, percent, name = lines[1].split()
    want = wanted(checkpoint, images / "deep/d.PNG")
    assert (float(share), percent, name) == (pytest.approx(100 * max(want), abs=0.01), "%", NAMES[np.argmax(want)])
    assert lines[3] == str(images / "deep/e.png")
    assert len(lines) == 6


def test_batches_change_nothing(checkpoint, images):
    subject, paths = open_subject(checkpoint), image_files(images)
    every = list(predict(subject, paths, batch_size=5))
    seen = []
    for size in (1, 2, 7):
        some = predict(subject, paths, batch_size=size, num_threads=1, progress=lambda *done: seen.append(done))
        for one, other in zip(every, some, strict=True):
            assert one[:3] == other[:3]
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)
            assert one.error == other.error
    assert seen[:5] == [(done, 5) for done in range(1, 6)]


def test_the_caller_s_code_runs_in_its_own_mode(checkpoint, images):
    subject, paths = open_subject(checkpoint), image_files(images)
    subject.model.train()
    for _ in predict(subject, paths, batch_size=2):
        assert not torch.is_inference_mode_enabled()
        assert subject.model.training


def test_a_model_of_gray_images_gets_gray_ones(tmp_path, images, randomised):
    config = ViTConfig(img_size=16, patch_size=4, in_chans=1, num_classes=3, embed_dim=12, depth=1, num_heads=3)
    save_checkpoint(tmp_path / "gray.safetensors", randomised(VisionTransformer(config)))
    subject = open_subject(tmp_path / "gray.safetensors", mean=(0.25,), std=(0.5,))
    [prediction] = predict(subject, [str(images / "a.png")])
    luma = np.array(Image.open(images / "a.png").convert("L"))  # within 1 of torchvision's, which is ours
    with torch.inference_mode():
        want = subject.model((torch.from_numpy(luma).float()[None, None] / 255 - 0.25) / 0.5)[0].softmax(0)
    assert prediction.classes == tuple(map(str, prediction.outputs))
    assert prediction.probabilities == pytest.approx(want[list(prediction.outputs)].tolist(), abs=0.01)


def test_weights_of_others_by_a_name(tmp_path, images, capsys):
    torch.manual_seed(0)
    state = create_model("vit_tiny_patch16_224", img_size=32, num_classes=4, depth=12).state_dict()
    save_file(state, tmp_path / "theirs.safetensors")
    arguments = ["predict", str(tmp_path / "theirs.safetensors"), str(images / "a.png")]
    options = ["--model", "vit_tiny_patch16_224", "--img-size", "32", "--num-classes", "4"]
    assert main([*arguments, *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[-1] for line in lines[1:]) == ["0", "1", "2", "3"]


def test_what_cannot_be_done_is_explained(tmp_path, checkpoint, images, capsys, randomised):
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([checkpoint, tmp_path / "empty"], "empty: no image in this folder"),
        ([tmp_path / "none.safetensors", images], "none.safetensors"),
        ([checkpoint, images, "--top", "0"], "top must be at least 1, got 0"),
        ([checkpoint, images, "--device", "nonsense"], "device 'nonsense' cannot be used"),
        ([checkpoint, images, "--num-classes", "3"], "needs a model's name"),
    ):
        assert main(["predict", *map(str, arguments)]) == 2
        out, err = capsys.readouterr()
        assert not out
        assert err.startswith("vit-rs: error: ")
        assert message in err
    subject = open_subject(checkpoint)
    for bad in (torch.nan, torch.inf, -torch.inf):
        with torch.no_grad():
            subject.model.head.bias[1] = bad
        with pytest.raises(CheckpointError, match=r"m\.safetensors: a logit of .*a\.png is not a finite number"):
            list(predict(subject, [str(images / "b.png"), str(images / "a.png")]))
    for fields, error, message in (
        ({"num_classes": 0}, ConfigError, "the model has no head"),
        ({"in_chans": 4}, DatasetError, r"takes images of 4 channel\(s\), got images of 3"),
    ):
        config = ViTConfig(**{"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 3, **fields})
        save_checkpoint(tmp_path / "other.safetensors", VisionTransformer(config))
        other = open_subject(tmp_path / "other.safetensors", mean=(0.5,), std=(0.5,))
        with pytest.raises(error, match=message):
            list(predict(other, [str(images / "a.png")]))
