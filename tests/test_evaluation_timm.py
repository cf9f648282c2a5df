"""timm's own models as subjects: what timm computes, every weight from the file, and none of the file's code."""

from __future__ import annotations

import json
import os
import pickle
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from vit_rs.checkpoints import convert
from vit_rs.checkpoints.files import write_npz
from vit_rs.cli import main
from vit_rs.cli.probes import _probe_features
from vit_rs.evaluation import ClassTokens, Preprocessing, extract_features, open_subject
from vit_rs.evaluation.features import check_what, gives_tokens
from vit_rs.evaluation.subject import model_digest
from vit_rs.exceptions import CheckpointError, ConfigError

VIT = "timm:vit_tiny_patch16_224"
SMALL = {"depth": 2, "embed_dim": 12, "num_heads": 3}
HALF = ((0.5,) * 3, (0.5,) * 3)
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def saved(path, model) -> str:
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, path)
    return str(path)


@pytest.fixture(scope="module")
def vit(tmp_path_factory, randomised):
    """A small ViT of timm's for 32 pixels and three classes, and its file."""
    model = randomised(timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3, **SMALL))
    return model, saved(tmp_path_factory.mktemp("timm") / "vit.safetensors", model)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three classes of colours in train/ and val/."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for part in ("train", "val"):
        for level, name in enumerate(("ash", "elm", "fir")):
            (root / part / name).mkdir(parents=True)
            for number in range(4):
                pixels = rng.integers(0, 90, (40, 48, 3)) + 60 * level
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / name / f"{number}.png")
    return root


def opened(path, name=VIT, **options):
    return open_subject(path, name=name, **{"overrides": SMALL, "img_size": 32, "num_classes": 3, **options})


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "size", "preparation"),
    [
        ("vit_tiny_patch16_224", 32, ("crop", 0.9, "bicubic", *HALF)),
        ("vit_tiny_r_s16_p8_224", 64, ("crop", 0.9, "bicubic", *HALF)),
        ("vit_base_patch16_siglip_512", 32, ("crop", 0.9, "bicubic", *HALF)),
        ("vit_base_patch16_clip_384.openai_ft_in12k_in1k", 32, ("squash", 0.95, "bicubic", *CLIP)),
        ("eva02_tiny_patch14_224.mim_in22k", 28, ("crop", 0.9, "bicubic", *CLIP)),
        ("test_resnet", (48, 64), ("crop", 0.95, "bilinear", *HALF)),  # of no fixed size
    ],
)
def test_logits_and_features_are_timm_s(tmp_path, randomised, name, size, preparation) -> None:
    arguments = {} if "resnet" in name else SMALL
    peer = timm.create_model(name, num_classes=3, **({"img_size": size} if arguments else {}), **arguments)
    path = saved(tmp_path / "m.safetensors", randomised(peer))
    subject = opened(path, f"timm:{name}", img_size=size, overrides=arguments)
    assert subject.preprocessing == Preprocessing(size, *preparation)
    assert (subject.channels, subject.num_classes, subject.classes, subject.resampled) == (3, 3, None, ())
    assert not any(module.training for module in subject.model.modules())
    images = torch.randn(2, 3, *subject.preprocessing.img_size)
    with torch.no_grad():
        expected = peer(images)
        assert expected.std() > 0.01
        assert torch.equal(subject.model(images), expected)
        expected = peer.forward_head(peer.forward_features(images), pre_logits=True)
    # Without a head, the file's stays behind.
    headless = opened(path, f"timm:{name}", img_size=size, num_classes=0, overrides=arguments)
    assert (headless.num_classes, headless.digest == subject.digest) == (0, False)
    got, _ = extract_features(headless.model, [(images, torch.zeros(2))])
    assert torch.equal(got, expected)


