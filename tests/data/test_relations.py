"""Relational work on DuckDB: what every place promises, in bounded memory, spilled to the disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from conformance.frames import FramesSuite
from modelkeep.core.errors import Unavailable
from modelkeep.data.relations import DuckFrames, repeated


class TestDuckDB(FramesSuite):
    @pytest.fixture
    def frames(self) -> Iterator[DuckFrames]:
        with DuckFrames() as found:
            yield found


def test_more_than_fits_is_spilled_and_then_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    rng = np.random.default_rng(0)
    pieces = (
        pa.table({"h": rng.integers(0, 2**62, 100_000), "place": np.arange(100_000) + number * 100_000})
        for number in range(20)
    )
    with DuckFrames(48 << 20) as frames:
        table = frames.table(pieces)
        found = frames.collect(repeated(table, ["h"], "place"))
        assert found.num_rows == 0
        assert list(tmp_path.iterdir()) != []
    assert list(tmp_path.iterdir()) == []


def test_no_room_is_named() -> None:
    with DuckFrames(1 << 20) as frames, pytest.raises(Unavailable, match="ran out of room") as told:
        table = frames.table([pa.table({"h": np.arange(3_000_000), "place": np.arange(3_000_000)})])
        frames.collect(repeated(table, ["h"], "place"))
    assert "MODELKEEP_MEMORY" in told.value.hint
