"""How many photos of a data set have which label, and how sure that is: counted over its files, one at a time."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning_module.evaluation.top_labels import DECIMALS
from lightning_module.fleet.parts import REASON

NAMED = 20
"""How many photos that cannot be read are named on the terminal; the column `reason` has all."""


class Summary:
    """Counts over a data set's files.

    Args:
        files: its parts, in order.

    Attributes:
        bad: photos that cannot be read.
        named: the first of them, each with its reason.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        from pyarrow import parquet

        self.counts: Counter[str] = Counter()
        # in thousandths, as they are written: whole numbers have the same sum in any order
        self._sums: Counter[str] = Counter()
        self.bad, self.named, self.parts = 0, [], 0  # type: int, list[str], int
        for file in files:
            columns = parquet.read_table(file, columns=["file", "label", "probability", REASON]).to_pydict()
            self.parts += 1
            for path, label, probability, reason in zip(*columns.values(), strict=True):
                if reason is not None:
                    self.bad += 1
                    if len(self.named) < NAMED:
                        self.named.append(f"{path}: {reason}")
                    continue
                self.counts[label] += 1
                self._sums[label] += round(probability * 10**DECIMALS)

    @property
    def labelled(self) -> int:
        """How many photos have a label."""
        return self.counts.total()

    def mean_probability(self, label: str | None = None) -> float | None:
        """Return the mean probability of the first label, of all photos or of those with that label."""
        count = self.labelled if label is None else self.counts[label]
        total = self._sums.total() if label is None else self._sums[label]
        return round(total / count / 10**DECIMALS, 6) if count else None

    @property
    def content(self) -> dict[str, Any]:
        """As it is written; labels with most photos first."""
        return {
            "photos": self.labelled + self.bad,
            "labelled": self.labelled,
            "bad": self.bad,
            "parts": self.parts,
            "mean_probability": self.mean_probability(),
            "labels": {
                label: {"photos": count, "mean_probability": self.mean_probability(label)}
                for label, count in sorted(self.counts.items(), key=lambda each: (-each[1], each[0]))
            },
        }

    @property
    def text(self) -> str:
        """`content` as JSON."""
        return json.dumps(self.content, indent=2, ensure_ascii=False) + "\n"

    def lines(self, folder: Path) -> list[str]:
        """Return what is printed.

        Args:
            folder: where the data set is.
        """
        files = f"{self.parts} {'file' if self.parts == 1 else 'files'}"
        said = [f"{self.labelled} {'photo' if self.labelled == 1 else 'photos'} labelled: {folder}, {files}"]
        labels = self.content["labels"]
        for label, each in [*labels.items()][:NAMED]:
            said.append(f"  {label}: {each['photos']}, mean probability {each['mean_probability']:.3f}")
        if len(labels) > NAMED:
            said.append(f"  and {len(labels) - NAMED} more labels, in {folder / '_summary.json'}")
        if self.bad:
            said += [f"{self.bad} that cannot be read, with the reason in the column {REASON}:"]
            said += [f"  {each}" for each in self.named]
            if self.bad > len(self.named):
                said.append(f"  and {self.bad - len(self.named)} more")
        return said
