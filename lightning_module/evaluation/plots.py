"""The pictures of the report, as PNG. matplotlib is imported where one is drawn: `lightning --help` needs none."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from unicodedata import bidirectional

import numpy as np

from lightning_module.evaluation.automation import FEWEST, each_threshold
from lightning_module.evaluation.calibration import BINS, reliability
from lightning_module.evaluation.figures import Evaluation, wilson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, BLUE, ORANGE, GREY, RED = "#1c2733", "#2b6cb0", "#dd7f2e", "#9aa7b4", "#b3261e"
WIDTH = 5.2
"""Inches of a picture: little, and panels below each other, so that it can be read on a phone."""
MOST_NUMBERS = 25
"""Classes up to which the cells of a confusion matrix have their numbers written in."""

MOST_POINTS = 200
"""Of a curve; between two of them it would not be seen to bend."""

BACKWARDS = ("R", "AL", "AN")
"""Unicode's classes of letters and numbers that are written from right to left."""


def drawn_names(class_names: Sequence[str]) -> list[str]:
    """Return class names as pictures can have them: those that matplotlib cannot write are "class 3", counted from 1.

    Its font has no Chinese, Devanagari and the like; Arabic and Hebrew it would write backwards and unjoined. The page
    says which class that is, as text, for which a browser finds fonts.
    """
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known = get_font(findfont(FontProperties())).get_charmap()
    return [
        name
        if all(ord(letter) in known and bidirectional(letter) not in BACKWARDS for letter in name)
        else f"class {n}"
        for n, name in enumerate(class_names, start=1)
    ]


def curves_png(epochs: Sequence[dict[str, Any]], best: int | None) -> bytes:
    """Loss and accuracy of each epoch.

    Args:
        epochs: rows of metrics.json.
        best: the epoch that was kept, counted from 0.
    """
    figure = _figure(WIDTH, 6)
    axes = figure.subplots(2, 1)
    sets = {"train": ("training", BLUE, "-"), "val": ("validation", ORANGE, "-"), "val_clean": ("", INK, "--")}
    augmented = "val_clean/loss" in epochs[0]
    numbers = [row["epoch"] + 1 for row in epochs]
    for panel, metric in zip(axes, ("loss", "accuracy"), strict=True):
        for name, (text, colour, line) in sets.items():
            values = [row.get(f"{name}/{metric}") for row in epochs]
            if all(value is None for value in values):
                continue
            if name == "val_clean":
                text = "validation, photos as they are"
            elif augmented:
                text += ", changed at random"
            gaps = [np.nan if value is None else value for value in values]
            panel.plot(numbers, gaps, line, color=colour, label=text, marker="o", markersize=3)
        if best is not None:
            late = best + 1 > (numbers[0] + numbers[-1]) / 2  # the word stays within the panel
            panel.axvline(best + 1, color=GREY, linewidth=1, linestyle=":")
            panel.annotate(
                "kept", (best + 1, 1), xycoords=("data", "axes fraction"), xytext=(-3 if late else 3, -3),
                textcoords="offset points", va="top", ha="right" if late else "left", color=INK, fontsize=8,
            )  # fmt: skip
        if len(numbers) == 1:  # there would be fractions of an epoch
            panel.set_xlim(numbers[0] - 0.5, numbers[0] + 0.5)
        panel.set_xlabel("epoch")
        panel.set_title(metric, loc="left")
        panel.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        panel.grid(color="#e6eaee")
        panel.set_axisbelow(True)
    axes[0].legend(frameon=False, fontsize=9)
    return _png(figure)


