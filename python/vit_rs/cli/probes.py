"""`vit-rs fewshot`, `vit-rs knn`, `vit-rs probe`: how good a trained model's features are."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_rs.cli import subjects
from vit_rs.cli.arguments import numbers, positive
from vit_rs.exceptions import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from vit_rs.data.splits import Splits
    from vit_rs.evaluation import Features, Subject
    from vit_rs.evaluation.features import What

__all__ = ["add_parser"]

_IMAGENET = "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"
_SHOTS, _NEIGHBOURS = (1, 5, 10, 25), (10, 20, 100, 200)
_PROTOCOLS = ("logistic", "mae", "mocov3", "dinov2")


def add_parser(commands: Any) -> None:
    """Add `vit-rs fewshot`, `vit-rs knn` and `vit-rs probe`."""
    fewshot = _command(
        commands,
        "fewshot",
        run=_fewshot,
        summary="test a model's features with a few labelled images of each class",
        description=(
            "Fit a ridge regression, in closed form, to the frozen features of a few training images of each class,\n"
            "and test it: the few-shot protocol of the ViT paper, as in big_vision. Runs the model on the drawn and\n"
            "the test images only."
        ),
        examples=(
            "vit-rs fewshot runs/photos/model.safetensors --data photos",
            "vit-rs fewshot B_16.npz --model vit_base_patch16_224 --data imagenet --shots 1,5,10,25 --baseline 32",
        ),
    )
    fewshot.add_argument(
        "--shots",
        type=_integers,
        metavar="K,...",
        help="images a class (default: those of 1,5,10,25 that every class has)",
    )
    _add_seeds(fewshot, (0, 1, 2), "one draw each")
    fewshot.add_argument(
        "--l2", type=float, default=2.0**10, metavar="L", help="strength of the ridge (default: 1024, big_vision's)"
    )
    fewshot.add_argument(
        "--grid",
        type=numbers,
        metavar="L,...",
        help="further strengths, reported beside the result (default: 2^-10 to 2^19, in the JSON)",
    )

    knn = _command(
        commands,
        "knn",
        run=_knn,
        summary="test a model's features by a vote of nearest neighbours",
        description=(
            "Classify each test image by the weighted vote of its nearest training images: cosine similarity s of the\n"
            "frozen features, weight exp(s / T). DINO's protocol."
        ),
        examples=(
            "vit-rs knn runs/photos/model.safetensors --data photos --k 10,20",
            f"vit-rs knn dino_vits16.pth --model vit_small_patch16_224 {_IMAGENET} --data imagenet",
        ),
    )
    knn.add_argument(
        "--k",
        type=_integers,
        metavar="K,...",
        help="neighbours (default: those of 10,20,100,200 that there are training images for)",
    )
    knn.add_argument("--temperature", type=float, default=0.07, metavar="T", help="of the weights (default: 0.07)")

    probe = _command(
        commands,
        "probe",
        run=_probe,
        summary="train a linear classifier on a model's features, and test it",
        description=(
            "Train a linear classifier on the frozen features of the training images, by a published protocol:\n"
            "  logistic  DINOv2's logistic regression, its strength chosen on held-out training images\n"
            "  mae       MAE's: batch norm, LARS, batch 16,384, 90 epochs\n"
            "  mocov3    MoCo v3's: SGD, batch 1,024, 90 epochs\n"
            "  dinov2    DINOv2's: 13 learning rates on the last block or the last four, with and without the mean of\n"
            "            the patch tokens, 12,500 steps; the best of them on held-out training images\n"
            "Features are computed once, of images as they are tested; --augment gives the published random crops and\n"
            "flips, through the model in each epoch. With few images (under some ten thousand) the steps of mae and\n"
            "mocov3 are few as well: logistic is sound at every size."
        ),
        examples=(
            "vit-rs probe runs/photos/model.safetensors --data photos",
            f"vit-rs probe mae.pth --model vit_base_patch16_224 {_IMAGENET} --data imagenet --protocol mae --augment",
        ),
    )
    probe.add_argument("--protocol", choices=_PROTOCOLS, default="logistic", help="see above (default: logistic)")
    _add_seeds(probe, (0,), "of weights, order and held-out images")
    probe.add_argument(
        "--features",
        choices=("pooled", "cls"),
        help="what the model's own head gets, or the class token; dinov2 says its own (default: pooled)",
    )
    probe.add_argument(
        "--strengths",
        choices=("decades", "published"),
        help="logistic's C: 12 powers of ten, or DINOv2's 45 of the same range (default: decades)",
    )
    probe.add_argument("--augment", action="store_true", help="random crops and flips, through the model each epoch")
    probe.add_argument("--epochs", type=int, metavar="N", help="in place of the protocol's")
    probe.add_argument("--probe-batch", type=int, metavar="B", help="images in a step, in place of the protocol's")


def _command(
    commands: Any,
    name: str,
    *,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    description: str,
    examples: Sequence[str],
) -> argparse.ArgumentParser:
    """Add a command with the arguments that all three have."""
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog="examples:\n" + "\n".join(f"  {example}" for example in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    subjects.add_subject(command)
    subjects.add_images(command)
    subjects.add_running(command)
    subjects.add_result(command)
    command.add_argument(
        "--baseline",
        nargs="?",
        type=positive,
        const=0,
        metavar="SIDE",
        help="put raw pixels beside the features: the model's input as a vector, or resized to SIDE pixels",
    )
    command.add_argument(
        "--cache", type=Path, metavar="DIR", help="where features are kept (default: vit-rs/ in the user's cache)"
    )
    command.add_argument("--no-cache", action="store_true", help="keep no features, and use none that were kept")
    return command


class _Study:
    """A model and the images it is examined with: features on request, and the record that all results begin with."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.subject: Subject = subjects.subject_asked(options, features_only=True)
        splits, notes = subjects.images_asked(options, self.subject)
        self.splits: Splits = splits
        self.notes = [*notes, *(f"resampled: {line}" for line in self.subject.resampled)]
        self.subject.check_channels(splits.channels)

    def features(self, source: Any, name: str, what: What = "pre_logits") -> Features:
        """Return the features of images, kept ones where there are any."""
        from vit_rs.evaluation import default_cache, load_or_extract  # noqa: PLC0415

        options = self.options
        with subjects.Progress(f"features of the {name} images") as progress, subjects.mendable():
            return load_or_extract(
                self.subject,
                source,
                what=what,
                cache=None if options.no_cache else options.cache or default_cache(),
                batch_size=options.batch_size,
                device=options.device,
                precision=options.precision,
                num_threads=options.threads,
                progress=progress,
                tell=self._tell,
            )

    def _tell(self, note: str) -> None:
        if note not in self.notes:  # a folder that cannot be written is as bad for the test images' features
            self.notes.append(note)

    def possible(self, name: str, default: Sequence[int], most: int, why: str) -> tuple[int, ...]:
        """Return the default numbers that the images allow, or else the most that they do; and note what is left out.

        Args:
            name: the option.
            default: its numbers where it is not given.
            most: what the images allow.
            why: what they are.
        """
        kept = tuple(number for number in default if number <= most) or (max(most, 1),)
        left_out = [str(number) for number in default if number > most]
        if left_out:
            self.notes.append(f"--{name} {','.join(left_out)} of the default left out: {why}")
        return kept

    def pixels(self, source: Any) -> Features:
        """Return the pixels of images, as --baseline asks for them."""
        from vit_rs.evaluation import pixel_features  # noqa: PLC0415

        with subjects.Progress("pixels") as progress:
            return pixel_features(
                source,
                self.pixel_preprocessing,
                channels=self.splits.channels,
                batch_size=self.options.batch_size,
                num_threads=self.options.threads,
                progress=progress,
            )

    @property
    def pixel_preprocessing(self) -> Any:
        """How the images of the baseline are prepared."""
        preprocessing, side = self.subject.preprocessing, self.options.baseline
        return preprocessing.at_size(side) if side else preprocessing

    def give(self, name: str, record: Mapping[str, Any], lines: Sequence[str]) -> int:
        """Print and write the result."""
        from vit_rs import __version__  # noqa: PLC0415

        subject, options = self.subject, self.options
        head = {
            "command": name,
            "checkpoint": subject.path,
            "model_digest": subject.digest,
            "preprocessing": subject.preprocessing.to_dict(),
            "data": self.splits.description,
            "train_images": len(self.splits.train),
            "test_images": len(self.splits.test),
            "classes": list(self.splits.classes),
            "precision": options.precision,
            "device": options.device,
            "vit_rs": __version__,
            "notes": self.notes,
        }
        if options.baseline is not None:
            head["baseline_preprocessing"] = self.pixel_preprocessing.to_dict()
        title = f"{subject.path} on {self.splits.description}; {subject.preprocessing}"
        notes = [f"Note: {note}" for note in self.notes]
        subjects.give_result(options, {**head, **record}, "\n".join([title, *notes, "", *lines]))
        return 0


