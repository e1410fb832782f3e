"""`report.html`: how good the checkpoint is, and how sure of that one can be, as one self-contained page."""

import base64
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from datamodule.photo_store import open_photo
from export.calibrated import is_calibrated
from export.checkpoint import read_content
from export.fitted_temperature import FEW_MISTAKES
from lightning_module.evaluation.automation import (
    FEWEST,
    PRECISIONS,
    ClassThreshold,
    automation_levels,
    class_thresholds,
)
from lightning_module.evaluation.figures import CONFIDENCE, Evaluation, evaluate, most_confident_mistakes, per_class
from lightning_module.evaluation.measured_photos import KeepLogits, Measured, MeasuredPhotos
from lightning_module.run.last_checkpoint import seed_generators
from lightning_module.run.run_folder import RunFolder, run_folder_of
from models.atomic_write import replacing, write_text
from models.bad_input import BadInput, some_of
from models.page_style import render_template

if TYPE_CHECKING:
    from lightning_module.callbacks import MetricsJournal

MOST_MISTAKES = 24
MOST_OF_BATCH = 16
"""Photos that are shown of a training batch."""
THUMBNAIL = 180
"""Pixels of the longer side."""
FEW_CLASSES = 12
"""Classes up to which their confusion matrix leaves room for another picture beside it."""
SETS: tuple[Measured, ...] = ("test", "validation")
"""In the order of the page: what is honest first."""


def report_fit(trainer: L.Trainer, journal: "MetricsJournal", logits: KeepLogits) -> None:
    """Add the figures of a finished fit to its journal, and write its report.

    Raises:
        BadInput: a file cannot be written.
    """
    if not trainer.is_global_zero:
        return
    run = run_folder_of(trainer)
    evaluations = _evaluations(dict(logits.kept))
    for each in evaluations:
        levels = automation_levels(each.probabilities, each.measured.labels)
        figures = each.figures() | {"automation": [level._asdict() for level in levels]}
        journal.add(trainer, {"validation": "final", "test": "test"}[each.measured.name], figures)
    if evaluations and (photos := _training_batch(trainer)) is not None:
        run.evaluation.mkdir(parents=True, exist_ok=True)
        with replacing(run.training_batch) as temporary:
            temporary.write_bytes(photos)
    _write(run, evaluations)


def report_test(trainer: L.Trainer, logits: KeepLogits) -> Path | None:
    """Write the report of a checkpoint that was tested on its own.

    What a fit, or another test, measured of the same checkpoint in the same folder stays in the page. Where the folder
    has the report of another checkpoint, a folder in it is taken, so that neither is taken for the other's.

    Returns:
        Path of the page; None where nothing was measured that a page could be made of.

    Raises:
        BadInput: a file cannot be written.
    """
    if not trainer.is_global_zero or not logits.kept:
        return None
    measured = next(iter(logits.kept.values()))
    run = run_folder_of(trainer)
    before = _kept_in(run)
    if any(each.checkpoint_sha256 != measured.checkpoint_sha256 for each in before.values()):
        run = RunFolder(run.path / f"test-{Path(measured.checkpoint).stem}")
        before = _kept_in(run)
    same = {name: each for name, each in before.items() if each.checkpoint_sha256 == measured.checkpoint_sha256}
    evaluations = _evaluations(same | logits.kept)
    _write(run, evaluations)
    return run.report


def _training_batch(trainer: L.Trainer) -> bytes | None:
    """A picture of what the network was given in training; None where the data has no photos that it could show."""
    datamodule: Any = getattr(trainer, "datamodule", None)
    module: Any = trainer.lightning_module
    if not (hasattr(datamodule, "training_batch") and hasattr(module, "training_input")):
        return None
    from lightning_module.evaluation.plots import batch_png, drawn_names

    with isolate_rng():  # whoever trains on draws what would have been drawn
        seed_generators(0)  # a resumed run's picture is that of one that was not interrupted
        images, shares = module.training_input(*datamodule.training_batch(MOST_OF_BATCH))
    names = drawn_names(module.class_names)
    if shares.ndim == 1:
        shares = nn.functional.one_hot(shares, len(names))
    else:  # label smoothing gives all classes the same on top of what is in the photo
        smoothing = module.regularisation.label_smoothing
        shares = (shares - smoothing / len(names)) / (1 - smoothing)
    return batch_png(images.numpy(), [_caption(each, names) for each in shares.tolist()])


def _caption(shares: list[float], class_names: Sequence[str]) -> str:
    """The class of a photo, or those of a mixed one, each with its share."""
    seen = {name: share for name, share in zip(class_names, shares, strict=True) if share > 0.005}
    return "\n".join(name if len(seen) == 1 else f"{share:.0%} {name}" for name, share in seen.items())


def _kept_in(run: RunFolder) -> dict[Measured, MeasuredPhotos]:
    found = {name: MeasuredPhotos.load(run.evaluation / f"{name}.npz") for name in SETS}
    return {name: each for name, each in found.items() if each is not None}


def _evaluations(measured: dict[Measured, MeasuredPhotos]) -> list[Evaluation]:
    found = [evaluate(measured[name], measured.get("validation")) for name in SETS if name in measured]
    return [each for each in found if each is not None]


