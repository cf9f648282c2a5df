"""Write THIRD-PARTY-NOTICES.md: the licences of all that is compiled into the wheel, or bundled with it.

    python scripts/third_party_notices.py            # write the file at the root of the repository
    python scripts/third_party_notices.py --check    # write nothing; exit 1 when the file is out of date

The crates are those that vit-rs-python links on the platforms that wheels are built for, without build
scripts and macros and what only they depend on: those run at compile time and leave nothing of theirs in a
wheel. Where a crate offers a choice, MIT is taken. The notices of libjpeg-turbo and libwebp are read from the
copies that the crates turbojpeg-sys and libwebp-sys vendor.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
NOTICES = ROOT / "THIRD-PARTY-NOTICES.md"
PLATFORMS = (
    "x86_64-unknown-linux-gnu",
    "aarch64-unknown-linux-gnu",
    "aarch64-apple-darwin",
    "x86_64-apple-darwin",
    "x86_64-pc-windows-msvc",
)
BINDING = "vit-rs-python"
JPEG = "turbojpeg-sys"
WEBP = "libwebp-sys"
# Folders of libjpeg-turbo's SIMD code that those platforms compile.
JPEG_SIMD = ("nasm", "x86_64", "arm")
PERMISSION = re.compile(r"Permission is hereby granted.*", re.DOTALL)
COPYRIGHT = re.compile(r"^\W*(Copyri[gh]+t.*|\(C\) .*)$", re.MULTILINE | re.IGNORECASE)

HEAD = """\
# Third-party notices

vit-rs itself is licensed under MIT OR Apache-2.0 (LICENSE-MIT, LICENSE-APACHE). Its compiled extension
contains the software below and its package bundles the images named at the end, each under its own licence.
This file is written by `scripts/third_party_notices.py`.

This software is based in part on the work of the Independent JPEG Group.
"""

DATA = """\
## Fashion-MNIST

A subset of Fashion-MNIST (Han Xiao, Kashif Rasul, Roland Vollgraf; arXiv 1708.07747) is bundled in
`vit_rs/data/_fashion_mnist` under the MIT licence.

    Copyright (c) 2017 Zalando SE, https://tech.zalando.com
"""


class Crate(NamedTuple):
    """A linked crate: its name, version, SPDX expression, source folder and authors."""

    name: str
    version: str
    licence: str
    folder: Path
    authors: tuple[str, ...]


def main() -> int:
    """Write or check the notices; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the file is out of date")
    check = parser.parse_args().check
    text = notices(linked_crates())
    if not check:
        NOTICES.write_text(text, encoding="utf-8")
        return 0
    if NOTICES.is_file() and NOTICES.read_text(encoding="utf-8") == text:
        return 0
    sys.stderr.write(f"{NOTICES.name} is out of date: run python scripts/third_party_notices.py\n")
    return 1


