"""README and docs say what is true: their examples run, their commands, files and links exist."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit_rs.cli.main import _parser

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted(ROOT.glob("docs/*.md")),
]


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """Return the fenced blocks of a language with the line that each starts on."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in found]


EXAMPLES = [
    pytest.param(page, line, code, id=f"{page.name}:{line + 1}")
    for page in PAGES
    for line, code in blocks(page, "python")
]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A working folder with the class folders, and the list of their files, that the examples name."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(2):
            pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.jpg")
    (tmp_path / "photos" / "labels.csv").write_text("cat/0.jpg,0\ncat/1.jpg,0\ndog/0.jpg,1\ndog/1.jpg,1\n")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize(("page", "line", "code"), EXAMPLES)
def test_example_runs(page, line, code):
    # Blank lines before the code make tracebacks name the page's own lines.
    exec(compile("\n" * line + code, str(page), "exec"), {"__name__": "example"})


def test_readme_has_three_examples():
    assert len(blocks(README, "python")) == 3


def command(name: str) -> str:
    """Return one of README's two commands as the shell sees it, on one line."""
    text = README.read_text(encoding="utf-8")
    [found] = re.findall(rf"^<!-- command: {name} -->\n```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return found.replace("\\\n", "")


@pytest.mark.parametrize("name", ["train", "test"])
def test_command_is_one_line_of_existing_parts(name):
    line = command(name)
    assert line.count("\n") == 1
    assert line.endswith("\n")
    steps = [shlex.split(step) for step in line.split("&&")]
    assert (ROOT / steps[0][1]).is_file()
    assert steps[1] == ["python3", "-m", "venv", ".venv"]
    assert steps[2][:4] == [".venv/bin/python", "-m", "pip", "install"]
    extra = re.fullmatch(r"\.(?:\[(\w+)\])?", steps[2][4])[1]
    assert extra is None or extra in metadata.metadata("vit-rs").get_all("Provides-Extra")
    assert (
        steps[3]
        == {
            "train": [".venv/bin/vit-rs", "train"],
            "test": [".venv/bin/python", "-m", "pytest", "-m", ""],
        }[name]
    )


@pytest.mark.skipif(sys.platform == "win32", reason="the script is for a POSIX shell")
@pytest.mark.parametrize("name", ["train", "test"])
def test_ci_reads_the_command_from_readme(name):
    said = subprocess.run(["bash", ".ci/readme-command", name], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.replace("\\\n", "") == command(name)
    unknown = subprocess.run(["bash", ".ci/readme-command", "x"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (unknown.returncode, unknown.stderr) == (1, "README.md has no command marked 'x'\n")


def test_commands_and_options_named_exist():
    [commands] = [action.choices for action in _parser()._actions if isinstance(action, argparse._SubParsersAction)]
    named = {}
    for page in PAGES:
        prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        code = [text for _, text in blocks(page, "sh")] + re.findall(r"`([^`]+)`", prose)
        text = "\n".join(code).replace("\\\n", "")
        for name, rest in re.findall(r"(?:vit-rs|-m vit_rs) ([a-z]+)([^\n]*)", text):
            named.setdefault(name, set()).update(re.findall(r"--[a-z][a-z0-9-]*", rest.partition(" #")[0]))
    assert {"train", "eval", "resample"} <= named.keys() <= commands.keys()
    assert {"--data", "--out"} <= named["train"]
    for name, options in named.items():
        missing = {option for option in options if not re.search(rf"{option}\b", commands[name].format_help())}
        assert not missing, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", text)
    assert not [target for target in targets if not (page.parent / target).exists()]


def test_the_map_names_existing_files():
    rows = re.findall(r"^\| (`.*?`) \|", README.read_text(encoding="utf-8"), re.MULTILINE)
    paths = [path for row in rows for path in re.findall(r"`([^`]+)`", row)]
    assert len(paths) >= 6
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_results_have_their_place():
    text = README.read_text(encoding="utf-8")
    assert text.count("<!-- results:begin -->") == text.count("<!-- results:end -->") == 1
    assert text.index("<!-- results:begin -->") < text.index("<!-- results:end -->")
