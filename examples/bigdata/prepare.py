"""A click log of any size, made part by part: `data/clicks-00000.parquet`, a million rows each.

python prepare.py [--rows 50000000]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent
PART = 1_000_000
"""Rows of a file: what is in memory at once."""

SITES, ADS, USERS, COUNTRIES = 5_000, 20_000, 200_000, 60
DEVICES = ("phone", "tablet", "desktop", "tv")


def part(number: int, rows: int) -> pa.Table:
    """The rows of a file; the same ones for the same arguments.

    A click is likelier on some sites, ads, devices and for some users, all with their own weight in the log odds;
    ids are as unequal as real ones (the most frequent site has several percent of the rows).
    """
    truth = np.random.default_rng(0)  # the same in every part: what there is to learn
    weights = [truth.normal(0, scale, size) for scale, size in ((0.9, SITES), (0.8, ADS), (0.3, USERS), (0.3, 60))]
    random = np.random.default_rng([1, number])
    ids = [
        (size * random.random(rows) ** 3).astype(np.int32)  # few are frequent
        for size in (SITES, ADS, USERS, COUNTRIES)
    ]
    device, price = random.integers(0, 4, rows), random.exponential(1.0, rows)
    odds = sum(weight[one] for weight, one in zip(weights, ids, strict=True))
    odds = odds - 1.6 + np.array([0.5, 0.2, -0.3, -1.0])[device] - 0.4 * price
    names = [
        pa.DictionaryArray.from_arrays(pa.array(one), [f"{letter}{index}" for index in range(size)]).cast(
            pa.string()
        )
        for letter, size, one in zip("sauc", (SITES, ADS, USERS, COUNTRIES), ids, strict=True)
    ]
    return pa.table(
        {
            "click_id": np.arange(rows) + number * PART,
            "site": names[0],
            "ad": names[1],
            "user": names[2],
            "country": names[3],
            "device": pa.DictionaryArray.from_arrays(pa.array(device), list(DEVICES)).cast(pa.string()),
            "price": pa.array(np.where(random.random(rows) < 0.02, np.nan, price.round(3)), from_pandas=True),
            "clicked": (random.random(rows) < 1 / (1 + np.exp(-odds))).astype(np.int64),
        }
    )


def write(folder: Path, rows: int, each: int = PART) -> list[Path]:
    """Write the files that are not there yet, each whole or not at all; returns all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number, first in enumerate(range(0, rows, each)):
        path = folder / f"clicks-{number:05}.parquet"
        made.append(path)
        count = min(each, rows - first)
        if path.exists() and pq.read_metadata(path).num_rows == count:
            continue
        half = path.with_suffix(".half")
        pq.write_table(part(number, count), half, compression="zstd", row_group_size=250_000)
        half.replace(path)
        if sys.stderr.isatty():
            print(f"\r{first + count:,} of {rows:,} rows", end="", file=sys.stderr, flush=True)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a click log as Parquet files.")
    parser.add_argument("--rows", type=int, default=50_000_000, help="how many, 50 million unless said")
    parser.add_argument("--folder", type=Path, default=HERE / "data")
    said = parser.parse_args()
    print(f"{len(write(said.folder, said.rows))} files in {said.folder}")


if __name__ == "__main__":
    main()
