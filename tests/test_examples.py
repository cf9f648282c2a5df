"""Every example runs on a small folder, is at most 60 lines long, and learns something or finds everything equal."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NAMES = sorted(str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.py"))
LOOPS = {
    "pytorch_loop.py": (),
    "torchvision_reference.py": (),
    "timm_loop.py": ("timm",),
    "lightning_datamodule.py": ("lightning",),
    "hf_trainer.py": ("transformers", "accelerate"),
}
# Warnings inside these are theirs.
LENIENT = ("lightning_datamodule.py", "hf_trainer.py")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """The folder that the examples make for themselves, smaller."""
    specification = importlib.util.spec_from_file_location("photographs", EXAMPLES / "photographs.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.write_photographs(tmp_path_factory.mktemp("photographs"), train=12, val=4)


def printed(name: str, *arguments: str) -> str:
    """Run an example in a process of its own, as a user does; return what it prints."""
    # No network; a warning is an error, but for those inside Lightning, transformers and accelerate.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    strict = [] if name in LENIENT else ["-W", "error"]
    command = [sys.executable, *strict, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow  # each imports its libraries anew: 5 to 10 s
@pytest.mark.parametrize("name", LOOPS)
def test_loop_runs(photographs, name):
    for module in LOOPS[name]:
        pytest.importorskip(module)
    last = printed(name, "--data", str(photographs)).splitlines()[-1]
    kind, value = re.search(r"(accuracy|loss) (\d+\.\d+)$", last).groups()
    # Four classes: a guess is right in a quarter of the cases, at a loss of 1.386.
    assert float(value) > 0.25 if kind == "accuracy" else float(value) < 1.386, last


@pytest.mark.slow
def test_script_runs_as_it_is(photographs):
    """The drop-in example starts from a script that torch runs."""
    assert "accuracy" in printed("dropin/script.py", str(photographs))


@pytest.mark.slow  # test_dropin_values.py compares every value, too
def test_both_imports_give_the_same(photographs):
    rows = printed("dropin/compare.py", "--data", str(photographs), "--rounds", "1").splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[0] for row in cells] == ["PIL", "tensor", "PIL, v1"]
    values = 16 * 3 * 224 * 224
    assert [row[1:3] for row in cells] == [["equal", f"0 of {values}"]] * 3
    assert all(float(number) > 0 for row in cells for number in row[3:])


def test_one_import_line_is_all_that_changes():
    """Each loop names the line it had before; the script of the drop-in example has exactly one."""
    script = (EXAMPLES / "dropin/script.py").read_text(encoding="utf-8")
    assert script.count("from torch.utils.data import DataLoader\n") == 1
    assert "vit_rs" not in script
    for name in ("pytorch_loop.py", "torchvision_reference.py", "timm_loop.py", "lightning_datamodule.py"):
        text = (EXAMPLES / name).read_text(encoding="utf-8")
        assert "from vit_rs.data import DataLoader  # was: from torch.utils.data import DataLoader\n" in text


@pytest.mark.parametrize("name", NAMES)
def test_example_is_short(name):
    assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) <= 60
