"""Files of the artifact proxy that fit into memory, answered before ASGI: most are a few kilobytes.

What is larger is left to ``Artifacts``, which streams it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from sqlalchemy import Connection

from modelkeep.core.errors import ModelkeepError, NotFound
from modelkeep.lifecycle.keep import Keep
from modelkeep.protocols.access.asgi import enter
from modelkeep.protocols.access.door import Doorkeeper
from modelkeep.protocols.mlflow.artifacts import KIND, PART, PREFIX, WORKERS, as_attachment, decoded
from modelkeep.protocols.mlflow.hot import refusal
from modelkeep.registry import artifacts
from modelkeep.registry.artifacts import Owner
from modelkeep.serve.hot import Handler, Head, Passing, Sink
from modelkeep.store.blobs import Blobs, put_all, read_all
from modelkeep.store.bytestores import Folder
from modelkeep.store.writer import Outcome

_EMPTY = b"{}"
_PUT, _GET = (f"{method} {PREFIX.decode()}" for method in ("PUT", "GET"))
_Asked = tuple[Sink, Head, bytes]
_Located = tuple[str, Owner, str]
"""The path as it was asked for, whose file it is, and its path below the owner's root."""
_Answer = tuple[Sink, Head | None, Any]
"""What to write, or the head of a request that is left to the application."""