def cargo(*arguments: str) -> str:
    """Return what a cargo command prints for the locked dependency graph."""
    return subprocess.run(
        ["cargo", *arguments, "--locked"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def linked_crates() -> list[Crate]:
    """Return the foreign crates that the extension module links on any platform, by name and version."""
    # `cargo metadata` knows authors and folders; only `cargo tree` tells which optional crates are in use.
    linked: set[str] = set()
    for platform in PLATFORMS:
        edges = ("--edges", "normal,no-proc-macro", "--target", platform)
        linked.update(cargo("tree", "--package", BINDING, *edges, "--prefix", "none", "--format", "{p}").splitlines())
    identities = {" ".join(line.split()[:2]) for line in linked}
    packages: list[dict[str, Any]] = json.loads(cargo("metadata", "--format-version=1"))["packages"]
    return sorted(
        Crate(p["name"], p["version"], p["license"], Path(p["manifest_path"]).parent, tuple(p["authors"]))
        for p in packages
        if p["source"] is not None and f"{p['name']} v{p['version']}" in identities
    )


def notices(crates: list[Crate]) -> str:
    """Return the whole file's text."""
    [jpeg] = [crate.folder / "libjpeg-turbo" for crate in crates if crate.name == JPEG]
    [webp] = [crate.folder / "vendor" for crate in crates if crate.name == WEBP]
    parts = [HEAD, jpeg_notices(jpeg), webp_notices(webp), "## Rust crates\n"]
    holders = ["Rust standard library:\n    Copyright (c) The Rust Project Contributors"]
    texts = []
    for crate in crates:
        title = f"{crate.name} {crate.version}"
        if takes_mit(crate.licence):
            lines, body = mit_notice(crate)
            if body == mit_body():
                holders.append(f"{title}:\n{indented(chr(10).join(lines))}")
                continue
        kind = "MIT" if takes_mit(crate.licence) else crate.licence
        texts.append(f"### {title} ({kind})\n\n{indented(licence_file(crate, kind).read_text('utf-8'))}\n")
    parts += [
        "The extension module contains the Rust standard library and these crates under the MIT licence:\n",
        "\n\n".join(holders) + "\n",
        "and these crates under the texts that follow their names:\n",
        *texts,
        DATA,
        "## The MIT licence, for all that is said above to be under it\n",
        indented(mit_permission(ROOT / "LICENSE-MIT")) + "\n",
    ]
    return "\n".join(parts)


def takes_mit(expression: str) -> bool:
    """Tell whether an SPDX expression of plain alternatives offers MIT; refuse another kind."""
    if re.search(r"\bAND\b|\bWITH\b|\(", expression):
        raise SystemExit(f"cannot choose from the licence {expression!r}: read it, then teach this script")
    return "MIT" in re.split(r"\s+OR\s+|\s*/\s*", expression)


def licence_file(crate: Crate, kind: str) -> Path:
    """Return the crate's licence file of a kind ("MIT"), or its only one."""
    names = (f"LICENSE-{kind}", f"LICENSE-{kind}.md", "LICENSE", "LICENSE.md", "LICENSE.txt")
    for name in names:
        if (crate.folder / name).is_file():
            return crate.folder / name
    raise SystemExit(f"{crate.name} {crate.version}: no licence file among {', '.join(names)}")


def mit_notice(crate: Crate) -> tuple[list[str], str]:
    """Return a crate's copyright lines and, white space folded, the permission text that follows them."""
    if crate.name in {JPEG, WEBP}:
        # These crates ship no licence file; their manifests name the authors and MIT.
        return [f"Copyright (c) {', '.join(author.split(' <')[0] for author in crate.authors)}"], mit_body()
    path = licence_file(crate, "MIT")
    permission = mit_permission(path)
    lines = [line.strip() for line in path.read_text("utf-8").removesuffix(permission).splitlines()]
    lines = [line for line in lines if line and not re.fullmatch(r"(The )?MIT License( \(MIT\))?", line)]
    return lines or ["(the licence file names no holder)"], folded(permission)


def mit_body() -> str:
    """Return the MIT permission text, white space folded, as our own licence has it."""
    return folded(mit_permission(ROOT / "LICENSE-MIT"))


def mit_permission(path: Path) -> str:
    """Return what follows the copyright lines in a file with the MIT licence."""
    found = PERMISSION.search(path.read_text("utf-8"))
    if found is None:
        raise SystemExit(f"{path}: not the MIT licence")
    return found[0]


def jpeg_notices(jpeg: Path) -> str:
    """Return libjpeg-turbo's section: the IJG's terms, the Modified BSD and the zlib licence, in full."""
    readme = (jpeg / "README.ijg").read_text("utf-8")
    licence = (jpeg / "LICENSE.md").read_text("utf-8")
    simd = (jpeg / "simd" / "nasm" / "jsimdext.inc").read_text("utf-8")
    ijg = section(readme, "LEGAL ISSUES", "REFERENCES")
    bsd = section(licence, "The Modified (3-clause) BSD License", "Why Two Licenses?").replace("<br>", "")
    simd = re.sub(r"^; ?", "", simd, flags=re.MULTILINE)
    terms = re.search(r"This software is provided 'as-is'.*?source distribution\.", simd, re.DOTALL)
    if terms is None:
        raise SystemExit("jsimdext.inc no longer carries the zlib licence where this script looks for it")
    return f"""\
## libjpeg-turbo

The JPEG decoder is libjpeg-turbo (https://libjpeg-turbo.org), linked statically and unmodified from the
source that the crate turbojpeg-sys vendors. Three licences apply.

### The IJG licence (libjpeg API library)

{indented(ijg)}

### The Modified (3-clause) BSD licence (TurboJPEG API library)

{indented(bsd)}

### The zlib licence (SIMD extensions)

{indented(chr(10).join(simd_holders(jpeg / "simd")))}

{indented(terms[0])}
"""


def webp_notices(webp: Path) -> str:
    """Return libwebp's section: the Modified BSD licence and the grant of patents, in full."""
    return f"""\
## libwebp

The WebP decoder is libwebp (https://chromium.googlesource.com/webm/libwebp), linked statically and unmodified
from the source that the crate libwebp-sys vendors, under the Modified (3-clause) BSD licence:

{indented((webp / "COPYING").read_text("utf-8"))}

Its authors add:

{indented((webp / "PATENTS").read_text("utf-8"))}
"""


def section(text: str, title: str, following: str) -> str:
    """Return what stands between two underlined titles of a text."""
    found = re.search(rf"^{re.escape(title)}\n=+\n(.*?)^{re.escape(following)}\n=+$", text, re.DOTALL | re.MULTILINE)
    if found is None:
        raise SystemExit(f"libjpeg-turbo's files have no section {title!r} before {following!r} any more")
    return found[1].strip()


def simd_holders(folder: Path) -> list[str]:
    """Return one copyright line per holder of the SIMD sources, with the years that its lines span."""
    years: dict[str, set[str]] = {}
    for name in JPEG_SIMD:
        for path in sorted((folder / name).rglob("*")):
            if not path.is_file():
                continue
            for line in COPYRIGHT.findall(path.read_text("utf-8")):
                found = re.match(r"Copyright (?:\(C\) )?([\d, -]+?),? (\D.*?)(?:  All Rights Reserved\.)?$", line)
                if found:
                    years.setdefault(found[2].rstrip("."), set()).update(re.findall(r"\d{4}", found[1]))
    lines = []
    for holder, dates in sorted(years.items()):
        span = min(dates) if len(dates) == 1 else f"{min(dates)}-{max(dates)}"
        lines.append(f"Copyright (C) {span}, {holder}")
    return lines


def folded(text: str) -> str:
    """Return a text with each run of white space as one blank."""
    return " ".join(text.split())


def indented(text: str) -> str:
    """Return a text as a Markdown code block, untouched but for the margin."""
    return "\n".join(f"    {line.rstrip()}" if line.strip() else "" for line in text.strip().splitlines())


if __name__ == "__main__":
    sys.exit(main())
