"""Serve the same models with Modelkeep and with its peers, one after the other, and print how fast each answers.

python -m benchmarks.serving [--quick] [--only CASE ...] [--peers [NAME ...]] [--json]

The server is pinned to core 0, the load generator (``load.c``, compiled at the first run) to core 1. Answers are
compared with scikit-learn's before anything is timed. Each peer gets an environment of its own under ``build/``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import stop_well
from benchmarks.serving import cases, limits
from benchmarks.serving.peers import PEERS
from benchmarks.serving.report import Row, show

COMPARED: dict[str, Callable[[Path, bool, Sequence[str] | None], list[Row]]] = {
    "logistic": cases.logistic,
    "forest": cases.forest,
    "text": cases.text,
}
CASES: dict[str, Callable[[Path, bool], list[Row]]] = {
    "rows": cases.rows,
    "processes": limits.processes,
    "overload": limits.overload,
    "swaps": limits.swaps,
    "start": limits.start,
}


def main() -> None:
    stop_well()
    parser = argparse.ArgumentParser(description="Requests a second and latency, ours and the peers'.")
    parser.add_argument("--quick", action="store_true", help="a second or two of each, without the slow peers")
    known = [*COMPARED, *CASES]
    parser.add_argument("--only", nargs="+", choices=known, default=known, metavar="CASE", help=", ".join(known))
    parser.add_argument(
        "--peers", nargs="*", choices=list(PEERS), metavar="NAME", help=f"only these of {', '.join(PEERS)}"
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found: list[Row] = []
    for name in arguments.only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            if name in COMPARED:
                found += COMPARED[name](Path(folder), arguments.quick, arguments.peers)
            else:
                found += CASES[name](Path(folder), arguments.quick)
    if arguments.json:
        print(json.dumps([row.to_builtins() for row in found], indent=2))
    else:
        show(found)


if __name__ == "__main__":
    main()
