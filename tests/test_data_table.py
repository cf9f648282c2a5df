"""Tables of encoded images: Hugging Face data sets, Arrow tables, Parquet and Arrow files."""

from __future__ import annotations

import copy
import gc
import importlib
import io
import json
import pickle
import re

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset
from torchvision.transforms import v2

from vit_rs.data import DataLoader, ImageLoader, ImageTable
from vit_rs.data.dropin.datasets import Fingerprint, open_dataset
from vit_rs.data.dropin.places import Place, UntranslatableError
from vit_rs.exceptions import DatasetError, DecodeError
from vit_rs.transforms import Resize

H, W = 9, 12
SIZE = Resize((H, W))  # that of all images: nothing is resized


def encoded(number):
    pixels = np.random.default_rng(number).integers(0, 256, (H, W, 3), np.uint8)
    file = io.BytesIO()
    # PNG and JPEG in turn; one gray, which must come as RGB.
    image = Image.fromarray(pixels) if number != 4 else Image.fromarray(pixels[..., 0])
    image.save(file, "PNG" if number % 2 else "JPEG")
    return file.getvalue()


FILES = [encoded(number) for number in range(7)]
LABELS = [2, 0, 1, 1, 0, 2, 1]
PIXELS = np.stack([np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in FILES])
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def structs(numbers=range(7)):
    return [{"bytes": FILES[number], "path": f"{number}.img"} for number in numbers]


def table(image=None, label=None, kind=STRUCT, label_kind=None):
    image = structs() if image is None else image
    return pa.table({"image": pa.array(image, kind), "label": pa.array(LABELS if label is None else label, label_kind)})


def hugging_face(numbers=range(7), **image):
    features = datasets.Features(
        {"image": datasets.Image(**image), "label": datasets.ClassLabel(names=["a", "b", "c"])}
    )
    labels = [LABELS[number] for number in numbers]
    return datasets.Dataset.from_dict({"image": structs(numbers), "label": labels}, features=features)


def check(source, numbers=range(7)):
    """Check that a source gives these of the images and labels, item by item and through the loader."""
    numbers = list(numbers)
    with ImageLoader(source, SIZE, batch_size=100, num_threads=2) as batches:
        images, labels = next(iter(batches))
    np.testing.assert_array_equal(images.permute(0, 2, 3, 1).numpy(), PIXELS[numbers])
    assert labels.tolist() == [LABELS[number] for number in numbers]
    assert len(source) == len(numbers)
    for index, number in enumerate(numbers):
        image, label = source[index]
        assert image.dtype == torch.uint8
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), PIXELS[number])
        assert (type(label), label) == (int, LABELS[number])


@pytest.mark.parametrize(
    "image",
    [
        pa.array(structs(), STRUCT),
        pa.array(
            structs(), pa.struct([("path", pa.large_string()), ("bytes", pa.large_binary()), ("more", pa.int8())])
        ),
        pa.array([{"bytes": data} for data in FILES], pa.struct([("bytes", pa.binary())])),
        pa.array(
            [{"bytes": data, "path": None} for data in FILES], pa.struct([("bytes", pa.binary()), ("path", pa.null())])
        ),
        pa.array(FILES, pa.binary()),
        pa.array(FILES, pa.large_binary()),
        pa.chunked_array([pa.array(FILES[:3]), pa.array([], pa.binary()), pa.array(FILES[3:])]),
        pa.chunked_array([pa.array(structs()[:3], STRUCT), pa.array([], STRUCT), pa.array(structs()[3:], STRUCT)]),
        pa.array([b"", b"", *FILES, b""], pa.binary())[2:-1],
        pa.array([None, *structs()], STRUCT)[1:],
    ],
    ids=[
        "struct",
        "large and more",
        "bytes only",
        "no path",
        "binary",
        "large",
        "chunks",
        "chunks of structs",
        "slice",
        "slice of structs",
    ],
)
def test_images_in_every_kind_of_column(image):
    check(ImageTable(pa.table({"image": image, "label": LABELS})))


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint8(), pa.int32(), pa.uint64()])
def test_labels_in_every_integer_type(kind):
    check(ImageTable(table(label_kind=kind)))


def test_columns_have_names_of_any_kind():
    renamed = table().rename_columns(["x", "y"])
    check(ImageTable(renamed, "x", "y"))
    unlabelled = ImageTable(renamed, "x", None)
    assert unlabelled.targets == [-1] * 7
    assert unlabelled.classes == []
    assert ImageTable(renamed, "x", "y", classes=["p", "q", "r"]).classes == ["p", "q", "r"]
    assert ImageTable(renamed, "x", "y").classes == ["0", "1", "2"]
    assert repr(ImageTable(renamed, "x", "y")) == "ImageTable(7 images, 3 classes)"


