"""What of a DataLoader's work stays in Python: seeds, order, what it is given, errors, collation."""

# ruff: noqa: NPY002  (numpy's legacy generator is one of the three that matter here)
from __future__ import annotations

import random
import sys
import threading

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.utils.data import default_collate, get_worker_info
from torchvision.transforms import v2

from vit_rs.data import DataLoader, EncodedDataset

MEAN, STD = [0.5, 0.25, 0.125], [0.25, 0.5, 0.125]
COUNT = 24
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        path = folder / f"class{number % 3}" / f"{number:02}.{'png' if number % 4 == 0 else 'jpg'}"
        path.parent.mkdir(exist_ok=True)
        height, width = rng.integers(30, 70, 2)
        small = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8))
        small.resize((int(width), int(height))).save(path)
    return str(folder)


def folder(root: str, *transforms, **options) -> torchvision.datasets.ImageFolder:
    chain = v2.Compose(list(transforms)) if transforms else None
    return torchvision.datasets.ImageFolder(root, chain, **options)


def first_channel(items: list) -> list:
    return items


def both(data, **options) -> tuple[list, list]:
    """Return what torch's loader gives, and ours."""
    return list(torch.utils.data.DataLoader(data, **options)), list(DataLoader(data, **options))


def same(mine, theirs) -> bool:
    """Tell whether two batches are of the same types and values throughout."""
    if type(mine) is not type(theirs):
        return False
    if isinstance(theirs, torch.Tensor):
        return mine.dtype == theirs.dtype and torch.equal(mine, theirs)
    if isinstance(theirs, Image.Image):
        return mine.mode == theirs.mode and mine.size == theirs.size and mine.tobytes() == theirs.tobytes()
    if isinstance(theirs, (list, tuple)):
        return len(mine) == len(theirs) and all(map(same, mine, theirs))
    if isinstance(theirs, dict):
        return mine.keys() == theirs.keys() and all(same(mine[key], theirs[key]) for key in theirs)
    return bool(mine == theirs)


def darker(image):
    return image.point(lambda value: value // 2) if isinstance(image, Image.Image) else image // 2


def upside_down(tensor):
    return tensor.flip(-2)


FLOAT = (v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD))
V1 = (torchvision.transforms.ToTensor(), torchvision.transforms.Normalize(MEAN, STD))
SIZED = (v2.Resize((20, 24)),)
CHAINS = {
    "all in Rust": (*SIZED, *FLOAT),
    "all in Rust, v1": (torchvision.transforms.Resize(26), torchvision.transforms.CenterCrop(20), *V1),
    "u8 tensors": (*SIZED, v2.PILToTensor()),
    "u8 Images": (v2.ToImage(), *SIZED),
    "half": (*SIZED, v2.ToImage(), v2.ToDtype(torch.float16, scale=True)),
    "Python first": (darker, *SIZED, *FLOAT),
    "Python between": (*SIZED, darker, *FLOAT),
    "Python between tensors": (v2.ToImage(), *SIZED, darker, *FLOAT[1:]),
    "Python between plain tensors": (v2.PILToTensor(), *SIZED, darker, *FLOAT[1:]),
    "Python last": (*SIZED, *FLOAT, upside_down),
    "Python alone": (v2.Compose([darker, lambda image: image.resize((9, 8)), v2.functional.pil_to_tensor]),),
    "two spans": (darker, *SIZED, upside_down_pil := (lambda image: image.transpose(Image.Transpose.ROTATE_180)), *V1),
    "arrays": (*SIZED, lambda image: np.asarray(image).copy(), *FLOAT),
    "tensors that are no Images": (v2.ToImage(), *SIZED, lambda image: torch.flip(image, [-1]), v2.CenterCrop(16)),
    "gray": (*SIZED, lambda image: image.convert("L"), *V1[:1]),
    "sometimes gray": (*SIZED, lambda image: image.convert("L") if image.getpixel((0, 0))[0] % 2 else image, *FLOAT),
    "a kind that nobody expects": (*SIZED, v2.functional.pil_to_tensor, v2.CenterCrop(16), v2.ToDtype(torch.float32)),
}


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize(
    "options", [{"batch_size": 5}, {"batch_size": 5, "num_workers": 2}, {"batch_size": None}], ids=str
)
def test_batches_are_torchs(root, name, options):
    if options.get("num_workers") and "lambda" in repr(CHAINS[name]) and sys.platform != "linux":
        pytest.skip("torch cannot pickle a lambda")
    theirs, mine = both(folder(root, *CHAINS[name]), **options)
    assert len(mine) == len(theirs)
    assert all(map(same, mine, theirs))


