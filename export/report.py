"""The verdict and what it rests on: for scripts as JSON, for people as a terminal table."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from models.bad_input import BadInput

SCHEMA = 1


@dataclass(frozen=True)
class Rung:
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


@dataclass
class Report:
    """All rungs and the verdict.

    Attributes:
        checkpoint: path and digest of the torch side.
        model: path and digest of the Keras side, and the input range it takes.
        rungs: in the order of the ladder.
        versions: of everything that computed, for each side.
        seconds: the whole ladder took.
        layers: in the order of computation.
    """

    checkpoint: dict[str, str]
    model: dict[str, str]
    rungs: list[Rung] = field(default_factory=list)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    seconds: float = 0.0
    layers: list[LayerError] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """``PASS`` if there are rungs and all of them passed, else ``FAIL``."""
        return "PASS" if self.rungs and all(rung.passed for rung in self.rungs) else "FAIL"

    @property
    def failed(self) -> list[Rung]:
        """The rungs that did not pass, in order."""
        return [rung for rung in self.rungs if not rung.passed]

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON types; a figure that is no finite number becomes its name, such as ``"nan"``."""
        content = {"schema": SCHEMA, "verdict": self.verdict, **asdict(self)}
        for entry, key in [
            *((rung, "figure") for rung in content["rungs"]),
            *((layer, "relative_error") for layer in content["layers"]),
        ]:
            entry[key] = entry[key] if math.isfinite(entry[key]) else str(entry[key])
        return content

    def write_json(self, path: Path) -> None:
        """Write `to_json` to a file, atomically.

        Raises:
            BadInput: when the file cannot be written there.
        """
        path = Path(path)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            with temporary.open("w") as file:
                json.dump(self.to_json(), file, indent=2, allow_nan=False)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise BadInput(
                f"expected a place where {path} can be written, got: {error.strerror}. Name another."
            ) from error

    def last_line(self) -> str:
        """The verdict in one line, with the first thing that differs."""
        if self.verdict == "PASS":
            return f"parity PASS: {len(self.rungs)} of {len(self.rungs)} checks, {self.seconds:.0f} s"
        first = self.failed[0] if self.failed else None
        where = f" at {first.first_divergence}" if first and first.first_divergence else ""
        return f"parity FAIL: {first.name + where if first else 'nothing was checked'}"


def print_report(report: Report) -> None:
    """Print the rungs as a table, the versions, and the verdict as the last line."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Is the Keras file the network that was trained?", title_justify="left")
    for heading in ("check", "figure", "threshold", "", "what was compared"):
        table.add_column(heading, overflow="fold")
    for rung in report.rungs:
        sign = ">=" if rung.larger_is_better else "<="
        verdict = "[green]pass[/]" if rung.passed else "[red]FAIL[/]"
        where = f". First: {rung.first_divergence}" if rung.first_divergence else ""
        figure, threshold = f"{rung.figure:.3g} {rung.unit}", f"{sign} {rung.threshold:g}"
        table.add_row(rung.name, figure, threshold, verdict, rung.detail + where)
    console = Console()
    console.print(table)
    for side, versions in report.versions.items():
        console.print(f"{side}: {', '.join(f'{name} {number}' for name, number in versions.items())}", highlight=False)
    console.print(report.last_line(), highlight=False)
