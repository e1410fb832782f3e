"""Load on `lightning serve`, beside a Keras model behind FastAPI, written plainly: on loopback, with the same photos.

    python benchmarks/serving/serve_load.py RUN PHOTOS [--seconds 30] [--clients 8] [--json FILE]

For each service: requests per second, the median and the 99th percentile of the seconds that one takes, and how many
answers were wrong. All of them run and take turns, so that what else the machine does falls on all. Each client asks,
waits for the answer, compares it, and asks again. Each answer of ours is compared with what `lightning predict` writes
of the photo; one of the bare service with the label that its Keras gives alone.

Then come uploads of 50 MB and clients that send drop by drop, and the most memory that the service takes is read. At
last comes SIGTERM while all clients ask, and every request that was sent must have its answer.
"""

import argparse
import asyncio
import csv
import itertools
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil

HERE = Path(__file__).resolve().parent
BARE = HERE / "bare_keras_service.py"
LARGE = 50_000_000
UPLOADS, DRIPPING = 16, 50
ROUNDS = 6
"""The services take turns, so that whatever else the machine does falls on all of them."""


class Load(NamedTuple):
    """What was measured: seconds of each request, answers that were wrong, requests that got none."""

    seconds: list[float]
    wrong: int
    lost: list[str]
    lasted: float

    def row(self) -> dict[str, Any]:
        """For a table."""
        ordered = sorted(self.seconds)
        return {
            "requests": len(ordered),
            "per_second": round(len(ordered) / self.lasted, 1),
            "p50_ms": round(1000 * statistics.median(ordered), 1),
            "p99_ms": round(1000 * ordered[int(0.99 * (len(ordered) - 1))], 1),
            "wrong": self.wrong,
            "lost": len(self.lost),
        }


class Side(NamedTuple):
    """A service: its name, its process, where it listens, what is right of each photo, and what was measured."""

    name: str
    process: psutil.Process
    url: str
    right: dict[str, Any]
    loads: list[Load]


def joined(loads: list[Load]) -> Load:
    """All turns of a service as one."""
    return Load(
        [seconds for each in loads for seconds in each.seconds],
        sum(each.wrong for each in loads),
        [error for each in loads for error in each.lost],
        sum(each.lasted for each in loads),
    )