def test_what_fits_goes_on_in_rust(root, monkeypatch):
    """The user's own transforms behind the span are called only for what Rust does not take."""
    called = []
    real = v2.functional

    class Watched:
        def __getattr__(self, name):
            called.extend([0] if name == "center_crop" else [])
            return getattr(real, name)

    # What CenterCrop calls; the class itself must be torchvision's.
    monkeypatch.setattr("torchvision.transforms.v2._geometry.F", Watched())
    for name, calls in (("tensors that are no Images", 0), ("a kind that nobody expects", 0), ("arrays", 0)):
        list(DataLoader(folder(root, *CHAINS[name]), batch_size=5))
        assert len(called) == calls, name
    list(DataLoader(folder(root, v2.functional.to_image, lambda image: image.double(), v2.CenterCrop(9)), batch_size=5))
    assert len(called) == COUNT


@pytest.mark.parametrize("name", CHAINS)
def test_a_collate_fn_gets_the_samples_of_the_data_set(root, name):
    theirs, mine = both(folder(root, *CHAINS[name]), batch_size=7, collate_fn=first_channel)
    assert all(map(same, mine, theirs))
    assert type(mine[0][0]) is tuple
    assert type(mine[0][0][1]) is int


@pytest.mark.parametrize(
    "transforms", [(), (v2.PILToTensor(),), (v2.ToImage(),), (torchvision.transforms.ToTensor(),)], ids=str
)
def test_images_of_their_own_sizes(root, transforms):
    data = folder(root, *transforms)
    theirs, mine = both(data, batch_size=7, collate_fn=first_channel)
    assert all(map(same, mine, theirs))
    theirs, mine = both(data, batch_size=1) if transforms else ([], [])
    assert all(map(same, mine, theirs))
    with pytest.raises((TypeError, RuntimeError)) as expected:
        next(iter(torch.utils.data.DataLoader(data, batch_size=4)))
    with pytest.raises(expected.type) as error:
        next(iter(DataLoader(data, batch_size=4)))
    assert str(error.value) == str(expected.value)


def test_gray_images(tmp_path):
    data = torchvision.datasets.MNIST.__new__(torchvision.datasets.MNIST)
    pixels = np.random.default_rng(0).integers(0, 256, (10, 9, 8), dtype=np.uint8)
    for chain in ((v2.Resize(6), *V1[:1]), (darker, v2.Resize(6), *V1[:1]), ()):
        transform = v2.Compose(list(chain)) if chain else None
        vars(data).update(
            root=str(tmp_path),
            data=torch.from_numpy(pixels),
            targets=torch.arange(10),
            transform=transform,
            target_transform=None,
            train=True,
            transforms=torchvision.datasets.vision.StandardTransform(transform, None),
        )
        theirs, mine = both(data, batch_size=4, collate_fn=first_channel)
        assert all(map(same, mine, theirs))


def test_target_transform(root):
    for chain in ("all in Rust", "Python between"):
        for target_transform in (
            lambda label: label * 10,
            float,
            lambda label: {"class": str(label)},
            str,
            lambda label: (label, str(label)),
        ):
            data = folder(root, *CHAINS[chain], target_transform=target_transform)
            for options in ({"batch_size": 5}, {"batch_size": None}, {"batch_size": 4, "collate_fn": first_channel}):
                theirs, mine = both(data, **options)
                assert all(map(same, mine, theirs))


def test_labels_of_text_are_a_tuple_as_torchs(root):
    for chain in ("all in Rust", "Python between", "Python last"):
        data = folder(root, *CHAINS[chain])
        data.samples = [(path, f"class {label}") for path, label in data.samples]
        theirs, mine = both(data, batch_size=5)
        assert type(mine[0][1]) is tuple
        assert all(map(same, mine, theirs))


class Drawing:
    """A transform that draws from all three generators, and remembers what."""

    def __init__(self):
        self.drawn = []

    def __call__(self, image):
        self.drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
        return image