def _fewshot(options: argparse.Namespace) -> int:
    import numpy as np  # noqa: PLC0415
    from torch.utils.data import Subset  # noqa: PLC0415  (torch is imported here)

    from vit_rs.evaluation import fewshot_lsr  # noqa: PLC0415
    from vit_rs.evaluation.fewshot import L2_GRID, PROTOCOL, draw_shots  # noqa: PLC0415

    if options.shots is not None and min(options.shots) < 1:
        raise ConfigError(f"--shots must be at least 1, got {min(options.shots)}")
    study = _Study(options)
    labels, classes = np.asarray(study.splits.train_targets), study.splits.classes
    counts = np.bincount(labels, minlength=len(classes))
    scarce, fewest = classes[counts.argmin()], int(counts.min())
    if options.shots is None:
        options.shots = study.possible("shots", _SHOTS, fewest, f"class {scarce!r} has {fewest} training images")
    if fewest < max(options.shots):
        raise ConfigError(
            f"--shots {max(options.shots)}: class {scarce!r} has {fewest} training images, too few for "
            f"{max(options.shots)} shots"
        )
    shots = max(options.shots)
    draws = {seed: draw_shots(labels, len(classes), shots=shots, seed=seed) for seed in options.seeds}
    # Only the drawn images are run through the model; each draw is then one of places among them.
    drawn = np.unique(np.concatenate(list(draws.values())))
    places = {seed: np.searchsorted(drawn, draw) for seed, draw in draws.items()}
    images = Subset(study.splits.train, drawn.tolist())
    grid = L2_GRID if options.grid is None else tuple(dict.fromkeys(options.grid))

    def score(features: Callable[[Any, str], Features]) -> dict[str, Any]:
        train, test = features(images, "training"), features(study.splits.test, "test")
        with subjects.mendable():
            results = fewshot_lsr(
                *train, *test, shots=options.shots, seeds=options.seeds, l2=options.l2, grid=grid, draws=places
            )
        return {str(k): result for k, result in results.items()}

    record: dict[str, Any] = {
        "features": "pre_logits",
        "protocol": {**PROTOCOL, "shots": list(options.shots), "seeds": list(options.seeds), "l2": options.l2},
        "results": score(study.features),
    }
    columns = {"features": record["results"]}
    if options.baseline is not None:
        columns["pixels"] = record["baseline"] = score(lambda source, _name: study.pixels(source))
    lines = _table("shots", [str(k) for k in options.shots], columns)
    lines.append(f"ridge {options.l2:g}, mean and standard error of {len(options.seeds)} draws")
    if options.grid is None:
        lines.append(
            "--json gives the accuracies at other strengths of the ridge: not to choose one by, on test images"
        )
    else:
        rows = [f"{l2:g}" for l2 in grid]
        for k in options.shots:
            by_l2 = {name: dict(zip(rows, result[str(k)]["grid"], strict=True)) for name, result in columns.items()}
            lines += ["", f"{k} shots, other strengths (not to choose one by, on test images)"]
            lines += _table("ridge", rows, by_l2)
    return study.give("fewshot", record, lines)


