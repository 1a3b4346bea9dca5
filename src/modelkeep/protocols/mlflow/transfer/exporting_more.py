"""Datasets of evaluations, and webhooks, made on an MLflow server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from modelkeep.core.errors import ModelkeepError
from modelkeep.lifecycle.keep import Keep
from modelkeep.protocols.mlflow.transfer import evaluated, posting
from modelkeep.protocols.mlflow.transfer.records import EvaluationDataset, EvaluationRecord, fingerprint, some
from modelkeep.protocols.mlflow.transfer.rest import NEWER, Client
from modelkeep.protocols.mlflow.transfer.server import ServerSource
from modelkeep.registry import webhooks

DATASET = "modelkeep.dataset_id"
_AT_ONCE = 500
_SENT = ("inputs", "outputs", "expectations", "tags", "source")


class More:
    """What belongs to no run, on its way to a server.

    Args:
        source: Reads from that server.
        report: Counts and what is left are told to it (``exporting.Report``).
    """

    def __init__(self, keep: Keep, client: Client, source: ServerSource, report: Any) -> None:
        self._keep, self._client, self._source, self._report = keep, client, source, report

    def datasets(self, places: Mapping[int, str]) -> None:
        """Make all datasets; ids of experiments there by numbers here."""
        with self._keep.db.read() as conn:
            mine = evaluated.all_here(conn)
        if not mine:
            return
        known = {
            each.tags[DATASET]: each
            for page in self._source.evaluation_datasets()
            for each in page
            if DATASET in each.tags
        }
        for given in mine:
            try:
                self._dataset(given, known.get(given.dataset_id), places)
            except ModelkeepError as error:
                self._leave(f"evaluation dataset {given.name!r}: {error.message}")

    def _dataset(
        self, given: EvaluationDataset, known: EvaluationDataset | None, places: Mapping[int, str]
    ) -> None:
        with self._keep.db.read() as conn:
            records = evaluated.records_here(conn, given.dataset_id)
        whole = fingerprint(given, list(records.values()))
        if known is not None and known.tags.get(posting.WHOLE) == whole:
            self._count("evaluation datasets", self._report.unchanged)
            return
        tags = {**given.tags, DATASET: given.dataset_id, posting.CREATED: str(given.created_ms)}
        if known is None:
            within = [places[number] for number in given.experiments if number in places]
            said = {"name": given.name, "experiment_ids": within, "tags": json.dumps(tags)}
            made = self._client.post("datasets/create", said, api=NEWER, repeat=False)["dataset"]
            there = str(made["dataset_id"])
        else:
            there = known.dataset_id
        ordered = sorted(records.values(), key=_bare)
        for page in some(ordered, _AT_ONCE):
            sent = json.dumps([_sent(each) for each in page])
            self._client.post(f"datasets/{there}/records", {"records": sent}, api=NEWER)
        self._compare(given, there, records)
        said = {"tags": json.dumps({**tags, posting.WHOLE: whole})}
        self._client.post(f"datasets/{there}/tags", said, api=NEWER, method="PATCH")
        self._count("evaluation datasets")

    def _compare(self, given: EvaluationDataset, there: str, records: Mapping[str, EvaluationRecord]) -> None:
        """Read the records back."""
        found = {_told(each) for page in self._source.evaluation_records(there) for each in page}
        lost = {_told(each) for each in records.values()} - found
        if lost:
            self._report.faults.append(f"evaluation dataset {given.name!r}: {len(lost)} records differ there")

    def webhooks(self) -> None:
        """Make all webhooks, each with its secret; one of the same name and URL is brought up to date."""
        with self._keep.db.read() as conn:
            mine = webhooks.listing(conn, limit=100_000)
        known = {(each.name, each.url): each for each in self._source.webhooks()} if mine else {}
        for given in mine:
            there = known.get((given.name, given.url))
            said: dict[str, Any] = {"description": given.description, "status": given.status}
            told = [each.partition(".") for each in given.events]
            said["events"] = [{"entity": each[0].upper(), "action": each[2].upper()} for each in told]
            said |= {"secret": given.secret} if given.secret else {}
            if there is not None and (there.description, there.status, there.events) == (
                given.description,
                given.status,
                sorted(given.events),
            ):
                self._count("webhooks", self._report.unchanged)
                continue
            try:
                if there is None:
                    self._client.post("webhooks", {"name": given.name, "url": given.url, **said}, repeat=False)
                else:
                    self._client.post(f"webhooks/{there.hook_id}", said, method="PATCH")
            except ModelkeepError as error:
                self._leave(f"webhook {given.name!r}: {error.message}")
                continue
            self._count("webhooks")

    def _count(self, kind: str, to: dict[str, int] | None = None) -> None:
        counts = self._report.exported if to is None else to
        counts[kind] = counts.get(kind, 0) + 1

    def _leave(self, line: str) -> None:
        if len(self._report.left) < 100:
            self._report.left.append(line)


def _bare(record: EvaluationRecord) -> bool:
    """Whether its outputs are no object: MLflow 3.x answers 500 to an object that comes after such a record."""
    return not isinstance(record.content.get("outputs", {}), dict)


def _sent(record: EvaluationRecord) -> dict[str, Any]:
    return {name: record.content[name] for name in _SENT if name in record.content}


def _told(record: EvaluationRecord) -> str:
    """What of a record travels; an empty field is as good as none."""
    return json.dumps({name: value for name, value in _sent(record).items() if value}, sort_keys=True)
