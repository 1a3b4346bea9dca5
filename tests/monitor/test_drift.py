"""Reference and drift over whole tables: rates of false alarms, power, words."""

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from modelkeep.core.errors import Damaged
from modelkeep.monitor import drift, reference
from modelkeep.stats import profile

HOUR = 3600.0


def served(generator, windows, rows, *, day=0.0, shift=0.0, new="", gone=0.02, first=0):
    """Rows of windows of an hour; with ``day``, each window has its own level and its own mixture."""
    hour = np.repeat(np.arange(windows), rows)
    level, mix = day * generator.normal(size=windows), np.exp(day * generator.normal(size=windows))
    count = windows * rows
    distance = generator.gamma(2, 500, count) * np.exp(level[hour] + shift)
    score = generator.normal(level[hour] + shift, 1)
    first_share = (mix / (mix + 2))[hour]
    city = np.where(generator.random(count) < first_share, "JFK", generator.choice(["LGA", "EWR"], count)).astype(
        object
    )
    if new:
        city[generator.random(count) < 0.05] = new
    return pa.table(
        {
            "distance": pa.array(distance, mask=generator.random(count) < gone),
            "score": score,
            "stops": generator.poisson(1.5, count),
            "city": pa.array(city.tolist()),
            "rain": generator.random(count) < 0.2,
            "note": ["word " * n for n in generator.integers(6, 14, count)],
            "id": [f"n{first}-{i}" for i in range(count)],
            "at": pa.array(
                ((first + hour) * HOUR * 1e6 + generator.integers(0, HOUR * 1e6, count)).astype("M8[us]")
            ),
        }
    )


INPUTS = ["distance", "score", "stops", "city", "rain", "note", "id", "at"]


def alarms(trained, windows, rate):
    known = reference.load(reference.build(trained, "at", INPUTS, HOUR))
    found = []
    for window in windows:
        tested = drift.detect(known, reference.count(known, window), rate, profile.partial(window))
        found.append([one for one in tested if one.drifted])
    return found


@pytest.mark.parametrize("day", [0.0, 0.2])
def test_windows_in_which_nothing_changed_stay_quiet(day):
    generator = np.random.default_rng(8)
    rang = []
    for _ in range(4):
        table = served(generator, 90, 200, day=day)
        cut = 50 * 200
        rang += [
            bool(f)
            for f in alarms(table.slice(0, cut), [table.slice(s, 200) for s in range(cut, 18_000, 200)], 0.02)
        ]
    assert np.mean(rang) <= 0.02 + 2 * np.sqrt(0.02 / len(rang))


def test_what_changed_is_named_and_told():
    generator = np.random.default_rng(1)
    trained = served(generator, 40, 300)
    (moved,) = alarms(trained, [served(generator, 1, 300, shift=0.5)], 0.001)
    assert {one.column for one in moved} == {"distance", "score"}
    assert "median" in moved[0].text
    (grown,) = alarms(trained, [served(generator, 1, 300, new="SFO")], 0.001)
    assert [one.column for one in grown] == ["city"]
    assert grown[0].test == "outside"
    assert "new SFO" in grown[0].text
    (holes,) = alarms(trained, [served(generator, 1, 300, gone=0.3)], 0.001)
    assert [(one.column, one.test) for one in holes] == [("distance", "missing")]
    assert holes[0].text.startswith("missing 2.")
    said = drift.evidence(moved, 300, 0.001)
    assert said["text"].startswith("2 of 2 inputs changed: ")
    assert {one["column"] for one in said["columns"]} == {"distance", "score"}


def test_day_effects_hide_small_shifts_but_not_large_ones():
    generator = np.random.default_rng(2)
    trained = served(generator, 60, 300, day=0.3)
    small, large = alarms(
        trained, [served(generator, 1, 300, shift=0.1), served(generator, 1, 300, shift=2.5)], 0.001
    )
    assert small == []
    assert {"distance", "score"} <= {one.column for one in large}


def test_columns_that_move_by_nature_are_not_watched():
    known = reference.load(reference.build(served(np.random.default_rng(3), 30, 50), "at", INPUTS, HOUR))
    assert set(known.skipped) == {"id", "at"}
    assert known.window == HOUR
    assert known.columns["city"].windows == pytest.approx(30, rel=0.01)


def test_counts_of_parts_add_up_to_those_of_the_whole():
    generator = np.random.default_rng(4)
    known = reference.load(reference.build(served(generator, 30, 50), "at", INPUTS, HOUR))
    window = served(generator, 1, 500, new="SFO")
    total = {}
    for start in (0, 123, 400):
        stop = {0: 123, 123: 400, 400: 500}[start]
        total = reference.add(total, reference.count(known, window.slice(start, stop - start)))
    whole = reference.count(known, window)
    assert {name: counts.tolist() for name, counts in total.items()} == {n: c.tolist() for n, c in whole.items()}
    assert whole["city"][-1] == pa.compute.sum(pa.compute.equal(window["city"], "SFO")).as_py()


def test_served_types_need_not_be_the_trained_ones():
    known = reference.load(reference.build(served(np.random.default_rng(5), 30, 50), "at", INPUTS, HOUR))
    window = pa.table(
        {"distance": ["12.5", "-3e2", "x", None], "stops": [1.0, 2.0, None, 3.0], "rain": [True] * 4}
    )
    counts = reference.count(known, window)
    assert counts["distance"][-2] == 2
    assert counts["stops"][:-2].sum() == 3
    assert counts["rain"][:-2].sum() == 4


def test_rows_without_time_are_taken_as_independent():
    generator = np.random.default_rng(6)
    trained = served(generator, 20, 300)
    known = reference.load(reference.build(trained, "", INPUTS, HOUR))
    assert known.window == 0
    quiet = drift.detect(known, reference.count(known, served(generator, 1, 300)), 0.001)
    assert not any(one.drifted for one in quiet)


def test_few_rows_are_no_verdict():
    generator = np.random.default_rng(7)
    known = reference.load(reference.build(served(generator, 30, 50), "at", INPUTS, HOUR))
    assert drift.detect(known, reference.count(known, served(generator, 1, 20, shift=9)), 0.01) == []


def test_an_empty_table_and_broken_bytes():
    empty = served(np.random.default_rng(0), 1, 5).slice(0, 0)
    assert reference.load(reference.build(empty, "at", INPUTS, HOUR)).columns == {}
    with pytest.raises(Damaged, match=r"reference\.bin"):
        reference.load(b"\x00")


def test_every_kind_of_evidence_can_be_written_down():
    generator = np.random.default_rng(8)
    known = reference.load(reference.build(served(generator, 30, 200), "at", ["distance", "city"], HOUR))
    for change in ({"shift": 8.0}, {"new": "SFO"}, {"gone": 0.6}):
        table = served(generator, 1, 400, first=40, **change)
        found = drift.detect(known, reference.count(known, table), 0.001, profile.partial(table))
        assert any(one.drifted for one in found), change
        msgspec.json.encode(drift.evidence(found, table.num_rows, 0.001))
