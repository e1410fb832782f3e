"""`lightning audit`: finds photos that should not be trained on, and sets aside those that a person chose."""

import os
import shlex
import shutil
import sys
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
from lightning_module.commands.options import with_flags
from models.atomic_write import write_text
from models.bad_input import BadInput, quoted, some_of
from models.choices import Formats, Interpolation

if TYPE_CHECKING:
    from datamodule.audit.findings import Decisions
    from datamodule.audit.quarantine import Outcome
    from datamodule.layout import Listing
    from datamodule.sources.photo_table import PhotoTable
    from datamodule.sources.roots import Roots
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
    codes = "Exit codes: 0 done; 2 bad input, or a file that should have been moved is still where it was."
    spelled = with_flags([underscored(each) for each in argv[1:]], ("--apply", "--undo"))
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
    """Find the photos that should not be trained on, or have a wrong label. Nothing is ever deleted.

    Args:
        photos: folder with one folder of photos per class, or with sets that each have these; or a table with the
            photos' labels (.csv, .tsv, .parquet, .jsonl).
        out: folder for audit.html, audit.csv, the cached features and the quarantine; not inside `photos`.
        apply: do not audit; do what OUT/audit.csv says in its column `action`: `quarantine` moves a file to
            OUT/quarantine, `move to CLASS` to that class's folder. Of a table, write a copy without the former and
            with these classes into OUT.
        undo: do not audit; move everything back to where it was. Of a table, remove that copy.
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
    from datamodule.sources.addresses import is_mangled_address

    table = None
    if photos.is_file():
        table = _read_table(photos, photo_folder, file_column, label_column, formats)
        if out.resolve() == photos.resolve().parent:
            raise BadInput(f"--out: expected another folder than the table's, received {out}. Name one for the audit.")
    if any(folder.resolve().is_relative_to(photos.resolve()) for folder in (out, out / QUARANTINE)):
        raise BadInput(f"--out: expected a folder outside {photos}, received {out}: it would become a class.")
    if is_mangled_address(photos):
        raise BadInput(
            f"expected photos or a table on this machine, received the address {photos}: the audit moves files. Copy "
            "them to a folder first."
        )
    if not photos.is_dir() and table is None:
        raise BadInput(
            f"expected a folder with one folder of photos per class, or a table of labels, received {photos}, which is "
            "neither. Check the path."
        )
    from datamodule.audit.audited_folder import check_same_folder

    check_same_folder(out, photos)
    sets = None if table is not None else _sets_in(photos, listing)
    if undo:
        _undo(photos, out, table)
    elif apply:
        _apply(photos, out, table, sets)
    else:
        if not 0 < validation_split < 1:
            raise BadInput(f"--validation_split: expected a share above 0 and below 1, received {validation_split}.")
        if image_size < 32:
            raise BadInput(f"--image_size: expected at least 32 pixels, received {image_size}.")
        if listing == "checked" and table is None and sets is None:
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
            given = {
                "listing": None if listing == "checked" else listing,
                "photo_folder": photo_folder,
                "file_column": file_column,
                "label_column": label_column,
                "formats": None if formats == "keras" else formats,
            }
            command = ["lightning", "audit", str(photos), "--out", str(out)]
            command += [word for name, value in given.items() if value for word in (f"--{name}", str(value))]
            _audit(photos, out, features, validation_split, seed, listing, table, formats, sets, shlex.join(command))
        finally:
            with suppress(OSError):  # a folder with something in it stays
                for each in made:
                    each.rmdir()


def _sets_in(photos: Path, listing: "Listing") -> "Roots | None":
    """Return the sets in a folder, as `fit` takes them; None where it has classes."""
    from datamodule.sources.roots import find_roots

    roots = find_roots(photos, None, None, listing)
    return roots if roots.said else None


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
    """Refuse a folder of sets that have no names of sets, or one that has the classes a level further down."""
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
        f"its own: lightning audit {shlex.quote(str(folder))} --out {shlex.quote(str(out))}, and your other options. "
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
    sets: "Roots | None",
    command: str,
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
    folders = [photos] if sets is None else [sets.root, sets.val_root, sets.test_root]
    if sets is not None:
        starts = [_start_of(photos, folder) for folder in folders if folder is not None]
        class_of = lambda file: folder_of(  # noqa: E731
            file.removeprefix(next((start for start in starts if file.startswith(start)), ""))
        )
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
        folders,
    )
    findings = keep_decisions(found.findings, decided, root, class_of)
    counts = Counter(each.kind for each in findings if each.kind != "group")
    summary = f"{found.photos} photos in {len(found.class_names)} classes: {some_of(found.class_names, 50)}."
    copy = "" if photo_table is None else str(out / photos.name)
    facts = [summary, *([] if sets is None else [sets.said]), *found.notes]
    page = render_page(root.resolve(), findings, facts, CSV, command, class_of, copy, found.class_names)
    if table.is_file():
        shutil.copy2(table, out / "audit.previous.csv")
    places = [folder / name for folder in folders if folder is not None for name in found.class_names]
    write_record(out, photos, [str(place.relative_to(photos)) for place in places if place.is_dir()])
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
    for note in facts[1:]:
        say(note)
    marked = len({each.file for each in findings if each.action not in ("", "keep")})
    say(f"Look at {out / PAGE}; {marked} files are marked in {table}.")


def _start_of(photos: Path, folder: Path) -> str:
    """Return what the names of the photos in a set's folder begin with, such as "train/"."""
    return "" if folder == photos else f"{folder.relative_to(photos).as_posix()}/"


