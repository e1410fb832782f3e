"""Which of timm's families can be exported to a Keras `.h5`: the smallest model of each, with random weights.

    python benchmarks/networks/convertible_families.py              # trace and translate; about 10 minutes on 2 cores
    python benchmarks/networks/convertible_families.py --certify  # also prove each one in a real Keras
    python benchmarks/networks/convertible_families.py --seconds 150  # stop after that time; the next call continues

A family is a module of `timm.models`; its smallest model is the one with the fewest parameters. It counts as attention
if two computed values are multiplied as matrices, otherwise as a CNN if the windows of some convolution overlap,
otherwise as a mixer. Writes docs/families.md. Results are kept in the cache folder, so that the next call continues
where this one stopped; `--fresh` starts again. Exit code 1 if a model that converts is not the same function in Keras.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import fx, nn

from export.graph.record import NotTraced, Recording, operation_name, record
from export.graph.trace import NoKerasCounterpart, unknown_operations
from export.keras_file.layers import NoKerasLayer
from export.proof.parity import Pair, check_pairs
from export.torch_to_keras import write_twin
from export.worker.keras_process import KerasFailed
from models.bad_input import BadInput
from models.timm_mobilenetv2 import TimmClassifier

PAGE = Path(__file__).resolve().parents[2] / "docs" / "families.md"
CLASS_NAMES = ["jeans", "sofa", "tshirt", "tv"]
# In pixels; the first that the network accepts is used.
SIZES = (64, 96, 128, 224, 256, 384)
MATRIX_PRODUCTS = ("scaled_dot_product_attention", "matmul", "bmm", "baddbmm", "einsum")
KINDS = ("CNN", "attention", "mixer")
# Standard deviation of an image's logits: if larger, torch's own float32 rounding comes near the ladder's threshold.
SPREAD = 0.3
# So many models are loaded in one Keras process.
CERTIFIED_AT_ONCE = 4


def cache_folder() -> Path:
    """Return the folder for results and exported files."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shelftwin" / "families"


def families() -> dict[str, list[str]]:
    """Module of `timm.models` -> names of its models."""
    # the test_ models are tiny ones for timm's own tests; nobody trains them
    return {
        module: [name for name in timm.list_models(module=module) if not name.startswith("test_")]
        for module in timm.list_modules()
    }


def parameters(name: str) -> float:
    """Count a model's parameters without allocating them; infinite if timm cannot build it that way."""
    try:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in timm.create_model(name).parameters())
    except Exception:  # some models need real values to be built; another one of the family is taken
        return float("inf")


def smallest(names: list[str]) -> str:
    """Name of the model with the fewest parameters."""
    return min(names, key=lambda name: (parameters(name), name))


def shake(network: TimmClassifier) -> TimmClassifier:
    """Give every weight that starts as a constant (BatchNorm, biases, layer scales) a random value; in eval mode."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point() and tensor.numel() and not name.startswith("normalise"):
                flat = tensor.flatten()
                if bool((flat == flat[0]).all()):
                    tensor.add_(torch.randn_like(tensor) * 0.1)
    return network.eval()


def settle(network: TimmClassifier, size: int) -> None:
    """Scale the last layer so that the logits spread by about `SPREAD`.

    A deep random network can give logits of any size. If all were alike, or if one probability were 1, differences in
    the layers before would not show.
    """
    with torch.inference_mode():
        logits = network(torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0)))
        network.head.get_submodule("predictions").weight.mul_(SPREAD / float(logits.std(dim=1).mean()))


def save_checkpoint(network: TimmClassifier, size: int, path: Path) -> Path:
    """Write the checkpoint that `lightning fit` would write."""
    facts = {"class_names": CLASS_NAMES, "image_size": [size, size], "interpolation": "nearest", "trainable": "head"}
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    hyper_parameters = {**network.architecture, **facts, "learning_rate": 1e-3}
    torch.save({"state_dict": state, "hyper_parameters": hyper_parameters}, path)
    return path


def usable_size(network: nn.Module) -> int:
    """Find the smallest size that the network accepts.

    Raises:
        RuntimeError: it accepts none of `SIZES`.
    """
    reasons = []
    for size in SIZES:
        try:
            with torch.inference_mode():
                network(torch.zeros(2, 3, size, size))
            return size
        except Exception as error:  # a network can raise anything for a size that it does not accept
            reasons.append(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
    raise RuntimeError(f"takes none of {SIZES} pixels: {reasons[-1]}")


def named_operations(recording: Recording) -> list[tuple[str, fx.Node]]:
    """The operations of a recorded network, each with its name in ATen."""
    calls = (node for node in recording.graph.nodes if node.op == "call_function")
    return [(operation_name(node.target).removeprefix("aten."), node) for node in calls]


def has_overlapping_windows(recording: Recording) -> bool:
    """Whether some convolution's kernel is larger than its stride."""
    return any(
        node.args[1].meta["shape"][-1] > max(node.args[3][-1] if len(node.args) > 3 else 1, 1)
        for name, node in named_operations(recording)
        if name == "conv2d"
    )