def _knn(options: argparse.Namespace) -> int:
    from vit_rs.evaluation import knn_classify  # noqa: PLC0415  (torch is imported here)
    from vit_rs.evaluation.knn import PROTOCOL  # noqa: PLC0415

    study = _Study(options)
    count = len(study.splits.train)
    if options.k is None:
        options.k = study.possible("k", _NEIGHBOURS, count, f"there are {count:,} training images")
    if max(options.k) > count:
        raise ConfigError(f"--k {max(options.k)}: there are only {count:,} training images")

    def score(features: Callable[[Any, str], Features]) -> dict[str, Any]:
        train, test = features(study.splits.train, "training"), features(study.splits.test, "test")
        device = "cpu" if options.device == "mps" else options.device  # it has no float64
        with subjects.mendable():
            results = knn_classify(
                train.features.to(device),
                train.labels,
                *test,
                k=options.k,
                temperature=options.temperature,
            )
        return {str(k): result for k, result in results.items()}

    record: dict[str, Any] = {
        "features": "pre_logits",
        "protocol": {**PROTOCOL, "k": list(options.k), "temperature": options.temperature},
        "results": score(study.features),
    }
    columns = {"features": record["results"]}
    if options.baseline is not None:
        columns["pixels"] = record["baseline"] = score(lambda source, _name: study.pixels(source))
    lines = _table("neighbours", [str(k) for k in options.k], columns)
    return study.give("knn", record, lines)


