"""Accuracy against photos per class, for a catalogue as small as some are: a table and a plot.

    python benchmarks/training/learning_curve.py --seeds 2 --plot docs/images/learning_curve.png
    python benchmarks/training/learning_curve.py --table

Four classes (pants, t-shirt, shoes, dress) of the clothing photos, with up to 150 training photos each, chosen by the
seed. Accuracy is measured on all photos of those classes in the validation folder. Both configurations run as they are.
Each result is written to a file at once and not computed again.
"""

import argparse
import json
import random
import statistics
import tempfile
from pathlib import Path

import matplotlib as mpl
from ablation import FINETUNE, RECIPE, add_sources, read, run

mpl.use("Agg")
from matplotlib import pyplot

CLASSES = ("dress", "pants", "shoes", "t-shirt")
COUNTS = (10, 20, 40, 80, 150)
WAYS = {"configs/finetune.yaml": FINETUNE, "configs/mobilenetv2.yaml": RECIPE}


def main() -> None:
    """Make the missing runs, print the table and draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sources(parser)
    parser.add_argument("--table", action="store_true", help="print what there is, and make no runs")
    parser.add_argument("--plot", type=Path, help="PNG to draw")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    journal = arguments.out / "learning_curve.jsonl"
    rows = read(journal)
    for seed in range(0 if arguments.table else arguments.seeds):
        for count in COUNTS:
            for name, configuration in WAYS.items():
                key = {"way": name, "photos_per_class": count, "seed": seed}
                if any(key.items() <= row.items() for row in rows):
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    roots = [f"--data.root={folder}/train", f"--data.val_root={folder}/validation"]
                    link(arguments.root, Path(folder) / "train", count, seed)
                    link(arguments.val_root, Path(folder) / "validation", None, seed)
                    rows.append(key | run(arguments, configuration, roots, seed))
                with journal.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                print(json.dumps(rows[-1]), flush=True)
    print("| photos per class | " + " | ".join(WAYS) + " |\n|---|" + "---|" * len(WAYS))
    for count in COUNTS:
        print(f"| {count} | " + " | ".join(cell(accuracies(rows, name, count)) for name in WAYS) + " |")
    if arguments.plot:
        draw(rows, arguments.plot)


def link(source: Path, target: Path, count: int | None, seed: int) -> None:
    """Link some photos of each class, chosen by the seed; a smaller choice is always part of a larger one."""
    for name in CLASSES:
        files = sorted((source / name).iterdir())
        random.Random(seed).shuffle(files)
        (target / name).mkdir(parents=True)
        for file in files[:count]:
            (target / name / file.name).symlink_to(file.resolve())


def accuracies(rows: list[dict], name: str, count: int) -> list[float]:
    """The accuracy for each seed."""
    return [row["accuracy"] for row in rows if row["way"] == name and row["photos_per_class"] == count]


def cell(numbers: list[float]) -> str:
    """Mean and spread, or a dash."""
    if not numbers:
        return "-"
    mean = f"{statistics.mean(numbers):.4f}"
    return f"{mean} ± {statistics.stdev(numbers):.4f} ({len(numbers)})" if len(numbers) > 1 else f"{mean} (1 seed)"


def draw(rows: list[dict], path: Path) -> None:
    """Draw a line for each way and a dot for each run."""
    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for name in WAYS:
        means = {count: accuracies(rows, name, count) for count in COUNTS}
        known = {count: values for count, values in means.items() if values}
        (line,) = axes.plot([*known], [statistics.mean(values) for values in known.values()], label=name)
        for count, values in known.items():
            axes.plot([count] * len(values), values, "o", color=line.get_color(), markersize=4)
    axes.set(xscale="log", xlabel="training photos per class", ylabel="validation accuracy")
    axes.set_xticks(COUNTS, [str(count) for count in COUNTS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
