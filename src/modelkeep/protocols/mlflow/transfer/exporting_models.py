"""Registered models and their versions, with their numbers, made on an MLflow server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from modelkeep.core.errors import Conflict
from modelkeep.lifecycle.keep import Keep
from modelkeep.protocols.mlflow.transfer import departing, posting
from modelkeep.protocols.mlflow.transfer.posting import Poster
from modelkeep.protocols.mlflow.transfer.records import Model, Version
from modelkeep.registry.catalog import PROMPT
from modelkeep.store.blobs import read_tree

GAPS = 1000
"""Numbers of deleted versions that may precede a version."""

_WITHIN = "_mlflow_experiment_ids"
"""The tag of a prompt that says which experiments it belongs to, as ``,1,2,``."""
_PROMPT = "dummy-source"
"""What clients say is the source of a prompt."""
_OURS = re.compile(r"mlflow-artifacts:/+\d+/(?:models/)?(?P<owner>[\w\-]+)/artifacts(?:/(?P<rest>.*))?\Z")


class Registry:
    """The registered models of a home on their way to a server.

    Args:
        report: Counts, names and what is left are told to it (``exporting.Report``).
    """

    def __init__(self, keep: Keep, poster: Poster, prefix: str, rename: bool, report: Any) -> None:
        self._keep, self._poster, self._report = keep, poster, report
        self._prefix, self._rename = prefix, rename
        self._places: dict[str, tuple[str, bool]] = {}
        with keep.db.read() as conn:
            self._models = list(departing.registered(conn))

    def look(self) -> None:
        """Choose the names there. Raises ``Conflict``."""
        problems = []
        for each in self._models:
            name = self._prefix + each.name
            attempt = 0
            while (known := self._known(name)) is not None and _tags(known).get(posting.MODEL) != posting.mark(
                each
            ):
                if not self._rename:
                    problems.append(f"model {name!r} is there already")
                    break
                attempt += 1
                name = posting.renamed(self._prefix + each.name, attempt)
            self._places[each.name] = (name, known is not None)
            if name != each.name:
                self._report.renamed[f"model {each.name}"] = name
        if problems:
            raise Conflict(
                f"nothing was exported, as {len(problems)} names are taken:\n" + "\n".join(problems[:20]),
                hint="give other names with --rename, or put --prefix NAME- before all names",
            )

    def send(self, runs: Mapping[str, str], models: Mapping[str, str], places: Mapping[int, str]) -> None:
        """Make all that is not there; ids there by ids here of what versions come from, and of experiments."""
        for each in self._models:
            if _WITHIN in each.tags:
                within = (places.get(int(number), "") for number in re.findall(r"\d+", each.tags[_WITHIN]))
                each.tags[_WITHIN] = f",{','.join(filter(None, within))},"
            self._model(each, runs, models)

    def _known(self, name: str) -> dict[str, Any] | None:
        return self._poster.find("registered-models/get", {"name": name}, "registered_model")

    def _model(self, given: Model, runs: Mapping[str, str], models: Mapping[str, str]) -> None:
        name, known = self._places[given.name]
        if not known:
            self._poster.model(name, posting.mark(given), given.description, given.tags)
        self._count("models")
        prompt = given.tags.get(PROMPT) == "true"
        there = self._versions(name, prompt)
        highest = max(there, default=0)
        for each in given.versions:
            at = there.get(each.version)
            if at is not None and _tags(at).get(posting.VERSION) != f"{given.name}@{each.version}":
                self._leave(f"version {given.name}@{each.version}: another one of this number is there")
                continue
            if at is None and each.version <= highest:
                self._leave(f"version {given.name}@{each.version}: higher numbers are there already")
                continue
            if at is None:
                source = self._source(given.name, each, runs, models)
                if source is None:
                    self._leave(f"version {given.name}@{each.version}: its files are nowhere a server can read")
                    continue
                highest = self._make(name, given.name, each, source)
            self._count("versions")
            if each.stage not in ("None", (at or {}).get("current_stage", "None")):
                said = {"name": name, "version": str(each.version), "stage": each.stage}
                self._poster.client.post("model-versions/transition-stage", said)
        present = self._versions(name, prompt)
        for alias, version in given.aliases.items():
            if version in present:
                said = {"name": name, "alias": alias, "version": str(version)}
                self._poster.client.post("registered-models/alias", said)

    def _versions(self, name: str, prompt: bool) -> dict[int, dict[str, Any]]:
        escaped = name.replace("'", "''")
        only = f" AND tags.`{PROMPT}` = 'true'" if prompt else ""  # versions of prompts are not listed otherwise
        asked = {"filter": f"name = '{escaped}'{only}", "max_results": 10_000}
        found = self._poster.client.get("model-versions/search", asked).get("model_versions", [])
        return {int(each["version"]): each for each in found}

    def _make(self, name: str, mine: str, given: Version, source: Mapping[str, str]) -> int:
        """Make a version, and delete it again until it gets its own number: numbers are given in order, once."""
        said = {"name": name, "description": given.description, "run_link": given.run_link, **source}
        tags = {**given.tags, posting.VERSION: f"{mine}@{given.version}", posting.CREATED: str(given.created_ms)}
        for _ in range(GAPS):
            number = self._poster.version(said, tags)
            if number >= given.version:
                break
            gone = {"name": name, "version": str(number)}
            self._poster.client.post("model-versions/delete", gone, method="DELETE")
        if number != given.version:
            self._report.renamed[f"version {mine}@{given.version}"] = f"{name}@{number}"
        return number

    def _source(
        self, name: str, given: Version, runs: Mapping[str, str], models: Mapping[str, str]
    ) -> dict[str, str] | None:
        """Where the files of a version are there, and what it came from."""
        run = runs.get(given.run_id, "")
        if given.location:  # a package
            return self._package(name, given, run) if run else None
        if given.source == _PROMPT:
            return {"source": _PROMPT}
        found = _OURS.match(given.source)
        if found is None:
            scheme = given.source.partition(":")[0].lower()
            apart = given.source and scheme not in ("mlflow-artifacts", "file", "") and ":" in given.source
            return {"source": given.source, **({"run_id": run} if run else {})} if apart else None
        if found["owner"] in models:
            there = models[found["owner"]]
            return {"source": f"models:/{there}", "model_id": there, **({"run_id": run} if run else {})}
        there = runs.get(found["owner"], "")
        return {"source": f"runs:/{there}/{found['rest'] or ''}", "run_id": there} if there else None

    def _package(self, name: str, given: Version, run: str) -> dict[str, str] | None:
        """Put a package's files with those of the run that made it."""
        blobs = self._keep.blobs
        files = []
        for path, digest in sorted(read_tree(blobs, given.location).items()):
            with blobs.open(digest) as stream:
                files.append((path, digest, stream.seek(0, 2)))
        info = self._poster.client.get("runs/get", {"run_id": run})["run"]["info"]
        folder = f"versions/{name}/{given.version}"
        if not self._poster.upload(f"{info['artifact_uri'].rstrip('/')}/{folder}", files):
            return None
        _, _, within = given.source.partition(given.location)
        return {"source": f"runs:/{run}/{folder}{within}", "run_id": run}

    def _count(self, kind: str) -> None:
        self._report.exported[kind] = self._report.exported.get(kind, 0) + 1

    def _leave(self, line: str) -> None:
        if len(self._report.left) < 100:
            self._report.left.append(line)


def _tags(given: Mapping[str, Any]) -> dict[str, str]:
    return {each["key"]: each.get("value", "") for each in given.get("tags", ())}