@pytest.mark.parity
def test_it_is_our_model_too(vit, tmp_path) -> None:
    path = vit[1]
    images = torch.randn(2, 3, 32, 32)
    ours = opened(path, "vit_tiny_patch16_224")
    torch.testing.assert_close(opened(path).model(images), ours.model(images), rtol=1e-5, atol=1e-5)
    assert opened(path).preprocessing == ours.preprocessing
    # By a name of timm's older versions, without its warning.
    assert opened(path, "timm:vit_tiny_patch16_224_in21k").preprocessing == ours.preprocessing
    # Of another resolution than the file's, by timm's own resampling.
    larger = opened(path, img_size=(48, 64))
    assert larger.resampled == ("pos_embed (1, 5, 12) -> (1, 13, 12), by timm",)
    assert larger.preprocessing.img_size == (48, 64)
    images = torch.randn(2, 3, 48, 64)
    ours = opened(path, "vit_tiny_patch16_224", img_size=(48, 64))
    torch.testing.assert_close(larger.model(images), ours.model(images), rtol=1e-5, atol=1e-5)
    tokens = [
        extract_features(each.model, [(images, torch.zeros(2))], what=ClassTokens(2, True))[0]
        for each in (larger, ours)
    ]
    assert tokens[0].shape == (2, 36)
    torch.testing.assert_close(*tokens, rtol=1e-5, atol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_tiny_r_s16_p8_224", "resnetv2_50x1_bit"])
def test_google_s_files(tmp_path, randomised, name) -> None:
    resnet = name.startswith("resnetv2")
    arguments = {"channels": (128,) * 4, "stem_chs": 32} if resnet else {"img_size": 64, **SMALL}
    model = randomised(timm.create_model(name, num_classes=3, **arguments))
    path = saved(tmp_path / "m.safetensors", model)
    convert(path, tmp_path / "m.npz", to="npz", num_heads=None if resnet else 3)
    peer = timm.create_model(name, num_classes=3, **arguments).eval()
    peer.load_pretrained(str(tmp_path / "m.npz"))
    arguments.pop("img_size", None)
    subject = opened(tmp_path / "m.npz", f"timm:{name}", img_size=64, overrides=arguments)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(subject.model(images), model(images), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(subject.model(images), peer(images), rtol=1e-5, atol=1e-5)
    arrays = dict(np.load(tmp_path / "m.npz"))
    write_npz(
        tmp_path / "more.npz", {key: torch.from_numpy(value) for key, value in {**arrays, "extra": np.ones(2)}.items()}
    )
    with pytest.raises(CheckpointError, match="no place for extra"):
        opened(tmp_path / "more.npz", f"timm:{name}", img_size=64, overrides=arguments)
    with pytest.raises(ConfigError, match=r"section='a' does not apply to \.npz"):
        opened(tmp_path / "m.npz", f"timm:{name}", img_size=64, overrides=arguments, section="a")


@pytest.mark.parametrize(
    ("name", "outside"),
    [
        ("levit_128s", "head.bn.bias"),  # a batch norm before each of two heads goes with them
        ("regnetx_002", "stem.conv.weight"),  # whose function for old names takes the names alone
    ],
)
def test_models_whose_names_timm_changes(tmp_path, name, outside) -> None:
    peer = timm.create_model(name, num_classes=3)
    assert outside in peer.state_dict()
    path = saved(tmp_path / "m.safetensors", peer)
    for classes in (3, 0):
        weights = opened(path, f"timm:{name}", img_size=None, num_classes=classes, overrides={}).model.state_dict()
        assert all(torch.equal(tensor, peer.state_dict()[key]) for key, tensor in weights.items())
        assert (len(weights) == len(peer.state_dict())) == bool(classes)


def test_files_of_training_runs(vit, tmp_path) -> None:
    peer, path = vit
    weights = load_file(path)
    average = {f"module.{key}": 2 * tensor for key, tensor in weights.items()}
    torch.save({"epoch": 3, "state_dict": weights, "state_dict_ema": average, "optimizer": {}}, tmp_path / "run.pth")
    torch.save({f"_orig_mod.{key}": tensor for key, tensor in weights.items()}, tmp_path / "compiled.pth")
    digest = opened(path).digest
    assert opened(tmp_path / "run.pth").digest == opened(tmp_path / "compiled.pth").digest == digest
    ema = opened(tmp_path / "run.pth", section="state_dict_ema").model
    assert torch.equal(ema.head.bias, 2 * peer.head.bias)
    with pytest.raises(CheckpointError, match="no section 'teacher'; the file has 'state_dict/', 'state_dict_ema/'"):
        opened(tmp_path / "run.pth", section="teacher")
    torch.save({"student": weights, "teacher": average}, tmp_path / "two.pth")
    with pytest.raises(
        CheckpointError, match="several places for weights: 'student/', 'teacher/': say which by section"
    ):
        opened(tmp_path / "two.pth")
    assert opened(tmp_path / "two.pth", section="student").digest == digest


class _Planted:
    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_file_is_executed(vit, tmp_path) -> None:
    planted = tmp_path / "executed"
    torch.save({"state_dict": load_file(vit[1]), "args": _Planted(planted)}, tmp_path / "m.pth")
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(_Planted(planted)))
    np.savez(tmp_path / "m.npz", **{"embedding/kernel": np.array([_Planted(planted)], dtype=object)})
    for name in ("m.pth", "m.pkl", "m.npz"):
        with pytest.raises(CheckpointError, match=name):
            opened(tmp_path / name)
        assert not planted.exists()
    pickle.loads((tmp_path / "m.pkl").read_bytes())  # it would have been
    assert planted.exists()


def test_every_weight_is_the_file_s(vit, tmp_path) -> None:
    weights = load_file(vit[1])

    def refused(message, changes=None, without=(), **options):
        changed = {key: tensor for key, tensor in {**weights, **(changes or {})}.items() if key not in without}
        save_file(changed, tmp_path / "m.safetensors")
        with pytest.raises(CheckpointError, match=message) as caught:
            opened(tmp_path / "m.safetensors", **options)
        assert str(tmp_path / "m.safetensors") in str(caught.value)

    refused("does not fit timm's vit_tiny_patch16_224: missing blocks.1.norm1.bias$", without=("blocks.1.norm1.bias",))
    refused("not expected blocks.2.norm1.bias$", {"blocks.2.norm1.bias": torch.zeros(12)})
    refused(r"norm.bias: got \(13,\), expected \(12,\)$", {"norm.bias": torch.zeros(13)})
    refused("head.bias: .* values are NaN", {"head.bias": torch.full((3,), torch.nan)})
    heads = r"head.weight: got \(3, 12\), expected \({}, 12\) .*num_classes says how many outputs the head has"
    refused(heads.format(1000), num_classes=None)
    refused(heads.format(7), num_classes=7)
    refused("missing head.weight, head.bias .*0 leaves it out", without=("head.weight", "head.bias"))
    refused("missing .*; not expected", num_classes=0, changes={"x": torch.zeros(1)}, without=("norm.bias",))
    # Three channels are not folded into one.
    refused(
        r"proj.weight: got \(12, 3, 16, 16\), expected \(12, 1,",
        overrides={**SMALL, "in_chans": 1},
        mean=(0.5,),
        std=(0.5,),
    )
    refused(
        "timm cannot make the weights of vit_tiny_patch16_224 of it", {"patch_embed.proj.weight": torch.zeros(7, 3)}
    )
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="no tensor"):
        opened(tmp_path / "none.pth")