def _apply(photos: Path, out: Path, table: "PhotoTable | None", sets: "Roots | None") -> None:
    from datamodule.audit.findings import decisions_of, read_actions
    from datamodule.audit.quarantine import Outcome, relabel, set_aside
    from datamodule.split import find_class_names

    actions = read_actions(out / CSV)
    if table is not None:
        _write_corrected(table, out / table.file.name, decisions_of(actions, table.class_names))
        return
    folders = [photos] if sets is None else [sets.root, sets.val_root, sets.test_root]
    starts = [_start_of(photos, folder) for folder in folders if folder is not None]
    names = [name for start in starts if (photos / start).is_dir() for name in find_class_names(photos / start)]
    decisions = decisions_of(actions, names)
    # first, so that nothing is set aside if a class is not there
    relabelled = relabel(photos, decisions.classes, out / QUARANTINE, starts, decisions.aside)
    aside = set_aside(photos, decisions.aside, out / QUARANTINE)
    said = []
    if decisions.aside or not decisions.classes:
        before = f" ({len(aside.done_before)} had been set aside before)" if aside.done_before else ""
        said.append(f"{len(aside.moved)} files moved to {out / QUARANTINE}{before}")
    if decisions.classes:
        before = f" ({len(relabelled.done_before)} had been moved before)" if relabelled.done_before else ""
        said.append(f"{len(relabelled.moved)} files moved to other classes{before}")
    outcome = Outcome(relabelled.moved + aside.moved, relabelled.left + aside.left, [])
    _report(f"{'; '.join(said)}; --undo brings them back.", outcome)


def _write_corrected(table: "PhotoTable", copy: Path, decisions: "Decisions") -> None:
    """Write a table's copy without the rows of photos that are set aside, and with others' new labels.

    Raises:
        BadInput: a new label is none of the table's.
    """
    if unknown := sorted({*decisions.classes.values()} - {*table.class_names}):
        raise BadInput(
            f"expected labels of {table.file}, {quoted(table.class_names)}, in the CSV's column action; received "
            f"{quoted(unknown)}. Correct the name; a new class needs a row in the table first."
        )
    root, aside = _root_of(table), {*decisions.aside}
    left_out = relabelled = 0

    def new_label(photo: Path) -> str | None:
        nonlocal left_out, relabelled
        file = photo.relative_to(root).as_posix() if photo.is_relative_to(root) else ""
        left_out += file in aside
        relabelled += file not in aside and file in decisions.classes
        return None if file in aside else decisions.classes.get(file, "")

    table.write_corrected(copy, new_label)
    print(
        f"{copy}: a copy of {table.file} without {left_out} rows and with other labels in {relabelled}; no file was "
        f"moved. Train with it: lightning fit --data.table {shlex.quote(str(copy))} "
        f"--data.photos {shlex.quote(str(table.base))}"
    )


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
