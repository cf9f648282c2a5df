"""vit-rs doctor: what it counts, compares, measures and finds on small folders with planted faults."""

from __future__ import annotations

import io
import json
import struct
import sys
import tarfile
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from vit_rs.cli import main
from vit_rs.data import sample_dataset
from vit_rs.doctor import Report, examine, open_files, peer
from vit_rs.doctor import speed as speed_module
from vit_rs.doctor.damage import Damage, look_for_damage
from vit_rs.doctor.files import Files
from vit_rs.doctor.headers import ImageHeader, read_header
from vit_rs.doctor.parity import compare
from vit_rs.doctor.speed import Speed, best_threads, measure, medians, thread_counts
from vit_rs.doctor.survey import survey
from vit_rs.exceptions import DecodeError


def quiet(_part, _done, _total):
    """Progress that nobody sees."""


def photo(number: int, size=(40, 30)) -> Image.Image:
    """Return an image of the bundled sample, enlarged and coloured."""
    pixels = sample_dataset("test").images[number, :, :, 0]
    channels = [Image.fromarray(np.roll(pixels, shift, 0)).resize(size) for shift in range(3)]
    return Image.merge("RGB", channels)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int, *, big: bool = False) -> Image.Exif:
    exif = Image.Exif()
    exif.endian = ">" if big else "<"
    exif[0x010F] = "a maker"
    exif[0x0112] = orientation
    return exif


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Twenty JPEGs in two classes."""
    root = tmp_path_factory.mktemp("clean")
    for number in range(20):
        path = root / f"class{number % 2}" / f"{number:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        photo(number).save(path)
    return root


@pytest.fixture
def faulty(tmp_path):
    """Six images, of which a truncated one, one of another kind, one without data and one broken inside are damaged."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = encoded(photo(0, (200, 160)), "JPEG")
    (tmp_path / "a" / "0 good.jpg").write_bytes(whole)
    (tmp_path / "a" / "1 truncated: half.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "a" / "2 text.jpg").write_bytes(b"this is no image")
    (tmp_path / "b" / "3 empty.png").write_bytes(b"")
    middle = len(whole) * 2 // 3
    (tmp_path / "b" / "4 broken inside.jpg").write_bytes(whole[:middle] + b"\xff\xd4" + whole[middle + 40 :])
    (tmp_path / "b" / "5 good.png").write_bytes(encoded(photo(1), "PNG"))
    return tmp_path


@pytest.mark.parametrize(
    ("data", "header"),
    [
        (encoded(photo(0), "JPEG"), ImageHeader("JPEG", 40, 30, 3)),
        (encoded(photo(0).convert("L"), "JPEG", progressive=True), ImageHeader("JPEG", 40, 30, 1, progressive=True)),
        (encoded(photo(0).convert("CMYK"), "JPEG"), ImageHeader("JPEG", 40, 30, 4)),
        (encoded(photo(0), "JPEG", exif=turned(6)), ImageHeader("JPEG", 40, 30, 3, orientation=6)),
        (encoded(photo(0), "JPEG", exif=turned(3, big=True)), ImageHeader("JPEG", 40, 30, 3, orientation=3)),
        (encoded(photo(0), "JPEG", exif=turned(9)), ImageHeader("JPEG", 40, 30, 3)),
        (encoded(photo(0), "PNG"), ImageHeader("PNG", 40, 30, 3)),
        (encoded(photo(0).convert("L"), "PNG"), ImageHeader("PNG", 40, 30, 1)),
        (encoded(photo(0), "PNG", exif=turned(8)), ImageHeader("PNG", 40, 30, 3, orientation=8)),
        (encoded(photo(0), "WEBP"), ImageHeader("WebP", 40, 30, 3)),
        (encoded(photo(0), "WEBP", lossless=True), ImageHeader("WebP", 40, 30, 3)),
        (encoded(photo(0), "WEBP", exif=turned(1)), ImageHeader("WebP", 40, 30, 3)),
        (encoded(photo(0), "GIF"), ImageHeader("GIF")),
        (encoded(photo(0), "BMP"), ImageHeader("BMP")),
        (encoded(photo(0), "TIFF"), ImageHeader("TIFF")),
        (b"hello", ImageHeader("unknown")),
    ],
)
def test_headers(data, header):
    assert read_header(data) == header


@pytest.fixture
def shard(tmp_path):
    """A shard of three samples without labels, of which one is damaged."""
    path = tmp_path / "part-0.tar"
    contents = [encoded(photo(0), "JPEG"), b"this is no image", encoded(photo(1), "PNG")]
    with tarfile.open(path, "w") as file:
        for number, data in enumerate(contents):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def bomb(side: int) -> bytes:
    """Return a PNG that claims side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_no_header_raises_whatever_it_holds(kind):
    data = encoded(photo(0, (12, 9)), kind, exif=turned(6))
    rng = np.random.default_rng(0)
    for end in range(min(len(data), 700)):
        read_header(data[:end])
    for _ in range(2000):
        broken = np.frombuffer(data, np.uint8).copy()
        broken[rng.integers(0, min(len(data), 120), 3)] = rng.integers(0, 256, 3)
        header = read_header(broken.tobytes())
        assert header is None or header.orientation in range(1, 9)


def test_survey(clean, faulty):
    told = survey(open_files(str(clean)), quiet)
    assert (told.images, told.classes, told.shards, told.sampled, told.unreadable) == (20, 2, None, 20, 0)
    assert (told.formats, told.width, told.height) == ({"JPEG": 20}, (40,) * 3, (30,) * 3)
    assert 300 < told.bytes[0] <= told.bytes[1] <= told.bytes[2] < 3000
    photo(2).convert("CMYK").save(faulty / "a" / "c.jpg")
    photo(2).convert("L").save(faulty / "a" / "l.jpg", progressive=True, exif=turned(6))
    told = survey(open_files(str(faulty)), quiet)
    assert told.formats == {"JPEG": 5, "unknown": 2, "PNG": 1}
    assert (told.progressive, told.gray, told.cmyk, told.rotated, told.unreadable) == (1, 1, 1, 1, 0)


def test_empty_and_hidden_class_folders(tmp_path):
    for name in ("full", *(f"empty{number}" for number in range(6)), ".ipynb_checkpoints"):
        (tmp_path / name).mkdir()
    photo(0).save(tmp_path / "full" / "0.jpg")
    photo(0).save(tmp_path / ".ipynb_checkpoints" / "0.jpg")
    files = open_files(str(tmp_path))
    report = Report(str(tmp_path), 1, survey=survey(files, quiet), finished=True)
    assert (report.survey.images, report.survey.classes) == (1, 7)
    assert report.survey.empty_classes == tuple(f"empty{number}" for number in range(6))
    assert "no image in class folder empty0, empty1, empty2, empty3, empty4 and 1 more" in " ".join(str(report).split())


def test_long_metadata_before_the_frame(tmp_path):
    (tmp_path / "a").mkdir()
    photo(0).save(tmp_path / "a" / "0.jpg", icc_profile=bytes(200_000))
    assert survey(open_files(str(tmp_path)), quiet).width == (40, 40, 40)


@pytest.mark.parity
def test_pixels_beside_pillow_and_torchvision(clean, faulty):
    told = compare(open_files(str(clean)), quiet)
    assert (told.images, told.decode_max, told.decode_equal) == (20, 0, 1.0)
    # One level of 255, over the smallest std: bit-equal beside torch's AVX2 kernel, which not every machine has.
    assert told.transform_max <= 1 / 255 / 0.224 + 1e-6
    assert compare(open_files(str(faulty)), quiet).images == 2


def test_pixels_that_cannot_be_compared(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0 bomb.png").write_bytes(bomb(20_000))
    (tmp_path / "a" / "1 thin.png").write_bytes(encoded(Image.new("RGB", (1, 60_000)), "PNG"))
    photo(0).save(tmp_path / "a" / "2.bmp")  # which Pillow alone decodes
    assert compare(open_files(str(tmp_path)), quiet) is None
    photo(0).save(tmp_path / "a" / "3.png")
    assert compare(open_files(str(tmp_path)), quiet).images == 1


def test_an_unreadable_shard_ends_no_survey(shard):
    files = open_files(str(shard))
    assert survey(files, quiet).unreadable == 0

    def fail(_self, _index, _most):
        raise DecodeError("part-0.tar: byte 512: it changed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Files, "start", fail)
        assert survey(files, quiet).unreadable == 3


def test_the_command_on_a_shard(shard, short, capsys):
    assert main(["doctor", str(shard), "--seconds", "0.1", "--threads", "1", "--full"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"data          {shard}: 3 images in 1 shard"
    assert "left out: 1 of 3 images looked at, which vit-rs or Pillow cannot decode completely" in "\n".join(lines)
    assert lines[-2].endswith("1 of 3 images cannot be decoded completely")
    assert lines[-1].split(": ")[:2] == [f"{' ' * 14}{shard}", "1.jpg"]


def test_every_damaged_file_is_found(faulty):
    damage = Damage()
    look_for_damage(open_files(str(faulty)), damage, 2, quiet)
    assert damage.checked == 6
    names = [name.removeprefix(str(faulty)) for name, _ in damage.damaged]
    assert names == ["/a/1 truncated: half.jpg", "/a/2 text.jpg", "/b/3 empty.png", "/b/4 broken inside.jpg"]
    reasons = [reason for _, reason in damage.damaged]
    assert reasons[0].startswith("truncated JPEG")
    assert reasons[1].startswith("no known image format")
    assert reasons[2] == "the file is empty"
    assert reasons[3]


def test_an_interrupted_search_tells_what_it_found(tmp_path):
    (tmp_path / "a").mkdir()
    good = encoded(photo(0, (8, 8)), "PNG")
    for number in range(300):
        (tmp_path / "a" / f"{number:03}.png").write_bytes(b"bad" if number % 64 == 7 else good)

    def interrupt(_part, done, _total):
        if done == 128:
            raise KeyboardInterrupt

    damage = Damage()
    with pytest.raises(KeyboardInterrupt):
        look_for_damage(open_files(str(tmp_path)), damage, 2, interrupt)
    assert damage.checked == 128
    assert [name[-7:-4] for name, _ in damage.damaged] == ["007", "071"]


def test_batches_without_a_good_image(tmp_path):
    (tmp_path / "a").mkdir()
    good = encoded(photo(0, (8, 8)), "PNG")
    bad = {*range(5, 150), *range(190, 260)}
    for number in range(260):
        (tmp_path / "a" / f"{number:03}.png").write_bytes(good if number not in bad else b"bad %d" % number)
    damage = Damage()
    look_for_damage(open_files(str(tmp_path)), damage, 2, quiet)
    assert damage.checked == 260
    assert [name[-7:-4] for name, _ in damage.damaged] == [f"{number:03}" for number in sorted(bad)]


def test_thread_counts():
    assert [thread_counts(most) for most in (1, 2, 3, 8, 12)] == [
        [1],
        [1, 2],
        [1, 2, 3],
        [1, 2, 4, 8],
        [1, 2, 4, 8, 12],
    ]


@pytest.mark.parametrize(
    ("rates", "consumer", "threads"),
    [
        ({1: 100, 2: 190, 4: 200}, None, 2),
        ({1: 100, 2: 150, 4: 200}, None, 4),
        ({1: 100, 2: 150, 4: 200}, 120, 2),
        ({1: 100, 2: 150, 4: 200}, 60.5, 1),
        ({1: 100, 2: 150, 4: 200}, 1000, None),
    ],
)
def test_recommended_threads(rates, consumer, threads):
    assert best_threads(rates, consumer) == threads


@pytest.fixture
def alone(monkeypatch):
    """No Pillow and no torchvision."""
    for name in ("PIL", "PIL.Image", "torchvision", "torchvision.transforms", "torchvision.transforms.v2"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def short(monkeypatch):
    """Rounds of two batches."""
    monkeypatch.setattr(speed_module, "_LEAST_BATCHES", 2)


def test_without_pillow_and_torchvision(clean, alone, short):
    report = Report("d", 1)
    examine(open_files(str(clean)), report, full=False, seconds=0.1, threads=1, progress=quiet)
    assert report.parity is None
    assert report.finished
    assert report.speed.torchvision == {}
    assert len(report.speed.ours[1]) >= 3
    assert report.recommended_threads == 1
    text = str(report)
    assert "torchvision: not installed, or it cannot be imported" in text
    assert "num_threads=1: the fewest with 95 % of the best rate" in text


def test_a_peer_that_fails_is_left_out(faulty, short, monkeypatch):
    def fail(_self):
        raise RuntimeError("no shared memory\nand a long story")

    monkeypatch.setattr(peer.TorchvisionLoader, "run", fail)
    speed = Speed()
    measure(open_files(str(faulty)), speed, [1, 2], 0.1, quiet)
    assert speed.torchvision_missing == "its DataLoader failed: no shared memory"
    assert speed.torchvision == {}
    assert set(speed.ours) == {1, 2}
    # Only images that can be decoded are measured.
    assert (speed.tried, speed.usable, speed.images) == (6, 2, 256)
    assert speed.stats[2].images == 256
    assert speed.stats[2].failures == ()


def test_both_sides_are_measured_on_images_that_both_decode(tmp_path, short):
    (tmp_path / "a").mkdir()
    for number in range(3):
        photo(number).save(tmp_path / "a" / f"{number}.bmp")  # which Pillow alone decodes
    report = Report("d", 1, survey=None, speed=Speed())
    measure(open_files(str(tmp_path)), report.speed, [1], 0.1, quiet)
    assert (report.speed.tried, report.speed.usable, report.speed.ours, report.speed.torchvision) == (3, 0, {}, {})
    assert "none of 3 images looked at can be decoded by both vit-rs and Pillow" in str(report)
    photo(3).save(tmp_path / "a" / "3.jpg")
    photo(4, (200, 160)).save(tmp_path / "a" / "4.jpg")
    measure(open_files(str(tmp_path)), report.speed, [1], 0.1, quiet)
    assert (report.speed.tried, report.speed.usable) == (5, 2)
    assert report.speed.stats[1].images == report.speed.images
    assert len(report.speed.torchvision[1]) == len(report.speed.ours[1])
    assert "left out: 3 of 5 images looked at" in str(report)


def test_rates_are_of_images_really_yielded(clean, short, monkeypatch):
    monkeypatch.setattr(speed_module, "_timed", lambda _run: 1.0)
    monkeypatch.setattr(speed_module._Ours, "run", lambda _self: time.sleep(0.01) or 7)
    monkeypatch.setattr(peer.TorchvisionLoader, "run", lambda _self: time.sleep(0.01) or 5)
    speed = Speed()
    measure(open_files(str(clean)), speed, [1], 0.1, quiet)
    assert max(speed.ours[1]) <= 700
    assert max(speed.torchvision[1]) <= 500


def test_the_command(clean, short, capsys):
    assert main(["doctor", str(clean), "--seconds", "0.1", "--threads", "1", "--full"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0] == f"data          {clean}: 20 images in 2 classes"
    assert [line.split()[0] for line in lines if line[:1].strip()] == [
        "data",
        "files",
        "width",
        "height",
        "size",
        "parity",
        "speed",
        "stages",
        "verdict",
        "threads",
        "damage",
    ]
    assert "100.0000% of the pixels of 20 images equal" in captured.out
    [row] = [line.split() for line in lines if line.split()[0] == "1"]
    assert len(row) == 4  # threads, both rates, their ratio
    assert "0 of 20 images cannot be decoded completely" in captured.out
    assert captured.err.splitlines() == [
        "vit-rs: headers",
        "vit-rs: parity",
        "vit-rs: images to measure",
        "vit-rs: speed",
        "vit-rs: decoding every image",
    ]


def test_the_command_on_damaged_images(faulty, alone, short, capsys):
    arguments = ["doctor", str(faulty), "--seconds", "0.1", "--threads", "2", "--full", "--json", "--consumer", "1e9"]
    assert main(arguments) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["finished"] is True
    assert told["survey"]["images"] == told["damage"]["checked"] == 6
    assert told["damage"]["damaged"][0][0] == f"{faulty}/a/1 truncated: half.jpg"
    assert told["recommended_threads"] is None
    assert told["speed"]["median"]["ours"]["2"] > 0
    assert told["speed"]["stats"]["2"]["verdict"] in ("decode-bound", "reading-bound", "consumer-bound")


def test_an_interrupted_doctor_tells_what_it_found(clean, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("vit_rs.doctor.examination.measure", interrupt)
    assert main(["doctor", str(clean)]) == 130
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("data ")
    assert any(line.startswith("parity ") for line in lines)
    assert lines[-1] == "interrupted   what stands above was found until then"


@pytest.mark.parametrize(
    ("make", "options", "text"),
    [
        (lambda _root: None, [], "no such folder"),
        (lambda root: root.write_bytes(b""), [], "not a folder"),
        (lambda root: root.mkdir(), [], "class"),
        (lambda root: (root / "a").mkdir(parents=True), [], "no image in 1 class folders"),
        (lambda root: (root / "a").mkdir(parents=True), ["--seconds", "0"], "--seconds must be above 0, got 0.0"),
        (lambda root: (root / "a").mkdir(parents=True), ["--threads", "-1"], "--threads must be above 0, got -1"),
        (lambda root: (root / "a").mkdir(parents=True), ["--consumer", "nan"], "--consumer must be above 0, got nan"),
    ],
)
def test_errors_are_one_line(tmp_path, capsys, make, options, text):
    make(tmp_path / "data")
    assert main(["doctor", str(tmp_path / "data"), *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    assert line.startswith("vit-rs: error: ")
    assert text in line


@pytest.mark.parametrize(
    ("name", "length", "text"),
    [
        ("none.tar", None, "No such file or directory"),
        ("part-{0..1}.tar", None, "part-1.tar"),
        ("part-0.tar", 700, "part-0.tar: byte 700: truncated: 0.jpg lacks its last"),
    ],
)
def test_errors_of_shards_are_one_line(shard, capsys, name, length, text):
    if length is not None:
        shard.write_bytes(shard.read_bytes()[:length])
    assert main(["doctor", str(shard.with_name(name))]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    assert line.startswith("vit-rs: error: ")
    assert text in line


def test_medians():
    assert medians({1: [3.0, 1.0, 2.0], 2: []}) == {1: 2.0}
