"""Hashes that occur more than once, found in memory or on the disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from modelkeep.core.errors import Unavailable
from modelkeep.data import repeats, rowchecks
from modelkeep.data.streams import Held
from modelkeep.spec import steps
from modelkeep.spec.declaration import Data, Declaration


def pieces() -> list[np.ndarray]:
    random = np.random.default_rng(3)
    made = [random.integers(0, 1 << 63, size, dtype=np.uint64) for size in (500, 0, 300)]
    made[2][[7, 9]] = made[0][[4, 4]]
    made[0][20] = made[0][21]
    made[2][0] = made[0][1] ^ np.uint64(1 << 50)  # the same low bits
    return made


@pytest.mark.parametrize("room", [1 << 20, 1000])  # held; written to the disk
def test_every_place_of_a_hash_that_occurs_again(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = repeats.among(iter(pieces()), room)
    assert {number: places.tolist() for number, places in found.items()} == {0: [4, 20, 21], 2: [7, 9]}
    assert repeats.among(iter(pieces()[1:]), room).keys() == {1}  # 7 and 9 are still equal
    assert repeats.among(iter(pieces()[1:2]), room) == {}
    assert repeats.among(iter(pieces()[2:] * 3), room)[2].tolist() == list(range(300))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rows", [1, 100_000])  # told when the file is closed; when it is written
def test_a_full_disk_is_told(rows: int) -> None:
    with pytest.raises(Unavailable, match="No space left") as told:
        repeats._append(np.zeros(rows, np.uint64), Path("/dev/full"))
    assert "MODELKEEP_MEMORY" in told.value.hint


DROPPED = steps.DropDuplicates(columns=("id",))
LATER = (steps.DropMissing(), steps.Filter(where="id > 0"), steps.DropOutliers(columns=("id",)))


@pytest.mark.parametrize(
    ("clean", "looked"),
    [
        ((DROPPED,), False),
        ((DROPPED, *LATER), False),
        ((DROPPED, steps.DropDuplicates()), False),
        ((), True),
        ((steps.DropDuplicates(),), True),  # equal in every column is more than equal in one
        ((steps.DropDuplicates(columns=("id", "day")),), True),
        ((DROPPED, steps.Cast(columns={"id": "int"})), True),  # 1.2 and 1.4 are one then
        ((DROPPED, steps.FillMissing(columns=("id",), strategy="constant", value=1)), True),
    ],
)
def test_equal_keys_are_not_looked_for_where_none_can_be(clean: tuple[steps.CleanStep, ...], looked: bool) -> None:
    declared = Declaration(model="m", data=Data(source="x.csv", clean=clean))
    found = rowchecks._again(Held.of(pa.table({"id": [1, 2, 1]})), ("id",), declared)
    assert {piece: list(places) for piece, places in found.items()} == ({0: [2]} if looked else {})