def test_what_cannot_be_asked(vit, tmp_path, monkeypatch) -> None:
    path = vit[1]
    for name, message in {
        "timm:vit_tiny_patch16_225": "timm .* has no model 'vit_tiny_patch16_225': did you mean vit_tiny_patch16_224",
        "timm:": "has no model ''",
        "timm:hf-hub:timm/resnet18.a1_in1k": "has no model 'hf-hub:timm/resnet18.a1_in1k'",
        "timm:local-dir:/home": "has no model 'local-dir:/home'",
        "timm:vit_tiny_patch16_224.of_mine": "has no 'vit_tiny_patch16_224.of_mine'; of this model it knows vit_tiny_p",
    }.items():
        with pytest.raises(ConfigError, match=message):
            opened(path, name)
    for option in ("layout", "convention"):
        with pytest.raises(ConfigError, match=f"{option}='timm' does not apply to {VIT}"):
            opened(path, **{option: "timm"})
    with pytest.raises(ConfigError, match=r"timm cannot build vit_tiny_patch16_224 with .*'breadth': 7.*unexpected"):
        opened(path, overrides={**SMALL, "breadth": 7})
    with pytest.raises(ConfigError, match="images for timm's vit_tiny_patch16_224: crop must be above 0"):
        opened(path, crop=2.0)
    with pytest.raises(ConfigError, match=r"the model takes images of 3 channel\(s\), got 2 values"):
        opened(path, mean=(0.5, 0.5), std=(0.5, 0.5))
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        opened(tmp_path / "none")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=f"{VIT} needs timm, which cannot be imported .*: pip install timm"):
        opened(path)


