"""Uploads in parts: each part is kept as it comes, and completing joins them into one file.

Nothing of an upload is remembered between requests: its id names the file it is for, and a part's entity tag names
the blob it became; both are sealed with a key of this process, so neither can be made up. Parts that are never
completed are referred to by nothing, and go with the next collection. An id is enough to send parts, as a
presigned URL of an object store is.
"""

from __future__ import annotations

import hmac
import re
from typing import Any

from msgspec import Struct
from starlette.types import Receive, Scope, Send

from modelkeep.core.errors import Invalid, Refused
from modelkeep.protocols.mlflow import asgi, wire
from modelkeep.protocols.mlflow.artifacts import Artifacts
from modelkeep.protocols.mlflow.sealed import Seals
from modelkeep.registry import artifacts

MOST_PARTS = 10_000
LIFETIME = 24 * 3600.0
"""Seconds after which parts are no longer taken."""

_ROOT = "mlflow-artifacts/mpu/"
_MAX_BODY = 8 * 1024 * 1024
_TAG = re.compile(r'"?([0-9a-f]{64})-(\d{1,18})-([0-9a-f]{32})"?\Z')


class Create(Struct, frozen=True):
    """createMultipartUpload."""

    path: str = ""
    num_parts: int = 1


class Part(Struct, frozen=True):
    """One part as its sender knows it."""

    part_number: int
    etag: str
    url: str | None = None


class Complete(Struct, frozen=True):
    """completeMultipartUpload, and without parts abortMultipartUpload."""

    path: str = ""
    upload_id: str = ""
    parts: list[Part] = []


class Multipart:
    """The operations below ``mlflow-artifacts/mpu/``.

    Args:
        files: Where artifacts are kept.
        seals: What makes ids that nobody else can make.
    """

    def __init__(self, files: Artifacts, seals: Seals) -> None:
        self._files = files
        self._seals = seals

    async def answer(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; ``path`` begins with ``mlflow-artifacts/mpu/``."""
        what, _, rest = path.removeprefix(_ROOT).partition("/")
        if what == "part" and scope["method"] == "PUT":
            await self._take(rest, receive, send)
            return
        if scope["method"] != "POST" or what not in ("create", "complete", "abort"):
            raise Invalid(f"{scope['method']} is not offered on {path[:200]}")
        takes = Create if what == "create" else Complete
        asked = wire.decode(takes, {}, b"", await asgi.read(receive, _MAX_BODY))
        artifacts.segments(rest)
        if what == "create":
            await asgi.send(send, 200, await self._create(scope, rest, asked))
            return
        file = self._opened(asked.upload_id)["file"]
        if file != _file(rest, asked.path):
            raise Refused("this upload is for another file")
        if what == "complete":
            await self._complete(file, asked)
        await asgi.send(send, 200, b"{}")

    async def _create(self, scope: Scope, folder: str, asked: Create) -> bytes:
        file = _file(folder, asked.path)
        if not 1 <= asked.num_parts <= MOST_PARTS:
            raise Invalid(f"num_parts is {asked.num_parts}, expected 1 to {MOST_PARTS}")
        await self._files.look(lambda conn: artifacts.writable(*self._files.locate(conn, file)))
        upload = self._seals.token("upload", {"file": file}, LIFETIME)
        root = f"{asgi.root(scope)}/api/2.0/{_ROOT}part/{upload}"
        parts = [
            {"url": f"{root}/{number}", "part_number": number, "headers": {}}
            for number in range(1, asked.num_parts + 1)
        ]
        return wire.encode({"upload_id": upload, "credentials": parts})

    async def _take(self, rest: str, receive: Receive, send: Send) -> None:
        upload, _, number = rest.partition("/")
        self._opened(upload)
        digest, size = await self._files.keep(receive)
        named = f"{digest}-{size}"
        tag = f'"{named}-{self._seals.mark("part", f"{upload}/{number}/{named}")}"'.encode()
        await asgi.send(send, 200, b"", ((b"etag", tag),))

    async def _complete(self, file: str, asked: Complete) -> None:
        parts = sorted(asked.parts, key=lambda part: part.part_number)
        if not parts or [part.part_number for part in parts] != list(range(1, len(parts) + 1)):
            raise Invalid("parts: expected every part from 1 on, each once")
        found = []
        for part in parts:
            said = _TAG.match(part.etag)
            named = f"{said[1]}-{said[2]}" if said else ""
            sealed = self._seals.mark("part", f"{asked.upload_id}/{part.part_number}/{named}")
            if said is None or not hmac.compare_digest(said[3], sealed):
                raise Invalid(
                    f"parts[{part.part_number - 1}].etag: is not what this upload's part was answered with"
                )
            found.append((said[1], int(said[2])))
        await self._files.join(file, found)

    def _opened(self, upload: str) -> dict[str, Any]:
        return self._seals.opened(upload, "upload_id", "upload")


def _file(folder: str, local: str) -> str:
    """Where the file goes: clients send the folder it is for and the path it has on their disk."""
    name = local.replace("\\", "/").rpartition("/")[2]
    path = f"{folder}/{name}"
    artifacts.segments(path)
    return path
