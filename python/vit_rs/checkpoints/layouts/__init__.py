"""Layouts: how each project names and shapes the weights of a ViT."""

from __future__ import annotations

from vit_rs.checkpoints.layouts.known import LAYOUTS, layout_named, layout_to_write
from vit_rs.checkpoints.layouts.section import Section, all_sections, find_section
from vit_rs.checkpoints.layouts.translation import Source, Translation, translate, translated_back

__all__ = [
    "LAYOUTS",
    "Section",
    "Source",
    "Translation",
    "all_sections",
    "find_section",
    "layout_named",
    "layout_to_write",
    "translate",
    "translated_back",
]
