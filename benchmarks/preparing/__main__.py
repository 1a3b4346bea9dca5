"""Prepare flights x 100 (clean, encode, scale, split) with plain Polars, plain DuckDB and ours; prints ratios.

python -m benchmarks.preparing [--copies 100] [--memory 2GB] [--only polars duckdb ours] [--json]

Each is a process of its own and writes the features and the target of both sides as Parquet. Whether they agree is
checked: rows, and the mean and deviation of every feature.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import duckdb

from benchmarks import stop_well
from benchmarks.preparing import costs, flights

SCRIPTS = {"polars": "plain_polars", "duckdb": "plain_duckdb", "ours": "ours"}
BUDGET = 1.3
CLOSE = 0.02
"""How far means and deviations may be apart: each divides the rows by a hash of its own."""


def main() -> None:
    stop_well()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", type=int, default=100, help="of the year, 0.34 million rows each")
    parser.add_argument("--memory", default="2GB", help="ours: MODELKEEP_MEMORY")
    parser.add_argument("--only", nargs="+", choices=list(SCRIPTS), default=list(SCRIPTS))
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "source"
        source.mkdir()
        print(f"writing {asked.copies} copies ...", file=sys.stderr, flush=True)
        found: dict[str, Any] = {"rows": flights.write(source, asked.copies), "memory": asked.memory}
        facts = {}
        for script in asked.only:
            print(f"{script} ...", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(dir=name) as out:
                found[script], facts[script] = measure(script, source, Path(out), asked.memory)
    must_agree(facts)
    print(json.dumps(found, indent=2) if asked.json else shown(found))


def measure(script: str, source: Path, out: Path, memory: str) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """What a script costs, and what it made."""
    command = [sys.executable, "-m", f"benchmarks.preparing.{SCRIPTS[script]}", str(source), str(out)]
    root = str(flights.ROOT)
    cost = costs.run(command, out, {**os.environ, "PYTHONPATH": root, "MODELKEEP_MEMORY": memory})
    made = asdict(cost)
    if (out / "spent.json").exists():
        made["seconds"] = json.loads((out / "spent.json").read_text())
    return made, described(out)


def described(out: Path) -> dict[str, list[float]]:
    """Rows of each side; the mean and deviation of each feature over both."""
    sides = {
        side: f"{out}/{side}/*.parquet" if (out / side).is_dir() else f"{out}/{side}.parquet" for side in SIDES
    }
    with duckdb.connect() as db:
        counts = [db.execute(f"SELECT count(*) FROM '{path}'").fetchall()[0][0] for path in sides.values()]
        files = f"read_parquet({list(sides.values())})"
        names = [row[0] for row in db.execute(f"DESCRIBE FROM {files}").fetchall()]
        what = ", ".join(f'avg("{name}"), stddev_pop("{name}")' for name in names)
        row = db.execute(f"SELECT {what} FROM {files}").fetchall()[0]
    found = {name: list(row[2 * at : 2 * at + 2]) for at, name in enumerate(names)}
    return {"rows": [float(count) for count in counts], **dict(sorted(found.items()))}


SIDES = ("train", "test")


def must_agree(facts: dict[str, dict[str, list[float]]]) -> None:
    """End with what differs, if anything does."""
    (first, wanted), *others = facts.items()
    for name, found in others:
        if found.keys() != wanted.keys():
            sys.exit(f"{name} made other features than {first}: {sorted(found.keys() ^ wanted.keys())}")
        if sum(found["rows"]) != sum(wanted["rows"]):
            sys.exit(f"{name} kept {sum(found['rows']):,.0f} rows, {first} {sum(wanted['rows']):,.0f}")
        for feature, values in found.items():
            scale = wanted["rows"][0] if feature == "rows" else max(1.0, *map(abs, wanted[feature]))
            apart = max(abs(a - b) / scale for a, b in zip(values, wanted[feature], strict=True))
            if apart > CLOSE:
                sys.exit(f"{feature}: {values} by {name}, {wanted[feature]} by {first}")


def shown(found: dict[str, Any]) -> str:
    """As text."""
    ran = [name for name in SCRIPTS if name in found]
    lines = [
        f"{found['rows']:,} rows; ours with MODELKEEP_MEMORY={found['memory']}; the results agree",
        f"{'':8}{'rows/s':>12}{'wall s':>9}{'cpu s':>9}{'all MB':>9}{'largest process MB':>20}",
    ]
    for name in ran:
        one = found[name]
        lines.append(
            f"{name:8}{found['rows'] / one['wall']:>12,.0f}{one['wall']:>9.1f}{one['cpu']:>9.1f}"
            f"{one['memory'] / 1e6:>9,.0f}{one['process'] / 1e6:>20,.0f}"
        )
    for rival in [name for name in ran if name != "ours" and "ours" in found]:
        wall, cpu = (found["ours"][what] / found[rival][what] for what in ("wall", "cpu"))
        lines.append(f"ours / {rival}: {wall:.2f} by the clock, {cpu:.2f} in processor time (at most {BUDGET})")
    if "ours" in found:
        lines.append(
            "ours: " + ", ".join(f"{what} {took:.1f} s" for what, took in found["ours"]["seconds"].items())
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
