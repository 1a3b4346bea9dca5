"""A small real project: a table that a logistic regression learns in a moment, its declaration, its home."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from sqlalchemy import func, select

from modelkeep.registry import events
from modelkeep.store import tables

if TYPE_CHECKING:  # what takes long to import is imported where it is used
    import pandas as pd

    from modelkeep.lifecycle.apply import Applied
    from modelkeep.lifecycle.keep import Keep
    from modelkeep.spec.declaration import Declaration

SAID: dict[str, Any] = {
    "model": "late",
    "data": {"source": "data/*.csv", "target": "late", "key": "id", "split": {"test": 0.3, "by": "key"}},
    "features": [
        {"impute": {"columns": "numeric", "strategy": "median"}},
        {"scale": {"columns": "numeric", "method": "standard"}},
        {"encode": {"columns": ["place"], "method": "onehot"}},
    ],
    "train": {"algorithm": "logistic_regression", "params": {"C": 1.0}, "metric": "roc_auc"},
    "gates": ["roc_auc >= 0.6"],
}


def rows(count: int, *, first: int = 0, seed: int = 0, turn: float = 1.0) -> pd.DataFrame:
    """Rows with a known rule: late when x, half of z, and place a say so; ``turn`` changes the weight of x."""
    import numpy as np
    import pandas as pd

    random = np.random.default_rng([seed, first])
    x, z = random.normal(size=count), random.normal(size=count)
    place = random.choice(["a", "b", "c"], count)
    late = turn * x + 0.5 * z + (place == "a") + random.normal(scale=0.7, size=count) > 0.3
    columns = {"id": np.arange(first, first + count), "x": x.round(4), "z": z.round(4), "place": place}
    return pd.DataFrame({**columns, "late": late.astype(int)})


@dataclass
class Project:
    """A folder with a declaration, a table and a home."""

    folder: Path
    said: dict[str, Any] = field(default_factory=lambda: copy.deepcopy(SAID))

    def write(self, name: str = "one", count: int = 600, **options: Any) -> Path:
        """Write a file of rows."""
        path = self.folder / "data" / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows(count, **options).to_csv(path, index=False)
        return path

    def declare(self, change: Callable[[dict[str, Any]], Any] | None = None) -> Path:
        """Write the declaration, after ``change`` was made to what it says."""
        if change is not None:
            change(self.said)
        path = self.folder / "modelkeep.yaml"
        path.write_text(yaml.safe_dump(self.said, sort_keys=False))
        return path

    def declaration(self) -> Declaration:
        from modelkeep.spec import loading

        return loading.load(self.folder / "modelkeep.yaml")

    @contextlib.contextmanager
    def opened(self) -> Iterator[Keep]:
        """The home, as every command opens it."""
        from modelkeep.app.wiring import open_keep

        keep = open_keep(self.folder)
        try:
            yield keep
        finally:
            keep.close()

    def apply(self, **options: Any) -> Applied:
        from modelkeep.lifecycle.apply import apply

        with self.opened() as keep:
            return apply(keep, self.declaration(), **options)

    def state(self) -> dict[str, Any]:
        """How many rows each table has, and the head of the history: equal when nothing was written."""
        with self.opened() as keep, keep.db.read() as conn:
            found: dict[str, Any] = {
                table.name: conn.execute(select(func.count()).select_from(table)).scalar_one()
                for table in tables.metadata.sorted_tables
            }
            return found | {"head": events.head(conn)}

    def running(self) -> list[str]:
        """Ids of runs that say they are running."""
        with self.opened() as keep, keep.db.read() as conn:
            query = select(tables.runs.c.run_id).where(tables.runs.c.status == "RUNNING")
            return list(conn.execute(query).scalars())

    def kinds(self) -> list[str]:
        """The history, by kind."""
        with self.opened() as keep, keep.db.read() as conn:
            return [event.kind for event in events.history(conn)]


def until(what: Callable[[], Any], limit: float = 60.0, pause: float = 0.02, told: Callable[[], str] = str) -> Any:
    """Wait until ``what`` gives something true, and return that; in vain, say what was ``told`` meanwhile."""
    end = time.monotonic() + limit
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < end, f"waited {limit} s in vain; it gives {found!r}\n{told()}"
        time.sleep(pause)
