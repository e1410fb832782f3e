"""`lightning audit`: finds photos that should not be trained on, and sets aside those that a person chose."""

import os
import shlex
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.progress import track
from rich.table import Table

from lightning_module.commands.cli import EXIT_BAD_INPUT, parse_for, underscored
from models.atomic_write import write_text
from models.bad_input import BadInput, some_of
from models.choices import Formats, Interpolation

if TYPE_CHECKING:
    from datamodule.audit.quarantine import Outcome
    from datamodule.layout import Listing
    from datamodule.sources.photo_table import PhotoTable
    from lightning_module.photo_features import PhotoFeatures

EXTRA = {"cleanlab": "cleanlab", "imagehash": "imagehash", "scipy": "scipy", "sklearn": "scikit-learn"}
"""Modules that the extra `audit` provides -> names of the packages to install."""
CSV, PAGE, QUARANTINE, FEATURES = "audit.csv", "audit.html", "quarantine", "features.npz"


def run(argv: list[str]) -> None:
    """Parse `audit PHOTOS --out DIR [...]` and run it.

    Raises:
        BadInput: some input cannot be used.
        SystemExit: 2 if --apply or --undo could not move a file that should have been moved.
    """
    warnings.filterwarnings("ignore", module="PIL")  # about odd files, which are findings
    codes = "Exit codes: 0 done; 2 bad input, or a file that should have been moved is still where it was."
    spelled = [underscored(each) for each in argv[1:]]
    spelled = [f"{each}=true" if each in ("--apply", "--undo") else each for each in spelled]
    audit(**parse_for(audit, "audit", spelled, codes))


def audit(
    photos: Path,
    out: Path = Path("audit"),
    apply: bool = False,
    undo: bool = False,
    weights: Path | None = None,
    backbone: str = "mobilenetv2_100",
    pad_type: str | None = None,
    bn_eps: float | None = None,
    mean: float | list[float] | None = None,
    std: float | list[float] | None = None,
    checkpoint: Path | None = None,
    image_size: int = 224,
    interpolation: Interpolation = "bilinear",
    validation_split: float = 0.2,
    seed: int = 0,
    listing: Literal["checked", "keras"] = "checked",
    photo_folder: Path | None = None,
    file_column: str | None = None,
    label_column: str | None = None,
    formats: Formats = "keras",
) -> None:
    """Find the photos that should not be trained on. Nothing is ever deleted.

    Args:
        photos: folder with one folder of photos per class, or a table with the photos' labels (.csv, .tsv, .parquet,
            .jsonl).
        out: folder for audit.html, audit.csv, the cached features and the quarantine; not inside `photos`.
        apply: do not audit; move what OUT/audit.csv marks with `quarantine` in its column `action` to OUT/quarantine.
            Of a table, write a copy without these rows into OUT.
        undo: do not audit; move everything in OUT/quarantine back. Of a table, remove that copy.
        weights: pretrained weights of the backbone in timm naming, .safetensors or .pth; by default timm's download.
        backbone: timm's name of a CNN.
        pad_type: '' or 'same' (TensorFlow's); by default timm's own.
        bn_eps: BatchNorm's epsilon; by default timm's own.
        mean: mean for normalisation, one number or three, for pixels of 0 to 1; by default timm's own.
        std: standard deviation for normalisation, in the same form; by default timm's own.
        checkpoint: checkpoint of `lightning fit`; its backbone, weights and normalisation replace those above.
        image_size: side of the backbone's input in pixels.
        interpolation: Pillow's filter for resizing.
        validation_split: share of each class that training will hold out; used to find duplicates in both sets.
        seed: seed for cross-validation and groups.
        listing: `keras` takes every folder in `photos` for a class, as `fit --data.listing keras` does.
        photo_folder: folder that a table's file names are relative to, as `fit --data.photos`.
        file_column: a table's column of files, as `fit --data.file_column`.
        label_column: a table's column of labels, as `fit --data.label_column`.
        formats: which files are photos, as `fit --data.formats`.
    """
    if apply and undo:
        raise BadInput("expected --apply or --undo, received both. Run one, then the other.")
    table = None
    if photos.is_file():
        table = _read_table(photos, photo_folder, file_column, label_column, formats)
        if out.resolve() == photos.resolve().parent:
            raise BadInput(f"--out: expected another folder than the table's, received {out}. Name one for the audit.")
    if any(folder.resolve().is_relative_to(photos.resolve()) for folder in (out, out / QUARANTINE)):
        raise BadInput(f"--out: expected a folder outside {photos}, received {out}: it would become a class.")
    if not photos.is_dir() and table is None:
        raise BadInput(
            f"expected a folder with one folder of photos per class, or a table of labels, received {photos}, which is "
            "neither. Check the path."
        )
    from datamodule.audit.audited_folder import check_same_folder

    check_same_folder(out, photos)
    if undo:
        _undo(photos, out, table)
    elif apply:
        _apply(photos, out, table)
    else:
        if not 0 < validation_split < 1:
            raise BadInput(f"--validation_split: expected a share above 0 and below 1, received {validation_split}.")
        if image_size < 32:
            raise BadInput(f"--image_size: expected at least 32 pixels, received {image_size}.")
        if listing == "checked" and table is None:
            _check_classes(photos, out)
        _require_extra()
        architecture = {"backbone": backbone, "pad_type": pad_type, "bn_eps": bn_eps, "mean": mean, "std": std}
        made = [each for each in (out, *out.parents) if not each.exists()]
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"--out: expected a folder that can be made, received {out}: {error}.") from error
        try:
            features = _features(architecture, weights, checkpoint, image_size, interpolation, out / FEATURES)
            _audit(photos, out, features, validation_split, seed, listing, table, formats)
        finally:
            with suppress(OSError):  # a folder with something in it stays
                for each in made:
                    each.rmdir()