def batch_png(images: np.ndarray, captions: Sequence[str]) -> bytes:
    """Photos of a batch with what they are, four in a row.

    Args:
        images: shape (B, 3, H, W), RGB, 0 to 1.
        captions: B texts.
    """
    rows = -(-len(images) // 4)
    figure = _figure(WIDTH, 1.55 * rows)
    panels = figure.subplots(rows, 4, squeeze=False).flatten()
    for panel in panels:
        panel.set_axis_off()
    for panel, image, caption in zip(panels, images, captions, strict=False):  # the last row may have fewer
        panel.imshow(image.transpose(1, 2, 0).clip(0, 1))
        lines = [line if len(line) < 17 else f"{line[:15]}…" for line in caption.split("\n")]
        panel.set_title("\n".join(lines), fontsize=11, color=INK, pad=3, parse_math=False)
    return _png(figure)


def learning_rate_png(rates: np.ndarray, losses: np.ndarray, smooth: np.ndarray, suggestion: float | None) -> bytes:
    """Training loss while the learning rate grew, and the rate that is suggested."""
    figure = _figure(8, 4)
    panel = figure.subplots()
    panel.plot(rates, losses, ".", color=GREY, markersize=4, label="a step")
    panel.plot(rates, smooth, color=BLUE, label="mean of its neighbours")
    panel.set_xscale("log")
    if suggestion is not None:
        panel.axvline(suggestion, color=RED, linewidth=1, linestyle="--", label=f"suggested: {suggestion:.2g}")
    panel.legend(frameon=False, fontsize=8)
    known = losses[np.isfinite(losses)]
    if len(known):  # the end, where it diverges, would flatten all the rest
        low, high = known.min(), known[: max(1, len(known) // 2)].max()
        panel.set_ylim(low - 0.1 * (high - low + 0.01), high + 0.2 * (high - low + 0.01))
    panel.set_xlabel("learning rate")
    panel.set_ylabel("training loss")
    panel.grid(color="#e6eaee")
    return _png(figure)


def confusion_png(evaluation: Evaluation) -> bytes:
    """Counts, and below them shares of each true class."""
    counts, names = evaluation.confusion, drawn_names(evaluation.measured.class_names)
    size = min(4.0 + 0.32 * len(names), 14.0)
    figure = _figure(size, 2 * size)
    support = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    panels = (("photos", counts, "d"), ("share of the true class", counts / support, ".2f"))
    for panel, (title, values, form) in zip(figure.subplots(2, 1), panels, strict=True):
        shown = counts / support  # rows of few photos are as visible as others
        panel.imshow(shown, cmap="Blues", vmin=0, vmax=1)
        panel.set_title(title, loc="left")
        font = max(4.0, min(9.0, 500 / len(names)))
        text: dict[str, Any] = {"fontsize": font, "parse_math": False}  # a name may have dollars
        panel.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", **text)
        panel.set_yticks(range(len(names)), names, **text)
        panel.set_xlabel("predicted")
        panel.set_ylabel("true")
        panel.spines[:].set_visible(False)
        if len(names) <= MOST_NUMBERS:
            for (row, column), value in np.ndenumerate(values):
                if counts[row, column]:
                    colour = "white" if shown[row, column] > 0.5 else INK
                    panel.text(column, row, format(value, form), ha="center", va="center", color=colour, fontsize=font)
    return _png(figure)


def reliability_png(evaluation: Evaluation) -> bytes:
    """Accuracy against confidence, as the network is and after scaling; below, how many photos each bin has."""
    figure = _figure(WIDTH, 9)
    grid = figure.subplots(4, 1, height_ratios=(3, 1, 3, 1))
    labels = evaluation.measured.labels
    panels = (
        (f"as it is: ECE {evaluation.ece:.3f}", evaluation.probabilities),
        (f"logits divided by {evaluation.temperature:.2f}: ECE {evaluation.ece_scaled:.3f}", evaluation.scaled),
    )
    for above, below, (title, probabilities) in zip(grid[::2], grid[1::2], panels, strict=True):
        bins = reliability(probabilities, labels)
        _reliability(above, bins)
        above.set_title(title, loc="left")
        left = [each.low for each in bins]
        below.bar(left, [each.photos for each in bins], 1 / BINS, align="edge", color=GREY, edgecolor="white")
        below.set_xlabel("confidence: probability of the likeliest class")
        below.set_xlim(0, 1)
        above.set_ylabel("accuracy")
        below.set_ylabel("photos")
    return _png(figure)


def coverage_png(evaluation: Evaluation) -> bytes:
    """Accuracy of the photos that are labelled by machine, against their share, with Wilson's band."""
    counts, hits, _ = each_threshold(evaluation.probabilities, evaluation.measured.labels)
    shown = np.unique(np.linspace(0, len(counts) - 1, min(len(counts), MOST_POINTS)).round().astype(int))
    counts, hits = counts[shown], hits[shown]
    coverage, accuracy = counts / counts[-1], hits / counts
    low, high = np.transpose([wilson_interval(int(hit), int(count)) for hit, count in zip(hits, counts, strict=True)])
    figure = _figure(WIDTH, 4)
    panel = figure.subplots()
    panel.fill_between(coverage, low, high, color=BLUE, alpha=0.2, linewidth=0)
    panel.plot(coverage, accuracy, color=BLUE)
    panel.set_xlim(0, 1)
    lowest = [accuracy.min(), *low[counts >= FEWEST]]  # the band of the first few photos is all there is
    panel.set_ylim(max(0.0, min(lowest) - 0.02), 1)
    panel.set_xlabel("share of photos labelled by machine, the surest first")
    panel.set_ylabel("share of those that is right")
    panel.grid(color=GREY, alpha=0.3)
    return _png(figure)


def _reliability(panel: "Axes", bins: Sequence[Any]) -> None:
    filled = [each for each in bins if each.photos]
    left = [each.low for each in filled]
    panel.bar(
        left, [each.accuracy for each in filled], 1 / BINS, align="edge", color=BLUE, edgecolor="white",
        label="accuracy",
    )  # fmt: skip
    gaps = [each.confidence - each.accuracy for each in filled]
    panel.bar(
        left, gaps, 1 / BINS, bottom=[each.accuracy for each in filled], align="edge", color="none", edgecolor=RED,
        hatch="///", linewidth=0.8, label="distance to confidence",
    )  # fmt: skip
    panel.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle="--")
    panel.set_xlim(0, 1)
    panel.set_ylim(0, 1)
    panel.legend(fontsize=8, loc="upper left", framealpha=0.9, edgecolor="none")


def _figure(width: float, height: float) -> "Figure":
    """An empty figure of inches; not pyplot's, whose state and windows nobody needs."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=110)


def _png(figure: "Figure") -> bytes:
    content = io.BytesIO()
    # tight: panels of equal sides leave the layout too little room for what stands around them
    figure.savefig(content, format="png", facecolor="white", bbox_inches="tight", pad_inches=0.08)
    return content.getvalue()