@contextmanager
def running(command: list[Any], port: int) -> Iterator[psutil.Process]:
    """Start a service, wait until it answers, and end it."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([str(each) for each in command], stdout=said, stderr=said, env=environment)
        try:
            until = time.monotonic() + 300
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > until:
                        said.seek(0)
                        sys.exit(said.read().decode(errors="replace"))
                    time.sleep(0.2)
            yield psutil.Process(process.pid)
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(60)


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


async def load(url: str, photos: list[Path], expected: dict[str, Any], clients: int, seconds: float) -> Load:
    """Ask in bounded loops: each client has one request on the way."""
    contents = {photo: photo.read_bytes() for photo in photos}
    took: list[float] = []
    wrong, lost, began = 0, [], time.perf_counter()

    async def ask(number: int) -> None:
        nonlocal wrong
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:
            for photo in itertools.islice(itertools.cycle(photos), number * 7, None):
                if time.perf_counter() - began >= seconds:
                    return
                start = time.perf_counter()
                try:
                    answer = await client.post("/predict", files={"photos": (photo.name, contents[photo])})
                except httpx.HTTPError as error:
                    lost.append(repr(error))
                    return
                took.append(time.perf_counter() - start)
                wrong += answer.status_code != 200 or said(answer.json()) != expected[str(photo)]

    await asyncio.gather(*(ask(number) for number in range(clients)))
    return Load(took, wrong, lost, time.perf_counter() - began)


def said(answer: dict[str, Any]) -> Any:
    """What is compared: of ours all labels with their probabilities, from every twin; of the bare service its label."""
    if "photos" not in answer:
        return answer["label"]
    twins = answer["photos"][0]["twins"].values()
    rows = {tuple((each["label"], f"{each['probability']:.3f}") for each in twin["labels"]) for twin in twins}
    return rows.pop() if len(rows) == 1 else rows


async def until_sigterm(process: psutil.Process, url: str, photos: list[Path], expected: dict, clients: int) -> dict:
    """Ask, send SIGTERM after two seconds, and count. A client leaves when its connection is closed with an answer."""
    contents = {photo: photo.read_bytes() for photo in photos}
    answered, after, wrong, lost, told = 0, 0, 0, [], False

    async def ask(number: int) -> None:
        nonlocal answered, after, wrong
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:
            for photo in itertools.islice(itertools.cycle(photos), number * 7, None):
                try:
                    answer = await client.post("/predict", files={"photos": (photo.name, contents[photo])})
                except httpx.ConnectError:
                    return  # nobody listens any more; nothing was sent
                except httpx.HTTPError as error:
                    lost.append(repr(error))
                    return
                answered += 1
                after += told
                wrong += answer.status_code != 200 or said(answer.json()) != expected[str(photo)]
                if answer.headers.get("connection") == "close":
                    return

    async def tell() -> None:
        nonlocal told
        await asyncio.sleep(2)
        told = True
        process.send_signal(signal.SIGTERM)

    await asyncio.gather(tell(), *(ask(number) for number in range(clients)))
    code = await asyncio.to_thread(process.wait, 60)
    return {"answered": answered, "of_them_after_sigterm": after, "wrong": wrong, "lost": len(lost), "exit_code": code}


async def memory_under_stress(process: psutil.Process, url: str) -> dict[str, Any]:
    """Uploads of 50 MB from all sides while others send drop by drop; the most memory of the service and its Keras."""
    host, port = re.fullmatch(r"http://(\S+):(\d+)", url).groups()  # type: ignore[union-attr]
    before, most, ended = resident(process), 0, False

    async def watch() -> None:
        nonlocal most
        while not ended:
            most = max(most, resident(process))
            await asyncio.sleep(0.02)

    async def drip() -> None:
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9")
        while not ended:
            writer.write(b"9")
            await asyncio.sleep(0.5)
        writer.close()

    async def upload() -> int:
        async with httpx.AsyncClient(base_url=url, timeout=300) as client:
            return (await client.post("/predict", files={"photos": ("a.jpg", bytes(LARGE))})).status_code

    others = [asyncio.create_task(watch()), *(asyncio.create_task(drip()) for _ in range(DRIPPING))]
    statuses = await asyncio.gather(*(upload() for _ in range(UPLOADS)))
    ended = True
    await asyncio.gather(*others, return_exceptions=True)
    return {
        "uploads_of_50_MB": UPLOADS,
        "statuses": {status: statuses.count(status) for status in sorted(set(statuses))},
        "drop_by_drop": DRIPPING,
        "MiB_before": before >> 20,
        "MiB_at_most": most >> 20,
    }


def resident(process: psutil.Process) -> int:
    """Bytes in memory of a process and those that it started."""
    return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))


def predicted(model: Path, photos: list[Path]) -> dict[str, Any]:
    """Photo's path -> labels and probabilities that `lightning predict` writes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "p.csv"
        command = [sys.executable, "-m", "lightning_module", "predict", model, *photos, "--out", out]
        subprocess.run([str(each) for each in command], check=True, stdout=subprocess.DEVNULL)
        with out.open(newline="") as file:
            rows = list(csv.reader(file))[1:]
    return {row[0]: tuple(zip(row[1::2], row[2::2], strict=True)) for row in rows}


def main() -> None:
    """Run all of it and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--count", type=int, default=64, help="photos")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    photos = sorted(given.photos.rglob("*.jpg"))
    photos = photos[:: max(1, len(photos) // given.count)][: given.count]
    expected = predicted(given.run / "model.h5", photos)
    ours = [sys.executable, "-m", "lightning_module", "serve", given.run]
    found: dict[str, Any] = {"cores": psutil.cpu_count(), "photos": len(photos), "clients": given.clients}
    services = {f"lightning serve --twin {twin}": [*ours, "--twin", twin] for twin in ("keras", "torch", "both")}
    services["bare Keras + FastAPI"] = [sys.executable, BARE, given.run / "model.h5", given.run / "labels.json"]
    with ExitStack() as stack:
        sides = []
        for name, command in services.items():
            port, bare = free_port(), name.startswith("bare")
            right = {photo: rows[0][0] for photo, rows in expected.items()} if bare else expected
            process = stack.enter_context(running([*command, port] if bare else [*command, "--port", port], port))
            sides.append(Side(name, process, f"http://127.0.0.1:{port}", right, []))
        for turn in range(ROUNDS + 1):  # the first one is to get warm
            for side in sides:
                seconds = given.seconds / ROUNDS if turn else 3
                loaded = asyncio.run(load(side.url, photos, side.right, given.clients, seconds))
                if turn:
                    side.loads.append(loaded)
        for side in sides:
            found[side.name] = joined(side.loads).row()
            print(f"{side.name}: {found[side.name]}", flush=True)
        for name, process, url, right, _ in sides:
            if name.startswith("bare"):
                continue
            if name.endswith("both"):
                found["memory"] = asyncio.run(memory_under_stress(process, url))
                print(f"memory: {found['memory']}", flush=True)
            found[f"{name}, SIGTERM"] = asyncio.run(until_sigterm(process, url, photos, right, given.clients))
            print(f"{name}, SIGTERM: {found[f'{name}, SIGTERM']}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
