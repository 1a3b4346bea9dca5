"""Optuna's journal of a search, kept in the database a round of trials at a time.

Optuna writes about ten changes for a trial. They gather here until a round is over, and are then kept together. So
whoever goes on after a kill finds whole rounds only, and asks for the next one as if nothing had happened.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from modelkeep.store.studies import Study


class Journal(BaseJournalBackend):
    """What ``optuna.storages.JournalStorage`` reads and writes.

    Args:
        study: Where it is kept; None keeps it in memory only.
    """

    def __init__(self, study: Study | None) -> None:
        self._study = study
        self._logs: list[dict[str, Any]] = [json.loads(line) for line in study.lines()] if study else []
        self._kept = len(self._logs)
        self._fresh: list[str] = []

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The changes from a number on."""
        yield from self._logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add changes, which are not kept yet."""
        lines = [json.dumps(log, separators=(",", ":")) for log in logs]
        self._fresh += lines
        # What is read back is what a later process will read, not the objects handed in.
        self._logs += [json.loads(line) for line in lines]

    def keep(self) -> None:
        """Make all changes so far durable, all or none.

        Raises:
            Conflict: Another process has gone on with the study.
        """
        if self._study is not None:
            self._study.append(self._kept, self._fresh)
        self._kept += len(self._fresh)
        self._fresh = []
