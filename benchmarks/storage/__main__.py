"""What a second version of a large file costs on the disk, and what it costs to keep it plainly.

python -m benchmarks.storage [--megabytes 500] [--json]
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from modelkeep.store.blobs import Blobs, open_blobs

MB = 1_000_000


@dataclass(frozen=True)
class Step:
    """One version put after the others.

    Attributes:
        changed: Share of its bytes that differ from the version before it.
        size: Bytes of the file.
        added: Bytes the store grew by.
        rate: Megabytes put per second, durable at the end.
    """

    version: str
    changed: float
    size: int
    added: int
    rate: float

    @property
    def ratio(self) -> float:
        """Bytes added over bytes of the file: a plain copy is 1."""
        return self.added / self.size


def versions(megabytes: int, seed: int = 0) -> Iterator[tuple[str, float, bytes]]:
    """Name, share that differs from the first, and bytes: weights as training leaves them, not compressible."""
    random = np.random.default_rng(seed)
    weights = random.normal(size=megabytes * MB // 4).astype(np.float32)
    first = weights.tobytes()
    yield "the first version", 1.0, first
    yield "the same weights again", 0.0, first
    count = len(weights)
    head = weights.copy()
    head[count - count // 100 :] += np.float32(0.5)
    yield "the last 1 % differs (a fine-tuned head)", 0.01, head.tobytes()
    spread = weights.copy()
    for start in range(0, count - count // 500, count // 5):  # five places of 0.2 % each
        spread[start : start + count // 500] += np.float32(0.5)
    yield "1 % differs, in five places", 0.01, spread.tobytes()
    yield "1 % grew at the beginning", 0.01, random.bytes(len(first) // 100) + first
    scattered = weights.copy()
    scattered[random.integers(0, count, count // 100)] += np.float32(0.5)
    yield "1 % of the weights, scattered over all", 0.01, scattered.tobytes()


def stored(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(folder: Path, megabytes: int) -> list[Step]:
    """Put all versions into one store, and read each back."""
    blobs: Blobs = open_blobs(str(folder))
    found = []
    before = stored(folder)
    for name, changed, data in versions(megabytes):
        began = time.perf_counter()
        digest = blobs.put(data)
        took = time.perf_counter() - began
        after = stored(folder)
        found.append(Step(name, changed, len(data), after - before, len(data) / MB / took))
        before = after
        blobs.verify(digest)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="modelkeep-storage-"))
    try:
        found = measure(folder, asked.megabytes)
    finally:
        shutil.rmtree(folder)
    if asked.json:
        json.dump([asdict(step) | {"ratio": step.ratio} for step in found], sys.stdout, indent=2)
        return
    print(f"{'version':<42}{'size MB':>9}{'added MB':>10}{'of the file':>13}{'MB/s':>7}")
    for step in found:
        line = f"{step.version:<42}{step.size / MB:>9.1f}{step.added / MB:>10.2f}{step.ratio:>13.2%}"
        print(f"{line}{step.rate:>7.0f}")
    plain = sum(step.size for step in found)
    kept = sum(step.added for step in found)
    print(
        f"all six versions: {kept / MB:.0f} MB kept of {plain / MB:.0f} MB, {plain / kept:.1f}x less than copies"
    )


if __name__ == "__main__":
    main()