@pytest.mark.parametrize("image", [{}, {"decode": False}])
def test_hugging_face_data_sets_as_they_are_selected(image):
    whole = hugging_face(**image)
    check(ImageTable(whole))
    assert ImageTable(whole).classes == ["a", "b", "c"]
    for chosen in (
        whole.shuffle(seed=3),
        whole.select([5, 0, 0, 3]),
        whole.select(range(2, 5)),
        whole.train_test_split(3, seed=0)["test"],
        whole.shuffle(seed=1).select([6, 2]),
        whole.with_format("numpy"),
        datasets.concatenate_datasets([whole, whole.select([4, 1])]),
    ):
        plain = chosen.with_format(None).cast_column("image", datasets.Image(decode=False))
        check(ImageTable(chosen), [FILES.index(item["image"]["bytes"]) for item in plain])


def test_hugging_face_data_sets_on_disk_stay_mapped(tmp_path):
    hugging_face().save_to_disk(tmp_path / "saved")
    loaded = datasets.load_from_disk(tmp_path / "saved")
    before = pa.total_allocated_bytes()
    images = ImageTable(loaded)
    assert pa.total_allocated_bytes() - before < 1000 < sum(map(len, FILES))
    del loaded
    gc.collect()
    check(images)
    check(pickle.loads(pickle.dumps(images)))


@pytest.mark.parametrize("kind", ["parquet", "ipc file", "ipc stream", "compressed"])
def test_files_are_told_by_content(tmp_path, kind):
    path = tmp_path / "images.data"
    # Hugging Face's description of the features travels in the schema.
    written = hugging_face().data.table
    if kind == "parquet":
        pq.write_table(written, path, row_group_size=2)
    else:
        options = pa.ipc.IpcWriteOptions(compression="zstd" if kind == "compressed" else None)
        new = pa.ipc.new_stream if kind == "ipc stream" else pa.ipc.new_file
        with new(path, written.schema, options=options) as writer:
            writer.write_table(written, max_chunksize=3)
    images = ImageTable(path)
    check(images)
    assert images.classes == ["a", "b", "c"]
    check(pickle.loads(pickle.dumps(images)))
    assert images.core_source.name(6) == f"{path}: row 6 ({tmp_path / '6.img'})"


def test_several_files_are_one_table(tmp_path):
    for number, rows in enumerate(([0, 1, 2], [3, 4], [5, 6])):
        part = table(structs(rows), [LABELS[row] for row in rows])
        pq.write_table(part, tmp_path / f"part-{number}.parquet")
    images = ImageTable(tmp_path / "part-{0..2}.parquet")
    check(images)
    check(ImageTable([tmp_path / "part-1.parquet", str(tmp_path / "part-0.parquet")]), [3, 4, 0, 1, 2])
    assert images.core_source.name(4) == f"{tmp_path / 'part-1.parquet'}: row 1 ({tmp_path / '4.img'})"
    check(Subset(images, [6, 0, 3]), [6, 0, 3])


def test_files_that_name_their_classes_differently_are_not_joined_unasked(tmp_path):
    def write(name, names):
        part = table(structs([0]), [0])
        if names is not None:
            info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
            part = part.replace_schema_metadata({"huggingface": json.dumps(info)})
        pq.write_table(part, tmp_path / name)
        return tmp_path / name

    cats, again, dogs = write("a", ["cat", "dog"]), write("b", ["cat", "dog"]), write("c", ["dog", "cat"])
    none, many = write("d", None), write("e", [str(number) for number in range(1000)])
    assert ImageTable([cats, again]).classes == ["cat", "dog"]
    for one, other, text in (
        (cats, dogs, f"{cats} names its classes ['cat', 'dog'], and {dogs} ['dog', 'cat']: the same label"),
        (cats, none, f"{cats} names its classes ['cat', 'dog'], and {none} not at all: the same label"),
        (none, cats, f"{none} names its classes not at all, and {cats} ['cat', 'dog']: the same label"),
        (cats, many, "'18', '19', ...]: the same label"),
    ):
        with pytest.raises(DatasetError, match=re.escape(text)):
            ImageTable([one, one, other])
        joined = ImageTable([one, other], classes=["x", "y"])
        for same in (joined, pickle.loads(pickle.dumps(joined))):
            assert (same.classes, same.targets) == (["x", "y"], [0, 0])
        assert ImageTable([one, other], label=None).classes == []


