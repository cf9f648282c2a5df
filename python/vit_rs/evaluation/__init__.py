"""Evaluation: one protocol, one file, its source cited."""

from __future__ import annotations

from vit_rs.evaluation.classify import evaluate
from vit_rs.evaluation.features import extract_features
from vit_rs.evaluation.fewshot import FewShotResult, fewshot_lsr

__all__ = ["FewShotResult", "evaluate", "extract_features", "fewshot_lsr"]
