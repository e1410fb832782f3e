"""Which of timm's names can be exported to a Keras `.h5`: every one below 150 million weights, at its own size.

    nice python benchmarks/networks/convertible_names.py               # about half an hour on one core; resumable
    nice python benchmarks/networks/convertible_names.py --seconds 150  # stop after that time; the next call continues
    python benchmarks/networks/convertible_names.py --only resnet50 --fresh  # some names, done anew

Only shapes are computed (torch's meta device), so no name needs its weights or much memory: the network is recorded,
traced and translated into Keras's layers. That the layers compute the same is proved elsewhere, by
`convertible_families.py --certify` and the tests. Every result is a line of JSON in the cache folder. Writes the
section "Every name" of docs/families.md.

CNN, attention and mixer mean what they mean there.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import re
import sys
import time
import warnings
from collections import Counter
from typing import Any

import timm
import torch
from convertible_families import KINDS, PAGE, cache_folder, kind
from torch import Tensor

from export.graph.record import NotTraced, Recording, record
from export.graph.trace import trace_graph
from export.keras_file.layers import keras_layers
from models.bad_input import BadInput

MOST_WEIGHTS = 150e6
HEADING = "## Every name\n"


def with_zeros(recording: Recording) -> Recording:
    """Give all weights and constants of the meta device a value; one zero in memory stands for all of a tensor."""
    known: dict[int, Tensor] = {}

    def zeros(tensor: Tensor) -> Tensor:
        if id(tensor) not in known:  # two names of one tensor stay one tensor
            known[id(tensor)] = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
        return known[id(tensor)] if tensor.is_meta else tensor

    recording.state.update({name: zeros(tensor) for name, tensor in recording.state.items()})
    for node in recording.graph.nodes:
        if "constant" in node.meta:
            node.meta["constant"] = zeros(node.meta["constant"])
    return recording


def convert(name: str) -> dict[str, Any]:
    """Try one name: ``name``, ``weights``, ``kind``, ``size``, and ``layers`` if it converts, else ``reason``."""
    result: dict[str, Any] = {"name": name, "kind": "?"}
    try:
        with torch.device("meta"):
            network = timm.create_model(name, num_classes=4)
        result["weights"] = sum(parameter.numel() for parameter in network.parameters())
        if result["weights"] >= MOST_WEIGHTS:
            return {**result, "kind": "large"}
        height, width = network.default_cfg["input_size"][1:]
        result["size"] = [height, width]
        recording = record(network, (height, width))
        result["kind"] = kind(recording)
        result["layers"] = len(keras_layers(trace_graph(with_zeros(recording))))
    except NotTraced as error:
        result["reason"] = f"not recorded: {error.reason}"
    except BadInput as error:
        result["reason"] = getattr(error, "reason", str(error))
    except Exception as error:  # timm's networks may raise anything on the meta device; the table shows it
        result["reason"] = f"{type(error).__name__}: {error}"
    return result


def section(results: list[dict[str, Any]], names: list[str]) -> str:
    """The section of the page."""
    tried = [result for result in results if result["name"] in set(names)]
    lines = [
        HEADING,
        "\nWritten by `benchmarks/networks/convertible_names.py`; not edited by hand. "
        f"{datetime.date.today().isoformat()}, "
        f"timm {timm.__version__}, torch {torch.__version__.split('+')[0]}.\n\n",
        f"{len(tried)} of the {len(names)} names of `timm.list_models()` were tried, in an order of chance, each at "
        "its own size with random weights: recorded, traced and translated into layers, without a Keras. Those of 150 "
        f"million weights and more ({sum(result['kind'] == 'large' for result in tried)}) are left out.\n\n",
        "| kind | names | convert | share |\n|---|---|---|---|\n",
    ]
    for each in KINDS:
        of_kind = [result for result in tried if result["kind"] == each]
        converted = sum("layers" in result for result in of_kind)
        share = f"{100 * converted / len(of_kind):.1f}%" if of_kind else "-"
        lines.append(f"| {each} | {len(of_kind)} | {converted} | {share} |\n")
    lines.append("\nWhat is refused, by operation:\n\n| kind | operation | names |\n|---|---|---|\n")
    refused = [result for result in tried if "reason" in result]
    for (of, why), _ in Counter((result["kind"], plain(result["reason"])) for result in refused).most_common():
        those = [result["name"] for result in refused if (result["kind"], plain(result["reason"])) == (of, why)]
        lines.append(f"| {of} | {why} | {', '.join(sorted(those))} |\n")
    return "".join(lines)


def plain(reason: str) -> str:
    """A reason without the numbers in which one network differs from the next."""
    return re.sub(r"\d+", "N", reason.splitlines()[0])[:120].replace("|", "/")


def write(results: list[dict[str, Any]], names: list[str]) -> None:
    """Put the section at the end of the page, in place of an older one."""
    before = PAGE.read_text().partition(HEADING)[0].rstrip("\n")
    PAGE.write_text(f"{before}\n\n{section(results, names)}")


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names of timm's")
    parser.add_argument("--refused", action="store_true", help="do those anew that were refused")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start nothing after so many")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results, of --only if given")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")  # from timm, for each model
    end, file = time.monotonic() + arguments.seconds, cache_folder() / "names.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    names = timm.list_models()
    results = {}
    if file.is_file():
        results = {each["name"]: each for each in map(json.loads, file.read_text().splitlines())}
    for name in list(results):
        again = arguments.fresh and name in (arguments.only or names)
        if again or (arguments.refused and "reason" in results[name]):
            del results[name]
    with file.open("w") as lines:
        lines.writelines(json.dumps(result) + "\n" for result in results.values())
    # in an order of chance, so that a part of the run is a fair sample
    for name in arguments.only or sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if name in results or time.monotonic() > end:
            continue
        results[name] = convert(name)
        with file.open("a") as lines:
            lines.write(json.dumps(results[name]) + "\n")
        print(name, results[name]["kind"], results[name].get("reason", "converts"), flush=True)
    write(list(results.values()), names)
    return 0


if __name__ == "__main__":
    sys.exit(main())