class SmallFiles:
    """Uploads of at most ``PART`` bytes, and downloads.

    One thread each, that takes all who wait: several would spend more time on taking turns with the interpreter
    than on files, and what comes together costs one transaction, and one wait for the disk. Only object stores,
    which let one wait, are read from by several.

    Args:
        keeper: Whether they may be done by whoever asks.
    """

    def __init__(self, keep: Keep, keeper: Doorkeeper) -> None:
        self._keep = keep
        self._keeper = keeper
        self._gets: deque[_Asked] = deque()
        self._puts: deque[_Asked] = deque()
        self._getting = ThreadPoolExecutor(1, thread_name_prefix="modelkeep-get-file")
        self._putting = ThreadPoolExecutor(1, thread_name_prefix="modelkeep-put-file")
        self._reading = ThreadPoolExecutor(WORKERS, thread_name_prefix="modelkeep-read-file")
        self._near = isinstance(keep.blobs, Blobs) and isinstance(keep.blobs.below, Folder)
        self._wake: Callable[..., Any] | None = None

    def find(self, head: Head) -> Handler | None:
        """The handler of a request for a path of the proxy, None for what ``Artifacts`` does better."""
        if b"?" in head.target:
            return None
        if head.method == b"GET":
            return None if b"range" in head.headers else self._get
        length = head.headers.get(b"content-length", b"")
        small = head.method == b"PUT" and length.isdigit() and int(length) <= PART
        return self._put if small else None

    def _get(self, sink: Sink, body: bytes, head: Head) -> None:
        self._wait(self._gets, (sink, head, body), self._getting, self._send_all)

    def _put(self, sink: Sink, body: bytes, head: Head) -> None:
        self._wait(self._puts, (sink, head, body), self._putting, self._keep_all)

    def _wait(self, waiting: deque[_Asked], asked: _Asked, pool: ThreadPoolExecutor, work: Any) -> None:
        if self._wake is None:
            self._wake = asyncio.get_running_loop().call_soon_threadsafe
        waiting.append(asked)
        if len(waiting) == 1:  # otherwise whoever comes for the first takes this one too
            pool.submit(work)

    def _send_all(self) -> None:
        found = self._located(_taken(self._gets), _GET, "read", self._found)
        self._later(_answer, list((map if self._near else self._reading.map)(self._answer_to, found)))

    def _answer_to(self, found: tuple[_Asked, Any]) -> _Answer:
        (sink, head, _), (path, digest, size) = found
        if size > PART:
            return sink, head, None
        try:
            body = read_all(self._keep.blobs, digest)
        except Exception as error:
            return sink, None, refusal(error, _GET)
        lines = b"".join(b"%s: %s\r\n" % line for line in as_attachment(path))
        return sink, None, (200, body, lines, KIND)

    def _keep_all(self) -> None:
        found = self._located(_taken(self._puts), _PUT, "write", self._writable)
        try:
            kept = put_all(self._keep.blobs, [body for (_, _, body), _ in found])
            works = [
                (artifacts.Put(owner, inner, digest, len(body)), sink)
                for ((sink, _, body), (owner, inner)), digest in zip(found, kept, strict=True)
            ]
            self._keep.db.post(works, self._told)
        except Exception as error:
            self._later(_answer, [(sink, None, refusal(error, _PUT)) for (sink, _, _), _ in found])

    def _found(self, conn: Connection, located: Sequence[_Located]) -> list[Any]:
        blobs = self._keep.blobs
        try:
            files = artifacts.find_all(conn, blobs, [(owner, inner) for _, owner, inner in located])
        except ModelkeepError:  # of one of them
            return [
                _try(artifacts.find, conn, blobs, owner, inner, shown=(path,)) for path, owner, inner in located
            ]
        return [
            NotFound(f"No such artifact: '{inner}'") if file is None else (path, *file)
            for (path, _, inner), file in zip(located, files, strict=True)
        ]

    def _writable(self, conn: Connection, located: Sequence[_Located]) -> list[Any]:
        return [_try(_writable, owner, inner) for _, owner, inner in located]

    def _located(
        self, asked: list[_Asked], name: str, right: str, look: Callable[..., list[Any]]
    ) -> list[tuple[_Asked, Any]]:
        """What is known of each file; who asks in vain is told."""
        found, wrong = [], []
        try:
            with self._keep.db.read() as conn:
                folders: dict[Any, tuple[Owner, str]] = {}
                places = [_try(self._place, conn, head, right, folders) for _, head, _ in asked]
                located = [place for place in places if not isinstance(place, ModelkeepError)]
                known = iter(look(conn, located))
            for each, place in zip(asked, places, strict=True):
                told = place if isinstance(place, ModelkeepError) else next(known)
                if isinstance(told, ModelkeepError):
                    wrong.append((each[0], None, refusal(told, name)))
                else:
                    found.append((each, told))
        except Exception as error:
            found, wrong = [], [(sink, None, refusal(error, name)) for sink, _, _ in asked]
        if wrong:
            self._later(_answer, wrong)
        return found

    def _place(self, conn: Connection, head: Head, right: str, folders: dict[Any, tuple[Owner, str]]) -> _Located:
        """Where a file is, or goes. Files of one folder have one owner, looked up once."""
        who = None if head.who is None else head.who.who
        enter(who)
        path = decoded(head.target.partition(PREFIX)[2])
        folder, _, name = path.rpartition("/")
        if "/" not in folder or name == "artifacts":  # then the path itself may be an owner's root
            return path, *self._keeper.locate(conn, path, right)
        if (id(who), folder) not in folders:
            owner, inner = self._keeper.locate(conn, path, right)
            folders[id(who), folder] = owner, inner.removesuffix(name)
        owner, above = folders[id(who), folder]
        return path, owner, above + name

    def _told(self, outcomes: list[Outcome]) -> None:
        kept = (200, _EMPTY)
        self._later(
            _answer, [(sink, None, kept if fault is None else refusal(fault, _PUT)) for sink, _, fault in outcomes]
        )

    def _later(self, *call: Any) -> None:
        assert self._wake is not None
        with contextlib.suppress(RuntimeError):  # the loop has ended, and its clients with it
            self._wake(*call)


def _taken(waiting: deque[_Asked]) -> list[_Asked]:
    """All that wait now."""
    taken = []
    while waiting:  # until it is empty: only who finds it so has somebody come
        taken.append(waiting.popleft())
    return taken


def _try(work: Callable[..., Any], *given: Any, shown: tuple[Any, ...] = ()) -> Any:
    """What the work gives, after ``shown``; or what is wrong."""
    try:
        return (*shown, *work(*given))
    except ModelkeepError as error:
        return error


def _writable(owner: Owner, inner: str) -> tuple[Owner, str]:
    artifacts.writable(owner, inner)
    return owner, inner


def _answer(answers: list[_Answer]) -> None:
    for sink, head, answer in answers:
        if head is None:
            sink.write(*answer)
        else:
            cast("Passing", sink).pass_on(head)