def _epochs_of(run: RunFolder, sha256: str) -> tuple[list[dict[str, Any]], int | None]:
    """The epochs in the journal beside the report, if it is of this checkpoint, and which was kept."""
    try:
        content = json.loads(run.metrics.read_text(encoding="utf-8"))
        if content["final"]["checkpoint_sha256"] == sha256:
            return list(content["epochs"]), content["best"] and int(content["best"]["epoch"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # there is none, or none that this could be said of
    return [], None


def chosen_without_photos(content: dict[str, Any]) -> bool:
    """Whether it is known of a checkpoint that no validation photos chose its epoch, nor when its fit ended.

    Args:
        content: of its file.
    """
    callbacks = content.get("callbacks") or {}
    monitors = [str(state.get("monitor")) for key, state in callbacks.items() if key.startswith("BestCheckpoint")]
    stopped = any(
        key.startswith("EarlyStopping") and "'val" in key and state.get("stopped_epoch")
        for key, state in callbacks.items()
    )
    return bool(monitors) and not stopped and not any(monitor.startswith("val") for monitor in monitors)


def _write(run: RunFolder, evaluations: Sequence[Evaluation]) -> None:
    if not evaluations:
        return
    from lightning_module.evaluation.plots import confusion_png, coverage_png, curves_png, reliability_png

    run.evaluation.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, str] = {}

    def draw(name: str, picture: Callable[..., bytes], *given: Any) -> None:
        content = picture(*given)
        with replacing(run.evaluation / f"{name}.png") as temporary:
            temporary.write_bytes(content)
        pictures[name] = _data_uri(content, "png")

    epochs, kept = _epochs_of(run, evaluations[0].measured.checkpoint_sha256)
    if epochs:
        draw("curves", curves_png, epochs, kept)
        if run.training_batch.is_file():
            pictures["training_batch"] = _data_uri(run.training_batch.read_bytes(), "png")
    for each in evaluations:
        name = each.measured.name
        each.measured.save(run.evaluation / f"{name}.npz")
        draw(f"{name}_confusion", confusion_png, each)
        draw(f"{name}_reliability", reliability_png, each)
        draw(f"{name}_coverage", coverage_png, each)
    write_text(run.report, render_report(evaluations, pictures), errors="replace")


def render_report(evaluations: Sequence[Evaluation], pictures: dict[str, str]) -> str:
    """The page as HTML, everything in it: it loads nothing from anywhere.

    Args:
        evaluations: of the same checkpoint.
        pictures: `curves`, `training_batch`, and `SET_confusion`, `SET_reliability` and `SET_coverage` of each set, as
            data URIs; any may be missing.
    """
    first = evaluations[0].measured
    try:
        content = read_content(Path(first.checkpoint))
    except BadInput:  # it has gone: what is not known is not said in its favour
        content = {}
    absent = [_absent(each) for each in evaluations]
    sections = [
        {
            "evaluation": each,
            "absent": some_of(missing),
            "absent_count": len(missing),
            "name": each.measured.name,
            "photos": len(each.measured.labels),
            "classes": _class_rows(each),
            "levels": automation_levels(each.probabilities, each.measured.labels),
            "thresholds": _threshold_rows(each),
            "mistakes": [
                {**mistake._asdict(), "image": _thumbnail(mistake.file)}
                for mistake in most_confident_mistakes(each, MOST_MISTAKES)
            ],
            "mistakes_in_all": int(each.confusion.sum() - each.confusion.trace()),
        }
        for each, missing in zip(evaluations, absent, strict=True)
    ]
    return render_template(
        "lightning_module.evaluation",
        "report.html",
        sections=sections,
        pictures=pictures,
        measured=first,
        confidence=round(100 * CONFIDENCE),
        few_mistakes=FEW_MISTAKES,
        few_classes=FEW_CLASSES,
        precisions=PRECISIONS,
        fewest=FEWEST,
        chosen_without=chosen_without_photos(content),
        calibrated=is_calibrated(content),
    )


def _absent(evaluation: Evaluation) -> list[str]:
    """Names of the classes that have no photos in the set."""
    counts = evaluation.confusion.sum(axis=1)
    return [name for name, count in zip(evaluation.measured.class_names, counts, strict=True) if not count]


def _class_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Figures per class, and what its photos are most often taken for."""
    from lightning_module.evaluation.plots import drawn_names

    names = evaluation.measured.class_names
    drawn = drawn_names(names)
    rows = []
    for index, (name, figures) in enumerate(per_class(evaluation.confusion.tolist(), names).items()):
        others = evaluation.confusion[index].copy()
        others[index] = 0
        most = int(others.argmax())
        taken_for = (names[most], int(others[most])) if others[most] else None
        rows.append({"name": name, "drawn": drawn[index], **figures, "taken_for": taken_for})
    return rows


def _threshold_rows(evaluation: Evaluation) -> list[tuple[str, list[ClassThreshold | None]]]:
    """The name of each class that was predicted, and its thresholds for `PRECISIONS`."""
    found = [class_thresholds(evaluation.probabilities, evaluation.measured.labels, each) for each in PRECISIONS]
    predicted = evaluation.confusion.sum(axis=0) > 0
    rows = zip(evaluation.measured.class_names, zip(*found, strict=True), predicted, strict=True)
    return [(name, list(thresholds)) for name, thresholds, ever in rows if ever]


def _thumbnail(file: Path) -> str | None:
    """The photo small, its sides in their own proportion; None where it cannot be read any more."""
    try:
        with open_photo(file) as photo:
            photo.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))  # a JPEG is decoded small at once
            small = photo.convert("RGB")
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        content = io.BytesIO()
        small.save(content, "JPEG", quality=80)
    except Exception:  # Pillow's readers raise nearly anything, and a missing picture is no reason to lose the page
        return None
    return _data_uri(content.getvalue(), "jpeg")


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()
