"""The folder of an analysis: every figure, the arrays behind it, the page; whole or not at all."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Subset

from vit_rs.analysis.attention import attention_maps, attention_rollout
from vit_rs.analysis.attention_pass import _page, summarize_attention
from vit_rs.analysis.distance import mean_attention_distance
from vit_rs.analysis.embeddings import patch_filters, position_similarity
from vit_rs.analysis.images import choose_images
from vit_rs.analysis.output_folder import new_folder
from vit_rs.analysis.overview import MARKER, _png, analyze, pixel_kernel
from vit_rs.analysis.report import unpack_attention
from vit_rs.checkpoints import save_checkpoint
from vit_rs.cli import main
from vit_rs.cli.analyze import _summary
from vit_rs.data import ImageLoader, load_idx, sample_dataset
from vit_rs.evaluation import Preprocessing, Subject, open_subject
from vit_rs.exceptions import CheckpointError, DatasetError
from vit_rs.models import BiTResNet, HybridConfig, HybridViT, ResNetConfig, VisionTransformer, ViTConfig

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 3}


def subject_of(model, img_size=32, **options):
    channels = model.config.in_chans
    preprocessing = Preprocessing(img_size, mean=(0.4,) * channels, std=(0.3,) * channels, **options)
    return Subject(
        model=model.eval(), preprocessing=preprocessing, classes=None, digest="0" * 64, path="model.safetensors"
    )


@pytest.fixture
def vit(randomised):
    return subject_of(randomised(VisionTransformer(ViTConfig(**SMALL, reg_tokens=1))))


@pytest.fixture(scope="module")
def photos(plain_images):
    return plain_images(9)


@pytest.fixture
def undrawn(monkeypatch):
    """Save one pixel in place of each figure: drawing is what takes the time, and is tested elsewhere."""
    pixel = _png(np.zeros((3, 1, 1), np.uint8))
    monkeypatch.setattr("vit_rs.analysis.overview.save_figure", lambda _figure, path, dpi: path.write_bytes(pixel))


def arrays(folder, name):
    with np.load(folder / "arrays" / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def names_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


FIGURES = (
    "patch_filters",
    "raw_filters",
    "position_similarity_input",
    "attention_distance",
    "attention_distance_renormalized",
    "attention_rollout",
    "attention_heads_0",
    "attention_heads_1",
)


def test_the_folder_holds_what_the_functions_give(vit, photos, tmp_path):
    images = choose_images([photos], 7)
    progress: list[tuple[int, int]] = []
    record = analyze(
        vit, tmp_path / "look", images=images, shown=2, batch_size=3, progress=lambda *at: progress.append(at)
    )
    folder = tmp_path / "look"
    assert names_in(folder) == {
        MARKER,
        "report.html",
        *(f"figures/{name}.{kind}" for name in FIGURES for kind in ("png", "svg")),
        *(
            f"arrays/{name}.npz"
            for name in ("patch_filters", "position_similarity", "attention_distance", "attention_maps")
        ),
    }
    assert [path.name for path in tmp_path.iterdir()] == ["look"]
    assert json.loads((folder / MARKER).read_text()) == record
    assert progress == [(3, 7), (6, 7), (7, 7)]

    with ImageLoader(images.source, vit.preprocessing.transform(), batch_size=7) as loader:
        [(batch, _)] = loader
    model = vit.model
    found = arrays(folder, "attention_distance")
    want = mean_attention_distance(model, batch)
    np.testing.assert_allclose(found["distances"], want.numpy(), rtol=1e-5)
    renormalized = mean_attention_distance(model, batch, renormalize=True)
    np.testing.assert_allclose(found["renormalized"], renormalized.numpy(), rtol=1e-5)
    each = torch.stack([mean_attention_distance(model, image[None]) for image in batch])
    np.testing.assert_allclose(found["deviations"], each.std(dim=0).numpy(), rtol=1e-4, atol=1e-6)
    maps = attention_maps(model, batch)
    np.testing.assert_allclose(found["prefix_share"], maps[..., 2:, :2].sum(-1).mean((0, 3)).numpy(), rtol=1e-5)
    assert found["grid"].tolist() == [4, 4]
    assert int(found["images"]) == 7
    assert record["attention_distance"]["layers"][1]["heads"] == found["distances"][1].tolist()

    shown = arrays(folder, "attention_maps")
    chosen = [0, 3]  # of 7, two at even distances
    assert shown["names"].tolist() == [images.names[place] for place in chosen]
    np.testing.assert_allclose(shown["maps"], maps[chosen][..., 0, 2:].reshape(2, 3, 2, 4, 4).numpy(), atol=1e-6)
    np.testing.assert_allclose(shown["rollouts"], attention_rollout(model, batch[chosen]).numpy(), atol=1e-6)
    pixels = (batch[chosen] * 0.3 + 0.4) * 255
    np.testing.assert_allclose(shown["images"], pixels.numpy(), atol=0.51)

    filters = arrays(folder, "patch_filters")
    weight = model.patch_embed.proj.weight.detach()
    np.testing.assert_array_equal(filters["weight"], weight.numpy())
    np.testing.assert_array_equal(filters["components"], patch_filters(weight).components.numpy())
    positions = arrays(folder, "position_similarity")
    table = model.pos_embed.detach()
    np.testing.assert_array_equal(positions["input_table"], table[0].numpy())
    np.testing.assert_array_equal(positions["input_similarity"], position_similarity(table, (4, 4), 2).numpy())


def test_what_the_page_gets(vit, photos):
    images = choose_images([photos], 9)
    summary = summarize_attention(vit, images, shown=3, batch_size=2)
    assert summary.page_layers == (0, 1, 2)
    assert [image.name for image in summary.shown] == [images.names[place] for place in (0, 3, 6)]
    with ImageLoader(images.source, vit.preprocessing.transform(), batch_size=9) as loader:
        [(batch, _)] = loader
    maps = attention_maps(vit.model, batch[[0, 3, 6]])
    for image, want in zip(summary.shown, maps, strict=True):
        for packed, layer in zip(image.packed, want, strict=True):
            got = unpack_attention(packed, 2, 18)
            most = layer.amax(-1, keepdim=True)
            assert ((got - layer).abs() <= (layer * most).sqrt() / 254 + most / 500**2).all()


@pytest.mark.parametrize(
    ("depth", "images", "layer_bytes", "want"),
    [
        (12, 4, 466_000, (4, tuple(range(12)))),  # ViT-B/16 at 224
        (24, 4, 5_330_000, (2, (0, 4, 9, 13, 18, 23))),  # ViT-L/16 at 384
        (32, 4, 30_000_000, (1, (0, 31))),  # ViT-H/14 at 518
        (40, 2, 200_000_000, (1, (39,))),
        (12, 0, 466_000, (0, tuple(range(12)))),
    ],
)
def test_large_attention_leaves_layers_out_of_the_page(depth, images, layer_bytes, want):
    assert _page(depth, images, layer_bytes) == want


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({"pos_embed": "none"}, "as a bag"),
        ({"pos_embed": "relative"}, "relative"),
        ({"pos_embed": "none", "rope": True, "embed_dim": 32}, "rotary"),
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_models_without_a_table_say_so(options, note, tmp_path):
    record = analyze(subject_of(VisionTransformer(ViTConfig(**{**SMALL, **options}))), tmp_path / "look")
    assert note in record["position_embeddings"]["note"].lower()
    assert record["position_embeddings"]["tables"] == []
    page = (tmp_path / "look" / "report.html").read_text()
    assert "No images were given (--data)" in page
    assert not any("position" in name or "attention" in name for name in names_in(tmp_path / "look"))


@pytest.mark.parametrize(
    ("options", "tables"),
    [
        ({"pos_embed": "2d"}, ["input"]),
        ({"pos_embed": "sincos2d_mae"}, ["input"]),
        ({"pos_placement": "every"}, ["layer_1", "layer_2", "layer_3"]),
        ({"no_embed_class": True}, ["input"]),
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_every_table_is_drawn(options, tables, tmp_path):
    analyze(subject_of(VisionTransformer(ViTConfig(**{**SMALL, **options}))), tmp_path / "look")
    drawn = {name for name in names_in(tmp_path / "look") if "position" in name and name.endswith("png")}
    assert drawn == {f"figures/position_similarity_{table}.png" for table in tables}
    found = arrays(tmp_path / "look", "position_similarity")
    assert found.keys() == {f"{table}_{kind}" for table in tables for kind in ("table", "similarity")}


@pytest.mark.usefixtures("undrawn")
def test_tables_before_and_after_a_change_of_resolution(tmp_path, capsys):
    model = VisionTransformer(ViTConfig(**SMALL))
    metadata = {"preprocessing": Preprocessing(32, mean=(0.5,) * 3, std=(0.5,) * 3).to_dict()}
    save_checkpoint(tmp_path / "m.safetensors", model, metadata=metadata)
    command = ["analyze", str(tmp_path / "m.safetensors"), "--img-size", "48x32", "--out", str(tmp_path / "look")]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "before: input, 4x4 patches" in out
    assert "positions    after: input, 6x4 patches" in out
    found = arrays(tmp_path / "look", "position_similarity")
    np.testing.assert_array_equal(found["before_input_table"], model.pos_embed[0].detach().numpy())
    assert found["input_similarity"].shape == (6, 4, 6, 4)
    assert "pos_embed (4, 4) -&gt; (6, 4)" in (tmp_path / "look" / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "size"),
    [({}, (48, 32)), ({"pos_embed": "2d"}, (48, 32)), ({"pos_embed": "2d"}, (32, 48)), ({"pos_embed": "2d"}, (16, 48))],
)
def test_the_grid_of_a_file_that_was_resampled(options, size, tmp_path):
    """Also where one of the two tables keeps its length, and nobody tells of it."""
    model = VisionTransformer(ViTConfig(**SMALL, **options))
    save_checkpoint(tmp_path / "m.safetensors", model)
    assert open_subject(tmp_path / "m.safetensors", img_size=size, mean=[0.5], std=[0.5]).file_grid == (4, 4)
    assert open_subject(tmp_path / "m.safetensors", mean=[0.5], std=[0.5]).file_grid is None


def test_hybrids_and_resnets(photos, tmp_path, randomised):
    config = HybridConfig(**{**SMALL, "img_size": 64, "patch_size": 1, "backbone_layers": (1, 1)}, global_pool="avg")
    hybrid = randomised(HybridViT(config))
    name, weight = pixel_kernel(hybrid, 3)
    assert name.startswith("patch_embed.backbone.stem")
    assert weight.shape[1:] == (3, 7, 7)
    record = analyze(subject_of(hybrid, 64), tmp_path / "hybrid", images=choose_images([photos], 2), shown=1)
    assert np.shape(record["attention_distance"]["layers"][0]["heads"]) == (2,)
    assert "no patch embedding on pixels" in (tmp_path / "hybrid" / "report.html").read_text()

    resnet = subject_of(BiTResNet(ResNetConfig(layers=(1, 1, 1, 1), num_classes=2)))
    record = analyze(resnet, tmp_path / "resnet", images=choose_images([photos], 2))
    assert "attention_distance" not in record
    assert "has no list of Transformer blocks" in (tmp_path / "resnet" / "report.html").read_text()


STRANGERS = {
    "xcit_nano_12_p16_224": ({"depth": 1, "embed_dim": 12, "num_heads": 1}, "no ViT of one grid"),
    "naflexvit_base_patch16_gap": ({"depth": 1, "embed_dim": 12, "num_heads": 1}, "no ViT of one grid"),
    "cait_xxs24_224": ({"depth": 1, "embed_dim": 12, "num_heads": 1}, "called F.scaled_dot_product_attention 0 times"),
    "swin_tiny_patch4_window7_224": (
        {"depths": (1,), "embed_dim": 12, "num_heads": (1,)},
        "no list of Transformer blocks",
    ),
    "hiera_tiny_224": ({"stages": (1,), "q_pool": 0, "embed_dim": 12, "num_heads": 1}, "no ViT of one grid"),
}


@pytest.mark.parametrize("name", STRANGERS)
@pytest.mark.usefixtures("undrawn")
def test_models_whose_attention_cannot_be_watched_say_so(name, photos, tmp_path):
    timm = pytest.importorskip("timm")
    arguments, note = STRANGERS[name]
    preprocessing = Preprocessing(224, mean=(0.5,) * 3, std=(0.5,) * 3)
    subject = Subject(timm.create_model(name, **arguments).eval(), preprocessing, None, "0" * 64)
    for images in (None, choose_images([photos], 1)):
        record = analyze(subject, tmp_path / "look", images=images, overwrite=True)
        printed = _summary(record, tmp_path / "look")
        assert ("No images were given" if images is None else note) in printed
        assert ("has no convolution that reads" in printed) == name.startswith("naflex")
        assert record["attention_note"] in (tmp_path / "look" / "report.html").read_text()


@pytest.mark.usefixtures("undrawn")
def test_gray_models_see_photographs_in_gray(photos, tmp_path):
    model = subject_of(VisionTransformer(ViTConfig(**SMALL, in_chans=1)))
    record = analyze(model, tmp_path / "look", images=choose_images([photos], 2), shown=1)
    assert record["data"].endswith(", made gray")
    assert record["model"] == "VisionTransformer of 3 layers, 2 heads, width 16"
    assert arrays(tmp_path / "look", "attention_maps")["images"].shape == (1, 1, 32, 32)


@pytest.mark.usefixtures("undrawn")
def test_unreadable_images_are_left_out_and_said(vit, photos, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    images = choose_images([photos, tmp_path / "broken.jpg"], 10)
    record = analyze(vit, tmp_path / "look", images=images, shown=0)
    assert record["attention_distance"]["images"] == 9
    [failure] = record["attention_distance"]["unreadable"]
    assert "broken.jpg" in failure
    assert record["data"].endswith(", 1 of them unreadable")
    assert record["precision"] == "float32"
    with pytest.raises(DatasetError, match=r"none of 1 images can be read; the first: .*broken\.jpg"):
        analyze(vit, tmp_path / "none", images=choose_images([tmp_path / "broken.jpg"], 10))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.jpg", "look"]


# Errors


@pytest.mark.parametrize(
    ("key", "place", "message"),
    [
        ("patch_embed.proj.weight", 0, r"patch_embed\.proj\.weight: .*not finite"),
        ("pos_embed", -1, "input holds values that are not finite"),
        ("blocks.1.attn.qkv.weight", 0, "attention weights of layer 2 are not finite"),
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_weights_that_are_no_numbers(key, place, message, photos, tmp_path):
    model = VisionTransformer(ViTConfig(**SMALL))
    with torch.no_grad():
        model.get_parameter(key).view(-1)[place] = torch.nan
    with pytest.raises(CheckpointError, match=message):
        analyze(subject_of(model), tmp_path / "look", images=choose_images([photos], 2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("undrawn")
def test_interrupted_work_leaves_nothing(vit, photos, tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        analyze(vit, tmp_path / "deep" / "look", images=choose_images([photos], 2), progress=stop)
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.usefixtures("undrawn")
def test_folders_are_replaced_only_when_asked_and_ours(tmp_path):
    model = subject_of(VisionTransformer(ViTConfig(**SMALL, pos_embed="none")))
    out = tmp_path / "look"
    out.mkdir()
    analyze(model, out)
    (out / "figures" / "old.png").touch()
    with pytest.raises(FileExistsError, match="holds an earlier result: give another folder, or --overwrite"):
        analyze(model, out)
    analyze(model, out, overwrite=True)
    assert not (out / "figures" / "old.png").exists()
    (out / MARKER).unlink()
    with pytest.raises(FileExistsError, match=rf"is not empty, and holds no {MARKER}"):
        analyze(model, out, overwrite=True)
    with pytest.raises(OSError, match=re.escape("'/proc/look'")):
        analyze(model, "/proc/look")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(FileExistsError, match="is a file, expected a folder"):
        analyze(model, file)


def test_a_folder_that_fails_leaves_the_earlier_one(tmp_path):
    def fill(fail):
        with new_folder(tmp_path / "out", marker="m", overwrite=True) as folder:
            (folder / "m").write_text(str(fail))
            if fail:
                raise OSError("full")

    fill(fail=False)
    with pytest.raises(OSError, match="full"):
        fill(fail=True)
    assert (tmp_path / "out" / "m").read_text() == "False"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("options", [{"filters": 0}, {"shown": -1}])
def test_numbers_out_of_range(options, tmp_path):
    with pytest.raises(ValueError, match="filters must be at least 1 and shown at least 0"):
        analyze(subject_of(VisionTransformer(ViTConfig(**SMALL))), tmp_path / "look", **options)


# Which images


def test_images_are_spread_over_a_folder(photos, tmp_path):
    whole = choose_images([photos], 100)
    assert len(whole.names) == 9
    assert choose_images([photos], 3).names == whole.names[::3]
    assert whole.names[:2] == (str(Path("class0/00.png")), str(Path("class0/03.png")))
    fifth = whole.source[4][0]
    both = choose_images([fifth, photos], 10)
    assert both.names == ("04.png", *whole.names)
    assert [path for path, _ in both.source] == [fifth, *(path for path, _ in whole.source)]
    assert (both.channels, both.description) == (3, f"10 of 10 images of {fifth}, {photos}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="empty: no image in this folder"):
        choose_images([tmp_path / "empty"], 1)
    with pytest.raises(FileNotFoundError, match="no such image or folder"):
        choose_images([tmp_path / "nothing"], 1)
    with pytest.raises(ValueError, match="at least 1 image is needed, got 0"):
        choose_images([photos], 0)


def test_images_of_idx_files(tmp_path):
    import gzip
    import struct

    for part, count in (("train", 6), ("t10k", 4)):
        pixels = np.arange(count, dtype=np.uint8).repeat(64)
        head = struct.pack(">IIII", 2051, count, 8, 8)
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + pixels.tobytes()))
        labels = (np.arange(count) % 2).astype(np.uint8).tobytes()
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(struct.pack(">II", 2049, count) + labels))
    images = choose_images([tmp_path], 2)
    assert isinstance(images.source, Subset)
    assert [int(images.source[place][0].max()) for place in range(2)] == [0, 2]
    assert (images.channels, images.names) == (1, ("test image 0 (0)", "test image 2 (0)"))
    assert len(load_idx(tmp_path, "test")) == 4
    model = subject_of(VisionTransformer(ViTConfig(**SMALL)))
    with pytest.raises(DatasetError, match=r"takes images of 3 channel\(s\), got images of 1"):
        summarize_attention(model, images)


def test_bundled_images():
    images = choose_images(None, 5)
    assert [place * len(sample_dataset("test")) // 5 for place in range(5)] == list(images.source.indices)


# The command


def test_the_command(photos, tmp_path, capsys):
    from safetensors.torch import save_file

    model = VisionTransformer(ViTConfig(img_size=32, patch_size=16, embed_dim=192, depth=12, num_heads=3))
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    out = tmp_path / "look"
    command = ["analyze", str(tmp_path / "m.safetensors"), "--model", "vit_tiny_patch16_224", "--img-size", "32"]
    command += ["--data", photos, "--images", "4", "--shown", "1", "--filters", "5", "--out", str(out)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "5 principal components of patch_embed.proj.weight" in printed
    assert printed.count("\n  layer ") == 12
    assert f"open {out / 'report.html'}" in printed
    assert arrays(out, "patch_filters")["components"].shape == (5, 3, 16, 16)
    assert main(command) == 2
    assert "look holds an earlier result" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--precision", "bfloat16"]) == 0


@pytest.mark.parity
@pytest.mark.usefixtures("undrawn")
def test_timms_models_give_what_ours_give(photos, tmp_path):
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    model = timm.create_model("vit_tiny_patch16_224")
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    for name in ("timm:vit_tiny_patch16_224", "vit_tiny_patch16_224"):
        command = ["analyze", str(tmp_path / "m.safetensors"), "--model", name, "--img-size", "48", "--data", photos]
        command += ["--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", "--crop", "0.9", "--interpolation", "bicubic"]
        assert main([*command, "--out", str(tmp_path / name.replace(":", "-"))]) == 0
    theirs, ours = tmp_path / "timm-vit_tiny_patch16_224", tmp_path / "vit_tiny_patch16_224"
    assert names_in(theirs) == names_in(ours)
    for folder in (theirs, ours):
        before = arrays(folder, "position_similarity")["before_input_table"]
        np.testing.assert_array_equal(before, model.pos_embed[0].detach().numpy())
    for name in ("patch_filters", "position_similarity", "attention_distance", "attention_maps"):
        want = arrays(ours, name)
        for key, array in arrays(theirs, name).items():
            if array.dtype.kind == "f":
                np.testing.assert_allclose(array, want[key], rtol=1e-5, atol=1e-5)
            else:
                np.testing.assert_array_equal(array, want[key])


@pytest.mark.usefixtures("undrawn")
def test_a_run_of_the_bundled_data_needs_no_other_images(tmp_path, capsys):
    config = ViTConfig(img_size=28, patch_size=7, in_chans=1, embed_dim=16, depth=2, num_heads=2, num_classes=10)
    metadata = {"preprocessing": Preprocessing(28).to_dict()}
    save_checkpoint(tmp_path / "m.safetensors", VisionTransformer(config), metadata=metadata)
    assert main(["analyze", str(tmp_path / "m.safetensors"), "--images", "8", "--out", str(tmp_path / "look")]) == 0
    assert "8 test images of the bundled" in capsys.readouterr().out


def test_missing_files_are_told_before_the_work(tmp_path, capsys):
    command = ["analyze", str(tmp_path / "no.safetensors"), "--out", str(tmp_path / "look")]
    assert main(command) == 2
    assert "no.safetensors" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
