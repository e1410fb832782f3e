"""Which settings of configs/finetune.yaml are worth it: each is removed or added alone, with the same seeds.

    python benchmarks/training/ablation.py --stage small  # at a small size, so that many can be compared
    python benchmarks/training/ablation.py --stage draft  # the same, for the drafts of configs/finetune.yaml
    python benchmarks/training/ablation.py --stage longer  # the same, for settings that might be better than it
    python benchmarks/training/ablation.py --stage full  # configs/finetune.yaml and mobilenetv2.yaml as they are
    python benchmarks/training/ablation.py --table  # the results so far, as docs/accuracy.md shows them

Every run uses the real command, `lightning fit`. The small runs hold out half of the training photos and are measured
on those; the full ones are measured on the validation folder. Each result is written to a file at once, and a run
that is already in the file is not repeated, so the script can be stopped and started again. Runs are made seed by seed,
so that the variants can be compared whenever it stops. The test photos are not used.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
SHARED = REPO.parent / "shared"
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_TOP_PAD_": "268435456"}
"""Usually glibc returns large blocks to the system after each operation and requests them again for the next one. These
settings stop that, which makes training steps on a CPU faster."""

FINETUNE, RECIPE = "configs/finetune.yaml", "configs/mobilenetv2.yaml"
SMALL = [
    "--data.image_size=160", "--model.train_size=128", "--trainer.max_epochs=6", "--trainer.check_val_every_n_epoch=6",
    "--data.val_root=null", "--data.validation_split=0.5",
]  # fmt: skip
"""Half of the training photos are held out, chosen by the seed. 1,534 photos to judge by reveal smaller differences
than the 341 of the validation folder, and training on half as many photos takes half the time."""
NO_EMA = ["--trainer.callbacks=null"]
NO_SMOOTHING = ["--model.regularisation.label_smoothing=0"]
AS_FAST = ["--model.schedule.backbone_factor=1"]
TRAINED = ["--model.schedule.batch_norm=train"]
MIXED = [
    "--model.regularisation.mixup=0.2", "--model.regularisation.cutmix=1.0", "--model.regularisation.mix_share=0.5",
]  # fmt: skip
ERASED = ["--model.regularisation.random_erasing=0.25"]


MEASURED = {"val/loss", "val/accuracy"}


def epochs(count: int) -> list[str]:
    """Settings for this number of epochs, measured only after the last."""
    return [f"--trainer.max_epochs={count}", f"--trainer.check_val_every_n_epoch={count}"]


STAGES: dict[str, dict[str, tuple[str, list[str]]]] = {
    "small": {
        "as it is": (FINETUNE, []),
        "without label smoothing": (FINETUNE, NO_SMOOTHING),
        "without weight EMA": (FINETUNE, NO_EMA),
        "BatchNorm trained": (FINETUNE, TRAINED),
        "backbone as fast as the head": (FINETUNE, AS_FAST),
        "backbone a tenth as fast": (FINETUNE, ["--model.schedule.backbone_factor=0.1"]),
        "with mixup or cutmix": (FINETUNE, MIXED),
        "with random erasing": (FINETUNE, ERASED),
        "with class weights": (FINETUNE, ["--model.regularisation.class_weights=balanced"]),
        "without a head's own epoch": (FINETUNE, ["--model.schedule.head_epochs=0"]),
        "without warm-up": (FINETUNE, ["--model.schedule.warmup_epochs=0"]),
        "constant rates": (FINETUNE, ["--model.schedule.cosine=false"]),
        "without all five: smoothing, average, head's epoch, warm-up, falling rates": (
            FINETUNE,
            [
                *NO_SMOOTHING,
                *NO_EMA,
                "--model.schedule.head_epochs=0",
                "--model.schedule.warmup_epochs=0",
                "--model.schedule.cosine=false",
            ],
        ),
        "without gradient clipping": (FINETUNE, ["--trainer.gradient_clip_val=null"]),
        "trained at the full size": (FINETUNE, ["--model.train_size=null"]),
        "resized by nearest": (FINETUNE, ["--data.interpolation=nearest"]),
        "the recipe's augmentation": (
            FINETUNE,
            [
                "--data.augmentation.rotation_range=20",
                "--data.augmentation.width_shift_range=0.2",
                "--data.augmentation.height_shift_range=0.2",
                "--data.augmentation.zoom_range=0.2",
                "--data.augmentation.channel_shift_range=0",
            ],
        ),
    },
    "draft": {
        "first draft: BatchNorm trained": (FINETUNE, TRAINED),
        "draft without label smoothing": (FINETUNE, [*TRAINED, *NO_SMOOTHING]),
        "draft with backbone as fast as the head": (FINETUNE, [*TRAINED, *AS_FAST]),
        "draft without weight EMA": (FINETUNE, [*TRAINED, *NO_EMA]),
        "draft with mixup or cutmix": (FINETUNE, [*TRAINED, *MIXED]),
        "BatchNorm frozen, without label smoothing, backbone as fast as the head": (
            FINETUNE,
            [*NO_SMOOTHING, *AS_FAST],
        ),
    },
    "longer": {
        "as it is": (FINETUNE, []),
        "12 epochs": (FINETUNE, epochs(12)),
        "12 epochs, measured after each": (
            FINETUNE,
            ["--trainer.max_epochs=12", "--trainer.check_val_every_n_epoch=1"],
        ),
        "24 epochs": (FINETUNE, epochs(24)),
        "48 epochs": (FINETUNE, epochs(48)),
        "12 epochs, mixup or cutmix": (FINETUNE, [*epochs(12), *MIXED]),
        "24 epochs, mixup or cutmix": (FINETUNE, [*epochs(24), *MIXED]),
        "12 epochs, random erasing": (FINETUNE, [*epochs(12), *ERASED]),
        "12 epochs, half the learning rate": (FINETUNE, [*epochs(12), "--model.learning_rate=0.0005"]),
        "12 epochs, stronger changes of colour": (
            FINETUNE,
            [
                *epochs(12),
                "--data.augmentation.channel_shift_range=40",
                "--data.augmentation.brightness_range=[0.6,1.4]",
            ],
        ),
        "12 epochs, zoom from 0.8": (FINETUNE, [*epochs(12), "--data.augmentation.zoom_range=[0.8,1.1]"]),
        "12 epochs, trained at the full size": (FINETUNE, [*epochs(12), "--model.train_size=null"]),
        "12 epochs, dropout 0.5": (FINETUNE, [*epochs(12), "--model.dropout=0.5"]),
        "12 epochs, batches of 16 at 0.7 of the rate": (
            FINETUNE,
            [*epochs(12), "--data.batch_size=16", "--model.learning_rate=0.0007"],
        ),
        "12 epochs, the head three times as fast": (
            FINETUNE,
            [*epochs(12), "--model.learning_rate=0.003", "--model.schedule.backbone_factor=0.1"],
        ),
        "15 epochs, the first four of the head": (FINETUNE, [*epochs(15), "--model.schedule.head_epochs=4"]),
        "12 epochs, BatchNorm trained": (FINETUNE, [*epochs(12), *TRAINED]),
        "12 epochs, resized by bicubic": (FINETUNE, [*epochs(12), "--data.interpolation=bicubic"]),
        "12 epochs, resized by lanczos": (FINETUNE, [*epochs(12), "--data.interpolation=lanczos"]),
        "twice the learning rate": (FINETUNE, ["--model.learning_rate=0.002"]),
        "label smoothing 0.2": (FINETUNE, ["--model.regularisation.label_smoothing=0.2"]),
        "backbone half as fast as the head": (FINETUNE, ["--model.schedule.backbone_factor=0.5"]),
        "zoom from 0.5": (FINETUNE, ["--data.augmentation.zoom_range=[0.5,1.05]"]),
    },
    "full": {
        "configs/finetune.yaml": (FINETUNE, []),
        "configs/mobilenetv2.yaml": (RECIPE, []),
    },
}
"""stage -> name -> (configuration, additional settings)."""


def main() -> None:
    """Make the missing runs and print the tables; with --table only print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=STAGES, default="small")
    parser.add_argument("--only", default="", help="names of variants, with semicolons between; by default all")
    add_sources(parser)
    parser.add_argument("--table", action="store_true", help="print what there is, and make no runs")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    journal = arguments.out / "results.jsonl"
    done = read(journal)
    if not arguments.table:
        only = [name.strip() for name in arguments.only.split(";") if name.strip()]
        for seed in range(arguments.seeds):
            for name, (configuration, settings) in STAGES[arguments.stage].items():
                key = {"stage": arguments.stage, "variant": name, "seed": seed}
                if (only and name not in only) or any(key.items() <= row.items() for row in done):
                    continue
                small = [] if arguments.stage == "full" else SMALL
                row = key | run(arguments, configuration, [*small, *settings], seed)
                done.append(row)
                with journal.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)
    for stage in STAGES:
        print(table([row for row in done if row["stage"] == stage], stage, STAGES[stage]), end="")
    print(which_epoch(done), end="")


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Add the options of every script that trains with `run`."""
    clothing = SHARED / "data" / "clothing"
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch; 1 where other work shares the machine")
    parser.add_argument("--root", type=Path, default=clothing / "train")
    parser.add_argument("--val_root", type=Path, default=clothing / "validation")
    parser.add_argument("--weights", type=Path, default=SHARED / "weights" / "mobilenetv2_100.in1k_tf_same.safetensors")
    parser.add_argument("--out", type=Path, default=REPO / "runs" / "ablation")


def read(journal: Path) -> list[dict[str, Any]]:
    """Read the results of the runs made so far."""
    return [json.loads(line) for line in journal.read_text().splitlines()] if journal.is_file() else []


def run(
    arguments: argparse.Namespace, configuration: str, settings: list[str], seed: int, keep: Path | None = None
) -> dict[str, Any]:
    """Make one fit and return the best checkpoint's figures on the validation photos, not augmented.

    Args:
        arguments: of `add_sources`.
        configuration: a file of settings.
        settings: further ones.
        seed: of the network and of the photos.
        keep: where the best checkpoint is moved; None throws it away.
    """
    with tempfile.TemporaryDirectory(prefix="run-", dir=arguments.out) as folder:
        figures = _run(arguments, configuration, settings, seed, Path(folder))
        if keep is not None:
            (Path(folder) / "best.ckpt").replace(keep)
        return figures


def _run(
    arguments: argparse.Namespace, configuration: str, settings: list[str], seed: int, folder: Path
) -> dict[str, Any]:
    command = [
        sys.executable, "-m", "lightning_module", "fit", f"--config={configuration}", f"--data.root={arguments.root}",
        f"--data.val_root={arguments.val_root}", f"--model.weights={arguments.weights}", "--model.pad_type=same",
        "--model.bn_eps=0.001", "--model.mean=0.5", "--model.std=0.5", f"--seed_everything={seed}",
        f"--data.seed={seed}", f"--num_threads={arguments.threads}", "--hand_over.enabled=false",
        "--data.store_ram_share=0",  # so that the decoded photos are kept on disk for the next run
        f"--trainer.default_root_dir={folder}", *settings,
    ]  # fmt: skip
    start = time.perf_counter()
    finished = subprocess.run(
        command, cwd=REPO, env=ALLOCATOR | os.environ, capture_output=True, text=True, check=False
    )
    if finished.returncode:
        raise SystemExit(f"{' '.join(command)}\n{finished.stdout[-1000:]}{finished.stderr[-3000:]}")
    metrics = json.loads((folder / "metrics.json").read_text())
    return {
        "accuracy": metrics["final"]["accuracy"],
        "f1_macro": metrics["final"]["f1_macro"],
        "loss": metrics["final"]["loss"],
        "epochs": [{name: row[name] for name in MEASURED} for row in metrics["epochs"] if row.keys() >= MEASURED],
        "minutes": round((time.perf_counter() - start) / 60, 1),
    }


def table(rows: list[dict[str, Any]], stage: str, variants: Iterable[str]) -> str:
    """A stage's results as a Markdown table; differences to the first variant are between runs with the same seed."""
    if not rows:
        return ""
    lines = [
        f"\n{stage}:\n",
        "| variant | seeds | accuracy | macro F1 | loss | accuracy against the first, same seeds |",
        "|---|---|---|---|---|---|",
    ]
    names = list(variants)
    first = {row["seed"]: row for row in rows if row["variant"] == names[0]}
    for name in names:
        own = [row for row in rows if row["variant"] == name]
        if not own:
            continue
        differences = [row["accuracy"] - first[row["seed"]]["accuracy"] for row in own if row["seed"] in first]
        compared = "" if name == names[0] or not differences else f"{spread(differences, '+')}"
        columns = (spread([row[figure] for row in own]) for figure in ("accuracy", "f1_macro", "loss"))
        lines.append(f"| {name} | {len(own)} | {' | '.join(columns)} | {compared} |")
    return "\n".join(lines) + "\n"


