"""The verdict and what it rests on: for scripts as JSON, for people as a terminal table; as a page in `page.py`."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from export.proof.image_sets import ImageSet
from models.atomic_write import write_text

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = 2
PASS, FAIL = "PASS", "FAIL"
# The check that names a layer.
LAYERS_CHECK = "layers_float64"
# Photos that the report shows.
WORST_PHOTOS = 8


@dataclass(frozen=True)
class Check:
    """One check's outcome.

    Attributes:
        name: of the check.
        passed: whether the figure is within the threshold.
        figure: what was measured.
        threshold: the largest figure that passes (the smallest, where `larger_is_better`).
        unit: what the figure counts.
        detail: one sentence for a person.
        first_divergence: the first layer, fact or photo that differs, in the order of computation.
        larger_is_better: direction of the threshold.
    """

    name: str
    passed: bool
    figure: float
    threshold: float
    unit: str
    detail: str
    first_divergence: str | None = None
    larger_is_better: bool = False


@dataclass(frozen=True)
class LayerError:
    """How far one layer's outputs are apart, both sides in float64.

    Attributes:
        name: of the Keras layer.
        op: of the graph's node.
        source: path of the torch module.
        relative_error: largest difference over the largest value.
    """

    name: str
    op: str
    source: str
    relative_error: float

    def stated(self) -> str:
        """The error, for people."""
        return f"relative error {self.relative_error:.2g}"


@dataclass(frozen=True)
class PhotoDifference:
    """One photo's probabilities on both sides.

    Attributes:
        name: of the photo.
        difference: the largest of any class, between torch and Keras.
        torch: C probabilities.
        keras: the same.
        pixels: uint8, (H, W, 3), RGB; only the page shows them.
        opinions: the same of other converters, by their names.
    """

    name: str
    difference: float
    torch: list[float]
    keras: list[float]
    pixels: np.ndarray
    opinions: dict[str, list[float]] = field(default_factory=dict)


def worst_photos(
    images: ImageSet,
    from_torch: np.ndarray,
    from_keras: np.ndarray,
    opinions: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> list[PhotoDifference]:
    """The photos whose probabilities differ most, the worst first.

    Args:
        images: N photos.
        from_torch: probabilities, (N, C).
        from_keras: the same; of another shape, there is nothing to show.
        opinions: name of another converter -> the same; of another shape, it is left out.
    """
    if from_torch.shape != from_keras.shape:
        return []
    apart = np.abs(from_torch.astype(np.float64) - from_keras.astype(np.float64)).max(axis=1)
    apart[np.isnan(apart)] = np.inf
    others = {name: gave for name, gave in opinions.items() if gave.shape == from_torch.shape}
    return [
        PhotoDifference(
            images.names[index], float(apart[index]), from_torch[index].tolist(), from_keras[index].tolist(),
            images.images[index], {name: gave[index].tolist() for name, gave in others.items()},
        )
        for index in np.argsort(-apart, kind="stable")[:WORST_PHOTOS]
    ]  # fmt: skip


@dataclass
class Report:
    """All checks under one Keras, and the verdict.

    Attributes:
        checkpoint: path and digest of the torch side.
        model: path and digest of the Keras side, and the input range it takes.
        checks: in the order of the ladder.
        versions: of everything that computed, for each side.
        seconds: the whole ladder took.
        layers: in the order of computation.
        class_names: in the order of the probabilities.
        photos: those whose probabilities differ most, the worst first.
        skipped: check -> why it could not be made; a check that is skipped neither passes nor fails.
        likely_cause: of the first failure, where the pattern shows it.
    """

    checkpoint: dict[str, str]
    model: dict[str, str]
    checks: list[Check] = field(default_factory=list)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    seconds: float = 0.0
    layers: list[LayerError] = field(default_factory=list)
    class_names: list[str] = field(default_factory=list)
    photos: list[PhotoDifference] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    likely_cause: str | None = None

    @property
    def verdict(self) -> str:
        """``PASS`` if there are checks and all of them passed, else ``FAIL``."""
        return PASS if self.checks and all(check.passed for check in self.checks) else FAIL

    @property
    def failed(self) -> list[Check]:
        """The checks that did not pass, in order."""
        return [check for check in self.checks if not check.passed]

    @property
    def converters(self) -> dict[str, dict[str, Check]]:
        """Set of images -> what computed its probabilities, Keras first -> the check that compares them with torch."""
        found: dict[str, dict[str, Check]] = {}
        for check in self.checks:
            kind, _, rest = check.name.partition("_")
            if kind == "probabilities":
                images, _, converter = rest.partition("_")
                found.setdefault(images, {})[converter or "Keras"] = check
        return found

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON types; a figure that is no finite number becomes its name, such as ``"nan"``."""
        content = {"verdict": self.verdict, **asdict(self)}
        # what the checks are called in files of this schema
        content = {"rungs" if name == "checks" else name: value for name, value in content.items()}
        for photo in content["photos"]:
            del photo["pixels"]
        return _finite(content)

    def last_line(self) -> str:
        """The verdict in one line, with the first thing that differs."""
        if self.verdict == PASS:
            skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
            return f"parity PASS: {len(self.checks)} of {len(self.checks)} checks{skipped}, {self.seconds:.0f} s"
        first = self.failed[0] if self.failed else None
        where = f" at {first.first_divergence}" if first and first.first_divergence else ""
        if first and first.name == LAYERS_CHECK:
            # its figure is the largest of all layers; what counts is that of the first
            where += "".join(f": {each.stated()}" for each in self.layers if each.name == first.first_divergence)
        cause = f". {self.likely_cause}" if self.likely_cause else ""
        return f"parity FAIL: {first.name + where if first else 'nothing was checked'}{cause}"