def _probe(options: argparse.Namespace) -> int:
    _check_probe(options)
    study = _Study(options)
    what, layout = _probe_features(study)
    # Augmented images go through the model in each epoch: their plain features would be for nothing.
    train = None if options.augment else study.features(study.splits.train, "training", what)
    test = study.features(study.splits.test, "test", what)
    record = _fit_probe(study, train, test, what, layout)
    rows = {"features": record}
    if options.baseline is not None:
        pixels = study.pixels(study.splits.train), study.pixels(study.splits.test)
        rows["pixels"] = _fit_probe(study, *pixels, "pre_logits", ())
    lines = _table("input", [options.protocol], {name: {options.protocol: found} for name, found in rows.items()})
    lines += [f"trained on {record['images']}", *(f"differs: {line}" for line in record["deviations"])]
    for entry in record["seeds"]:
        if "chosen" in entry:
            chosen = ", ".join(f"{key} {value}" for key, value in entry["chosen"].items())
            lines.append(
                f"seed {entry['seed']}: {chosen}, {100 * entry['heldout_top1']:.2f} % of the held-out training images"
            )
    names = [name for name, _, _ in layout] or options.features or "pooled"
    result: dict[str, Any] = {"features": names, "results": record}
    if options.baseline is not None:
        result["baseline"] = rows["pixels"]
    return study.give("probe", result, lines)


def _check_probe(options: argparse.Namespace) -> None:
    """Raise where an option is given that the protocol has no use for."""
    if options.protocol == "logistic":
        for name, given in (
            ("augment", options.augment),
            ("epochs", options.epochs is not None),
            ("probe-batch", options.probe_batch is not None),
        ):
            if given:
                raise ConfigError(f"--{name} is for a protocol that trains in epochs, not for logistic")
    elif options.strengths is not None:
        raise ConfigError(f"--strengths is for logistic, not for {options.protocol}, which has no C to choose")
    if options.protocol == "dinov2" and options.features is not None:
        raise ConfigError(
            f"--features {options.features}: dinov2 says its own: class tokens of the last blocks, mean of the patches"
        )


def _probe_features(study: _Study) -> tuple[What, tuple[tuple[str, int, int], ...]]:
    """Return which features a probe is trained on, and for dinov2 the parts of them: name, start, end."""
    from vit_rs.evaluation import ClassTokens  # noqa: PLC0415
    from vit_rs.evaluation.features import gives_tokens  # noqa: PLC0415

    model: Any = study.subject.model
    if study.options.protocol != "dinov2":
        if study.options.features != "cls":
            return "pre_logits", ()
        if getattr(model, "cls_token", None) is None or not gives_tokens(model):
            raise ConfigError(f"--features cls: this {type(model).__name__} has no class token, ask for pooled")
        return ClassTokens(1), ()
    if not gives_tokens(model):
        raise ConfigError(f"dinov2 takes the tokens of a ViT's last blocks: {type(model).__name__} has none")
    D = model.embed_dim
    if getattr(model, "cls_token", None) is None:
        study.notes.append("the model has no class token: dinov2's classifiers get the mean of the patch tokens alone")
        return ClassTokens(0, average=True), (("mean of patches", 0, D),)
    depth = min(4, len(model.blocks))
    parts = []
    for blocks in sorted({1, depth}):
        for average in (False, True):
            name = f"class token of the last {blocks}" + (" and mean of patches" if average else "")
            parts.append((name, (depth - blocks) * D, (depth + average) * D))
    return ClassTokens(depth, average=True), tuple(parts)


