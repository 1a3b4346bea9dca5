"""The whole surface of the control server, asked what its OpenAPI document allows and what it does not: no 5xx."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from traces_kit import served

from modelkeep.protocols.mlflow.described import DESCRIBED

EXAMPLES = 6
"""Requests of each kind for each operation; each goes to every server, for to make them up takes longest."""
PARTS = ("path_parameters", "query", "headers", "body")


Known = tuple[str, dict[str, Any]]
"""The address of a server, and what is in it by the names of the fields that ask for it."""


@pytest.fixture
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Known]]:
    """A server over each database, with something of everything in it."""
    with ExitStack() as stack:
        kinds = ("sqlite", "postgresql")
        yield [
            filled(stack.enter_context(served(kind, request, tmp_path_factory.mktemp(kind)))[1]) for kind in kinds
        ]


def filled(address: str) -> Known:
    with httpx.Client(base_url=address) as client:

        def ask(path: str, /, **content: Any) -> Any:
            answer = client.post(f"/api/2.0/mlflow/{path}", json=content)
            assert answer.status_code == 200, answer.text
            return answer.json()

        experiment = ask("experiments/create", name="fuzzed")["experiment_id"]
        run = ask("runs/create", experiment_id=experiment)["run"]["info"]["run_id"]
        ask("runs/log-batch", run_id=run, metrics=[{"key": "m", "value": 1, "timestamp": 1, "step": 0}])
        ask("registered-models/create", name="model")
        files = f"{experiment}/{run}/artifacts"
        ask("model-versions/create", name="model", source=f"mlflow-artifacts:/{files}", run_id=run)
        model = ask("logged-models", experiment_id=experiment, name="lm")["model"]["info"]["model_id"]
        hook = ask(
            "webhooks",
            name="h",
            url="https://93.184.216.34/",
            status="DISABLED",
            events=[{"entity": "MODEL_VERSION", "action": "CREATED"}],
        )["webhook"]["webhook_id"]
        stored = "/api/2.0/mlflow-artifacts"
        client.put(f"{stored}/artifacts/{files}/d/f.txt", content=b"kept").raise_for_status()
        begun = client.post(f"{stored}/mpu/create/{files}", json={"path": "d/g.bin", "num_parts": 2}).json()
        link = ask("artifacts/presigned-download-url", run_id=run, path="d/f.txt")["presigned_url"]
        span = {"traceId": "1" * 32, "spanId": "2" * 16, "name": "s", "startTimeUnixNano": "1"}
        spans = {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}
        client.post("/v1/traces", json=spans, headers={"x-mlflow-experiment-id": experiment}).raise_for_status()
        return (
            address,
            {
                "experiment_id": experiment,
                "experiment_ids": [experiment],
                "run_id": run,
                "run_uuid": run,
                "run_ids": [run],
                "name": "model",
                "version": "1",
                "model": "model",
                "model_id": model,
                "webhook_id": hook,
                "metric_key": "m",
                "key": "m",
                "page_token": "",
                "artifact_path": f"{files}/d/f.txt",
                "folder": files,
                "path": "d/f.txt",
                "upload_id": begun["upload_id"],
                "number": "1",
                "token": link.split("/signed/")[1].partition("/")[0],
                "request_id": f"tr-{span['traceId']}",
                "trace_id": f"tr-{span['traceId']}",
                "range": "bytes=1-2",
                "x-mlflow-experiment-id": experiment,
                "x-mlflow-run-id": run,
            },
        )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nothing_asked_is_our_fault(servers: list[Known]) -> None:
    schema = schemathesis.openapi.from_url(f"{servers[0][0]}/api/modelkeep/openapi.json")
    schema.config.generation.update(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
    quick = settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    answered: dict[str, set[int]] = {}
    chances = [random.Random(7) for _ in servers]

    def fuzz(operation: Any) -> int:
        asked, count = _asked(operation, schema.raw_schema), 0

        def one(case: Any) -> None:
            nonlocal count
            count += 1
            made_up = {name: getattr(case, name) for name in PARTS}
            for (address, there_is), chance in zip(servers, chances, strict=True):
                for name, part in made_up.items():
                    setattr(case, name, _known(part, asked[name], there_is, chance))
                said = case.call_and_validate(base_url=address, checks=[not_a_server_error])
                answered.setdefault(f"{case.method} {case.path}", set()).add(said.status_code)

        quick(given(case=operation.as_strategy())(one))()
        return count

    operations = [found.ok() for found in schema.get_all_operations()]
    operations = [each for each in operations if not each.path.endswith("/test")]  # it would post outside
    assert sum(map(fuzz, sorted(operations, key=_takes_away))) > 400
    assert {f"{each.method} {each.path.replace(':path}', '}')}" for each in DESCRIBED} <= answered.keys()
    assert sum(200 in codes for codes in answered.values()) > len(answered) / 2  # not only refused


def _takes_away(operation: Any) -> bool:
    """What others ask for must not be gone before."""
    return operation.method == "delete" or "delete" in operation.path or "rename" in operation.path


def _known(part: Any, asked: frozenset[str], there_is: dict[str, Any], chance: random.Random) -> Any:
    """What exists in the place of some of what was made up or left out, so that more than 404 is reached."""
    if not isinstance(part, Mapping):
        return part
    often = chance.choice((0.0, 0.5, 1.0))
    names = sorted(asked.union(part))
    return {**part, **{name: there_is[name] for name in names if name in there_is and chance.random() < often}}


def _asked(operation: Any, raw: dict[str, Any]) -> dict[str, frozenset[str]]:
    """The names that each part of a request may hold."""
    said = operation.definition.raw
    places = {"path": "path_parameters", "query": "query", "header": "headers"}
    found: dict[str, set[str]] = {name: set() for name in PARTS}
    for each in said.get("parameters", []):
        found[places[each["in"]]].add(each["name"])
    body = said.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    kind = raw["components"]["schemas"].get(body.get("$ref", "").rpartition("/")[2], {})
    found["body"].update(kind.get("properties", {}))
    return {name: frozenset(names) for name, names in found.items()}
