"""The command in a process of its own: how it begins and ends, and clients that are slow, large or rude."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest

from lightning_module.serving.limits import MIB
from tests.conftest import ROOT, lightning, random_classifier, save_checkpoint
from tests.lightning_module.serving.conftest import form


class Command:
    """`lightning serve`, running."""

    def __init__(self, checkpoint: Path, *options: str) -> None:
        command = [sys.executable, "-m", "lightning_module", "serve", str(checkpoint), "--port=0", *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a test run in the background ignores it
        )  # fmt: skip
        assert self.process.stdout is not None
        self.said = []
        for line in self.process.stdout:
            self.said.append(line)
            if found := re.match(r"(http://\S+:\d+) has the page", line):
                self.url = found[1]
                return
        raise AssertionError(self.process.communicate()[1])

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").rsplit(":", 1)
        return host, int(port)

    def memory(self) -> int:
        """Bytes of the process that are in memory."""
        return psutil.Process(self.process.pid).memory_info().rss

    def end(self, number: int = signal.SIGTERM, seconds: float = 60) -> tuple[int, str]:
        """Exit code, and what was said on standard error."""
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=seconds)
        return self.process.returncode, said


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Of a network that another process knows by name, too."""
    network = random_classifier(backbone="mobilenetv2_035", hidden=(16,))
    return save_checkpoint(tmp_path_factory.mktemp("served") / "best.ckpt", network, (48, 40))


@pytest.fixture
def start(checkpoint):
    started: list[Command] = []

    def begin(*options: str) -> Command:
        started.append(Command(checkpoint, *options))
        return started[-1]

    yield begin
    for each in started:
        each.process.kill()
        each.process.communicate()


@pytest.mark.slow
def test_sigterm_loses_no_request(start, photos):
    """Clients with a connection of their own ask as fast as they can; each request that was sent is answered."""
    service = start()
    with httpx.Client(base_url=service.url) as client:
        expected = {each: client.post("/predict", files=form(each)).json()["photos"][0]["labels"] for each in photos}
    told = threading.Event()
    answered, lost, wrong, health = [], [], [], []

    def ask(number: int) -> None:
        with httpx.Client(base_url=service.url, timeout=60) as client:
            while True:
                photo = photos[(number + len(answered)) % len(photos)]
                try:
                    answer = client.post("/predict", files=form(photo))
                except httpx.ConnectError:  # nobody listens any more, so nothing was sent
                    assert told.is_set()
                    return
                except httpx.HTTPError as error:
                    lost.append(repr(error))
                    return
                answered.append(answer.status_code)
                if answer.json()["photos"][0]["labels"] != expected[photo]:
                    wrong.append(photo)
                if answer.headers.get("connection") == "close":
                    return  # as the server asks

    clients = [threading.Thread(target=ask, args=(each,)) for each in range(6)]
    for each in clients:
        each.start()
    while len(answered) < 40:
        time.sleep(0.01)
    told.set()
    service.process.send_signal(signal.SIGTERM)
    with httpx.Client(base_url=service.url) as client:
        try:
            health.append(client.get("/healthz").status_code)
        except httpx.HTTPError as error:
            health.append(repr(error))
    for each in clients:
        each.join(60)
    _, said = service.process.communicate(timeout=60)
    assert service.process.returncode == 143
    assert (lost, wrong, {*answered}) == ([], [], {200})
    assert health[0] in (200, 503)
    assert "answering what has come" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_ctrl_c_ends_it_and_a_taken_port_is_bad_input(start, checkpoint, capsys):
    service = start()
    assert lightning("serve", checkpoint, f"--port={service.address[1]}") == 2
    assert "--host and --port" in capsys.readouterr().err
    code, said = service.end(signal.SIGINT)
    assert code == 130
    assert "Traceback" not in said


@pytest.mark.slow
def test_memory_stays_bounded(start, photos):
    """With uploads of 50 MB, of which most are refused, and with clients that send drop by drop."""
    service = start("--receive_seconds=8")
    with httpx.Client(base_url=service.url, timeout=120) as client:
        for each in photos:
            client.post("/predict", files=form(each))
        before = service.memory()
        most = [before]
        watching = threading.Event()

        def watch() -> None:
            while not watching.wait(0.02):
                most.append(service.memory())

        watcher = threading.Thread(target=watch)
        watcher.start()
        dripping = []
        for _ in range(40):
            each = socket.create_connection(service.address)
            each.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Le")
            dripping.append(each)
        large = b"x" * 50_000_000
        statuses: list[int] = []

        def upload() -> None:
            with httpx.Client(base_url=service.url, timeout=120) as own:
                statuses.append(own.post("/predict", files=form(("a.jpg", large))).status_code)

        threads = [threading.Thread(target=upload) for _ in range(7)]
        for each in threads:
            each.start()
        for each in threads:
            each.join(120)
        assert client.post("/predict", files=form(photos[0])).status_code == 200
        until = time.monotonic() + 20
        while time.monotonic() < until and any(is_open(each) for each in dripping):
            time.sleep(0.1)
        watching.set()
        watcher.join()
    assert len(statuses) == 7
    assert set(statuses) <= {422, 429, 408}  # they are no photos, there was no room, or the machine is busy
    assert not any(is_open(each) for each in dripping)
    # at most 4 x 64 MiB of bodies, and a copy of each while it is read
    assert max(most) - before < 2 * 4 * 64 * MIB, (before, max(most))


def is_open(connection: socket.socket) -> bool:
    connection.settimeout(0.01)
    try:
        return connection.recv(1) != b""
    except TimeoutError:
        return True
    except OSError:
        return False