def which_epoch(rows: list[dict[str, Any]]) -> str:
    """The accuracy of each run if another epoch had been kept, as a Markdown table."""
    lines = [
        "\nwhich epoch to keep:\n",
        "| variant | seeds | the last | lowest val/loss | highest val/accuracy (flattered: the same photos judge) |",
        "|---|---|---|---|---|",
    ]
    measured = [row for row in rows if len(row["epochs"]) > 1]
    for stage, name in dict.fromkeys((row["stage"], row["variant"]) for row in measured):
        curves = [row["epochs"] for row in measured if (row["stage"], row["variant"]) == (stage, name)]
        kept = {
            "last": [curve[-1] for curve in curves],
            "loss": [min(curve, key=lambda epoch: epoch["val/loss"]) for curve in curves],
            "accuracy": [max(curve, key=lambda epoch: epoch["val/accuracy"]) for curve in curves],
        }
        columns = (spread([epoch["val/accuracy"] for epoch in each]) for each in kept.values())
        lines.append(f"| {stage}: {name} | {len(curves)} | {' | '.join(columns)} |")
    return "\n".join(lines) + "\n" if measured else ""


def spread(numbers: list[float], sign: str = "") -> str:
    """The mean, and the standard deviation if there are several numbers."""
    text = f"{statistics.mean(numbers):{sign}.4f}"
    return f"{text} ± {statistics.stdev(numbers):.4f}" if len(numbers) > 1 else text


if __name__ == "__main__":
    main()
