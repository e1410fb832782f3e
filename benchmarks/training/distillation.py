"""What a teacher is worth: EfficientNet-Lite fine-tuned on the clothing photos, and MobileNetV2 that learns from it.

    python benchmarks/training/distillation.py --stage small_teachers  # fine-tunes and keeps them, at a small size
    python benchmarks/training/distillation.py --stage small           # their students, to choose settings by
    python benchmarks/training/distillation.py --stage teachers        # the same as configs/finetune.yaml has them
    python benchmarks/training/distillation.py --stage full
    python benchmarks/training/distillation.py --table                 # the results so far

As in ablation.py every run is the real command, is measured on validation photos alone, and is written to a journal at
once: the script can be stopped and started again. Small students hold out half of the training photos, and learn from
teachers that have held out the same half (`small_teachers`).
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ablation import FINETUNE, MIXED, NO_SMOOTHING, SHARED, SMALL, add_sources, epochs, read, run, table


class Teacher(NamedTuple):
    """A network that is fine-tuned as a teacher.

    Attributes:
        backbone: its name in timm.
        weights: file in the folder of weights.
        image_size: pixels that it was made for.
        settings: additional ones. A teacher that learnt from smoothed labels says less (Müller et al. 2019).
    """

    backbone: str
    weights: str
    image_size: int
    settings: Sequence[str] = ()


TEACHERS = {
    "lite0": Teacher("tf_efficientnet_lite0", "tf_efficientnet_lite0.in1k.safetensors", 244),
    "lite2": Teacher("tf_efficientnet_lite2", "tf_efficientnet_lite2.in1k.safetensors", 260),
    "lite2 without smoothing": Teacher(
        "tf_efficientnet_lite2", "tf_efficientnet_lite2.in1k.safetensors", 260, NO_SMOOTHING
    ),
}
PATIENT = [*epochs(36), *MIXED]
STUDENTS: dict[str, tuple[list[str], list[str]]] = {
    "no teacher": ([], []),
    "no teacher, three times the epochs, mixed": ([], PATIENT),
    "lite0": (["lite0"], []),
    "lite2": (["lite2"], []),
    "lite2 without smoothing": (["lite2 without smoothing"], []),
    "lite2 without smoothing, half of the loss": (
        ["lite2 without smoothing"], ["--model.distillation.weight=0.5"],
    ),
    "lite2 without smoothing, half of the loss, twice the epochs": (
        ["lite2 without smoothing"], ["--model.distillation.weight=0.5", *epochs(24)],
    ),
    "both": (["lite0", "lite2"], []),
    "both, temperature 2": (["lite0", "lite2"], ["--model.distillation.temperature=2"]),
    "both, half of the loss": (["lite0", "lite2"], ["--model.distillation.weight=0.5"]),
    "both, mixed": (["lite0", "lite2"], MIXED),
    "both, three times the epochs, mixed": (["lite0", "lite2"], PATIENT),
    "both, three times the epochs, mixed, no smoothing": (
        ["lite0", "lite2"], [*PATIENT, *NO_SMOOTHING],
    ),
}  # fmt: skip
"""name -> (teachers, additional settings)."""
STAGES = ("small_teachers", "teachers", "small", "full")


def main() -> None:
    """Make the missing runs of a stage and print the tables; with --table only print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=STAGES, default="small_teachers")
    parser.add_argument("--only", default="", help="names, with semicolons between; by default all")
    parser.add_argument("--quick", action="store_true", help="one epoch at 32 pixels: shows only that the script works")
    add_sources(parser)
    parser.add_argument("--table", action="store_true", help="print what there is, and make no runs")
    arguments = parser.parse_args()
    (arguments.out / "checkpoints").mkdir(parents=True, exist_ok=True)
    journal = arguments.out / "distillation.jsonl"
    done = read(journal)
    only = {name.strip() for name in arguments.only.split(";") if name.strip()}
    names = TEACHERS if arguments.stage.endswith("teachers") else STUDENTS
    for seed in range(0 if arguments.table else arguments.seeds):
        for name in names:
            key = {"stage": arguments.stage, "variant": name, "seed": seed}
            if (only and name not in only) or any(key.items() <= row.items() for row in done):
                continue
            done.append(key | _result(arguments, name, seed))
            with journal.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
            print(json.dumps(done[-1]), flush=True)
    for stage in STAGES:
        names = TEACHERS if stage.endswith("teachers") else STUDENTS
        print(table([row for row in done if row["stage"] == stage], stage, names), end="")


def _result(arguments: argparse.Namespace, name: str, seed: int) -> dict[str, object]:
    small = SMALL if arguments.stage.startswith("small") else []
    quick = ["--data.image_size=32", "--model.train_size=24", *epochs(1)] if arguments.quick else []
    if arguments.stage.endswith("teachers"):
        teacher = TEACHERS[name]
        settings = [
            f"--model.backbone={teacher.backbone}", f"--model.weights={SHARED / 'weights' / teacher.weights}",
            f"--data.image_size={teacher.image_size}", "--model.pad_type=null", "--model.bn_eps=null",
            *teacher.settings, *small, *quick,
        ]  # fmt: skip
        return run(arguments, FINETUNE, settings, seed, keep=_place(arguments, name, seed))
    teachers, settings = STUDENTS[name]
    files = [_place(arguments, each, seed) for each in teachers]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise SystemExit(
            f"No teacher {missing[0]}. Fine-tune the teachers first: --stage {_stage_of_teachers(arguments)}"
        )
    taught = [f"--model.teacher={json.dumps([str(file) for file in files])}"] if files else []
    return run(arguments, FINETUNE, [*small, *taught, *settings, *quick], seed, keep=_place(arguments, name, seed))


def _stage_of_teachers(arguments: argparse.Namespace) -> str:
    return "small_teachers" if arguments.stage.startswith("small") else "teachers"


def _place(arguments: argparse.Namespace, name: str, seed: int) -> Path:
    stage = _stage_of_teachers(arguments) if name in TEACHERS else arguments.stage
    place: Path = arguments.out / "checkpoints" / f"{stage}-{name.replace(' ', '_')}-{seed}.ckpt"
    return place.resolve()


if __name__ == "__main__":
    main()