def test_edited_targets_stay(tmp_path):
    pq.write_table(table(), tmp_path / "all.parquet")
    for images in (
        ImageTable(table()),
        ImageTable(hugging_face().select([3, 1])),
        ImageTable(tmp_path / "all.parquet"),
    ):
        images.targets = [label + 5 for label in images.targets]
        for same in (copy.copy(images), copy.deepcopy(images), pickle.loads(pickle.dumps(images))):
            assert same.targets == images.targets
            with ImageLoader(same, SIZE, batch_size=100, num_threads=1) as batches:
                assert next(iter(batches))[1].tolist() == images.targets
    images.targets = images.targets[1:]
    text = re.escape(f"ImageTable ({tmp_path / 'all.parquet'}, ...) has 6 targets for 7 rows")
    with pytest.raises(DatasetError, match=text):
        ImageLoader(images, SIZE, batch_size=100)
    with pytest.raises(DatasetError, match=text):
        copy.copy(images)


def test_of_a_parquet_file_only_what_is_wanted_is_read(tmp_path):
    path = tmp_path / "label=9"
    path.mkdir()
    # The folder's name is no column, as it would be in a partitioned data set; columns stand in any order.
    more = table().select(["label", "image"]).append_column("more", pa.array(["x" * 10_000_000] * 7))
    pq.write_table(more, path / "x.parquet", row_group_size=3)
    before = pa.total_allocated_bytes()
    images = ImageTable(path / "x.parquet")
    assert pa.total_allocated_bytes() - before < 1_000_000
    check(images)
    assert ImageTable(path / "x.parquet", label=None).targets == [-1] * 7
    for name in ("image", "label"):
        with pytest.raises(
            DatasetError, match=r"x\.parquet: no column 'none', .* columns are 'label', 'image', 'more'"
        ):
            ImageTable(path / "x.parquet", **{name: "none"})


def test_where_there_are_no_bytes_the_path_is_read(tmp_path, monkeypatch):
    for number in (0, 2, 3):
        (tmp_path / f"{number}.img").write_bytes(FILES[number])
    some = [{**one, "bytes": None} if number in (0, 2) else one for number, one in enumerate(structs())]
    pq.write_table(table(some), tmp_path / "some.parquet")
    check(ImageTable(tmp_path / "some.parquet"))
    names = pa.array([str(tmp_path / "3.img"), "0.img"])
    pq.write_table(pa.table({"image": names, "label": [1, 2]}), tmp_path / "names.parquet")
    check(ImageTable(tmp_path / "names.parquet"), [3, 0])
    monkeypatch.chdir(tmp_path)
    check(ImageTable(table(some)))
    (tmp_path / "2.img").unlink()
    missing = ImageTable(tmp_path / "some.parquet")
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "2.img"))):
        missing[2]


def test_transforms_get_what_torchvisions_folders_give(tmp_path):
    seen = []
    images = ImageTable(table(), transform=lambda image: seen.append(image) or "image", target_transform=str)
    assert images[-1] == ("image", "1")
    assert seen[0].mode == "RGB"
    np.testing.assert_array_equal(np.asarray(seen[0]), PIXELS[6])
    with pytest.raises(IndexError):
        images[7]
    # One that is empty is a transform, too.
    for given in ({"transform": str}, {"target_transform": str}, {"transform": torch.nn.Sequential()}):
        with pytest.raises(ValueError, match="ImageLoader takes the transform itself"):
            ImageLoader(ImageTable(table(), **given), SIZE, batch_size=2)


def test_the_drop_in_loader_reads_tables(monkeypatch):
    plain = ImageTable(table())
    opened = open_dataset(plain)
    assert (opened.start, opened.transform, opened.targets) == (Place("tensor"), None, None)
    chosen = hugging_face().select([5, 0, 0, 3])
    images = ImageTable(chosen, transform=str, target_transform=int)
    opened = open_dataset(images)
    assert (opened.start, opened.transform, opened.target_transform) == (Place("pil"), str, int)
    both = ConcatDataset([images, Subset(ImageTable(hugging_face(), transform=str, target_transform=int), [1, 6])])
    for source, numbers in (
        (images, [5, 0, 0, 3]),
        (Subset(images, [3, 1]), [3, 0]),
        (both, [5, 0, 0, 3, 1, 6]),
        (Subset(both, [5, 0, 2]), [6, 5, 0]),
    ):
        opened = open_dataset(source)
        monkeypatch.setattr("vit_rs.data.loader.open_source", lambda *_args, opened=opened, **_kwargs: opened.opened)
        with ImageLoader([], SIZE, batch_size=100, num_threads=1) as batches:
            read, labels = next(iter(batches))
        np.testing.assert_array_equal(read.permute(0, 2, 3, 1).numpy(), PIXELS[numbers])
        assert labels.tolist() == [LABELS[number] for number in numbers]
    before = Fingerprint(images)
    images.transform = repr
    assert before != Fingerprint(images)
    remedy = "write vit_rs.data.ImageTable(dataset, image='image', label='label', transform=transform)"
    for bare in (chosen, datasets.DatasetDict(train=chosen), table()):
        with pytest.raises(UntranslatableError, match=re.escape(remedy)):
            open_dataset(bare)