def states() -> list:
    return [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]


def drawn(root, *, workers: int = 0, seed: int = 0, epochs: int = 1, upto: int = COUNT, **options) -> list:
    transform = Drawing()
    torch.manual_seed(seed)
    loader = DataLoader(folder(root, transform, *SIZED, *FLOAT), num_workers=workers, **options)
    for _ in range(epochs):
        for number, _batch in enumerate(loader):
            if number == upto:
                break
    return transform.drawn


def test_draws_depend_on_seed_and_place_only(root):
    first = drawn(root, batch_size=5)
    assert len(set(first)) == COUNT
    assert len({number for numbers in first for number in numbers}) == 3 * COUNT
    assert drawn(root, batch_size=5, workers=2) == first
    assert drawn(root, batch_size=3, workers=1, prefetch_factor=5) == first
    assert drawn(root, batch_size=5, seed=1) != first
    twice = drawn(root, batch_size=5, epochs=2)
    assert twice[:COUNT] == first
    assert not set(twice[COUNT:]) & set(first)
    persistent = drawn(root, batch_size=5, epochs=3, workers=1, persistent_workers=True)
    assert len(set(persistent)) == 3 * COUNT


def test_ranks_with_one_seed_draw_different_numbers(root, monkeypatch):
    from vit_rs import distributed

    first = drawn(root, batch_size=5)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    assert not set(drawn(root, batch_size=5)) & set(first)


def test_a_sample_drawn_twice_differs(root):
    assert len(set(drawn(root, batch_sampler=[[3, 3], [3], [3, 1]]))) == 5


def test_the_scripts_generators_never_notice(root):
    data = folder(root, Drawing(), *SIZED, *FLOAT, target_transform=Drawing())
    iterator = iter(DataLoader(data, batch_size=5))
    before = states()
    next(iterator)
    assert states() == before

    def failing(_):
        random.random()
        raise KeyError

    iterator = iter(DataLoader(folder(root, failing), batch_size=5))
    before = states()
    with pytest.raises(KeyError):
        next(iterator)
    assert states() == before


def test_no_thread_but_the_callers_runs_python(root):
    seen = []

    def stage(image):
        assert get_worker_info() is None
        seen.append(threading.get_ident())
        return image

    list(DataLoader(folder(root, stage, *SIZED, *FLOAT), batch_size=4, num_workers=2))
    assert seen == [threading.get_ident()] * COUNT


def test_worker_init_fn_is_called_once_and_seeded(root):
    calls = []

    def init(worker):
        calls.append((worker, random.random()))
        random.seed(99)

    torch.manual_seed(0)
    stage = Drawing()
    loader = DataLoader(folder(root, stage, *SIZED, *FLOAT), batch_size=4, num_workers=2, worker_init_fn=init)
    before = random.getstate()
    list(loader)
    assert [worker for worker, _ in calls] == [0]
    assert random.getstate() == before
    assert stage.drawn == drawn(root, batch_size=4)
    list(loader)
    assert len(set(calls)) == 2
    calls.clear()
    list(DataLoader(folder(root, *SIZED, *FLOAT), batch_size=4, num_workers=2, worker_init_fn=init))
    assert not calls
    # A collate_fn is the user's Python, too.
    list(DataLoader(folder(root, *SIZED, *FLOAT), 4, num_workers=2, worker_init_fn=init, collate_fn=first_channel))
    assert len(calls) == 1
    calls.clear()
    # Set after construction, as Fabric does.
    loader.worker_init_fn = None
    list(loader)
    assert not calls


class Mixing:
    """A collate_fn that draws from all three generators, and keeps which images came."""

    def __init__(self):
        self.mix = v2.MixUp(num_classes=3)

    def __call__(self, samples):
        images, labels = torch.utils.data.default_collate(samples)
        numbers = [random.random(), np.random.rand()]
        return self.mix(images, labels)[0], numbers, labels