def _read_table(
    file: Path, folder: Path | None, file_column: str | None, label_column: str | None, formats: Formats
) -> "PhotoTable":
    from datamodule.sources.photo_table import PhotoTable

    try:
        # all sets are looked at; rows without a photo are for `fit` to refuse
        return PhotoTable(file, folder, file_column, label_column, "", "skip", formats=formats)
    except BadInput as error:
        message = str(error).replace("--data.photos", "--photo_folder").replace("--data.", "--")
        raise BadInput(message) from error


def _root_of(table: "PhotoTable") -> Path:
    """Return the innermost folder that has all photos of a table."""
    folders = {file.parent for files in table.classes["train"] for file in files}
    return Path(os.path.commonpath([table.base.absolute(), *folders]))


def _check_classes(photos: Path, out: Path) -> None:
    """Refuse a folder of sets, or one that has the classes a level further down, as `fit` does."""
    from datamodule.layout import clean_class_names, find_sets, innermost

    names = clean_class_names(photos)
    if len(names) == 1 and len(clean_class_names(inner := innermost(photos))) > 1:
        what, folders = f"one, {names[0]}, which has folders of its own", {"root": inner}
    elif len(names) > 1 and (found := find_sets(photos, names)):
        what, folders = found.what, found.folders
    else:
        return
    folder = folders.get("root") or next(iter(folders.values()))
    raise BadInput(
        f"expected one folder per class in {photos}; received {what}. Audit one set at a time, each with an --out of "
        f"its own: lightning audit {shlex.quote(str(folder))} --out {shlex.quote(str(out))}. "
        "If these are classes, --listing keras takes them."
    )


def _require_extra() -> None:
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        raise BadInput(
            f"`lightning audit` needs packages that are not installed: {', '.join(missing)}. "
            f"Install them with: {sys.executable} -m pip install {' '.join(EXTRA[name] for name in missing)}"
        )


def _features(
    architecture: dict[str, Any],
    weights: Path | None,
    checkpoint: Path | None,
    image_size: int,
    interpolation: str,
    cache: Path,
) -> "PhotoFeatures":
    import torch

    from lightning_module.photo_features import PhotoFeatures
    from models.pretrained import load_pretrained
    from models.timm_mobilenetv2 import TimmClassifier

    if checkpoint is not None:
        from export.checkpoint import read_checkpoint

        if weights is not None:
            raise BadInput("expected --weights or --checkpoint, received both: a checkpoint has weights of its own.")
        network = read_checkpoint(checkpoint).network
    else:
        try:
            network = TimmClassifier(2, hidden=(), **architecture).eval()
            load_pretrained(network, weights)
        except BadInput as error:
            # the message is for `fit`, where the settings are called --model.weights etc. and weights are optional
            message = str(error).replace(", or start untrained with --model.pretrained false", "")
            raise BadInput(message.replace("--model.", "--")) from error
    return PhotoFeatures(network.to(memory_format=torch.channels_last), image_size, interpolation, cache)


