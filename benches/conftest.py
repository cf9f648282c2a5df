"""Options of the benches; each bench module lists its comparisons, from which the cases are made."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

from comparison import cases

os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # torch.compile starts no processes that run beside the clock


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="small inputs: shows that the benches work, not how fast")
    parser.addoption("--reverse", action="store_true", help="run the variants of a comparison from last to first")
    parser.addoption("--data", type=Path, help="class folders of JPEGs to load (default: scikit-image's JPEGs)")


def pytest_generate_tests(metafunc):
    config, module = metafunc.config, metafunc.module
    options = dict(module.QUICK) if config.getoption("quick") else {}
    if "data" in inspect.signature(module.comparisons).parameters:
        options["data"] = config.getoption("data")
    compared = module.comparisons(**options)
    metafunc.parametrize("case", cases(compared, reverse=config.getoption("reverse")), ids=str)
