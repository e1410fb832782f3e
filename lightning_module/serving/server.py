"""Connections: how long a client may take, and how the service ends without losing an answer."""

import asyncio
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from lightning_module.serving.limits import Limits
from models.bad_input import BadInput

NOTICE_SECONDS = 1.0
"""How long the service goes on when it was told to stop: /healthz says so, and every answer closes its connection."""
BACKLOG = 2048


class _WithinTime(H11Protocol):
    """Uvicorn's, which would wait for ever for a client that sends its request drop by drop."""

    receive_seconds = 60.0
    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unwatch()

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._unwatch()  # the route watches the body
        else:
            self._watch()

    def on_response_complete(self) -> None:
        self._watch()
        super().on_response_complete()

    def _watch(self) -> None:
        if self._due is None:
            self._due = self.loop.call_later(self.receive_seconds, self._give_up)

    def _unwatch(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _give_up(self) -> None:
        self._due = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class Server(uvicorn.Server):
    """Uvicorn's server, which gives notice before it ends.

    Args:
        app: has `state.draining`.
        limits: for the connections.
        notice_seconds: between the signal and the end of the listening.
    """

    def __init__(self, app: Any, limits: Limits, notice_seconds: float = NOTICE_SECONDS) -> None:
        protocol = type("WithinTime", (_WithinTime,), {"receive_seconds": limits.receive_seconds})
        super().__init__(
            uvicorn.Config(
                app, http=protocol, ws="none", lifespan="off", log_level="warning", access_log=False,
                limit_concurrency=limits.connections, backlog=BACKLOG, server_header=False,
            )
        )  # fmt: skip
        self.app, self.notice_seconds = app, notice_seconds
        self.on_ready: Callable[[], None] = lambda: None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        self.on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Give notice, then answer what has come, and end.

        A client that sends on an open connection just as the server closes it cannot know whether its request was
        heard. So connections are closed with an answer first, and those that are idle only afterwards.
        """
        self.app.state.draining = True
        until = asyncio.get_running_loop().time() + self.notice_seconds
        while not self.force_exit and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end at SIGTERM or Ctrl-C; at the second Ctrl-C at once."""
        if not self.should_exit:
            print(f"lightning: {signal.Signals(sig).name}: answering what has come, then ending", file=sys.stderr)
        super().handle_exit(sig, frame)


def listen(host: str, port: int) -> socket.socket:
    """Take an address before anything expensive is done; whoever connects waits until the service is ready.

    Args:
        host: name or address, of IP version 4 or 6.
        port: 0 for any that is free.

    Raises:
        BadInput: it cannot be taken.
    """
    try:
        if not 0 <= port <= 65535:  # getaddrinfo would take the rest of a division
            raise OverflowError("ports are 0 to 65535")
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        taken = socket.socket(family, kind, protocol)
        if sys.platform != "win32":  # there it would let two services have one port
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(address)
        except OSError:
            taken.close()
            raise
    except (OSError, OverflowError) as error:
        raise BadInput(
            f"--host and --port: expected an address that can be listened at, received {host}, {port}: "
            f"{getattr(error, 'strerror', None) or error}. Choose another port, or --port 0 for any that is free."
        ) from error
    return taken


def address_of(taken: socket.socket) -> str:
    """Return the page's address."""
    host, port = taken.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