def verdict_of(reports: Sequence[Report], not_checked: Mapping[str, str] = MappingProxyType({})) -> str:
    """``PASS`` if there are reports, all of them pass, and nobody who was to judge could not; else ``FAIL``.

    Args:
        reports: one for each Keras that judged.
        not_checked: interpreter whose Keras was to judge -> why it did not.
    """
    return PASS if reports and not not_checked and all(report.verdict == PASS for report in reports) else FAIL


def to_json(reports: Sequence[Report], not_checked: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """What `parity.json` holds: one report for each Keras that judged, and who did not; see `verdict_of`."""
    return {
        "schema": SCHEMA,
        "verdict": verdict_of(reports, not_checked),
        "reports": [report.to_json() for report in reports],
        "not_checked": dict(not_checked),
    }


def write_json(reports: Sequence[Report], path: Path, not_checked: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write `to_json` to a file, whole or not at all.

    Raises:
        BadInput: when the file cannot be written there.
    """
    content = to_json(reports, not_checked)
    write_text(Path(path), json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


WIDTH = 120
"""Columns of a table in a file or pipe, where no terminal says how many there are."""


def wide_console() -> Console:
    """A console whose tables can be read, and searched, where they are not printed to a terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDTH)


def print_report(
    report: Report, title: str = "Is the Keras file the network that was trained?", ending: bool = True
) -> None:
    """Print the checks as a table, the versions, and the verdict as the last line, unless it is to come later."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for heading in ("check", "figure", "threshold", "", "what was compared"):
        table.add_column(heading, overflow="fold")
    for check in report.checks:
        sign = ">=" if check.larger_is_better else "<="
        verdict = "[green]pass[/]" if check.passed else "[red]FAIL[/]"
        where = f". First: {check.first_divergence}" if check.first_divergence else ""
        figure, threshold = f"{check.figure:.3g} {check.unit}", f"{sign} {check.threshold:g}"
        # a file's own names are in it; they are no markup
        table.add_row(check.name, figure, threshold, verdict, escape(check.detail + where))
    console = wide_console()
    console.print(table)
    for name, reason in report.skipped.items():
        console.print(f"{name} skipped: {reason}", highlight=False, markup=False)
    for side, versions in report.versions.items():
        console.print(f"{side}: {', '.join(f'{name} {number}' for name, number in versions.items())}", highlight=False)
    if ending:
        print_verdict(report)


def print_verdict(report: Report, command: str = "parity") -> None:
    """Print the verdict in one line, under the command's name."""
    line = report.last_line().replace("parity", command, 1)
    wide_console().print(line, highlight=False, soft_wrap=True, markup=False)
