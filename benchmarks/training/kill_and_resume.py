"""Kill `lightning fit` at random moments, repeat the command with --resume, and compare with an undisturbed run.

    python benchmarks/training/kill_and_resume.py --kills 50

It is killed with SIGKILL. Photos are drawn, the network is small, and a checkpoint is written after every step, so that
many kills hit a write. These are compared bit for bit: the weights, the state of the optimiser and of the callbacks
(early stopping, best checkpoint, moving average of the weights) in best.ckpt and last.ckpt, and metrics.json except for
its timings.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from datamodule.demo_photos import draw_catalogue

SETTINGS = (
    "--model.backbone=mobilenetv2_035", "--model.pretrained=false", "--model.hidden=[8]", "--model.trainable=all",
    "--model.dropout=0.3", "--data.image_size=32", "--data.batch_size=4", "--data.validation_split=0.25",
    "--data.augmentation.rotation_range=20", "--data.augmentation.horizontal_flip=true", "--trainer.accelerator=cpu",
    "--model.schedule.head_epochs=1", "--model.schedule.warmup_epochs=1", "--model.schedule.cosine=true",
    "--model.regularisation.mixup=0.2", "--model.regularisation.cutmix=1", "--model.regularisation.random_erasing=0.3",
    "--trainer.gradient_clip_val=1",
    "--trainer.callbacks+=lightning_module.fine_tuning.EmaOfWeights", "--trainer.callbacks.decay=0.9",
    "--trainer.max_epochs=5", "--hand_over.enabled=false", "--num_threads=1", "--last_checkpoint.minutes=0",
)  # fmt: skip
TIMINGS = ("seconds", "train_seconds", "images_per_second", "begun", "checkpoint_sha256")
"""checkpoint_sha256 is among them because the checkpoint contains timings."""
CONTROLS = {
    "loader": "from datamodule.photo_order import ResumableLoader as it; it.load_state_dict = lambda *_: None",
    "seed": "import lightning_module.run.last_checkpoint as it; it.BatchSeed.on_train_batch_start = lambda *_: None",
    "figures": "import lightning_module.run.last_checkpoint as it; it._add_figures = lambda *_: None",
    "modes": "import lightning_module.run.last_checkpoint as it; it._restore_what_learns = lambda *_: None",
}
"""Each disables a part on purpose, to see that the comparison notices."""
# Imports once and then forks for each command, because starting Python again takes many times as long as the fit. It
# uses one thread, because other threads do not survive a fork.
SERVER = """
import json, os, sys
import torch
torch.set_num_threads(1)
import lightning_module.commands.lightning_cli.training
from lightning_module.commands import cli
print("ready", flush=True)
for line in sys.stdin:
    patch, log, arguments = json.loads(line)
    child = os.fork()
    if not child:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1), os.dup2(out, 2)
        exec(patch)
        try:
            cli.main(arguments)
        except SystemExit as leaving:
            sys.stdout.flush()
            os._exit(leaving.code or 0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(70)
        sys.stdout.flush()
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Fits:
    """Runs `lightning fit` in forks of one process, or each time in a new Python process.

    Args:
        forks: whether to fork.
    """

    def __init__(self, forks: bool) -> None:
        self.environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
        self.server = None
        if forks:
            self.server = subprocess.Popen(
                [sys.executable, "-c", SERVER],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.environment,
            )  # fmt: skip
            assert self.server.stdout is not None
            assert self.server.stdout.readline() == "ready\n"

    def run(self, arguments: list[str], log: Path, patch: str = "", kill_after: float | None = None) -> int:
        """Run the command and return its exit code; below zero is the signal that ended it.

        Args:
            arguments: those after `fit`.
            log: the file for its output.
            patch: Python code to execute first.
            kill_after: seconds until SIGKILL, counted from the start in a fork, and in a process of its own from when
                the photos have been read.
        """
        arguments = ["fit", *arguments]
        if self.server is None:
            code = f"{patch}\nfrom lightning_module.commands.cli import main\nmain({arguments!r})"
            command = [sys.executable, *(("-c", code) if patch else ("-m", "lightning_module", *arguments))]
            with log.open("w") as out:
                process = subprocess.Popen(command, stdout=out, stderr=out, env=self.environment)
            if kill_after is not None:
                while process.poll() is None and "training and" not in log.read_text():
                    time.sleep(0.01)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(kill_after)
                process.kill()
            return process.wait()
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps([patch, str(log), arguments]) + "\n")
        self.server.stdin.flush()
        child = int(self.server.stdout.readline())
        if kill_after is not None:
            time.sleep(kill_after)
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        return int(self.server.stdout.readline())

    def close(self) -> None:
        """End the process that makes the forks."""
        if self.server is not None:
            self.server.kill()
            self.server.wait()


