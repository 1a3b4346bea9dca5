"""A running MLflow tracking server, read over its REST API."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, BinaryIO
from urllib.parse import urlencode, urlsplit

from modelkeep.core.errors import Invalid, ModelkeepError, NotFound, Refused
from modelkeep.protocols.mlflow.transfer import answers, evaluated, hooked, traced
from modelkeep.protocols.mlflow.transfer.places import PROXIED, Places, place
from modelkeep.protocols.mlflow.transfer.records import (
    EvaluationDataset,
    EvaluationRecord,
    Experiment,
    Hook,
    LoggedModel,
    Model,
    Owned,
    Point,
    Run,
    Trace,
)
from modelkeep.protocols.mlflow.transfer.rest import AJAX, API, FILES, NEWER, Client, file_path

PARALLEL = 8
PAGE = 500
BULK = 100
"""Runs asked about in one request: the most that MLflow allows."""

POINTS = 25_000
"""Points in one answer: the most that MLflow gives."""

_PROMPTS = "tags.`mlflow.prompt.is_prompt` = 'true'"


class ServerSource:
    """The ``Source`` port on a server's REST API. Pages, histories and files are asked for in parallel."""

    untold = frozenset({"deleted_ms", "source_type", "source_name", "source_version", "entry_point_name"})

    def __init__(self, address: str, root: str = "") -> None:
        """Connect.

        Args:
            root: Folder or URL of its ``--artifacts-destination``, to read files there and not through the server.

        Raises:
            Invalid, Unavailable, Refused: The address is wrong, the server is away, or it wants credentials.
        """
        self._client = Client(address)
        self.origin = self._client.address
        self.note = _release(self._client)
        self._places = Places(root, None if root else _Proxy(self._client))
        self._pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="modelkeep-mlflow")
        self._with_models: dict[int, bool] = {}
        self._bulk = True

    def experiments(self) -> list[Experiment]:
        """All, deleted ones too."""
        said = {"view_type": "ALL", "max_results": 1000}
        return [answers.experiment(each) for page in self._pages("experiments/search", said) for each in page]

    def runs(self, experiment: int) -> Iterator[list[Run]]:
        """Pages of all runs, in the order they began, so that new ones come last."""
        said = {
            "experiment_ids": [str(experiment)],
            "run_view_type": "ALL",
            "max_results": PAGE,
            "order_by": ["attributes.start_time ASC"],
        }
        for page in self._pages("runs/search", said):
            if page and self._has_models(experiment):  # a search leaves out the models that went in
                page = list(self._pool.map(self._run, [each["info"]["run_id"] for each in page]))
            yield [answers.run(each) for each in page]

    def one(self, run_id: str) -> Run:
        """One run. Raises ``NotFound``."""
        return answers.run(self._run(run_id))

    def points(self, runs: Sequence[Run]) -> Iterator[list[Point]]:
        """Histories by metric of a hundred runs at once; long ones page by page."""
        asked = []
        for at in range(0, len(runs), BULK):
            holders: dict[str, list[str]] = {}
            for run in runs[at : at + BULK]:
                for key, _, _, _ in run.latest:
                    holders.setdefault(key, []).append(run.run_id)
            asked += list(holders.items())
        waiting: list[Future[list[Point]]] = []
        for key, ids in asked:
            waiting.append(self._pool.submit(self._histories, key, ids))
            if len(waiting) > 2 * PARALLEL:
                yield from self._settled(waiting.pop(0))
        for each in waiting:
            yield from self._settled(each)

    def logged_models(self, experiment: int) -> Iterator[list[LoggedModel]]:
        """Pages of logged models; the server does not tell those that were deleted."""
        if self._has_models(experiment):
            said = {"experiment_ids": [str(experiment)], "max_results": 50}
            for page in self._pages("logged-models/search", said, "models"):
                yield [answers.logged_model(each) for each in page]

    def traces(self, experiment: int) -> Iterator[list[Trace]]:
        """Pages of all traces, the oldest first; none from a server before MLflow 3."""
        for page in self._traces(experiment):
            spans = self._pool.map(self.spans, [each["trace_id"] for each in page])
            yield [traced.of_answer(info, found) for info, found in zip(page, spans, strict=True)]

    def trace_tags(self, experiment: int) -> dict[str, dict[str, str]]:
        """Tags by trace; none from a server before MLflow 3."""
        return {each["trace_id"]: each.get("tags", {}) for page in self._traces(experiment) for each in page}

    def _traces(self, experiment: int) -> Iterator[list[dict[str, Any]]]:
        place = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": str(experiment)}}
        said = {"locations": [place], "max_results": PAGE, "order_by": ["timestamp_ms ASC"]}
        try:
            yield from self._pages("traces/search", said, "traces", api=NEWER)
        except NotFound:
            return

    def models(self) -> Iterator[list[Model]]:
        """Pages of registered models, prompts too."""
        versions: dict[str, dict[str, Any]] = {}
        for wanted in ("", _PROMPTS):
            said = {"filter": wanted, "max_results": 10_000}
            for page in self._listed("model-versions/search", said, "model_versions"):
                for each in page:
                    versions.setdefault(each["name"], {})[str(each["version"])] = each
        seen: set[str] = set()
        for wanted in ("", _PROMPTS):
            said = {"filter": wanted, "max_results": 1000}
            for page in self._listed("registered-models/search", said, "registered_models"):
                fresh = [each for each in page if each["name"] not in seen]
                seen |= {each["name"] for each in fresh}
                yield [answers.model(each, list(versions.get(each["name"], {}).values())) for each in fresh]

    def evaluation_datasets(self) -> Iterator[list[EvaluationDataset]]:
        """Pages of the datasets of evaluations; none from a server that has none."""
        try:
            for page in self._pages("datasets/search", {"max_results": PAGE}, "datasets", api=NEWER):
                within = self._pool.map(self._within, [each["dataset_id"] for each in page])
                yield [evaluated.of_answer(each, ids) for each, ids in zip(page, within, strict=True)]
        except NotFound:
            return

    def _within(self, dataset_id: str) -> list[str]:
        return list(self._client.get(f"datasets/{dataset_id}/experiment-ids", api=NEWER).get("experiment_ids", []))

    def evaluation_records(self, dataset_id: str) -> Iterator[list[EvaluationRecord]]:
        """Pages of the records of one."""
        token = ""
        while True:
            asked = {"max_results": PAGE, **({"page_token": token} if token else {})}
            found = self._client.get(f"datasets/{dataset_id}/records", asked, api=NEWER)
            yield evaluated.records_of_answer(found.get("records", ""))
            token = found.get("next_page_token", "")
            if not token:
                return

    def webhooks(self) -> list[Hook]:
        """All, without their secrets; none from a server that has none."""
        try:
            pages = self._listed("webhooks", {"max_results": 100}, "webhooks")
            return [hooked.of_answer(each) for page in pages for each in page]
        except (NotFound, Invalid):
            return []

    def files(self, owner: Owned) -> list[tuple[str, int | None]]:
        """What is below its artifact root. Raises ``Invalid``, ``Unavailable``."""
        if not _of_disk(place(owner)):
            return self._places.files(owner)
        return sorted(_tree(lambda folder: self._folder(owner, folder)))

    def open(self, owner: Owned, path: str) -> AbstractContextManager[BinaryIO]:
        """One file's bytes. Raises ``NotFound``, ``Unavailable``."""
        if not _of_disk(place(owner)):
            return self._places.open(owner, path)
        if isinstance(owner, Run):
            return self._client.stream(f"/get-artifact?{urlencode({'run_id': owner.run_id, 'path': path})}")
        asked = urlencode({"artifact_file_path": path})
        return self._client.stream(f"{AJAX}/logged-models/{owner.model_id}/artifacts/files?{asked}")

    def totals(self) -> dict[str, int]:
        """A server does not tell."""
        return {}

    def others(self) -> dict[str, int]:
        """A server does not tell how many there are."""
        return {}

    def close(self) -> None:
        """End all connections."""
        self._pool.shutdown(cancel_futures=True)
        self._client.close()

    def _pages(self, path: str, said: Mapping[str, Any], name: str = "", *, api: str = API) -> Iterator[list[Any]]:
        """Answers to a search, the next page on its way while one is worked on."""
        name = name or path.partition("/")[0].replace("-", "_")

        def ask(token: str) -> dict[str, Any]:
            return self._client.post(path, {**said, **({"page_token": token} if token else {})}, api=api)

        waiting = self._pool.submit(ask, "")
        while True:
            found = waiting.result()
            token = found.get("next_page_token", "")
            if token:
                waiting = self._pool.submit(ask, token)
            yield found.get(name, [])
            if not token:
                return

    def _listed(self, path: str, said: Mapping[str, Any], name: str) -> Iterator[list[Any]]:
        token = ""
        while True:
            found = self._client.get(path, {**said, **({"page_token": token} if token else {})})
            yield found.get(name, [])
            token = found.get("next_page_token", "")
            if not token:
                return

    def spans(self, trace_id: str) -> list[dict[str, Any]]:
        """A trace's spans as MLflow writes them; none when they never came."""
        try:
            found = self._client.get("get-trace-artifact", {"request_id": trace_id}, api=AJAX)
        except (NotFound, Invalid):
            return []
        return list(found.get("spans", []))

    def _run(self, run_id: str) -> dict[str, Any]:
        return dict(self._client.get("runs/get", {"run_id": run_id})["run"])

    def _has_models(self, experiment: int) -> bool:
        if experiment not in self._with_models:
            try:
                said = {"experiment_ids": [str(experiment)], "max_results": 1}
                self._with_models[experiment] = bool(self._client.post("logged-models/search", said).get("models"))
            except (NotFound, Invalid):  # a server before 3.0
                self._with_models[experiment] = False
        return self._with_models[experiment]

    def _histories(self, key: str, ids: Sequence[str]) -> list[Point]:
        if self._bulk:
            asked = {"run_id": list(ids), "metric_key": key, "max_results": POINTS}
            try:
                found = self._client.get("metrics/get-history-bulk", asked, api=AJAX).get("metrics", [])
            except (NotFound, Refused):  # an old server, or a gate before it that only lets the public API through
                self._bulk = False
            else:
                if len(found) < POINTS:
                    return [answers.point(each["run_id"], each) for each in found]
        return [point for run_id in ids for point in self._history(key, run_id)]

    def _history(self, key: str, run_id: str) -> Iterator[Point]:
        token = ""
        while True:
            asked = {"run_id": run_id, "metric_key": key, "max_results": POINTS}
            found = self._client.get("metrics/get-history", {**asked, **({"page_token": token} if token else {})})
            yield from (answers.point(run_id, each) for each in found.get("metrics", []))
            token = found.get("next_page_token", "")
            if not token:
                return

    @staticmethod
    def _settled(waiting: Future[list[Point]]) -> Iterator[list[Point]]:
        found = waiting.result()
        if found:
            yield found

    def _folder(self, owner: Owned, folder: str) -> list[dict[str, Any]]:
        if isinstance(owner, Run):
            asked = {"run_id": owner.run_id, **({"path": folder} if folder else {})}
            return list(self._client.get("artifacts/list", asked).get("files", []))
        asked = {"artifact_directory_path": folder} if folder else {}
        path = f"logged-models/{owner.model_id}/artifacts/directories"
        return list(self._client.get(path, asked).get("files", []))


