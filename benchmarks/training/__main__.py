"""Out-of-core learning beside its peers, with two workers, on each engine, and a projection; prints ratios.

python -m benchmarks.training [--quick] [--only learners workers engines] [--engines local ray ...] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import stop_well
from benchmarks.training import clicks, clusters, learners
from benchmarks.training.projection import NODES, ROWS, Round, merge_seconds

SECTIONS = ("learners", "workers", "engines")


def main() -> None:
    stop_well()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rows, and smaller tables")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--engines", nargs="+", choices=clusters.ENGINES, default=list(clusters.ENGINES))
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    rows = 300_000 if asked.quick else 1_000_000
    print(f"making {rows:,} rows of {clicks.FIELDS} hashed features ...", file=sys.stderr, flush=True)
    train, held = list(clicks.batches(rows, 1)), list(clicks.batches(100_000, 2))
    found: dict[str, Any] = {"rows": rows}
    with tempfile.TemporaryDirectory() as name:
        runs = 2 if asked.quick else 5
        # workers first: the kernel goes on for a while to write what the peers are given in files
        if "workers" in asked.only:
            found["workers"] = workers(train + list(clicks.batches(rows, 3)), 2 * rows, runs)
        if "learners" in asked.only:
            found["learners"] = learners.compare(train, held, Path(name), runs)
        if "engines" in asked.only:
            base = [name for name in ("local://1", "local") if name not in asked.engines]
            found["engines"] = clusters.measure(train, Path(name), base + asked.engines, quick=asked.quick)
    print(json.dumps(found, indent=2) if asked.json else shown(found))


def workers(train: list[clicks.Batch], rows: int, runs: int) -> dict[str, Any]:
    """Measured, modelled, projected."""
    speed = learners.workers(train, runs)
    merge, add = merge_seconds()
    model = Round(rows / learners.PARTS, speed[1], merge, add)
    return {
        "rows_per_second": speed,
        "gain": speed[2] / speed[1],
        "gain_by_the_model": model.gain(2, network=False),
        "merge_seconds": merge,
        "add_seconds": add,
        "projected": {
            each: {nodes: Round(each, speed[1], merge, add).gain(nodes, network=True) for nodes in NODES}
            for each in ROWS
        },
    }


def shown(found: dict[str, Any]) -> str:
    """As text."""
    lines = [f"{found['rows']:,} rows, {clicks.FIELDS} hashed features out of 2^{clicks.BITS}, one pass"]
    if "learners" in found:
        ours = [one["rows_per_core_second"] for one in found["learners"][:2]]
        for one in found["learners"]:
            rate, loss = one["rows_per_core_second"], one["held_out_log_loss"]
            lines.append(
                f"  {one['learner']:40} {rate / 1e6:6.2f} M rows/s of one core, held-out log loss {loss:.4f}; "
                f"ours is {ours[0] / rate:.1f}x, without penalty {ours[1] / rate:.1f}x"
            )
    if "workers" in found:
        one = found["workers"]
        part, alone = 2 * found["rows"] // learners.PARTS, one["rows_per_second"][1] / 1e6
        lines += [
            f"two workers, parts of {part:,} rows: {one['gain']:.2f}x one ({alone:.2f} M rows/s); "
            f"the model says {one['gain_by_the_model']:.2f}x",
            *(
                f"projected, {each:,} rows a worker and round: "
                + ", ".join(f"{nodes:,} nodes {gain:,.1f}x" for nodes, gain in gains.items())
                for each, gains in one["projected"].items()
            ),
        ]
    for one in found.get("engines", ()):
        if "failed" in one:
            lines.append(f"  {one['engine']:10} {one['failed']}")
            continue
        wins = ", ".join(
            f"beats {rival} from {one[key]:,} rows" if one[key] else f"never beats {rival}"
            for rival in ("local://1", "local")
            if (key := f"beats {rival} from rows") in one and rival != one["engine"]
        )
        lines.append(
            f"  {one['engine']:10} opens in {one['open']:5.1f} s, {one['task'] * 1e3:7.3f} ms a task; {wins}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