def differences(left: Any, right: Any, place: str = "") -> list[str]:
    """Names of what differs between two nested structures, bit for bit; timings and paths are left out."""
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        # Compare bytes, not values: then NaN equals itself, and 0.0 differs from -0.0.
        same = left.shape == right.shape and left.dtype == right.dtype
        same = same and left.contiguous().numpy().tobytes() == right.contiguous().numpy().tobytes()
        return [] if same else [place]
    if isinstance(left, dict) and isinstance(right, dict):
        names = [name for name in {**left, **right} if name not in TIMINGS and "path" not in str(name)]
        missing = [f"{place}/{name}" for name in names if (name in left) != (name in right)]
        shared = [name for name in names if name in left and name in right]
        return missing + [each for name in shared for each in differences(left[name], right[name], f"{place}/{name}")]
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        if len(left) != len(right):
            return [place]
        pairs = zip(left, right, strict=True)
        return [each for row, (a, b) in enumerate(pairs) for each in differences(a, b, f"{place}/{row}")]
    return [] if left == right or (left != left and right != right) else [place]


def differences_of_runs(left: Path, right: Path) -> list[str]:
    """Names of what differs between the checkpoints and metrics of two runs."""
    found = []
    for name in ("best.ckpt", "last.ckpt"):
        contents = [torch.load(run / name, weights_only=True) for run in (left, right)]
        for part in ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers"):
            found += differences(*(content.get(part) for content in contents), f"{name}/{part}")
        callbacks = [
            # the best checkpoint's state contains the folder's name, which differs
            {name: {**state, "dirpath": "", "best_k_models": list((state.get("best_k_models") or {}).values())}
             for name, state in content["callbacks"].items()}
            for content in contents
        ]  # fmt: skip
        found += differences(*callbacks, f"{name}/callbacks")
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (left, right)]
    return found + differences(*metrics, "metrics.json")


def kill_until_finished(
    fits: Fits, arguments: list[str], run: Path, rng: random.Random, longest: float, kills: int, patch: str = ""
) -> Counter:
    """Repeat the command with --resume, killing it at most `kills` times, then let it finish.

    Returns:
        How often it was killed, and where: before a checkpoint, within an epoch, at the end of one, while writing.
    """
    counts: Counter = Counter()
    log = run.with_suffix(".log")
    arguments = [*arguments, f"--trainer.default_root_dir={run}", "--resume"]
    while True:
        delay = rng.uniform(0, longest) if counts["kills"] < kills else None
        code = fits.run(arguments, log, patch, delay)
        if code == 0:
            return counts
        if code != -signal.SIGKILL:
            raise SystemExit(f"exit code {code}, expected 0 or a kill:\n{log.read_text()}")
        counts["kills"] += 1
        last = run / "last.ckpt"
        if list(run.glob(".*.tmp")):
            counts["while a file was being written"] += 1
        if not last.is_file():
            counts["before the first checkpoint"] += 1
            continue
        progress = torch.load(last, weights_only=True)["loops"]["fit_loop"]["epoch_progress"]["current"]
        within = progress["started"] != progress["processed"]
        counts["last checkpoint within an epoch" if within else "last checkpoint at the end of one"] += 1


def main() -> None:
    """Kill, resume, compare; print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--kills", type=int, default=50, help="at least so many, over as many runs as it takes")
    parser.add_argument("--per_run", type=int, default=12, help="at most so many in one run")
    parser.add_argument("--seed", type=int, default=None, help="of the moments")
    parser.add_argument("--processes", action="store_true", help="a new Python for each command, not a fork")
    parser.add_argument("--without", choices=CONTROLS, help="leave a part out: the runs must differ")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"random seed {seed}", flush=True)
    rng, fits, counts, differing = random.Random(seed), Fits(not given.processes), Counter(), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_catalogue(folder / "photos", per_class=12, seed=0)
        arguments = [*SETTINGS, f"--data.root={folder / 'photos'}"]
        started = time.monotonic()
        code = fits.run([*arguments, f"--trainer.default_root_dir={folder / 'peace'}"], folder / "peace.log")
        if code:
            raise SystemExit((folder / "peace.log").read_text())
        longest = min(time.monotonic() - started, 4.0)
        while counts["kills"] < given.kills:
            run = folder / f"run{counts['runs']}"
            counts["runs"] += 1
            patch = CONTROLS.get(given.without, "")
            counts += kill_until_finished(fits, arguments, run, rng, longest, given.per_run, patch)
            found = differences_of_runs(folder / "peace", run)
            differing += bool(found)
            said = f"run {counts['runs']}: {counts['kills']} kills so far, {len(found)} differences"
            print(said, *found[:3], flush=True)
    fits.close()
    for what, count in counts.items():
        print(f"{count:4d} {what}")
    print(f"{counts['runs'] - differing} of {counts['runs']} runs are bit for bit the one that was left in peace")
    raise SystemExit(bool(differing) != bool(given.without))


if __name__ == "__main__":
    main()
