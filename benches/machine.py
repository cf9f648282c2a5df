"""What a measurement has to say about where it was taken: processor, caches, memory pages, commit."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def commit() -> str:
    """Return the commit of the working tree, marked if sources differ from it."""
    revision = _git("describe", "--always", "--abbrev=12")
    changed = _git("status", "--porcelain", "--", "Cargo.lock", "Cargo.toml", "benches", "python", "rust")
    return f"{revision}-dirty" if changed else revision or "an unknown commit"


def processor() -> str:
    """Return the processor's name, as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else (platform.processor() or platform.machine())


def caches() -> str:
    """Return the sizes of the first core's caches, such as "L1 32K, L2 1024K, L3 32768K"."""
    sizes = {}
    for index in sorted(CACHES.glob("index*")):
        if (index / "type").read_text(encoding="utf-8").strip() != "Instruction":
            level, size = ((index / name).read_text(encoding="utf-8").strip() for name in ("level", "size"))
            sizes[f"L{level}"] = size
    return ", ".join(f"{level} {size}" for level, size in sizes.items()) or "caches unknown"


def huge_pages() -> str:
    """Return the system's setting for transparent huge pages: "always", "madvise", "never", or "unknown"."""
    if not HUGE_PAGES.exists():
        return "unknown"
    return HUGE_PAGES.read_text(encoding="utf-8").partition("[")[2].partition("]")[0]


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
