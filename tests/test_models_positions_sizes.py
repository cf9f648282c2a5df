"""Images of any size: tables that follow the grid, set_input_size, and timm's numbers at other sizes."""

from __future__ import annotations

import itertools

import pytest
import timm
import torch

import vit_rs
from vit_rs import _core
from vit_rs.exceptions import ConfigError
from vit_rs.models import VisionTransformer, ViTConfig
from vit_rs.models.pos_encoding import position_table, resample_relative, resampled_state
from vit_rs.ops import _resample_operators
from vit_rs.ops.conventions import GRID_CONVENTIONS

TINY = ViTConfig(
    img_size=(12, 20), patch_size=4, num_classes=5, embed_dim=24, depth=3, num_heads=3, dynamic_img_size=True
)
TABLE = [
    *itertools.product(("1d", "2d"), ("stem", "every", "shared")),
    *itertools.product(("sincos2d_bv", "sincos2d_moco", "sincos2d_mae"), ("stem", "shared")),
    ("relative", "stem"),
    ("none", "stem"),
]
SIZES = [(24, 12), (8, 36), (20, 12), (4, 4)]


def model_of(pos_embed: str = "1d", placement: str = "stem", **changes: object) -> VisionTransformer:
    """A model whose every parameter is far from zero: what it gives depends on all of them."""
    torch.manual_seed(0)
    fields = {**TINY.to_dict(), "pos_embed": pos_embed, "pos_placement": placement, **changes}
    model = VisionTransformer(ViTConfig.from_dict(fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


# Tables


@pytest.mark.parametrize("convention", GRID_CONVENTIONS)
@pytest.mark.parametrize("no_embed_class", [False, True])
def test_a_1d_table_is_resampled_as_a_grid(convention: str, no_embed_class: bool) -> None:
    model = model_of("1d", "every", pos_convention=convention, no_embed_class=no_embed_class, reg_tokens=2)
    rows = 0 if no_embed_class else 3
    expected = vit_rs.resample_abs_pos_embed(model.pos_embed, (6, 3), (3, 5), rows, convention=convention)
    assert torch.equal(position_table(model, model.config, (6, 3)), expected)
    assert expected.shape == (3, rows + 18, 24)


@pytest.mark.parametrize("convention", GRID_CONVENTIONS)
def test_2d_tables_are_resampled_along_their_axes(convention: str) -> None:
    model = model_of("2d", pos_convention=convention).double()
    x = vit_rs.interpolation_matrix(5, 4, convention=convention) @ model.pos_embed_x[0]
    y = vit_rs.interpolation_matrix(3, 6, convention=convention) @ model.pos_embed_y[0]
    got = position_table(model, model.config, (6, 4))
    expected = torch.stack([torch.cat((x[c], y[r])) for r, c in itertools.product(range(6), range(4))])
    torch.testing.assert_close(got[0, 1:], expected, rtol=0, atol=1e-12)
    assert torch.equal(got[:, :1], model.pos_embed_prefix)
    # An axis that keeps its size keeps its table, whatever the convention.
    x = position_table(model, model.config, (6, 5))[0, 1:6, :12]
    assert torch.equal(x, model.pos_embed_x[0])


@pytest.mark.parametrize(("old", "new"), [((3, 5), (4, 6)), ((4, 4), (2, 8)), ((2, 3), (1, 1)), ((1, 4), (3, 1))])
def test_relative_offsets_are_resampled_as_a_plane(old: tuple[int, int], new: tuple[int, int]) -> None:
    """Spread the offsets to (dy, dx), resample, and take for each raster offset the pair with the smaller |dx|."""
    N, d = old[0] * old[1], 4
    table = torch.randn(2 * N - 1, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plane = torch.empty(2 * old[0] - 1, 2 * old[1] - 1, d, dtype=torch.float64)
    for dy, dx in itertools.product(range(1 - old[0], old[0]), range(1 - old[1], old[1])):
        plane[dy + old[0] - 1, dx + old[1] - 1] = table[dy * old[1] + dx + N - 1]
    rows, columns = (vit_rs.interpolation_matrix(2 * a - 1, 2 * b - 1) for a, b in zip(old, new, strict=True))
    plane = torch.einsum("yh,xw,hwd->yxd", rows, columns, plane)
    got = resample_relative(table, new, old, "timm")
    count = new[0] * new[1]
    assert got.shape == (2 * count - 1, d)
    for offset in range(1 - count, count):
        pairs = [
            (abs(dx), abs(dy), dy, dx)
            for dy, dx in itertools.product(range(1 - new[0], new[0]), range(1 - new[1], new[1]))
            if dy * new[1] + dx == offset
        ]
        _, _, dy, dx = min(pairs)
        expected = plane[dy + new[0] - 1, dx + new[1] - 1]
        torch.testing.assert_close(got[offset + count - 1], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("pos_embed", "placement"), TABLE)
def test_the_models_own_grid_needs_no_operation(
    pos_embed: str, placement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("vit_rs.models.pos_encoding.resample_abs_pos_embed", forbidden)
    model = model_of(pos_embed, placement)
    if model.pos_embed is not None:
        assert position_table(model, model.config, (3, 5)) is model.pos_embed
    model(torch.randn(1, 3, 12, 20))
    if pos_embed != "none":
        with pytest.raises(AssertionError):
            model(torch.randn(1, 3, 20, 12))  # as many patches, another grid


# Any size


@pytest.mark.parametrize("changes", [{}, {"no_embed_class": True, "reg_tokens": 2, "rope": True}])
@pytest.mark.parametrize(("pos_embed", "placement"), TABLE)
def test_any_size_is_what_a_model_of_that_size_gives(
    pos_embed: str, placement: str, changes: dict[str, object]
) -> None:
    """The same weights, resampled once by `resampled_state` and loaded into a model made for the size."""
    model = model_of(pos_embed, placement, **changes)
    for size in SIZES:
        images = torch.randn(2, 3, *size).requires_grad_()
        config = ViTConfig.from_dict({**model.config.to_dict(), "img_size": size, "dynamic_img_size": False})
        native = VisionTransformer(config).eval()
        state, resampled = resampled_state(model.state_dict(), model.config, config)
        native.load_state_dict(state)
        got, want = model(images), native(images)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * max(1.0, want.abs().max().item()))
        keys = {key for key, _, _ in resampled}
        assert keys == {key for key in state if ("pos_embed" in key and "prefix" not in key) or ".relative." in key}
        model.zero_grad()
        got.sum().backward()
        for name, parameter in model.named_parameters():
            if ".relative." not in name:  # a single patch has no offset; the class token asks none
                assert parameter.grad is not None, name
                assert parameter.grad.abs().max() > 0, name


def test_other_sizes_need_the_flag_and_whole_patches() -> None:
    with pytest.raises(ValueError, match=r"dynamic_img_size=True takes other sizes"):
        model_of(dynamic_img_size=False)(torch.zeros(1, 3, 24, 12))
    with pytest.raises(ValueError, match=r"height a multiple of 4 and width of 4.*got \(1, 3, 22, 12\)"):
        model_of()(torch.zeros(1, 3, 22, 12))


@pytest.mark.parametrize("pos_embed", ["1d", "2d", "relative"])
def test_resampled_state_reports_grids(pos_embed: str) -> None:
    model = model_of(pos_embed)
    new = ViTConfig.from_dict({**model.config.to_dict(), "img_size": (12, 32)})
    state = {**model.state_dict(), "other": torch.zeros(3)}
    tensors, resampled = resampled_state(state, model.config, new, "jax")
    expected = {
        "1d": [("pos_embed", (3, 5), (3, 8))],
        "2d": [("pos_embed_x", (1, 5), (1, 8))],
        "relative": [(f"blocks.{i}.attn.relative.table", (3, 5), (3, 8)) for i in range(3)],
    }[pos_embed]
    assert resampled == expected
    changed = {key for key, _, _ in expected}
    assert all(tensors[key] is state[key] for key in state if key not in changed)
    timms, _ = resampled_state(state, model.config, new)
    assert all(not torch.equal(timms[key], tensors[key]) for key in changed)


def test_resampled_state_refuses() -> None:
    model = model_of()
    wide = ViTConfig.from_dict({**model.config.to_dict(), "img_size": 20})
    state = {"pos_embed": torch.zeros(1, 15, 24)}
    with pytest.raises(ValueError, match=r"pos_embed must be \(..., 16, 24\) on a grid of 3x5, got \(1, 15, 24\)"):
        resampled_state(state, model.config, wide)
    other = ViTConfig.from_dict({**wide.to_dict(), "pos_embed": "2d"})
    with pytest.raises(ValueError, match="pos_embed must be the same in both, got '1d' and '2d'"):
        resampled_state(state, model.config, other)


# set_input_size


@pytest.mark.parametrize(("pos_embed", "placement"), TABLE)
def test_set_input_size_is_dynamic_size_made_permanent(pos_embed: str, placement: str) -> None:
    model = model_of(pos_embed, placement, rope=True)
    images = torch.randn(2, 3, 24, 12)
    names = list(model.state_dict())
    with torch.no_grad():
        want = model(images)
        model.set_input_size((24, 12))
        torch.testing.assert_close(model(images), want, rtol=0, atol=1e-5 * max(1.0, want.abs().max().item()))
    assert list(model.state_dict()) == names
    assert model.config == ViTConfig.from_dict({**TINY.to_dict(), **model.config.to_dict(), "img_size": (24, 12)})
    twin = VisionTransformer(model.config)  # what is saved now fits a model of this configuration
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(twin.eval()(images), model(images))
    assert torch.equal(model(vit_rs.patchify(images, 4, order="cpq")), model(images))


def test_set_input_size_keeps_dtype_gradients_and_what_need_not_change() -> None:
    model = model_of().double()
    model.pos_embed.requires_grad_(False)
    head, table, kernel = model.head.weight, model.pos_embed, model.patch_embed.proj.weight
    model.set_input_size(img_size=(12, 20))
    model.set_input_size()
    assert model.pos_embed is table
    model.set_input_size(patch_size=2)
    assert model.config.grid_size == (6, 10) == model.patch_embed.grid_size
    assert (model.pos_embed.dtype, model.pos_embed.requires_grad) == (torch.float64, False)
    new = model.patch_embed.proj.weight
    assert (new.dtype, new.requires_grad, new.shape) == (torch.float64, True, (24, 3, 2, 2))
    assert model.head.weight is head
    assert not torch.equal(new, kernel[:, :, :2, :2])
    assert model(torch.zeros(1, 3, 12, 20).double()).shape == (1, 5)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"img_size": (12, 22)}, "img_size 12x22 is not divisible by patch_size 4x4"),
        ({"img_size": 0}, "img_size must be at least 1, got 0"),
        ({"patch_size": 8}, "img_size 12x20 is not divisible by patch_size 8x8"),
        ({"patch_size": "4"}, "patch_size must be an integer, got '4'"),
    ],
)
def test_set_input_size_changes_nothing_on_error(sizes: dict[str, object], message: str) -> None:
    model = model_of("2d")
    config, state = model.config, {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(ConfigError, match=message):
        model.set_input_size(**sizes)
    assert model.config is config
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    model(torch.zeros(1, 3, 12, 20))


# timm


def timm_twin(ours: VisionTransformer) -> torch.nn.Module:
    config = ours.config
    theirs = timm.models.VisionTransformer(
        img_size=config.image_hw,
        patch_size=config.patch_hw,
        num_classes=config.num_classes,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        dynamic_img_size=config.dynamic_img_size,
        no_embed_class=config.no_embed_class,
        reg_tokens=config.reg_tokens,
    )
    theirs.load_state_dict(ours.state_dict())
    return theirs.eval()


@pytest.mark.parity
@pytest.mark.parametrize("prefix", [{}, {"reg_tokens": 2}, {"no_embed_class": True, "reg_tokens": 1}])
@pytest.mark.parametrize("width", [24, 384])
def test_dynamic_sizes_are_timms(width: int, prefix: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    if width > 24 and prefix:
        pytest.skip("once is enough at full width")
    ours = model_of(embed_dim=width, depth=2, num_heads=width // 8, img_size=(24, 40), **prefix)
    with torch.no_grad():
        for parameter in ours.blocks.parameters():
            parameter.mul_((24 / width) ** 0.5)
    theirs = timm_twin(ours)
    for size in ((48, 48), (32, 56), (20, 48)):
        images = torch.randn(2, 3, *size)
        with torch.inference_mode():
            got, want = ours(images), theirs(images)
        assert (got - want).abs().max() <= 1e-5 * max(1.0, want.abs().max().item())
    # timm resamples a float64 table in float32, ours in float64; so does timm's with our resampling in its place.
    ours, theirs = ours.double(), theirs.double()
    with torch.inference_mode():
        images = torch.randn(2, 3, 32, 56).double()
        got, rounded = ours(images), theirs(images)
        assert (got - rounded).abs().max() > 1e-10
        monkeypatch.setattr(timm.models.vision_transformer, "resample_abs_pos_embed", vit_rs.resample_abs_pos_embed)
        assert (got - theirs(images)).abs().max() <= 1e-10
        in_float32 = vit_rs.resample_abs_pos_embed(
            ours.pos_embed, (8, 14), (6, 10), ours.config.embedded_prefix_tokens, compute_dtype=torch.float32
        )
        ours.set_input_size((32, 56))
        ours.pos_embed.copy_(in_float32)
        assert (ours(images) - rounded).abs().max() <= 1e-5  # float32's rounding of the table, carried along


@pytest.mark.parity
@pytest.mark.parametrize(
    "sizes", [{"img_size": (16, 32)}, {"patch_size": (2, 4)}, {"img_size": (24, 36), "patch_size": (8, 6)}]
)
def test_set_input_size_is_timms(sizes: dict[str, tuple[int, int]]) -> None:
    ours = model_of(reg_tokens=1)
    theirs = timm_twin(ours)
    ours.set_input_size(**sizes)
    theirs.set_input_size(**sizes)
    assert ours.patch_embed.grid_size == theirs.patch_embed.grid_size
    state = theirs.state_dict()
    for key, tensor in ours.state_dict().items():
        # timm inverts the whole resize in float32, which costs it some 4e-6 of the largest weight.
        torch.testing.assert_close(tensor, state[key], rtol=0, atol=1e-5)
    images = torch.randn(2, 3, *ours.config.image_hw)
    with torch.no_grad():
        got, want = ours(images), theirs(images)
    assert (got - want).abs().max() <= (3e-5 if "patch_size" in sizes else 1e-5) * max(1.0, want.abs().max().item())


# Kept matrices


class Counter:
    """Counts how often matrices are made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made = 0
        make = _core.interpolation_matrix

        def counted(*arguments: object, **settings: object) -> object:
            self.made += 1
            return make(*arguments, **settings)

        monkeypatch.setattr(_core, "interpolation_matrix", counted)


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    _resample_operators._kept_matrix.cache_clear()
    return Counter(monkeypatch)


def test_matrices_are_made_once(counter: Counter) -> None:
    """float64 takes on the CPU the way of other devices."""
    model = model_of().double().train()
    for made, size in ((2, (24, 12)), (2, (24, 12)), (4, (8, 36)), (4, (24, 12)), (4, (8, 36))):
        model(torch.randn(2, 3, *size).double()).sum().backward()
        assert counter.made == made  # forward and backward
    with torch.inference_mode():
        model(torch.randn(2, 3, 32, 12).double())
    assert counter.made == 5  # the columns are those of 24 x 12
    model(torch.randn(2, 3, 32, 12).double()).sum().backward()
    assert counter.made == 5


def test_matrices_are_not_kept_where_tensors_are_none(counter: Counter) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        table = torch.randn(1, 17, 6, dtype=torch.float64, requires_grad=True)
        vit_rs.resample_abs_pos_embed(table, (5, 6)).sum().backward()
    assert table.grad.shape == (1, 17, 6)
    assert _resample_operators._kept_matrix.cache_info().currsize == 0
    given = vit_rs.interpolation_matrix(4, 5).fill_(0.0)  # the caller's own
    assert not given.any()
    assert vit_rs.interpolation_matrix(4, 5).sum() == pytest.approx(5)
    operator = torch.ops.vit_rs.interpolation_matrix.default
    settings = {"dtype": torch.float32, "device": torch.device("cpu")}
    operator(4, 5, **settings).fill_(0.0)
    assert operator(4, 5, **settings).sum().item() == pytest.approx(5)


def test_large_matrices_are_not_kept(counter: Counter) -> None:
    for made in (2, 4):
        vit_rs.resample_abs_pos_embed(torch.randn(1, 600, 1).double(), (1, 300), (1, 600), 0)
        assert counter.made in (made, made - 1)  # 1 x 1 is kept
    assert _resample_operators._kept_matrix.cache_info().currsize == 1
