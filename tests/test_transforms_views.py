"""Several views of a sample, and transforms made of transforms."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from sklearn.datasets import load_sample_image

from vit_rs import transforms as t
from vit_rs.data import ArrayDataset, ImageFolder, ImageLoader, Patches
from vit_rs.transforms.lowering import lower, lower_views

CHINA, FLOWER = load_sample_image("china.jpg"), load_sample_image("flower.jpg")
TO_FLOAT = t.ToDtype(torch.float32, scale=True)
GLOBAL = t.Compose([t.RandomResizedCrop(48, scale=(0.4, 1.0)), t.RandomHorizontalFlip(), TO_FLOAT])
LOCAL = t.Compose([t.RandomResizedCrop(24, scale=(0.05, 0.4)), t.RandomHorizontalFlip()])
VIEWS = t.MultiCrop([(GLOBAL, 2), (LOCAL, 3)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("views")
    for name, photograph in (("a", CHINA[:300, :310]), ("b", FLOWER), ("c", CHINA[::-1])):
        (root / name).mkdir()
        Image.fromarray(photograph).save(root / name / "0.jpg", quality=90)
    return ImageFolder(root)


def batches(source, transform, **options) -> list:
    with ImageLoader(source, transform, **({"batch_size": 2, "seed": 3} | options)) as loader:
        return list(loader)


def test_views_of_a_loader(folder):
    (first, labels), (last, _) = batches(folder, VIEWS)
    assert [tuple(view.shape) for view in first] == [(2, 3, 48, 48)] * 2 + [(2, 3, 24, 24)] * 3
    assert [view.dtype for view in first] == [torch.float32] * 2 + [torch.uint8] * 3
    assert labels.tolist() == [0, 1]
    assert [len(view) for view in last] == [1] * 5
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[2], first[3])


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_views_are_the_same_bytes_for_any_thread_count(folder, threads):
    expected = batches(folder, VIEWS, num_threads=1)
    for (views, labels), (others, other_labels) in zip(
        batches(folder, VIEWS, num_threads=threads, prefetch=5), expected, strict=True
    ):
        assert torch.equal(labels, other_labels)
        assert all(torch.equal(view, other) for view, other in zip(views, others, strict=True))


def test_one_decode_gives_each_view_what_its_own_decode_would(folder):
    chains = lower_views(VIEWS)
    made = [batch[0] for batch in batches(folder, VIEWS, batch_size=1)]
    for index, (path, _) in enumerate(folder.samples):
        whole = np.asarray(Image.open(path).convert("RGB"))
        for number, chain in enumerate(chains):
            steps = chain.view().draw_plan(whole.shape[:2], 3, 0, index, number)[0]
            top, left, height, width = (int(value) for value in steps[0][1])
            part = torch.from_numpy(whole[top : top + height, left : left + width].copy()).permute(2, 0, 1)[None]
            size = [int(value) for value in steps[1][1]]
            expected = torch.nn.functional.interpolate(part, size, mode="bilinear", antialias=True)[0]
            if steps[2:]:
                expected = expected.flip(-1)
            view = made[index][number][0]
            assert torch.equal(view, expected if view.dtype == torch.uint8 else expected * np.float32(1 / 255))


def test_views_are_drawn_independently():
    chain = lower(GLOBAL).view()
    lefts = [[chain.draw_plan((300, 400), 0, 0, draw, view)[0][0][1][1] for draw in range(300)] for view in (0, 1)]
    assert abs(stats.spearmanr(*lefts).statistic) < 0.2  # 3.4 standard deviations


def test_views_without_random_numbers_are_equal(folder):
    still = t.Compose([t.Resize((20, 30)), t.CenterCrop(18)])
    for (one, two), _ in batches(folder, t.MultiCrop([still, still])):
        assert torch.equal(one, two)


def test_views_in_patches_and_other_types(folder):
    views = t.MultiCrop([GLOBAL, (GLOBAL, 1)])
    (plain, _), *_ = batches(folder, views)
    (cut, _), *_ = batches(folder, views, layout=Patches(16), dtype=torch.float16)
    assert [tuple(view.shape) for view in cut] == [(2, 9, 768)] * 2
    expected = plain[1].unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 1, 4, 5).reshape(2, 9, 768)
    assert torch.equal(cut[1], expected.half())


def test_skipped_samples_are_missing_in_every_view(tmp_path):
    (tmp_path / "a").mkdir()
    for number in range(5):
        Image.fromarray(np.full((40, 40, 3), 10 * number, np.uint8)).save(tmp_path / "a" / f"{number}.png")
    (tmp_path / "a" / "2.png").write_bytes(b"broken")
    (views, _, indices), *_ = batches(ImageFolder(tmp_path), VIEWS, batch_size=5, on_error="skip", return_index=True)
    assert indices.tolist() == [0, 1, 3, 4]
    for view in views[2:]:
        assert view[:, 0, 0, 0].tolist() == [0, 10, 30, 40]


def test_a_call_gives_a_tuple():
    buffer = io.BytesIO()
    Image.fromarray(FLOWER).save(buffer, "JPEG")
    made = VIEWS(buffer.getvalue())
    assert [tuple(view.shape) for view in made] == [(3, 48, 48)] * 2 + [(3, 24, 24)] * 3
    arrays = t.MultiCrop([(LOCAL, 2)])(FLOWER)
    assert [array.shape for array in arrays] == [(24, 24, 3)] * 2


REFUSED = {
    "1 to 1024 views can be made, got 0": lambda: t.MultiCrop([]),
    "1 to 1024 views can be made, got 1025": lambda: t.MultiCrop([(LOCAL, 1025)]),
    "a number of views must be an int of at least 1, got 0": lambda: t.MultiCrop([(LOCAL, 0)]),
    "a MultiCrop cannot be a view of a MultiCrop": lambda: t.MultiCrop([VIEWS]),
    "it stands alone": lambda: t.Compose([t.Resize((9, 9)), VIEWS]),
    "a chain has one kind of kernels": lambda: t.Compose([t.Compose([LOCAL], kernels="torch")], kernels="pillow"),
    "kernels must be 'torch', 'pillow', 'pillow12' or None, got 'cv2'": lambda: t.Compose([LOCAL], kernels="cv2"),
    "p must be a probability in 0..=1, got 2": lambda: t.RandomApply([LOCAL], p=2),
    "at least one transform is needed here": lambda: t.RandomApply([]),
    "each of the 1 choices needs a probability": lambda: t.RandomChoice([LOCAL], p=[0.5, 0.5]),
    "each of the 2 choices needs a probability of at least 0": lambda: t.RandomChoice([LOCAL, LOCAL], p=[-1, 2]),
}


@pytest.mark.parametrize("text", list(REFUSED))
def test_what_cannot_be_made(text):
    with pytest.raises(ValueError, match=re.escape(text)):
        REFUSED[text]()


def test_kinds_that_cannot_stand_inside():
    with pytest.raises(TypeError, match="only transforms of pixels can stand here"):
        t.RandomApply([t.ToDtype(torch.float32)])
    with pytest.raises(TypeError, match=r"expected a transform of vit_rs.transforms, got builtins.str"):
        t.RandomOrder(["flip"])
    with pytest.raises(TypeError, match=r"a view must be a transform of vit_rs, got builtins.int"):
        t.MultiCrop([7])


def flips(transform: t.Transform, count: int = 4000) -> list[list[str]]:
    view = lower(transform).view()
    return [[step for step, _ in view.draw_plan((8, 8), 0, 0, draw, 0)[0]] for draw in range(count)]


def test_random_apply_applies_all_or_none():
    drawn = flips(t.RandomApply([t.RandomHorizontalFlip(1.0), t.RandomVerticalFlip(1.0)], p=0.3))
    both = sum(steps == ["flip_horizontal", "flip_vertical"] for steps in drawn)
    assert both + sum(steps == [] for steps in drawn) == len(drawn)
    assert stats.binomtest(both, len(drawn), 0.3).pvalue > 1e-3


def test_random_choice_follows_its_probabilities():
    chain = t.RandomChoice([t.RandomHorizontalFlip(1.0), t.RandomVerticalFlip(1.0), t.CenterCrop(4)], p=[1, 2, 1])
    drawn = [steps[0] for steps in flips(chain)]
    counts = [drawn.count(step) for step in ("flip_horizontal", "flip_vertical", "crop")]
    assert stats.chisquare(counts, [1000, 2000, 1000]).pvalue > 1e-3


def test_random_order_draws_every_order():
    ops = [t.RandomHorizontalFlip(1.0), t.RandomVerticalFlip(1.0), t.Resize((9, 9))]
    drawn = [" ".join(steps) for steps in flips(t.RandomOrder(ops))]
    counts = [drawn.count(order) for order in set(drawn)]
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 1e-3


def test_operations_inside_others_draw_their_own_numbers():
    inner = t.RandomCrop(4)
    drawn = lower(t.Compose([t.RandomApply([inner], p=1.0), t.RandomCrop(2)])).view()
    places = np.array([[s[1][:2] for s in drawn.draw_plan((8, 8), 0, 0, draw, 0)[0]] for draw in range(600)])
    assert abs(stats.spearmanr(places[:, 0, 0], places[:, 1, 0]).statistic) < 0.14  # 3.4 standard deviations


def test_sizes_that_may_differ_are_refused_for_files(folder):
    for chain in (
        t.RandomApply([t.Resize((20, 20))], p=0.5),
        t.RandomChoice([t.Resize((20, 20)), t.Resize((21, 20))]),
        t.RandomOrder([t.Resize((20, 20)), t.CenterCrop(10)]),
    ):
        with pytest.raises(ValueError, match="a batch needs one"):
            batches(folder, chain)
    same = t.RandomChoice([t.Resize((20, 20)), t.RandomResizedCrop(20)])
    assert batches(folder, t.Compose([same, t.RandomApply([t.RandomHorizontalFlip()])]))[0][0].shape == (2, 3, 20, 20)
    array = ArrayDataset(np.zeros((2, 20, 20, 3), np.uint8), [0, 0])
    assert batches(array, t.RandomApply([t.Resize((20, 20))]))[0][0].shape == (2, 3, 20, 20)