class _Proxy:
    """Files behind ``mlflow-artifacts:/``."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def files(self, path: str) -> list[tuple[str, int | None]]:
        def folder(below: str) -> list[dict[str, Any]]:
            asked = {"path": f"{path}/{below}" if below else path}
            try:
                found = self._client.get("artifacts", asked, api=FILES.rpartition("/")[0]).get("files", [])
            except NotFound:
                return []
            return [{**each, "path": f"{below}/{each['path']}" if below else each["path"]} for each in found]

        return list(_tree(folder))

    def open(self, path: str) -> AbstractContextManager[BinaryIO]:
        return self._client.stream(file_path(path))


def _tree(folder: Any) -> Iterator[tuple[str, int | None]]:
    """Every file below, of a function that lists one folder."""
    left = [""]
    while left:
        for entry in folder(left.pop()):
            if entry.get("is_dir"):
                left.append(entry["path"])
            else:
                yield entry["path"], int(entry["file_size"]) if "file_size" in entry else None


def _of_disk(uri: str) -> bool:
    """Whether only the server's own disk has it."""
    return bool(uri) and not uri.startswith(PROXIED) and urlsplit(uri).scheme in ("", "file")


def _release(client: Client) -> str:
    """The server's release, once it is sure that it is one."""
    client.post("experiments/search", {"max_results": 1})
    try:
        with client.stream("/version") as stream:
            return f"MLflow {stream.read(50).decode('ascii', 'replace').strip()}"
    except ModelkeepError:
        return ""
