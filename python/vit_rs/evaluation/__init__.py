"""Evaluation: one protocol, one file, its source cited."""

from __future__ import annotations

from vit_rs.evaluation.augmented import AugmentedImages
from vit_rs.evaluation.classify import Evaluation, evaluate, examine
from vit_rs.evaluation.examination import Examination, examine_subject
from vit_rs.evaluation.feature_bank import Features, default_cache, load_or_extract
from vit_rs.evaluation.features import ClassTokens, extract_features
from vit_rs.evaluation.fewshot import FewShotResult, LeastSquares, fewshot_lsr, fit_lsr
from vit_rs.evaluation.knn import KnnResult, knn_classify
from vit_rs.evaluation.linear_probe import ProbeInput, ProbeProtocol, linear_probe
from vit_rs.evaluation.logistic import logistic_regression
from vit_rs.evaluation.pixels import pixel_features
from vit_rs.evaluation.prediction import Prediction, predict
from vit_rs.evaluation.preprocessing import Preprocessing
from vit_rs.evaluation.subject import Subject, open_subject

__all__ = [
    "AugmentedImages",
    "ClassTokens",
    "Evaluation",
    "Examination",
    "Features",
    "FewShotResult",
    "KnnResult",
    "LeastSquares",
    "Prediction",
    "Preprocessing",
    "ProbeInput",
    "ProbeProtocol",
    "Subject",
    "default_cache",
    "evaluate",
    "examine",
    "examine_subject",
    "extract_features",
    "fewshot_lsr",
    "fit_lsr",
    "knn_classify",
    "linear_probe",
    "load_or_extract",
    "logistic_regression",
    "open_subject",
    "pixel_features",
    "predict",
]