def kind(recording: Recording) -> str:
    """What a network counts as; see the top of this file."""
    for name, operation in named_operations(recording):
        if name in MATRIX_PRODUCTS and sum(value.meta["computed"] for value in operation.all_input_nodes) > 1:
            return "attention"
    return "CNN" if has_overlapping_windows(recording) else "mixer"


def convert(name: str, folder: Path) -> dict[str, Any]:
    """Try one model. Returns ``model``, ``kind``, ``size``, ``converts``, ``reason`` (if it does not), ``layers``."""
    result: dict[str, Any] = {"model": name, "kind": "?", "converts": False, "layers": 0, "size": 0, "reason": ""}
    try:
        network = shake(TimmClassifier(len(CLASS_NAMES), backbone=name))
        result["size"] = size = usable_size(network)
        settle(network, size)
        recording = record(network, (size, size))
    except NotTraced as error:
        return {**result, "reason": f"not traced: {error.reason[:160]}"}
    except Exception as error:  # timm's models can raise anything; the table shows it
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        return {**result, "reason": f"not traced: {first_line[:160]}"}
    result["kind"] = kind(recording)
    checkpoint = save_checkpoint(network, size, folder / f"{name}.ckpt")
    try:
        result["layers"] = write_twin(checkpoint, folder / f"{name}.h5").layers
    except (NoKerasCounterpart, NoKerasLayer) as error:
        checkpoint.unlink()
        unknown = unknown_operations(recording)
        return {
            **result,
            "reason": f"no counterpart: {', '.join(unknown)}" if unknown else f"not exact: {error.reason}",
        }
    except (BadInput, KeyError, AssertionError) as error:
        checkpoint.unlink()
        return {**result, "reason": f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"}
    return {**result, "converts": True}


def certify(results: list[dict[str, Any]], folder: Path) -> None:
    """Prove models that convert, in one Keras process; adds ``verdict``, ``failed``, ``checks`` to the results."""
    chance = np.random.default_rng(0)
    pairs = []
    for result in results:
        photos = chance.integers(0, 256, (3, result["size"], result["size"], 3), dtype=np.uint8)
        pairs.append(Pair(folder / f"{result['model']}.ckpt", folder / f"{result['model']}.h5", photos))
    try:
        reports = check_pairs(pairs)
    except (BadInput, KerasFailed) as error:
        if len(results) > 1:  # try each alone to find out which one failed
            for result in results:
                certify([result], folder)
        else:
            results[0].update(verdict="FAIL", failed=[str(error).splitlines()[0][:160]])
        return
    for result, report in zip(results, reports, strict=True):
        result["verdict"] = report.verdict
        result["failed"] = [f"{check.name} {check.figure:.2g} at {check.first_divergence}" for check in report.failed]
        result["checks"] = {check.name: check.figure for check in report.checks}


HEADER = """# Which networks of timm convert

Written by `make families` (`benchmarks/networks/convertible_families.py`); not edited by hand. {date}, timm {timm},
torch {torch}.

The smallest model of each of timm's families, random weights: {converted} of {tried} convert; {certified} of them are
certified, which means that every check of `lightning parity` passed in a real Keras. A family is a module of
`timm.models`. Attention is what multiplies two computed values as matrices; a CNN has a convolution whose windows
overlap; the rest are mixers. Another model of a family may use other operations; the export says so, and names the
operation.

| family | kind | model | pixels | Keras layers | result | layers, float64 | probabilities |
|---|---|---|---|---|---|---|---|
"""


def page(results: dict[str, dict[str, Any]], date: str) -> str:
    """Write the table; families that convert come first."""
    order = sorted(results, key=lambda family: (not results[family]["converts"], family))
    text = HEADER.format(
        date=date, timm=timm.__version__, torch=torch.__version__.split("+")[0], tried=len(results),
        converted=sum(result["converts"] for result in results.values()),
        certified=sum(result.get("verdict") == "PASS" for result in results.values()),
    )  # fmt: skip
    untried = [family for family, names in families().items() if names and family not in results]
    rest = f"\nNot tried: {', '.join(untried)}.\n" if untried else ""
    return text + "".join(row(family, results[family]) for family in order) + rest


def row(family: str, result: dict[str, Any]) -> str:
    """One line of the table."""
    checks = result.get("checks", {})
    probabilities = max((figure for name, figure in checks.items() if name.startswith("probabilities")), default=None)
    said = {"PASS": "certified", "FAIL": "FAIL: " + "; ".join(result.get("failed", ()))}.get(
        result.get("verdict", ""), "converts, not certified"
    )
    cells = [
        family, result["kind"], result["model"], str(result["size"] or "-"), str(result["layers"] or "-"),
        said if result["converts"] else result["reason"].replace("|", "/"),
        f"{checks['layers_float64']:.1e}" if checks else "-",
        "-" if probabilities is None else f"{probabilities:.1e}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |\n"


def read_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--certify", action="store_true", help="prove what converts, in a real Keras")
    parser.add_argument("--only", nargs="+", metavar="FAMILY", help="modules of timm.models, done anew")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start nothing after so many")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    return parser.parse_args(argv)


def main() -> int:
    """Run what the command line asks for."""
    arguments = read_arguments()
    warnings.filterwarnings("ignore")  # from timm, for each model
    end = time.monotonic() + arguments.seconds
    folder = cache_folder()
    if arguments.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    store = folder / "checks.json"
    results: dict[str, dict[str, Any]] = json.loads(store.read_text()) if store.is_file() else {}
    for family in arguments.only or ():
        results.pop(family, None)

    def keep() -> None:
        store.write_text(json.dumps(results, indent=1))
        # what convertible_names.py has written stays
        rest = PAGE.read_text().partition("## Every name\n") if PAGE.is_file() else ("", "", "")
        PAGE.write_text(page(results, datetime.date.today().isoformat()) + "\n" * bool(rest[1]) + "".join(rest[1:]))

    for family, names in families().items():
        if not names or family in results or (arguments.only and family not in arguments.only):
            continue
        if time.monotonic() > end:
            break
        results[family] = convert(smallest(names), folder)
        print(row(family, results[family]), end="", flush=True)
        keep()
    waiting = [result for result in results.values() if result["converts"] and "verdict" not in result]
    while arguments.certify and waiting and time.monotonic() < end:
        part, waiting = waiting[:CERTIFIED_AT_ONCE], waiting[CERTIFIED_AT_ONCE:]
        certify(part, folder)
        keep()
        for result in part:
            print(result["model"], result["verdict"], *result["failed"], flush=True)
    keep()
    return 1 if any(result.get("verdict") == "FAIL" for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
