"""The loader's benches: every installed variant shows its pixels; what is wrong is caught; the report is whole."""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

BENCHES = Path(__file__).resolve().parent.parent / "benches"
MODULES = ("bench_transform", "bench_loader", "bench_dropin", "bench_augment")

pytestmark = [
    pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision:DeprecationWarning"),
    # DataLoader's workers are forked from a process that has had threads.
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def load():
    """Import a module of benches/, whose files import each other as scripts do."""
    sys.path.insert(0, str(BENCHES))
    yield importlib.import_module
    sys.path.remove(str(BENCHES))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three class folders with nine JPEGs of smooth colours and some noise."""
    folder, generator = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for number in range(9):
        coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((280 + 10 * number, 260), Image.Resampling.BICUBIC)
        noise = generator.integers(0, 16, (260, smooth.width, 3))
        path = folder / f"class{number % 3}" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray((np.asarray(smooth) // 16 * 15 + noise).astype(np.uint8)).save(path, quality=92)
    return folder


@pytest.mark.parametrize(
    "module", [pytest.param(name, marks=[pytest.mark.slow] if name == "bench_dropin" else []) for name in MODULES]
)
def test_every_variant_is_right(load, data, module):
    comparison, bench = load("comparison"), load(module)
    compared = bench.comparisons(data, **bench.QUICK)
    assert compared
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for case in comparison.cases(compared):
            run = case.variant.prepare()
            try:
                case.comparison.check(case.variant, run)
            finally:
                comparison.close(run)
    finally:
        torch.set_num_threads(before)


def test_wrong_loading_is_caught(load):
    loading = load("loading")
    good = torch.linspace(-1, 1, 3 * 224 * 224).view(1, 3, 224, 224)
    compared = loading.Loading(table="", name="", variants=(), images=1, expected=lambda: good, dtype=torch.float32)
    proof = loading.Proof(lambda: good, 1.0, 0.1)
    variant = loading.Pipeline("it", lambda: None, proof=proof)
    compared.check(variant, lambda: loading.Outcome(1, good))
    compared.check(variant, lambda: loading.Outcome(1, good[0]))
    shifted = loading.Proof(lambda: good + 2 / 255 / 0.229, 1.0, 3.0)
    for changed, outcome, message in [
        (replace(variant, proof=shifted), (1, good), r"within 1.0 .* got 2\.0"),
        (replace(variant, proof=replace(shifted, largest=9.0, mean=0.5)), (1, good), "0.5 on average"),
        (variant, (2, good), "expected 1 images, got 2"),
        (variant, (1, good.double()), r"got torch\.float64"),
        (variant, (1, good[..., :200]), r"\(1, 3, 224, 200\)"),
        (variant, (1, good.to(memory_format=torch.channels_last)), "strides"),
        (variant, (1, good * 255), "not those of normalised pictures"),
        (variant, (1, good * 0), "not those of normalised pictures"),
    ]:
        with pytest.raises(AssertionError, match=message):
            compared.check(changed, lambda outcome=outcome: loading.Outcome(*outcome))


def test_u8_pictures_are_proved_too(load):
    loading = load("loading")
    picture = (torch.arange(3 * 224 * 224) % 251).view(1, 3, 224, 224).to(torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (loading.MEAN, loading.STD))
    expected = (picture / 255 - mean) / std
    loading.compare("it", loading.Proof(lambda: picture, 0.0, 0.001), expected, torch.uint8)
    with pytest.raises(AssertionError, match=r"got 3\.00"):
        loading.compare("it", loading.Proof(lambda: picture + 3, 2.0, 9.0), expected, torch.uint8)
    with pytest.raises(AssertionError, match=r"got torch\.float32"):
        loading.compare("it", loading.Proof(lambda: expected, 2.0, 9.0), expected, torch.uint8)


def test_the_native_loop_is_read(load, data, monkeypatch):
    bench = load("bench_transform")
    printed = (
        "9 files, one thread, 9 rounds, median images/s\n"
        "bilinear  decode    2500   bare    1250   ours    1100   ours / bare 0.880\n"
        "bicubic   decode    2500   bare    1150   ours    1000   ours / bare 0.870\n"
    )
    assert bench.native_rate(printed) == 1250
    for other in ("", "bicubic   decode 1   bare 2   ours 3", "bilinear decode 1\nbicubic bare 2"):
        with pytest.raises(ValueError, match="expected a line 'bilinear"):
            bench.native_rate(other)
    done = subprocess.CompletedProcess([], 0, stdout=printed)
    monkeypatch.setattr(bench.subprocess, "run", lambda *_, **__: done)
    assert bench.native_seconds(load("corpus").gathered(data, 5)) == [5 / 1250]


def test_without_cargo_there_is_no_native_loop(load, data, monkeypatch):
    bench, native = load("bench_transform"), load("goals").NATIVE
    for found, count in (("/bin/cargo", 1), (None, 0)):
        monkeypatch.setattr(bench.shutil, "which", lambda _name, found=found: found)
        compared = bench.comparisons(data, **(bench.QUICK | {"native": True}))
        assert [variant.name for case in compared for variant in case.variants].count(native) == count


def test_wrong_views_are_caught(load, data):
    bench = load("bench_augment")
    views = bench.views([(data / "class0" / "0.jpg").read_bytes()])
    variant = views.variants[0]
    turned = replace(variant, plain=lambda: [view.flip(1) for view in variant.plain()])
    with pytest.raises(AssertionError, match="expected a picture within 2"):
        views.check(turned, variant.prepare())


def test_wrong_augmentation_is_caught(load):
    augmentation = load("augmentation")
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    compared = augmentation.Augmentation(
        table="", name="", variants=(), image=lambda: image, expected=lambda: image + 9
    )
    variant = augmentation.Changing("it", lambda: None, plain=lambda: image + 9)
    compared.check(variant, lambda: image + 1)
    compared.check(variant, lambda: torch.from_numpy(image + 1).permute(2, 0, 1))
    compared.check(variant, lambda: Image.fromarray(image + 1))
    for changed, run, message in [
        (replace(variant, plain=lambda: image + 8), lambda: image + 1, "got 1 and 1.000"),
        (variant, image.copy, "runs changed nothing"),
        (variant, lambda: image.astype(np.float32), "got float32"),
        (variant, lambda: image[:1], r"got uint8 \(1, 2, 3\)"),
    ]:
        with pytest.raises(AssertionError, match=message):
            compared.check(changed, run)


def test_files_are_chosen_evenly_or_repeated(load, data, tmp_path):
    corpus = load("corpus")
    third = corpus.gathered(data, 3)
    assert [path.parent.name for path in third.paths] == ["class0", "class1", "class2"]
    assert third.labels == (0, 1, 2)
    assert third.contents[0] == (data / "class0" / "0.jpg").read_bytes()
    twice = corpus.gathered(data, 18)
    assert len(set(twice.contents)) == 9
    assert sorted(twice.labels) == sorted([0, 1, 2] * 6)
    assert corpus.described(data).startswith("9 JPEGs of a folder, on average 320 x 260 pixels")
    with pytest.raises(SystemExit, match="expected class folders of JPEG files, found none"):
        corpus.gathered(tmp_path, 1)


def test_without_a_folder_scikit_images_files_are_read(load):
    pytest.importorskip("skimage")
    corpus = load("corpus")
    assert len(corpus.jpegs(None)) >= 2
    assert "scikit-image" in corpus.described(None)


@pytest.fixture
def timings(load, data):
    """Made-up results of two passes: vit_rs takes 2 ms an image, everything else 3 and then 5."""
    found = []
    for milliseconds in (3, 5):
        found.append([])
        for module in MODULES:
            bench = load(module)
            for compared in bench.comparisons(data, **bench.QUICK):
                for threads in compared.threads:
                    for variant in compared.variants:
                        value = (2 if variant.role == "ours" else milliseconds) * compared.images / 1000
                        info = {"table": compared.table, "comparison": compared.name, "variant": variant.name}
                        info |= {"role": variant.role, "threads": threads, "images": compared.images}
                        info |= {"unit": compared.unit}
                        found[-1].append({"extra_info": info, "stats": {"data": [value, value]}})
    native = {"table": load("goals").BILINEAR[0], "comparison": load("goals").BILINEAR[1], "threads": 1, "images": 8}
    native |= {"variant": load("goals").NATIVE, "role": "floor", "unit": "images/s"}
    for run in found:
        run.append({"extra_info": native | {"seconds": [8 * 0.0019]}, "stats": {"data": [99.0]}})
    return load("report").collect(found)


def test_the_report_has_every_figure(load, timings):
    report, suite = load("report"), load("suites").LOADING
    page = report.page(suite, timings, ["- a machine"], quick=False)
    assert "| vit_rs | 500 (500 - 500) |  |" in page
    assert "DataLoader, torchvision v2, PIL | 250 (200 - 333) | 2.00 (1.50 - 2.50) |" in page
    assert "native loop: region decode, fast_image_resize, pack | 0.9 | 0.950 (0.950 - 0.950) | reached |" in page
    assert "f32, 2 threads | vit_rs, one thread | 1.8 | 2.00 (1.50 - 2.50) | reached |" in page
    assert "f32, 2 threads | DataLoader, torchvision v2, PIL | 3.2 | 2.00 (1.50 - 2.50) | **missed** |" in page
    assert "RandomHorizontalFlip | plain copy: NumPy copy | 0.91 | 2.00 (1.50 - 2.50) | reached |" in page
    assert "To no peer in this run." in page
    measured = [goal for goal in suite.goals if all(comparison in timings for comparison in goal.comparisons)]
    assert page.count("| not measured |") == len(suite.goals) - len(measured)
    rows = [line for line in report.readme_lines(suite, timings) if line.startswith("| ")]
    assert len(rows) == 2 + len(suite.rows)
    assert "torchvision v2, PIL: 250 (2.00)" in rows[-3]
    assert "torch's DataLoader: 250 (2.00)" in rows[-1]


def test_absent_peers_are_told(load, timings, data):
    report = load("report")
    suite = replace(load("suites").LOADING, peers=("numpy", "no-such-distribution"))
    about = "\n".join(report.surroundings(suite, 2, data))
    assert f"numpy {np.__version__}" in about
    assert "- left out, because not installed: no-such-distribution" in about
    assert "- files: 9 JPEGs of a folder" in about
    bilinear = timings[load("goals").BILINEAR]
    for variants in bilinear.values():
        variants.pop("DALI, image_random_crop")
    page = report.page(suite, timings, [], quick=False)
    assert "bilinear, f32 | DALI, image_random_crop | 1.9 | | not measured |" in page
    assert "DALI" not in report.readme_lines(suite, timings)[4]