def _fit_probe(
    study: _Study,
    train: Features | None,
    test: Features,
    what: What,
    layout: Sequence[tuple[str, int, int]],
) -> dict[str, Any]:
    """Train and test by the protocol that was asked for; on augmented images where there are no training features."""
    import torch  # noqa: PLC0415
    from torch.utils.data import Subset  # noqa: PLC0415

    from vit_rs.evaluation import AugmentedImages, ProbeInput, linear_probe, logistic_regression  # noqa: PLC0415
    from vit_rs.evaluation.linear_probe import PROTOCOLS  # noqa: PLC0415
    from vit_rs.evaluation.logistic import C_DECADES, C_GRID  # noqa: PLC0415

    options, images = study.options, study.splits.train
    if train is not None and options.protocol == "logistic":
        device = "cpu" if options.device == "mps" else options.device  # it has no float64
        with subjects.Progress("logistic regression", "fits") as progress, subjects.mendable():
            grid = C_GRID if options.strengths == "published" else C_DECADES
            return logistic_regression(*train, *test, grid=grid, seeds=options.seeds, device=device, progress=progress)

    def features_of(places: Tensor) -> Tensor:
        return study.features(Subset(images, places.tolist()), "held-out", what).features

    augmented = None
    table: Tensor | Callable[[Tensor], Tensor] = features_of
    labels = torch.tensor(study.splits.train_targets)
    if train is not None:
        table, labels = train
    else:
        augmented = AugmentedImages(
            study.subject,
            images,
            what,
            interpolation=PROTOCOLS[options.protocol].interpolation,
            batch_size=options.batch_size,
            device=options.device,
            precision=options.precision,
            num_threads=options.threads,
        )
    with subjects.Progress(f"linear probe ({options.protocol})", "steps") as progress, subjects.mendable():
        return linear_probe(
            table,
            labels,
            *test,
            protocol=options.protocol,
            inputs=[ProbeInput(*part) for part in layout],
            seeds=options.seeds,
            epochs=options.epochs,
            batch_size=options.probe_batch,
            device=options.device,
            augmented=augmented,
            progress=progress,
        )


def _table(title: str, rows: Sequence[str], columns: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return lines with a row for each key, and top-1, its standard error and top-5 of each column where known."""
    width = max(len(title), *(len(row) for row in rows))
    lines = [f"{title:<{width}}" + "".join(f"  {name + ' top-1':>15}  {'s.e.':>5}  {'top-5':>7}" for name in columns)]
    for row in rows:
        line = f"{row:<{width}}"
        for results in columns.values():
            found = results[row]
            error, top5 = found.get("stderr"), found.get("top5")
            line += f"  {100 * found['top1']:>13.2f} %"
            line += f"  {'-' if error is None else format(100 * error, '.2f'):>5}"
            line += f"  {'-' if top5 is None else format(100 * top5, '.2f') + ' %':>7}"
        lines.append(line)
    return lines


def _add_seeds(command: argparse.ArgumentParser, default: tuple[int, ...], what: str) -> None:
    listed = ",".join(str(seed) for seed in default)
    command.add_argument(
        "--seeds", type=_integers, default=default, metavar="N,...", help=f"{what} (default: {listed})"
    )


def _integers(text: str) -> tuple[int, ...]:
    """Return "1,5,10" as integers, each once."""
    parts = text.split(",")
    if not all(part.isascii() and part.isdecimal() and len(part) < 10 for part in parts):
        raise argparse.ArgumentTypeError(f"expected whole numbers with commas between them, got {text!r}")
    return tuple(dict.fromkeys(int(part) for part in parts))
