"""Everything that waits for a GPU, in one run: `make gpu`.

    python benchmarks/training/gpu_check.py                          # drawn photos
    python benchmarks/training/gpu_check.py --root PHOTOS --weights FILE
    python benchmarks/training/gpu_check.py --device cpu --quick     # at a small size: shows only that the script works

Each check is made of the real commands, in a folder of its own, and is a row of the table at the end:

- both recipes: `lightning fit` to the end under configs/gpu.yaml, with the Keras twin and its proof;
- determinism: two fits with `--trainer.deterministic true` have the same weights, bit for bit;
- resume: a fit that was stopped at its first checkpoint and resumed has them, too;
- batch size: `--find_batch_size true` finds one and trains with it;
- predict: the labels of `--device cuda` are those of the CPU, and probabilities differ by less than 1e-4;
- throughput: gpu_throughput.py: a whole epoch has at least 0.95 of the speed of a step on a batch that is held in
  memory, and twice that of timm's loader and loop.

The exit code is 1 if a check fails. On a CPU the throughput says nothing and is not judged.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch

from datamodule.demo_photos import draw_catalogue

FOLDER = Path(__file__).resolve().parent
RECIPES = ("mobilenetv2", "finetune")
SMALL = (
    "--model.backbone=mobilenetv2_035", "--model.pretrained=false", "--model.train_size=null", "--data.image_size=32",
    "--data.batch_size=8", "--trainer.accelerator=cpu", "--trainer.max_epochs=2",
)  # fmt: skip
CLOSE = 1e-4
OF_STEP, OF_TIMM = 0.95, 2.0


class Failed(Exception):
    """A check has not held; says why."""


class Checks:
    """The checks; each returns what to say of it.

    Args:
        arguments: of the command line.
        folder: where the runs go.
    """

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments, self.folder = arguments, folder

    def lightning(self, *options: str, stop_when: Path | None = None) -> str:
        """Run the command; return what it printed.

        Args:
            options: after its name.
            stop_when: a file; when it is there, the command is told to stop.
        """
        command = [sys.executable, "-m", "lightning_module", *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
            while stop_when is not None and running.poll() is None:
                if stop_when.is_file():
                    running.terminate()
                    break
                time.sleep(0.05)
            printed = running.communicate()[0]
        expected = 0 if stop_when is None else 143  # as a shell says SIGTERM
        if running.returncode != expected:
            raise Failed(f"exit code {running.returncode}, not {expected}, of {' '.join(options)}:\n{printed[-3000:]}")
        return printed

    def fit(self, recipe: str, run: str, *options: str, stop: bool = False) -> str:
        """Run `lightning fit` under configs/gpu.yaml, or stop it at its first checkpoint; return what it printed."""
        weights = [f"--model.weights={self.arguments.weights}"] if self.arguments.weights else []
        untrained = [] if weights else ["--model.pretrained=false"]
        small = SMALL if self.arguments.quick else ("--trainer.accelerator=cpu",) if self.on_cpu else ()
        return self.lightning(
            "fit", f"--config={recipe}", "--config=gpu", f"--data.root={self.arguments.root}", *weights, *untrained,
            *small, *options, f"--trainer.default_root_dir={self.folder / run}",
            stop_when=self.folder / run / "last.ckpt" if stop else None,
        )  # fmt: skip

    @property
    def on_cpu(self) -> bool:
        """Whether there is no GPU to look at."""
        return self.arguments.device == "cpu"

    def recipes(self) -> str:
        """Fit both to the end; the command's exit code says whether the twins are the same."""
        said = []
        for recipe in RECIPES:
            self.fit(recipe, recipe)
            figures = json.loads((self.folder / recipe / "metrics.json").read_text())
            said.append(f"{recipe} accuracy {figures['final']['accuracy']:.3f}, twins the same")
        return "; ".join(said)

    def short(self, run: str, *options: str, stop: bool = False) -> dict[str, torch.Tensor]:
        """Fit for five epochs with the same bits every time; return the weights."""
        self.fit(
            "finetune", run, "--trainer.max_epochs=5", "--trainer.deterministic=true", "--trainer.benchmark=false",
            "--hand_over.enabled=false", "--last_checkpoint.minutes=0", *options, stop=stop,
        )  # fmt: skip
        return torch.load(self.folder / run / "last.ckpt", map_location="cpu", weights_only=True)["state_dict"]

    @cached_property
    def undisturbed(self) -> dict[str, torch.Tensor]:
        """The weights of a short fit, which others are compared with."""
        return self.short("undisturbed")

    def determinism(self) -> str:
        """Compare two fits."""
        return _same(self.undisturbed, self.short("again"))

    def resume(self) -> str:
        """Compare a fit that was stopped and resumed with one that was not."""
        self.short("stopped", stop=True)
        return _same(self.undisturbed, self.short("stopped", "--resume=true"))

    def batch_size(self) -> str:
        """Look for the largest batch, and train an epoch with it."""
        options = ("--trainer.max_epochs=1", "--find_batch_size=true", "--hand_over.enabled=false")
        printed = self.fit("mobilenetv2", "batch_size", *options)
        return next(line for line in printed.splitlines() if line.startswith("--data.batch_size"))

    def predict(self) -> str:
        """Compare the rows of both devices."""
        rows, best = {}, self.folder / RECIPES[-1] / "best.ckpt"
        if not best.is_file():  # where this check is made alone
            self.fit(RECIPES[-1], RECIPES[-1])
        for device in ("cpu", self.arguments.device):
            out = self.folder / f"{device}.csv"
            self.lightning("predict", str(best), str(self.arguments.root), f"--out={out}", f"--device={device}")
            rows[device] = list(csv.DictReader(out.open()))
        pairs = list(zip(rows["cpu"], rows[self.arguments.device], strict=True))
        differing = sum(here["label"] != there["label"] for here, there in pairs)
        apart = max(abs(float(here["probability"]) - float(there["probability"])) for here, there in pairs)
        said = f"{len(pairs)} photos, {differing} labels differ, probabilities by {apart:.1e} at most"
        if differing or apart >= CLOSE:
            raise Failed(said)
        return said

    def throughput(self) -> str:
        """Judge the ratios of gpu_throughput.py."""
        small = ["--image_size=32", "--train_size=24", "--batch_size=8", "--photos=80", "--rounds=1", "--workers=0"]
        command = [sys.executable, str(FOLDER / "gpu_throughput.py"), f"--device={self.arguments.device}"]
        command += [*small, "--backbone=mobilenetv2_035"] if self.arguments.quick else []
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            raise Failed(done.stdout[-3000:])
        print(done.stdout)
        figures = json.loads(done.stdout.strip().splitlines()[-1])
        names = ("epoch_over_step", "epoch_over_timm")
        ratios = {mode: [figures[mode][name] for name in names] for mode in ("head", "all")}
        said = "; ".join(f"{mode}: {step} of the step, {timm} times timm" for mode, (step, timm) in ratios.items())
        if not self.on_cpu and any(step < OF_STEP or timm < OF_TIMM for step, timm in ratios.values()):
            raise Failed(said)
        return f"{figures['device']}: {said}"