def mixing(root, **options) -> DataLoader:
    options = {"batch_size": 5, "shuffle": True, "collate_fn": Mixing(), **options}
    return DataLoader(folder(root, *SIZED, *FLOAT), **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_collate_fn_that_draws_disturbs_nothing(root, workers):
    """torch calls it in a worker process: the script's generators, and so the orders, are as if it drew nothing."""

    def orders(loader) -> list:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        return [[labels.tolist() for _, _, labels in loader] for _ in range(3)] + states()

    theirs = torch.utils.data.DataLoader(folder(root, *SIZED), 5, shuffle=True, num_workers=2, collate_fn=labels_only)
    assert orders(mixing(root, num_workers=workers)) == orders(theirs)


def labels_only(samples) -> tuple:
    random.random()
    np.random.rand()
    torch.rand(1)
    return None, None, torch.tensor([label for _, label in samples])


def test_what_a_collate_fn_draws_depends_on_seed_and_place_only(root):
    def run(*, between=lambda: None, **options) -> list:
        torch.manual_seed(0)
        return [between() or batch for batch in mixing(root, **options)]

    first = run()
    assert len({tuple(numbers) for _, numbers, _ in first}) == len(first)
    for again in (run(between=lambda: random.seed(7)), run(num_workers=2)):
        assert all(map(same, again, first))
    torch.manual_seed(0)
    loader = mixing(root, generator=torch.Generator().manual_seed(3))
    iterator = iter(loader)
    next(iterator)
    state, rest = loader.state_dict(), list(iterator)
    torch.manual_seed(5)
    loader = mixing(root, generator=torch.Generator())
    loader.load_state_dict(state)
    assert all(map(same, list(loader), rest))


def test_generators_come_back_from_a_collate_fn_that_fails(root):
    def failing(_):
        random.random()
        raise KeyError

    iterator = iter(DataLoader(folder(root, *SIZED, *FLOAT), batch_size=5, collate_fn=failing))
    before = states()
    with pytest.raises(KeyError):
        next(iterator)
    assert states() == before


def test_torch_has_another_default_device(root):
    """Images stay on the CPU, as with torch's loader, whatever new tensors are made on."""
    for name in ("all in Rust", "Python first", "Python between tensors"):
        data = folder(root, *CHAINS[name])
        want = list(DataLoader(data, batch_size=5))
        iterator = iter(DataLoader(data, batch_size=5, generator=torch.Generator()))
        with torch.device("meta"):
            got = [next(iterator)[0] for _ in want]
        assert all(torch.equal(mine, images) for mine, (images, _) in zip(got, want, strict=True))


def test_an_altered_default_collate_is_asked(root, monkeypatch):
    from torch.utils.data._utils.collate import default_collate_fn_map

    data = folder(root, *CHAINS["all in Rust"])
    monkeypatch.setitem(default_collate_fn_map, int, lambda batch, **_: sum(batch) + 0 * random.randrange(9))
    before = random.getstate()
    theirs, mine = both(data, batch_size=5)
    random.setstate(before)
    assert all(map(same, mine, theirs))
    list(DataLoader(data, batch_size=5))
    assert random.getstate() == before
    monkeypatch.undo()
    for kind in (torch.Tensor, torchvision.tv_tensors.Image):
        monkeypatch.setitem(default_collate_fn_map, kind, lambda batch, **_: len(batch))
        for chain in ("all in Rust", "Python between", "u8 Images"):
            theirs, mine = both(folder(root, *CHAINS[chain]), batch_size=5)
            assert all(map(same, mine, theirs))
        monkeypatch.undo()


@pytest.mark.parametrize(
    "options", [{}, {"num_workers": 2}, {"collate_fn": first_channel}], ids=["plain", "workers", "collate_fn"]
)
@pytest.mark.parametrize("where", ["transform", "target_transform"])
def test_an_exception_keeps_its_identity_and_the_next_batch_comes(root, options, where):
    error = LookupError("mine")

    def failing(value, calls=[]):  # noqa: B006
        calls.append(0)
        if len(calls) == 7:
            raise error
        return value

    data = folder(root, *SIZED, *FLOAT, *([failing] if where == "transform" else []))
    if where == "target_transform":
        data = folder(root, *SIZED, *FLOAT, target_transform=failing)
    iterator = iter(DataLoader(data, batch_size=4, **options))
    next(iterator)
    with pytest.raises(LookupError) as caught:
        next(iterator)
    assert caught.value is error
    if sys.version_info >= (3, 11):
        [note] = error.__notes__
        assert note == f"raised for sample 6 of the data set ({data.samples[6][0]})"
    rest = list(iterator)
    assert len(rest) == COUNT // 4 - 2


def test_a_stop_iteration_of_the_users_does_not_end_the_epoch(root):
    def failing(_):
        raise StopIteration("by mistake")

    with pytest.raises(RuntimeError, match="raised StopIteration: by mistake"):
        list(DataLoader(folder(root, failing), batch_size=4))
    with pytest.raises(RuntimeError, match="raised StopIteration"):
        list(DataLoader(folder(root, *SIZED, *FLOAT), batch_size=4, collate_fn=failing))


def test_an_exception_in_collate_fn_loses_its_batch_only(root):
    def collate(samples, calls=[]):  # noqa: B006
        calls.append(0)
        if len(calls) == 2:
            raise ZeroDivisionError("mine")
        return len(samples)

    iterator = iter(DataLoader(folder(root, *SIZED, *FLOAT), batch_size=10, collate_fn=collate))
    assert next(iterator) == 10
    with pytest.raises(ZeroDivisionError, match="mine"):
        next(iterator)
    assert list(iterator) == [4]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_is_an_error_at_its_batch_only(tmp_path, workers):
    from vit_rs.exceptions import DecodeError

    for number in range(8):
        path = tmp_path / "a" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    (tmp_path / "a" / "3.png").write_bytes(b"no image")
    data = folder(str(tmp_path), v2.PILToTensor())
    (tmp_path / "a" / "6.png").unlink()
    iterator = iter(DataLoader(data, batch_size=2, num_workers=workers))
    assert next(iterator)[0][:, 0, 0, 0].tolist() == [0, 1]
    with pytest.raises(DecodeError, match=r"3\.png"):
        next(iterator)
    assert next(iterator)[0][:, 0, 0, 0].tolist() == [4, 5]
    with pytest.raises(FileNotFoundError, match=r"6\.png"):
        next(iterator)
    assert list(iterator) == []


def test_an_encoded_dataset_and_its_errors(root):
    paths = folder(root).samples

    class Encoded:
        def __len__(self):
            return len(paths)

        def __getitem__(self, index):
            if index == 9:
                raise PermissionError("not this one")
            with open(paths[index][0], "rb") as file:
                return file.read(), paths[index][1]

    data = EncodedDataset(Encoded())
    loader = DataLoader(data, batch_size=1, collate_fn=first_channel, sampler=[*range(9), *range(10, COUNT)])
    expected = folder(root, v2.PILToTensor())
    for _ in range(2):
        got = list(loader)
        want = [[expected[index]] for index in [*range(9), *range(10, COUNT)]]
        assert all(map(same, got, want))
    iterators = [iter(DataLoader(data, batch_size=1)) for _ in range(2)]
    for _ in range(9):
        assert same(*map(next, iterators))
    with pytest.raises(PermissionError, match="not this one"):
        next(iterators[0])
    assert len(list(iterators[0])) == COUNT - 10


def test_user_defined_batches_are_passed_through(root):
    class Batch:
        def __init__(self, samples):
            self.images = torch.stack([image for image, _ in samples])

    theirs, mine = both(folder(root, *SIZED, *FLOAT), batch_size=5, collate_fn=Batch)
    assert all(torch.equal(a.images, b.images) for a, b in zip(mine, theirs, strict=True))


def test_the_rest_of_a_batch_of_different_sizes_is_torchs_error(root):
    def sometimes(image, calls=[]):  # noqa: B006
        calls.append(0)
        return image.crop((0, 0, 9, 9)) if len(calls) == 3 else image.crop((0, 0, 8, 8))

    with pytest.raises(RuntimeError, match="stack expects each tensor to be equal size"):
        next(iter(DataLoader(folder(root, sometimes, *V1), batch_size=4)))


def test_torch_runs_in_one_thread_meanwhile_as_in_its_workers(root):
    threads = torch.get_num_threads()
    seen = []

    def noting(image):
        seen.append(torch.get_num_threads())
        return image

    def gathering(samples):
        seen.append(torch.get_num_threads())
        return default_collate(samples)

    torch.set_num_threads(3)
    try:
        for batch in DataLoader(folder(root, noting, *SIZED, *FLOAT), batch_size=5, collate_fn=gathering):
            assert torch.get_num_threads() == 3
            assert len(batch) == 2
    finally:
        torch.set_num_threads(threads)
    assert set(seen) == {1}