def _audit(
    photos: Path,
    out: Path,
    features: "PhotoFeatures",
    validation_split: float,
    seed: int,
    listing: "Listing",
    photo_table: "PhotoTable | None",
    formats: Formats,
) -> None:
    from datamodule.audit.audited_folder import write_record
    from datamodule.audit.findings import KINDS, displayable, folder_of, keep_decisions, read_actions, write_findings
    from datamodule.audit.page import render_page
    from datamodule.audit.survey import survey

    def looking(items: Iterable, total: int) -> Iterable:
        return track(items, "Looking at the photos", total, console=Console(stderr=True), transient=True)

    def computing(items: Iterable, total: int) -> Iterable:
        return track(items, "Computing features", total, console=Console(stderr=True), transient=True)

    table = out / CSV
    decided = read_actions(table) if table.is_file() else {}
    size = features.size
    root, class_of = photos, folder_of
    if photo_table is not None:
        root = _root_of(photo_table)
        named = zip(photo_table.class_names, photo_table.classes["train"], strict=True)
        known = {file.relative_to(root).as_posix(): name for name, files in named for file in files}
        class_of = lambda file: known.get(file, "")  # noqa: E731
    found = survey(
        root,
        lambda each: features.of(each, computing),
        size,
        validation_split,
        seed,
        looking,
        listing,
        photo_table,
        formats,
    )
    findings = keep_decisions(found.findings, decided, root, class_of)
    counts = Counter(each.kind for each in findings if each.kind != "group")
    summary = f"{found.photos} photos in {len(found.class_names)} classes: {some_of(found.class_names, 50)}."
    command = f"lightning audit {shlex.quote(str(photos))} --out {shlex.quote(str(out))}"
    copy = "" if photo_table is None else str(out / photos.name)
    page = render_page(root.resolve(), findings, [summary, *found.notes], CSV, command, class_of, copy)
    if table.is_file():
        shutil.copy2(table, out / "audit.previous.csv")
    write_record(out, photos, found.class_names)
    write_findings(table, findings)
    write_text(out / PAGE, page)

    shown = Table("finding", "files")
    for kind, (title, _) in KINDS.items():
        if counts[kind]:
            shown.add_row(title, str(counts[kind]))
    console = Console()

    def say(sentence: str) -> None:
        console.print(displayable(sentence), soft_wrap=True, markup=False)

    say(summary)
    console.print(shown)
    for note in found.notes:
        say(note)
    marked = len({each.file for each in findings if each.action == "quarantine"})
    say(f"Look at {out / PAGE}; {marked} files are marked in {table}.")


def _apply(photos: Path, out: Path, table: "PhotoTable | None") -> None:
    from datamodule.audit.findings import QUARANTINE as MARK
    from datamodule.audit.findings import read_actions
    from datamodule.audit.quarantine import set_aside

    marked = dict.fromkeys(file for (file, _), action in read_actions(out / CSV).items() if action == MARK)
    if table is not None:
        root, copy = _root_of(table), out / table.file.name
        changed = table.write_corrected(
            copy, lambda photo: None if photo.relative_to(root).as_posix() in marked else ""
        )
        print(
            f"{copy}: a copy of {table.file} without {changed} rows; no file was moved. Train with it: lightning fit "
            f"--data.table {shlex.quote(str(copy))} --data.photos {shlex.quote(str(table.base))}"
        )
        return
    outcome = set_aside(photos, marked, out / QUARANTINE)
    before = f"; {len(outcome.done_before)} had been set aside before" if outcome.done_before else ""
    _report(f"{len(outcome.moved)} files moved to {out / QUARANTINE}{before}; --undo brings them back.", outcome)


def _undo(photos: Path, out: Path, table: "PhotoTable | None") -> None:
    from datamodule.audit.quarantine import bring_back

    if table is not None:
        (out / table.file.name).unlink(missing_ok=True)
        print(f"{table.file} is as it was; its copy in {out} is removed.")
        return
    outcome = bring_back(photos, out / QUARANTINE)
    _report(f"{len(outcome.moved)} files brought back.", outcome)


def _report(summary: str, outcome: "Outcome") -> None:
    from datamodule.audit.findings import displayable

    print(displayable(summary))
    for move, reason in outcome.left:
        print(displayable(f"left: {move.file}: {reason}"))
    if outcome.left:
        raise SystemExit(EXIT_BAD_INPUT)
