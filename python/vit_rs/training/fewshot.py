"""Few-shot result of a stage: how far five labelled images a class go with its frozen features."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from vit_rs.data.splits import first_of_each_class
from vit_rs.evaluation import fewshot_lsr
from vit_rs.training.shared_evaluation import shared_features

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from vit_rs.data import ImageLoader
    from vit_rs.training.stages import Stage

__all__ = ["fewshot_images", "fewshot_result"]


def fewshot_images(stage: Stage) -> int:
    """Return how many images the evaluation reads."""
    evaluation = stage.config.evaluation
    if evaluation.shots == 0:
        return 0
    return len(_pool(stage)) + len(stage.sources.test)


def fewshot_result(
    stage: Stage, model: torch.nn.Module, test_loader: ImageLoader, *, go_on: Callable[[], None]
) -> dict[str, Any]:
    """Return the few-shot accuracy of the model's features: closed-form ridge regression, as in the paper.

    Args:
        stage: the stage.
        model: as `Parallel.examining` gives it.
        test_loader: the stage's.
        go_on: as in `shared_features`.

    Returns:
        shots, top1 (0..1, mean over the seeds), top1_per_seed; or "skipped": the reason why there is
        none.

    Source: arXiv 2010.11929, section 4.1, "Metrics".
    """
    evaluation = stage.config.evaluation
    if evaluation.shots == 0:
        return {"skipped": "evaluation.shots is 0"}
    pool = _pool(stage)
    targets = [stage.sources.train_targets[index] for index in pool]
    reason = _too_few(stage, targets, targets)
    if reason is not None:
        return {"skipped": reason}
    with stage.fewshot_loader(pool) as loader:
        train = shared_features(stage, model, loader, images=len(pool), go_on=go_on)
    reason = _too_few(stage, targets, train[1].tolist())
    if reason is not None:
        return {"skipped": f"{reason}, that can be read"}
    test = shared_features(stage, model, test_loader, images=len(stage.sources.test), go_on=go_on)
    scores = stage.parallel.from_main(
        lambda: fewshot_lsr(*train, *test, shots=(evaluation.shots,), seeds=evaluation.fewshot_seeds)
    )[evaluation.shots]
    return {"shots": evaluation.shots, "top1": scores["top1"], "top1_per_seed": scores["per_seed"]}


def _too_few(stage: Stage, targets: Sequence[int], labels: Sequence[int]) -> str | None:
    """Return what is wrong where some class among the targets has fewer labels than shots."""
    counts, shots = Counter(labels), stage.config.evaluation.shots
    label = min(dict.fromkeys(targets), key=lambda target: counts[target])
    if counts[label] >= shots:
        return None
    return f"class {stage.sources.classes[label]!r} has {counts[label]} training image(s), fewer than {shots}"


def _pool(stage: Stage) -> list[int]:
    """Return the indices of the training images that the few-shot images are drawn from."""
    targets = stage.sources.train_targets
    return first_of_each_class(targets, range(len(targets)), stage.config.evaluation.fewshot_pool)
