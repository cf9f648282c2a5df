"""One training step: parts against the whole, types, layouts, several processes' wrapper, and that it learns."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools

import pytest
import torch

from vit_rs.recipes import fashion_mnist
from vit_rs.training.engine import Engine, Preparation
from vit_rs.training.sources import open_sources
from vit_rs.training.stages import build_stages
from vit_rs.training.values import apply_settings, parse_settings

TINY = (
    *("model.embed_dim=16", "model.depth=2", "model.num_heads=2", "data.per_class=2", "batch_size=10"),
    *("method.mixup=0", "method.cutmix=0", "optim.schedule=constant", "optim.warmup_epochs=0"),
)


def settings(*changes):
    config = fashion_mnist.config()
    for chosen in (TINY, changes):
        config = apply_settings(config, parse_settings(config, chosen))
    return config


@pytest.fixture(scope="module")
def sources():
    return open_sources(settings().data)


@pytest.fixture
def stage_of(sources):
    return lambda *changes: build_stages(settings(*changes), sources)[0]


@pytest.fixture
def batch(stage_of):
    return first_batch(stage_of())


def first_batch(stage):
    with stage.train_loader() as loader:
        return next(iter(loader))


def engine_of(stage):
    torch.manual_seed(0)
    model = stage.build_model()
    with torch.no_grad():
        model.get_classifier().weight.normal_(std=0.5)  # a zero head would hide what is below it
    engine = Engine(stage, model)
    engine.train()
    return engine


def weights(engine):
    return {name: value.clone() for name, value in engine.model.state_dict().items()}


def assert_close(one, other, **tolerances):
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], **tolerances, msg=lambda text, name=name: f"{name}: {text}")


# SGD: the step is the gradient. Parts of 3, 3, 2, 2 images; 1e-6 is rounding, of gradients around 1.
@pytest.mark.parametrize("changes", [(), ("method.mixup=0.8", "method.label_smoothing=0.1"), ("method.loss=sigmoid",)])
def test_accumulated_parts_are_the_whole_batch(stage_of, batch, changes):
    plain = ("optim.name=sgd", "optim.lr=1", "optim.weight_decay=0", *changes)
    whole, parts = (engine_of(stage_of(*plain, f"accumulation={count}")) for count in (1, 4))
    losses, norms = zip(*(engine.step(*batch, 0) for engine in (whole, parts)), strict=True)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-5, atol=1e-6)
    assert_close(weights(whole), weights(parts), rtol=0, atol=1e-6)
    assert not losses[1].requires_grad


def test_parts_that_are_forgotten_would_be_found(stage_of, batch):
    """The tolerance of the test above tells a batch from one that lacks an image."""
    plain = ("optim.name=sgd", "optim.lr=1", "optim.weight_decay=0")
    whole, short = (engine_of(stage_of(*plain)) for _ in range(2))
    whole.step(*batch, 0)
    short.step(batch[0][:9], batch[1][:9], 0)
    with pytest.raises(AssertionError):
        assert_close(weights(whole), weights(short), rtol=0, atol=1e-4)


def test_a_batch_of_fewer_images_than_parts_and_of_none(stage_of, batch):
    images, labels = batch
    plain = ("optim.name=sgd", "optim.lr=1", "optim.weight_decay=0", "optim.momentum=0", "optim.clip_norm=none")
    whole, parts = engine_of(stage_of(*plain)), engine_of(stage_of(*plain, "accumulation=4"))
    whole.step(images[:2], labels[:2], 0)
    _, norm = parts.step(images[:2], labels[:2], 0)
    assert norm is None
    assert_close(weights(whole), weights(parts), rtol=2e-6, atol=1e-6)
    before = weights(parts)
    loss, _ = parts.step(images[:0], labels[:0], 1)  # every image of it was unreadable and left out
    assert loss.item() == 0.0
    assert_close(weights(parts), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_one_batch_is_overfitted(stage_of, batch, name):
    rate = {"adamw": "0.01", "sgd": "0.1", "lars": "2"}[name]
    engine = engine_of(stage_of(f"optim.name={name}", f"optim.lr={rate}", "optim.weight_decay=0.0001"))
    losses = [engine.step(*batch, step)[0].item() for step in range(50)]
    assert losses[-1] < 0.1 * losses[0]
    assert engine.seconds > 0.0


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_a_restored_engine_goes_on_to_the_bit(stage_of, batch, name):
    stage = stage_of(f"optim.name={name}", "optim.layer_decay=0.7", "optim.ema_decay=0.9", "accumulation=2")
    whole, resumed = engine_of(stage), engine_of(stage)
    whole.step(*batch, 0)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for engine in (whole, resumed):
        engine.step(*batch, 1)
    assert_close(weights(whole), weights(resumed), rtol=0, atol=0)
    averages = (engine.tested_model.state_dict() for engine in (whole, resumed))
    assert_close(*averages, rtol=0, atol=0)
    assert whole.tested_model is not whole.model


def test_bfloat16_computes_in_it_and_keeps_float32(stage_of, batch):
    single, half = engine_of(stage_of()), engine_of(stage_of("precision=bfloat16"))
    seen = []
    half.model.blocks[0].mlp.fc1.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    losses = [engine.step(*batch, 0)[0] for engine in (single, half)]
    assert seen == [torch.bfloat16]
    assert losses[1].dtype == torch.float32
    torch.testing.assert_close(losses[0], losses[1], rtol=2e-2, atol=0)  # eight bits of mantissa
    assert losses[0] != losses[1]
    assert {value.dtype for value in half.model.state_dict().values()} == {torch.float32}
    assert {value.dtype for state in half.optimizer.state.values() for value in state.values()} == {torch.float32}


def test_the_loader_s_u8_is_normalised_as_the_loader_does(stage_of):
    augmented = ("data.augment=resized_crop", "data.flip=0.5", "data.mean=0.3", "data.std=0.4")
    stages = [stage_of(*augmented, f"data.normalize_on={place}") for place in ("loader", "device")]
    floats, bytes_ = (first_batch(stage) for stage in stages)
    assert (floats[0].dtype, bytes_[0].dtype) == (torch.float32, torch.uint8)
    assert torch.equal(floats[1], bytes_[1])
    prepared = [
        Preparation(stage, torch.device("cpu"))(images)
        for stage, (images, _) in zip(stages, (floats, bytes_), strict=True)
    ]
    assert prepared[0] is floats[0]
    torch.testing.assert_close(prepared[0], prepared[1], rtol=0, atol=1e-6)


def test_channels_last_changes_the_layout_alone(stage_of):
    resnet = (
        "model.name=bit",
        "model.layers=1,1,1,1",
        *(f"model.{name}=none" for name in ("embed_dim", "depth", "num_heads", "patch_size", "global_pool")),
    )
    plain = ("optim.name=sgd", "optim.lr=0.1", *resnet)
    outcomes = []
    for last in ("false", "true"):
        stage = stage_of(*plain, f"channels_last={last}")
        engine = engine_of_resnet(stage)
        seen = []
        engine.model.register_forward_pre_hook(lambda _module, inputs, seen=seen: seen.append(inputs[0]))
        images, labels = first_batch(stage)
        loss, _ = engine.step(images[:4], labels[:4], 0)
        outcomes.append((loss, weights(engine)))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert seen[0].data_ptr() == images.data_ptr()  # the loader's own memory
    kernel = engine.model.stages[1].blocks[0].conv2.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert not kernel.is_contiguous()
    torch.testing.assert_close(outcomes[0][0], outcomes[1][0], rtol=1e-5, atol=1e-6)
    assert_close(outcomes[0][1], outcomes[1][1], rtol=1e-4, atol=1e-5)


def engine_of_resnet(stage):
    torch.manual_seed(0)
    engine = Engine(stage, stage.build_model())
    engine.train()
    return engine


def test_the_compiled_model_learns_and_the_plain_one_is_saved(stage_of, batch, monkeypatch):
    # Without a C++ compiler: the graph is captured and run as it is.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    plain, compiled = engine_of(stage_of()), engine_of(stage_of("compile=true"))
    for step in range(2):
        losses = [engine.step(*batch, step)[0] for engine in (plain, compiled)]
        torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    assert type(compiled.tested_model) is type(plain.model)
    assert compiled.state_dict()["model"].keys() == plain.state_dict()["model"].keys()


@pytest.mark.slow
def test_inductor_s_model_learns_the_same(stage_of, batch):
    plain, compiled = engine_of(stage_of()), engine_of(stage_of("compile=true"))
    for step in range(3):
        losses = [engine.step(*batch, step)[0] for engine in (plain, compiled)]
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)


class Recorder:
    """Stands for several processes: notes what it is asked."""

    def __init__(self):
        self.wrapped, self.calls, self.world_size = None, [], 2

    def wrap(self, model):
        model.head.weight = torch.nn.Parameter(model.head.weight.detach().clone())  # as FSDP2 replaces parameters
        self.wrapped = torch.nn.Sequential(model)
        return self.wrapped

    def wrap_average(self, model):
        assert model is None
        return model

    @contextlib.contextmanager
    def sync(self, module, *, last):
        assert module is self.wrapped
        self.calls.append(last)
        yield


def test_gradients_are_shared_at_the_last_part(stage_of, batch, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    parallel = Recorder()
    stage = stage_of("accumulation=3", "optim.lr=0.1", "compile=true")
    engine = engine_of(dataclasses.replace(stage, parallel=parallel))
    before = weights(engine)
    engine.step(*batch, 0)
    assert parallel.calls == [False, False, True]
    assert not torch.equal(weights(engine)["head.weight"], before["head.weight"])  # the replaced one is trained
    engine.model.eval()
    engine.train()
    assert parallel.wrapped.training
    assert engine.model.training


class OneOfTwo:
    """One of two processes, which each have a part of six images."""

    world_size = 2

    def wrap(self, model):
        return model

    def wrap_average(self, model):
        return model

    def sync(self, module, *, last):
        return contextlib.nullcontext()

    def total(self, values):
        return [6.0]


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("images", [0, 1, 3])
def test_processes_count_by_their_images(stage_of, batch, images, accumulation):
    plain = ("data.on_error=skip", "optim.clip_norm=none")
    stage = stage_of(*plain, f"accumulation={accumulation}")
    pictures, labels = (tensor[:6] for tensor in batch)
    alone = engine_of(stage_of(*plain))
    loss, _ = alone.step(pictures, labels, 0)
    gradients, losses = [], []
    for part in (slice(None, images), slice(images, None)):
        engine = engine_of(dataclasses.replace(stage, parallel=OneOfTwo()))
        losses.append(engine.step(pictures[part], labels[part], 0)[0])
        assert engine.images == 6
        gradients.append([parameter.grad for parameter in engine.model.parameters()])
    torch.testing.assert_close((losses[0] + losses[1]) / 2, loss, rtol=1e-5, atol=1e-6)
    for one, other, parameter in zip(*gradients, alone.model.parameters(), strict=True):
        torch.testing.assert_close((one + other) / 2, parameter.grad, rtol=1e-4, atol=1e-6)


def test_mixed_and_normalised_images_reuse_their_memory(stage_of):
    engine = engine_of(stage_of("method.mixup=0.8", "method.cutmix=1", "data.normalize_on=device"))
    single = engine_of(stage_of("method.mixup=0.8", "method.cutmix=1"))
    seen = []
    engine.model.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(6)
    for step in range(4):
        images = torch.randint(0, 256, (6, 1, 28, 28), dtype=torch.uint8, generator=generator)
        floats = (images / 255 - 0.286) / 0.353
        losses = [e.step(batch, labels, step)[0] for e, batch in ((engine, images), (single, floats))]
        torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
        assert torch.equal(single.method.mix(floats, labels, step=step).images, single._mixed)
    assert len({images.data_ptr() for images in seen}) == 1
    engine.step(images[:4], labels[:4], 4)  # a smaller batch takes its own
    assert seen[-1].shape[0] == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_does_not_wait_for_the_device(stage_of):
    changes = ("device=cuda", "accumulation=2", "precision=bfloat16", "data.normalize_on=device", "optim.ema_decay=0.9")
    for name in ("adamw", "sgd", "lars"):
        stage = stage_of(*changes, f"optim.name={name}", "method.mixup=0.8")
        engine = Engine(stage, stage.build_model().to("cuda"))
        with stage.train_loader() as loader:
            images, labels = next(iter(loader))
        engine.step(images, labels, 0)  # makes buffers
        torch.cuda.set_sync_debug_mode("error")
        try:
            engine.step(images, labels, 1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
