"""The arrows between the rooms: who may import whom, in Python and in Rust; docs/architecture.md says why."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "python" / "vit_rs"
CORE = ROOT / "rust" / "vit-rs-core"

EVERYWHERE = {"exceptions", "distributed"}
BELOW_TRAINING = {"ops", "transforms", "data", "models", "checkpoints", "methods", "evaluation"}
# What each room of the package may import beside EVERYWHERE and itself.
PYTHON_ARROWS = {
    "exceptions": set(),
    "distributed": set(),
    "_reference": set(),
    "ops": {"_core", "_reference"},
    "transforms": {"_core"},
    "data": {"_core", "transforms", "ops"},
    "models": {"ops"},
    "checkpoints": {"models", "ops"},
    "methods": {"models", "transforms"},
    "evaluation": {"data", "models", "checkpoints", "methods", "transforms"},
    "training": BELOW_TRAINING - {"ops"},
    "analysis": BELOW_TRAINING | {"training"},
    "recipes": BELOW_TRAINING | {"training", "analysis"},
    "studies": BELOW_TRAINING | {"training", "analysis", "recipes"},
    "doctor": {"data", "transforms"},
    "cli": BELOW_TRAINING | {"training", "analysis", "recipes", "studies", "doctor"},
    "__main__": {"cli"},
}
# Modules of vit-rs-core in the order of their arrows: each row may use the rows above it, and itself.
RUST_ORDER = (
    {"error"},
    {"memory"},
    {"parallel"},
    {"simd"},
    {"image"},
    {"line"},
    {"rng"},
    {"resample", "patchify", "decode"},
    {"augment"},
    {"emit"},
    {"source"},
    {"order"},
    {"slot"},
    {"statistics"},
    {"order"},
    {"pipeline"},
    {"loader", "transformer"},
)
# The only files of the workspace that may allow unsafe code, beside the kernels in simd/.
UNSAFE_FILES = {
    "rust/vit-rs-core/src/decode/jpeg.rs",
    "rust/vit-rs-core/src/decode/webp.rs",
    "rust/vit-rs-core/src/memory.rs",
    "rust/vit-rs-core/src/slot.rs",
    "rust/vit-rs-python/src/memory.rs",
    "rust/vit-rs-python/src/source.rs",
}


def room_of(module: str) -> str:
    """Return the room of a dotted module name: "vit_rs.data.array" -> "data", "vit_rs" -> "vit_rs"."""
    return module.split(".")[1] if "." in module else module


def python_imports(path: Path, package: Path) -> list[tuple[int, str]]:
    """Return line and dotted name of every import from vit_rs in a file, lazy and type-only ones too."""
    found = []
    parents = ["vit_rs", *path.relative_to(package).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            if module == "vit_rs":
                # The version is written outside Python; any room may state it.
                names = [alias.name for alias in node.names if alias.name != "__version__"]
                found += [(node.lineno, f"vit_rs.{name}" if is_module(package, name) else "vit_rs") for name in names]
            else:
                found.append((node.lineno, module))
    return [(line, name) for line, name in found if name.split(".")[0] == "vit_rs"]


def is_module(package: Path, name: str) -> bool:
    return name == "_core" or (package / name).is_dir() or (package / f"{name}.py").is_file()


def python_violations(package: Path) -> list[str]:
    """Return one line for each import in a package folder that has no arrow."""
    wrong = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        room = parts[0]
        if room == "__init__":
            continue
        allowed = PYTHON_ARROWS.get(room)
        if allowed is None:
            wrong.append(f"{path.name}: room {room!r} has no arrows yet")
            continue
        for line, name in python_imports(path, package):
            if room_of(name) not in allowed | EVERYWHERE | {room}:
                wrong.append(f"{'/'.join(parts)}.py:{line}: {room} may not import {name}")
    return wrong


def test_python_rooms_import_along_the_arrows():
    assert not python_violations(PACKAGE)


def test_arrows_have_no_cycle():
    done: set[str] = set()
    while waiting := PYTHON_ARROWS.keys() - done:
        ready = {room for room in waiting if not (PYTHON_ARROWS[room] & PYTHON_ARROWS.keys()) - done}
        assert ready, f"a cycle among {sorted(waiting)}"
        done |= ready


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("models/vit.py", "from vit_rs.data import ImageLoader", "models may not import vit_rs.data"),
        ("models/vit.py", "from ..training import train", "models may not import vit_rs.training"),
        ("models/vit.py", "import vit_rs._core", "models may not import vit_rs._core"),
        ("models/vit.py", "from vit_rs import patchify", "models may not import vit_rs"),
        ("data/array.py", "def f():\n    from vit_rs import models", "data may not import vit_rs.models"),
        ("helpers.py", "", "room 'helpers' has no arrows yet"),
    ],
)
def test_a_wrong_python_import_is_found(tmp_path, file, line, message):
    for room in ("models", "data", "training"):
        (tmp_path / room).mkdir()
    (tmp_path / file).write_text(line)
    [violation] = python_violations(tmp_path)
    assert violation.endswith(message)


def test_subpackages_only_re_export():
    doing_more = []
    for path in sorted(PACKAGE.glob("*/__init__.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            exports = isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["__all__"]
            for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            # Module-level __getattr__ is how a re-export is made lazy.
            lazy = isinstance(node, ast.FunctionDef) and node.name in {"__getattr__", "__dir__"}
            if not (isinstance(node, (ast.Import, ast.ImportFrom)) or docstring or exports or for_types or lazy):
                doing_more.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert not doing_more


def test_torch_distributed_has_few_doors():
    doors = {PACKAGE / name for name in ("distributed.py", "training/parallel.py", "training/sharded.py")}
    for path in PACKAGE.rglob("*.py"):
        if path not in doors:
            text = path.read_text(encoding="utf-8")
            assert not re.search(
                r"^\s*(import|from) torch\.distributed|torch\.distributed\.\w+\(", text, re.MULTILINE
            ), path


def rust_code(path: Path) -> str:
    """Return a Rust file's text without comments, which may speak of any module."""
    text = re.sub(r"/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.sub(r"//.*", "", text)


def rust_imports(path: Path, source: Path) -> set[str]:
    """Return the top-level modules of the crate that a Rust file names."""
    parts = [part for part in path.relative_to(source).with_suffix("").parts if part != "mod"]
    code = rust_code(path)
    names = set(re.findall(r"\bcrate::(\w+)", code))
    for group in re.findall(r"\bcrate::\{(.*?)\};", code, re.DOTALL):
        names |= set(re.findall(r"(?:^|,)\s*(\w+)", re.sub(r"\{[^{}]*\}", "", group)))
    # `super::` repeated up to the crate's root names a top-level module as well.
    names |= set(re.findall(rf"\b(?<!::)(?:super::){{{len(parts)}}}(\w+)", code)) - {"super"}
    return names & set().union(*RUST_ORDER)


def rust_violations(source: Path) -> list[str]:
    """Return one line for each use of a module by one that stands before it in RUST_ORDER."""
    rank = {module: place for place, row in enumerate(RUST_ORDER) for module in row}
    wrong = []
    for path in sorted(source.rglob("*.rs")):
        parts = path.relative_to(source).with_suffix("").parts
        module = parts[0]
        if module == "lib":
            continue
        if module not in rank:
            wrong.append(f"{path.name}: module {module!r} has no place in the order yet")
            continue
        wrong += [
            f"{'/'.join(parts)}.rs: {module} may not use {name}"
            for name in sorted(rust_imports(path, source) - {module})
            if rank[name] >= rank[module]
        ]
    return wrong


def test_rust_modules_import_along_the_arrows():
    assert not rust_violations(CORE / "src")


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("image.rs", "use crate::decode::header;", "image may not use decode"),
        ("image.rs", "use crate::{error::{Error, Result}, loader::Loader};", "image may not use loader"),
        ("image.rs", "fn f() { crate::emit::emit() }", "image may not use emit"),
        ("decode/jpeg.rs", "use super::super::source::Source;", "decode may not use source"),
        ("decode/mod.rs", "use super::augment;", "decode may not use augment"),
        ("resample/taps.rs", "use crate::patchify::Order;", "resample may not use patchify"),
        ("utils.rs", "", "module 'utils' has no place in the order yet"),
    ],
)
def test_a_wrong_rust_import_is_found(tmp_path, file, line, message):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(f"//! Speaks of [`crate::loader`].\n{line}\n")
    [violation] = rust_violations(tmp_path)
    assert violation.endswith(message)


def test_core_knows_no_python_and_reads_no_environment():
    manifest = (CORE / "Cargo.toml").read_text(encoding="utf-8")
    assert not re.search(r"^(pyo3|numpy)\b", manifest, re.MULTILINE)
    for path in (CORE / "src").rglob("*.rs"):
        code = rust_code(path).split("#[cfg(test)]")[0]
        assert not re.search(r"\bpyo3\b|\benv::var|\bstatic mut\b", code), path


def test_unsafe_stays_where_it_is_allowed():
    allowing = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "rust").rglob("*.rs")
        if re.search(r"\b(allow|expect)\([^)]*\bunsafe_code\b", rust_code(path))
    }
    outside = {path for path in allowing - UNSAFE_FILES if not path.startswith("rust/vit-rs-core/src/simd/")}
    assert not outside, f"unsafe code is allowed in {sorted(outside)}"