def test_arguments_go_before_timm_s(vit) -> None:
    given = {"resize": "squash", "crop": 1.0, "interpolation": "bilinear", "mean": (0.4,), "std": (0.3,)}
    assert opened(vit[1], **given).preprocessing == Preprocessing((32, 32), **given)


def test_digests(vit, tmp_path, randomised) -> None:
    peer, path = vit
    digest = opened(path).digest
    assert digest == opened(path, mean=(0.5,), std=(0.4,)).digest
    # The same weights are another function with other heads.
    assert opened(path, overrides={**SMALL, "num_heads": 2}).digest != digest
    assert opened(path, "vit_tiny_patch16_224").digest != digest
    with pytest.raises(TypeError, match=r"expected a model of vit_rs\.models, or its architecture"):
        model_digest(peer)
    gray = randomised(timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3, in_chans=1, **SMALL))
    path = saved(tmp_path / "gray.safetensors", gray)
    assert opened(path, overrides={**SMALL, "in_chans": 1}, mean=(0.5,), std=(0.5,)).channels == 1


def test_timm_s_own_loading_is_left_alone(vit) -> None:
    """Other threads load as they did while we build, and we do afterwards."""
    from timm.models import _builder

    from vit_rs.evaluation.timm_models import _interception

    loaded = []

    def load() -> None:
        overlay = {"state_dict": {key: tensor.clone() for key, tensor in vit[0].state_dict().items()}, "num_classes": 3}
        loaded.append(
            timm.create_model("vit_tiny_patch16_224", True, img_size=32, pretrained_cfg_overlay=overlay, **SMALL)
        )

    original = _builder.load_pretrained
    with _interception(_builder) as renaming:
        thread = threading.Thread(target=load)
        thread.start()
        thread.join()
        assert not renaming
        assert _builder.load_pretrained is not original
    assert torch.equal(loaded[0].head.weight, vit[0].head.weight)
    assert _builder.load_pretrained is original


def test_two_at_once_leave_timm_s_own_loading() -> None:
    from timm.models import _builder

    from vit_rs.evaluation.timm_models import _interception

    original, waits = _builder.load_pretrained, threading.Event()

    def second() -> None:
        waiting = _interception(_builder)
        waits.set()
        with waiting:
            pass

    thread = threading.Thread(target=second)
    with _interception(_builder):
        thread.start()
        waits.wait()
        time.sleep(0.05)  # it has come to the lock
    thread.join()
    assert _builder.load_pretrained is original


