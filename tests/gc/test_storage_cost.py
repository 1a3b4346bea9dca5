"""What versions of a file cost: the benchmark's own measure, at 64 MB."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.storage.__main__ import measure


def test_a_version_costs_what_it_changes(tmp_path: Path) -> None:
    first, same, head, places, grown, scattered = measure(tmp_path / "blobs", 64)
    assert first.ratio < 1.01
    assert same.added == 0
    # A change costs itself and the rest of the chunks at its ends, of 256 KiB on average.
    assert head.ratio < 0.01 + 2 * 0.3 / 64 + 0.005
    assert grown.ratio < 0.01 + 2 * 0.3 / 64 + 0.005
    assert places.ratio < 0.01 + 5 * 2 * 0.5 / 64
    assert scattered.ratio < 1.01
