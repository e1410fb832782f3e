"""Takes photos out of a request: multipart, or JSON with base64; in memory alone and within the limits."""

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from lightning_module.serving.limits import MIB, Limits, Refused, Share

MULTIPART, JSON = "multipart/form-data", "application/json"
JSON_COPIES = 3
"""How often base64 is in memory while it is read: the body, its text, the photo."""
LONGEST_NAME = 200
"""Characters of a photo's name that are repeated in the answer."""


class Upload(NamedTuple):
    """A photo's file as it was sent: its name, which says nothing about what it is, and its bytes."""

    name: str
    content: bytes


class _InMemory(MultiPartParser):
    """Starlette's parser, which would otherwise write files above a mebibyte to the disk."""

    spool_max_size = max_file_size = 1 << 62  # older Starlettes have the latter name


async def read_uploads(request: Request, limits: Limits, share: Share) -> list[Upload]:
    """Return the photos of a request.

    Args:
        request: its body is read here.
        limits: for its size, the number of photos and the time that it may take.
        share: of the memory; it grows with what arrives.

    Raises:
        Refused: 400 it is not what its type says; 408 too slow; 413 too large; 415 another type; 422 without photos;
            429 no room for it.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (MULTIPART, JSON):
        raise Refused(
            415,
            "unknown_type",
            f"expected {MULTIPART} or {JSON}, received {kind or 'no Content-Type'}. Send photos as a form's files, "
            "such as with curl -F photos=@photo.jpg, or as base64 in JSON.",
        )
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > limits.upload:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.receive_seconds):
            read = _of_form if kind == MULTIPART else _of_json
            uploads = await read(request, limits, share)
    except TimeoutError:
        raise Refused(
            408,
            "too_slow",
            f"expected the whole request within {limits.receive_seconds:g} s, received a part of it. Send smaller "
            "photos, or over a faster line.",
            headers={"Connection": "close"},
        ) from None
    if not uploads:
        raise Refused(
            422,
            "no_photos",
            "expected photos, received none. Send them as files of a form, such as with curl -F photos=@photo.jpg "
            '(with the @), or as {"photos": [{"name": "a.jpg", "base64": "..."}]}.',
        )
    if len(uploads) > limits.photos:
        raise _too_many(limits)
    return uploads


async def _of_form(request: Request, limits: Limits, share: Share) -> list[Upload]:
    parser = _InMemory(request.headers, _chunks(request, limits, share, 1), max_files=limits.photos, max_fields=100)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise _too_many(limits) from error
        raise Refused(400, "malformed", f"expected {MULTIPART}, received what is none: {error.message}.") from error
    except (KeyError, ValueError) as error:  # no boundary, or a header that is none
        raise Refused(400, "malformed", f"expected {MULTIPART}, received what is none: {error}.") from error
    try:
        return [
            Upload(_named(each.filename or "photo"), await each.read())
            for _, each in form.multi_items()
            if isinstance(each, UploadFile)
        ]
    finally:
        await form.close()


async def _of_json(request: Request, limits: Limits, share: Share) -> list[Upload]:
    body = bytearray()
    async for chunk in _chunks(request, limits, share, JSON_COPIES):
        body += chunk
    return await asyncio.to_thread(_from_json, body, limits)


def _from_json(body: bytearray, limits: Limits) -> list[Upload]:
    try:
        content: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "malformed", f"expected {JSON}, received what is none: {error}.") from error
    photos = content.get("photos") if isinstance(content, dict) else None
    if not isinstance(photos, list):
        raise Refused(422, "malformed", 'expected {"photos": [...]}, received JSON without that list.')
    if len(photos) > limits.photos:
        raise _too_many(limits)
    uploads = []
    for index, each in enumerate(photos):
        entry = {"base64": each} if isinstance(each, str) else each
        text, name = (entry.get("base64"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if not isinstance(text, str):
            raise Refused(422, "malformed", f'expected {{"name": ..., "base64": ...}} as photo {index}, received none.')
        name = _named(name if isinstance(name, str) and name else f"photo {index}")
        try:
            # pages have photos as data:image/jpeg;base64,... and the command base64 writes lines
            digits = "".join((text.partition(",")[2] if text.startswith("data:") else text).split())
            photo = base64.b64decode(digits, validate=True)
        except (binascii.Error, ValueError) as error:
            reason = f"is no base64: {error}"
            raise Refused(
                422,
                "not_base64",
                f"expected base64, received photo {index} ({name}), which {reason}. Encode its bytes.",
                [{"index": index, "name": name, "reason": reason}],
            ) from error
        uploads.append(Upload(name, photo))
    return uploads


def _named(name: str) -> str:
    """Return a name that can be sent: JSON may have half of a pair of UTF-16, which UTF-8 has not."""
    return name[:LONGEST_NAME].encode("utf-8", "replace").decode()


async def _chunks(request: Request, limits: Limits, share: Share, copies: int) -> AsyncGenerator[bytes, None]:
    """Yield the body as it arrives, and take memory for it.

    Raises:
        Refused: it is too large, there is no memory, or the client has left.
    """
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limits.upload:  # where no length was stated
                raise _too_large(limits)
            share.grow(len(chunk) * copies)
            yield chunk
    except ClientDisconnect:
        raise Refused(400, "left", "expected the whole request, received a part of it.") from None


def _too_large(limits: Limits) -> Refused:
    return Refused(
        413,
        "too_large",
        f"expected a request of at most {limits.upload / MIB:g} MiB, received a larger one. Send fewer photos at once, "
        "or smaller ones.",
    )


def _too_many(limits: Limits) -> Refused:
    return Refused(
        413,
        "too_many",
        f"expected at most {limits.photos} photos in a request, received more. Send them in several requests.",
    )
