"""The ports: what Modelkeep needs from the outside, in two to five methods each.

Each has a conformance suite in ``tests/conformance`` that every implementation passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")
R = TypeVar("R")


@runtime_checkable
class BlobStore(Protocol):
    """Immutable bytes by digest (BLAKE3, 64 hexadecimal characters).

    Promises: ``put`` returns only once the bytes are durable; putting equal bytes twice keeps them once;
    ``open`` verifies what it reads and raises ``Damaged`` rather than hand out other bytes.
    """

    def put(self, stream: BinaryIO | bytes) -> str:
        """Keep the bytes and return their digest. Raises ``Unavailable`` when the disk is full or away."""
        ...

    def open(self, digest: str, span: tuple[int, int] | None = None) -> BinaryIO:
        """Read the bytes, or those in ``[start, stop)``. Raises ``NotFound``, ``Damaged``."""
        ...

    def exists(self, digest: str) -> bool:
        """Whether the bytes are kept here."""
        ...

    def delete(self, digest: str) -> None:
        """Forget the bytes; no error when they are not there."""
        ...


class Engine(Protocol):
    """Where partitions are worked on. ``engines.opening.open_engine(address)`` gives one.

    Promises: results come back in the order of ``parts``; an error carries the remote traceback; a lost worker's
    parts are worked on again a few times, and a part that takes far longer than the others may be begun twice, so
    ``fn`` must be safe to repeat; no more parts are drawn, and no more results held, than keep the workers busy;
    closing the iterator of results (or Ctrl-C) cancels what is under way.

    Attributes:
        address: As it may be written in a declaration.
    """

    address: str

    @property
    def host(self) -> str:
        """The address under which workers reach this machine; ``127.0.0.1`` when they are on it."""
        ...

    def map(
        self,
        fn: Callable[[T], R],
        parts: Iterable[T],
        *,
        progress: Progress | None = None,
        name: str = "parts",
    ) -> Iterator[R]:
        """Apply ``fn`` to every part, in parallel; ``progress`` hears of each that is finished, under ``name``.

        Raises ``Invalid`` when the work cannot be sent, ``Unavailable`` when a part kills every worker it is given
        to, and whatever ``fn`` raised.
        """
        ...

    def map_reduce(self, fn: Callable[[T], R], parts: Sequence[T], merge: Callable[[R, R], R]) -> R:
        """``fn`` of every part, merged pairwise as a tree, the same on every engine to the last bit.

        Large results are merged where they are; one comes home. ``merge`` is associative and commutative, and safe
        to repeat. Raises what ``map`` does, and ``Invalid`` when there are no parts.
        """
        ...

    def put(self, obj: T) -> Callable[[], T]:
        """Share a large object with the workers once; the returned handle fetches it there."""
        ...

    def slots(self) -> int:
        """How many parts are worked on at once, now; never 0."""
        ...

    def close(self) -> None:
        """End what is under way and let go of what was shared; the engine's workers, if it started them, end."""
        ...


@runtime_checkable
class Boosts(Protocol):
    """An engine that fits XGBoost's and LightGBM's estimators data-parallel."""

    def boost(self, estimator: Any, matrix: Any, target: Any) -> Any:
        """An unfitted estimator, fitted on a matrix (n, features) and a target (n,) divided among the workers.

        Raises ``Refused`` when a worker has no such library, ``Unavailable`` when workers are
        lost again and again.
        """
        ...


@runtime_checkable
class Source(Protocol):
    """A table somewhere else.

    Promises: a partition whose fingerprint is unchanged has unchanged content, so it need not be read again.
    """

    def fingerprint(self) -> Mapping[str, str]:
        """Each partition's name and a cheap fingerprint (path, size, time of change; a query's text)."""
        ...

    def schema(self) -> pa.Schema:
        """Column names and types, without reading all rows."""
        ...

    def read(self, partition: str) -> Iterator[pa.RecordBatch]:
        """The rows of one partition, in a stable order. Raises ``Invalid`` naming file and line."""
        ...


class Model(Protocol):
    """A loaded version, ready to predict. Safe to call from several threads."""

    def predict(self, columns: Mapping[str, Any]) -> Mapping[str, Any]:
        """Equally long NumPy arrays by input name in; equally long arrays by output name out.

        Classification gives ``label`` of shape (n,) and ``probability`` of shape (n, classes);
        regression gives ``prediction`` of shape (n,), float64.
        """
        ...


class Runtime(Protocol):
    """A way to run a packaged version.

    Promises: ``load`` executes no code from the package unless its digest is trusted.
    """

    def load(self, files: Mapping[str, bytes], *, trusted: Sequence[str] = ()) -> Model:
        """Build the model from its package's files. Raises ``Refused``, ``MissingExtra``, ``Damaged``."""
        ...


class Progress(Protocol):
    """How long work tells its watcher where it stands. Must be cheap and never raise."""

    def step(self, name: str, done: float, total: float | None = None, note: str = "") -> None:
        """``done`` of ``total`` units of ``name`` are finished; ``total`` None means unknown."""
        ...


class Silent:
    """Progress that nobody watches."""

    def step(self, name: str, done: float, total: float | None = None, note: str = "") -> None:
        """Do nothing."""
