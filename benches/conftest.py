"""Options of the benches; each bench module lists its comparisons, from which the cases are made."""

from __future__ import annotations

import os

from comparison import cases

os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # torch.compile starts no processes that run beside the clock


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="small inputs: shows that the benches work, not how fast")
    parser.addoption("--reverse", action="store_true", help="run the variants of a comparison from last to first")


def pytest_generate_tests(metafunc):
    config, module = metafunc.config, metafunc.module
    compared = module.comparisons(**(module.QUICK if config.getoption("quick") else {}))
    metafunc.parametrize("case", cases(compared, reverse=config.getoption("reverse")), ids=str)
