"""What the examples write is what their declarations say it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

Prepare = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def months(prepare: Prepare, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return prepare("flights").write_months(tmp_path_factory.mktemp("flights"))


def test_a_file_a_month_with_only_that_month(months: list[Path]) -> None:
    assert [path.name for path in months] == [f"flights-2013-{month:02}.parquet" for month in range(1, 13)]
    for number, path in enumerate(months, 1):
        times = pq.read_table(path, columns=["scheduled_at"])["scheduled_at"]
        assert set(pc.unique(pc.month(times)).to_pylist()) == {number}
        assert times.combine_chunks().equals(pc.take(times, pc.sort_indices(times)).combine_chunks())


def test_every_arrived_flight_once(months: list[Path]) -> None:
    table = pa.concat_tables(pq.read_table(path) for path in months)
    assert table.num_rows == 327_346
    assert pc.count_distinct(table["flight_id"]).as_py() == table.num_rows
    assert table["late"].null_count == 0
    assert 0.23 < pc.mean(table["late"]).as_py() < 0.25


def test_weather_is_that_of_the_hour_at_the_origin(months: list[Path], prepare: Prepare) -> None:
    source = prepare("flights").source_folder()
    weather = pd.read_csv(source / "weather.csv")
    one = pd.read_parquet(months[6]).iloc[5000]
    at = one["scheduled_at"]
    found = weather[
        (weather["origin"] == one["origin"])
        & (weather["month"] == at.month)
        & (weather["day"] == at.day)
        & (weather["hour"] == at.hour)
    ]
    assert found["temp"].tolist() == [one["temp"]]
    assert one["minute_of_day"] == at.hour * 60 + at.minute
    assert one["weekday"] == at.weekday()


def test_a_chosen_month_is_the_same_file(months: list[Path], prepare: Prepare, tmp_path: Path) -> None:
    (again,) = prepare("flights").write_months(tmp_path, [3])
    assert again.read_bytes() == months[2].read_bytes()


def test_articles_have_unique_ids_and_no_empty_text(prepare: Prepare, tmp_path: Path) -> None:
    table = pq.read_table(prepare("text").write(tmp_path, "bbc"))
    assert table.schema.names == ["id", "text", "label"]
    assert len(set(table["id"].to_pylist())) == table.num_rows > 2_000
    assert set(table["label"].to_pylist()) == {"business", "entertainment", "politics", "sports", "tech"}
    assert all(text.strip() for text in table["text"].to_pylist())


def test_patients_are_numbered(prepare: Prepare, tmp_path: Path) -> None:
    table = pyarrow.csv.read_csv(prepare("regression").write(tmp_path))
    assert table["patient"].to_pylist() == list(range(1, 443))
    assert table.schema.names[-1] == "progression"
    assert (pc.min(table["progression"]).as_py(), pc.max(table["progression"]).as_py()) == (25, 346)


def test_clicks_are_the_same_each_time_and_made_once(prepare: Prepare, tmp_path: Path) -> None:
    clicks = prepare("bigdata")
    made = clicks.write(tmp_path, 2_500, each=1_000)
    assert [pq.read_metadata(path).num_rows for path in made] == [1_000, 1_000, 500]
    marks = [path.stat().st_mtime_ns for path in made]
    assert [path.stat().st_mtime_ns for path in clicks.write(tmp_path, 2_500, each=1_000)] == marks
    assert pq.read_table(made[1]).equals(clicks.part(1, 1_000))
    assert not pq.read_table(made[0])["site"].equals(pq.read_table(made[1])["site"])
