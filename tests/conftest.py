"""Settings that all tests share."""

import gc
import signal

import hypothesis
import numpy as np
import pytest
import torch

# The tests' tensors are tiny: a second thread costs more than it does, most of all on a busy machine. Tests of threads
# say their numbers themselves.
torch.set_num_threads(1)

# A shell has its background jobs ignore Ctrl-C, and with them all processes that a test would start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How many examples of each property: few where the slow tests are left out, too.
hypothesis.settings.register_profile("quick", max_examples=30, deadline=None)
hypothesis.settings.register_profile("full", max_examples=200, deadline=None)


def pytest_configure(config):
    hypothesis.settings.load_profile("quick" if config.option.markexpr == "not slow" else "full")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Keep the garbage collector off what is imported.

    Walking through torch, timm and transformers again and again took a quarter of the suite's time.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure():
    gc.unfreeze()  # or extensions report what they hold at the end as leaks


@pytest.fixture(scope="session")
def weights_in_memory():
    """Make, from a dictionary of tensors, what layouts ask of an open file of weights."""
    from vit_rs.checkpoints.files import TensorInfo

    class WeightsInMemory:
        def __init__(self, tensors):
            self.path = "weights.pth"
            self.held = tensors
            self.tensors = {key: TensorInfo(tuple(tensor.shape), tensor.dtype) for key, tensor in tensors.items()}

        def read(self, key):
            return self.held[key]

    return WeightsInMemory


@pytest.fixture(scope="session")
def randomised():
    """Give every parameter of a model its own random numbers, of a size that keeps activations near 1; eval mode."""

    def filled(model, seed=0):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                token = any(word in name for word in ("token", "pos", "latent", "probe"))
                if parameter.ndim > 1 and not token:
                    parameter.copy_(noise * parameter[0].numel() ** -0.5)
                else:
                    factor = parameter.ndim == 1 and not name.endswith("bias")  # of norms and layer scales
                    parameter.copy_(0.2 * noise + (1.0 if factor else 0.0))
        return model.eval()

    return filled


@pytest.fixture(scope="session")
def class_per_image(tmp_path_factory) -> str:
    """A folder of twenty images, each a class of its own: labels tell which images came, and in which order."""
    image, rng = pytest.importorskip("PIL.Image"), np.random.default_rng(0)
    root = tmp_path_factory.mktemp("class_per_image")
    for number in range(20):
        (root / f"{number:02}").mkdir()
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image.fromarray(pixels).resize((32, 32)).save(root / f"{number:02}" / "image.jpg")
    return str(root)


@pytest.fixture(scope="session")
def plain_images(tmp_path_factory):
    """Make a folder of a number of images of three classes, each of one colour and of its own width."""
    image = pytest.importorskip("PIL.Image")

    def made(count: int) -> str:
        root = tmp_path_factory.mktemp("plain_images")
        for number in range(count):
            path = root / f"class{number % 3}" / f"{number:02}.png"
            path.parent.mkdir(exist_ok=True)
            image.new("RGB", (20 + number, 30), (number, 2 * number, 255 - number)).save(path)
        return str(root)

    return made


@pytest.fixture(scope="session")
def filled():
    """Fill a module with numbers of a trained network's scale, none of them zero or one: each shows in the logits."""

    def fill(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, values in module.named_parameters():
                matrix = values.ndim > 1 and not name.startswith(("cls_", "dist_", "reg_", "pos_"))
                scale = values[0].numel() ** -0.5 if matrix else 0.1
                values.copy_(torch.randn(values.shape, generator=generator, dtype=torch.float64) * scale)
                if "norm" in name and name.endswith("weight"):
                    values.add_(1.0)
        return module.eval()

    return fill