def main() -> int:
    """Make the checks and print the table; return how many failed, at most 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="one folder per class; drawn photos where it is left out")
    parser.add_argument("--weights", type=Path, help="pretrained weights; untrained networks where it is left out")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small and short")
    parser.add_argument("--only", help="one of the checks")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("expected a GPU, found none. Give --device cpu --quick to try the script without one.")
    failed = 0
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        if arguments.root is None:
            arguments.root = Path(folder) / "photos"
            draw_catalogue(arguments.root, per_class=10 if arguments.quick else 500, seed=0)
        checks = Checks(arguments, Path(folder))
        every: tuple[Callable[[], str], ...] = (
            checks.recipes, checks.determinism, checks.resume, checks.batch_size, checks.predict, checks.throughput,
        )  # fmt: skip
        for check in every:
            if arguments.only not in (None, check.__name__):
                continue
            started = time.perf_counter()
            try:
                said, verdict = check(), "PASS"
            except Failed as error:
                said, verdict, failed = str(error), "FAIL", 1
            print(f"{verdict} {check.__name__}: {said}", flush=True)
            rows.append((check.__name__, verdict, said.splitlines()[0], time.perf_counter() - started))
    name = "CPU" if arguments.device == "cpu" else torch.cuda.get_device_name()
    print(f"\n{name}\n\n| check | | | seconds |\n|---|---|---|---|")
    for check_name, verdict, said, seconds in rows:
        print(f"| {check_name.replace('_', ' ')} | {verdict} | {said} | {seconds:.0f} |")
    return failed


def _same(these: dict[str, torch.Tensor], those: dict[str, torch.Tensor]) -> str:
    other = [name for name, tensor in these.items() if not torch.equal(tensor, those[name])]
    if other:
        raise Failed(f"{len(other)} of {len(these)} tensors differ, such as {other[0]}")
    return f"{len(these)} tensors are the same, bit for bit"


if __name__ == "__main__":
    sys.exit(main())