def test_tokens_of_models_that_tell_them() -> None:
    eva = timm.create_model(
        "eva02_tiny_patch14_224", img_size=28, num_classes=0, depth=2, embed_dim=12, num_heads=3
    ).eval()
    images = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        last = eva.forward_features(images)  # (2, 1 + 4, 12)
    got, _ = extract_features(eva, [(images, torch.zeros(2))], what=ClassTokens(1, average=True))
    torch.testing.assert_close(got, torch.cat([last[:, 0], last[:, 1:].mean(dim=1)], dim=1), rtol=1e-5, atol=1e-5)
    # No token before the patches.
    plain = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, class_token=False, global_pool="avg", fc_norm=False, **SMALL
    ).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        last = plain.forward_features(images)
    got, _ = extract_features(plain, [(images, torch.zeros(2))], what=ClassTokens(0, average=True))
    torch.testing.assert_close(got, last.mean(dim=1), rtol=1e-5, atol=1e-5)
    relative = timm.create_model("vit_relpos_small_patch16_224", img_size=32, **SMALL).eval()
    with torch.no_grad():
        last = relative.forward_features(images)
    got, _ = extract_features(relative, [(images, torch.zeros(2))], what=ClassTokens(0, average=True))
    torch.testing.assert_close(got, last.mean(dim=1), rtol=1e-5, atol=1e-5)
    # A classifier that gives its encoder's tokens, and has no blocks to count.
    wrapped = nn.Module()
    wrapped.forward_intermediates = relative.forward_intermediates
    assert not gives_tokens(wrapped)
    # timm's NaFlexVit, whose tokens before the patches are no field of its own.
    del relative.cls_token
    study = SimpleNamespace(
        subject=SimpleNamespace(model=relative), options=SimpleNamespace(protocol="dinov2"), notes=[]
    )
    assert _probe_features(study) == (ClassTokens(0, average=True), (("mean of patches", 0, 12),))
    resnet = timm.create_model("resnet10t")
    assert not gives_tokens(resnet)
    with pytest.raises(TypeError, match="ResNet has no get_intermediate_layers to take tokens from"):
        check_what(resnet, ClassTokens(1))


@pytest.fixture(scope="module")
def files(tmp_path_factory, randomised):
    """Files of timm's own test models: what the commands build."""
    root = tmp_path_factory.mktemp("files")
    names: dict = {"vit": ("test_vit", {"img_size": 64}), "resnet": ("test_resnet", {})}
    return {
        key: (name, saved(root / f"{key}.safetensors", randomised(timm.create_model(name, num_classes=3, **sized))))
        for key, (name, sized) in names.items()
    }


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_commands(files, photos, capsys, kind) -> None:
    name, path = files[kind]
    model = [path, "--model", f"timm:{name}", "--img-size", "64", "--threads", "1"]

    def printed(command, *options):
        assert main([command, *model, "--json", *options]) == 0
        return json.loads(capsys.readouterr().out)

    peer = timm.create_model(name, num_classes=3, **({"img_size": 64} if kind == "vit" else {})).eval()
    peer.load_state_dict(load_file(path))
    data = timm.data.resolve_model_data_config(peer)
    tested = printed("eval", "--num-classes", "3", "--data", str(photos))
    assert (tested["count"], tested["preprocessing"]["mean"]) == (12, list(data["mean"]))
    image = str(photos / "val" / "ash" / "0.png")
    [found] = printed("predict", "--num-classes", "3", image)["predictions"]
    subject = open_subject(path, name=f"timm:{name}", num_classes=3, img_size=64)
    pixels = subject.preprocessing.transform()(torch.from_numpy(np.array(Image.open(image))).permute(2, 0, 1))
    expected = peer(pixels[None]).softmax(dim=1)[0]
    for entry in found["classes"]:
        assert entry["probability"] == pytest.approx(expected[int(entry["class"])].item(), abs=1e-5)
    few = printed("fewshot", "--data", str(photos), "--no-cache", "--shots", "1", "--seeds", "0")
    assert few["results"]["1"]["top1"] >= 0
    assert printed("knn", "--data", str(photos), "--no-cache", "--k", "1")["results"]["1"]["top1"] >= 0
    probe = ["probe", "--data", str(photos), "--no-cache", "--protocol", "mae", "--epochs", "1"]
    assert printed(*probe)["features"] == "pooled"
    if kind == "vit":
        assert printed(*probe, "--features", "cls")["features"] == "cls"
    else:
        assert main([probe[0], *model, *probe[1:], "--features", "cls"]) == 2
        assert "this ResNet has no class token" in capsys.readouterr().err


def test_timms_names_without_the_prefix_are_told(tmp_path):
    (tmp_path / "m.safetensors").touch()
    with pytest.raises(ConfigError, match="is no model of vit-rs, but timm has one: timm:vit_wee_patch16_reg1_gap_256"):
        open_subject(tmp_path / "m.safetensors", name="vit_wee_patch16_reg1_gap_256")
