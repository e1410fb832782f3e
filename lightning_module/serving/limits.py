"""What the service takes at most, and how it says that something is too much."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

MIB = 1 << 20


class Refused(Exception):
    """A request that is not answered with labels.

    Attributes:
        status: HTTP's code.
        code: the same in a word, for programs; the page has its words in each language.
        message: what was expected, what was received, what to do.
        photos: of each photo that is to blame: its `index`, `name` and `reason`.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        photos: list[dict[str, Any]] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.photos, self.headers = photos or [], headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """What is sent, for JSON."""
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        return {"error": {**error, "photos": self.photos} if self.photos else error}


@dataclass(frozen=True)
class Limits:
    """What is taken at most.

    Attributes:
        upload: bytes of a request.
        pixels: of a photo.
        photos: in a request.
        waiting: photos that are accepted and not yet answered.
        receive_seconds: until a request must have arrived.
        received: bytes of all requests that are not answered yet.
        connections: open at once.
    """

    upload: int = 64 * MIB
    pixels: int = 64_000_000
    photos: int = 64
    waiting: int = 256
    receive_seconds: float = 60.0
    received: int = field(default=0)
    connections: int = 1000

    def __post_init__(self) -> None:
        if not self.received:  # room for four of the largest
            object.__setattr__(self, "received", 4 * self.upload)


class Room:
    """Counts what is taken of something, and refuses more; for the event loop's thread alone.

    Args:
        most: that may be taken at once.
        unit: what it is, for the message.
    """

    def __init__(self, most: int, unit: str) -> None:
        self.most, self.unit, self.taken = most, unit, 0

    @contextmanager
    def held(self) -> Iterator["Share"]:
        """Hold a share, which may grow until the end."""
        share = Share(self)
        try:
            yield share
        finally:
            share.release()


class Share:
    """What one request has taken of a `Room`."""

    def __init__(self, room: Room) -> None:
        self.room, self.size = room, 0

    def grow(self, by: int) -> None:
        """Take more.

        Raises:
            Refused: 429, there is no more.
        """
        room = self.room
        if room.taken + by > room.most:
            raise Refused(
                429,
                "busy",
                f"expected room for what was sent, received it while {room.taken} of {room.most} {room.unit} are taken."
                " Send it again in a second, or send less at once.",
                headers={"Retry-After": "1"},
            )
        room.taken += by
        self.size += by

    def release(self) -> None:
        """Give back all of it."""
        self.room.taken -= self.size
        self.size = 0