def test_a_batch_that_memory_cannot_hold_is_an_error_of_its_own():
    # 2**20 images of 2**28 bytes: more than there are addresses.
    large = ImageTable(table(), transform=v2.Compose([v2.PILToTensor(), v2.Resize((2**14, 2**14))]))
    batches = [[0] * 2**19, [1] * 2**19, [], [2] * 2**19]
    for workers in (0, 2):
        iterator = iter(DataLoader(large, batch_sampler=batches, collate_fn=list, num_workers=workers))
        for batch in batches:
            if batch:
                with pytest.raises(MemoryError, match="no memory for"):
                    next(iterator)
            else:
                assert next(iterator) == []
        with pytest.raises(StopIteration):
            next(iterator)


ADDRESSES = [{"bytes": FILES[0], "path": "http://x/0"}, {"bytes": None, "path": "zip://a.jpg::b.zip"}]


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (
            lambda: ImageTable(table(), "picture"),
            DatasetError,
            "table: no column 'picture', or several; the columns are 'image', 'label'",
        ),
        (lambda: ImageTable(table(), label="y"), DatasetError, "table: no column 'y', or several"),
        (
            lambda: ImageTable(table([1] * 7, kind=pa.int64())),
            TypeError,
            "column 'image' must hold images as .*is int64",
        ),
        (
            lambda: ImageTable(table([{"b": b""}] * 7, kind=pa.struct([("b", pa.binary())]))),
            TypeError,
            "must hold images as {'bytes': binary, 'path': string}.*is struct<b: binary>",
        ),
        (
            lambda: ImageTable(table(label=["x"] * 7)),
            TypeError,
            "column 'label' must hold labels as integers, and is string",
        ),
        (lambda: ImageTable(table(label=[True] * 7)), TypeError, "as integers, and is bool"),
        (
            lambda: ImageTable(table([*structs([0]), None, *structs(range(2, 7))])),
            DatasetError,
            "table: row 1: the image in",
        ),
        (
            lambda: ImageTable(table([{"bytes": None, "path": None}] * 7)),
            DatasetError,
            r"row 0: the image in column 'image' is null \(one of 7 such rows\)",
        ),
        (
            lambda: ImageTable(table(label=[1, 2, None, 4, None, 6, 7])),
            DatasetError,
            r"row 2: the label .* null \(one of 2",
        ),
        (lambda: ImageTable(table(ADDRESSES, [0, 1])), DatasetError, "row 1: the path in column 'image' is an address"),
        (lambda: ImageTable(table(label=[2**63] * 7, label_kind=pa.uint64())), ValueError, "does not fit 64 bits"),
        (lambda: ImageTable(table(), classes=["a"]), ValueError, "label 2 has no name: only 1 classes"),
        (lambda: ImageTable(hugging_face().with_transform(str)), ValueError, "a transform of its own"),
        (lambda: ImageTable({"image": []}), TypeError, "table must be a datasets.Dataset, .* got builtins.dict"),
        (lambda: ImageTable([]), ValueError, "must name at least one file"),
        (lambda: ImageTable("none.parquet"), FileNotFoundError, "none.parquet"),
    ],
)
def test_errors(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_damaged_files_and_images_are_named(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(table(), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DatasetError, match=re.escape(f"{path}: not a readable Parquet or Arrow file")):
        ImageTable(path)
    path.write_bytes(b"something else")
    with pytest.raises(DatasetError, match=re.escape(f"{path}: not a readable")):
        ImageTable(path)
    path.write_bytes(b"")
    with pytest.raises(DatasetError, match=re.escape(f"{path}: not a readable")):
        ImageTable(path)
    broken = table([*structs(range(6)), {"bytes": FILES[6][:50], "path": "six"}])
    with pytest.raises(DecodeError, match=r"table: row 6 \(six\): "):
        ImageTable(broken)[6]
    loader = ImageLoader(ImageTable(broken), SIZE, batch_size=7)
    with loader, pytest.raises(DecodeError, match=r"table: row 6 \(six\): "):
        next(iter(loader))
    nothing = ImageTable(table([], [], label_kind=pa.int64()))
    assert (len(nothing), nothing.classes) == (0, [])


def test_nulls_in_rows_that_are_not_used_do_no_harm():
    whole = datasets.Dataset(table([*structs(range(6)), None], [*LABELS[:6], None]))
    check(ImageTable(whole.select([4, 2, 0])), [4, 2, 0])
    with pytest.raises(DatasetError, match="row 6: the image"):
        ImageTable(whole.select([4, 6]))


def test_without_pyarrow_the_extra_is_named(monkeypatch):
    def missing(name):
        raise ImportError(name)

    given = table()
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match=re.escape('ImageTable needs pyarrow: pip install "vit-rs[table]"')):
        ImageTable(given)
