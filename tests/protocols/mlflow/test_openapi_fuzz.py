"""The whole surface of the control server, asked what its OpenAPI document allows and what it does not: no 5xx."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from traces_kit import served

EXAMPLES = 6
"""Requests of each kind for each operation; each goes to every server, for to make them up takes longest."""
PARTS = ("path_parameters", "query", "body")


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

        def ask(path: str, **content: Any) -> Any:
            answer = client.post(f"/api/2.0/mlflow/{path}", json=content)
            assert answer.status_code == 200, answer.text
            return answer.json()

        experiment = ask("experiments/create", name="fuzzed")["experiment_id"]
        run = ask("runs/create", experiment_id=experiment)["run"]["info"]["run_id"]
        ask("runs/log-batch", run_id=run, metrics=[{"key": "m", "value": 1, "timestamp": 1, "step": 0}])
        ask("registered-models/create", name="model")
        ask("model-versions/create", name="model", source="s3://b/m", run_id=run)
        model = ask("logged-models", experiment_id=experiment, name="lm")["model"]["info"]["model_id"]
        hook = ask(
            "webhooks",
            name="h",
            url="https://93.184.216.34/",
            status="DISABLED",
            events=[{"entity": "MODEL_VERSION", "action": "CREATED"}],
        )["webhook"]["webhook_id"]
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
    asked = 0
    chances = [random.Random(7) for _ in servers]
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path.endswith("/test"):
            continue  # it would post to an address outside

        def one(case: Any) -> None:
            nonlocal asked
            asked += 1
            made_up = {name: getattr(case, name) for name in PARTS}
            for (address, there_is), chance in zip(servers, chances, strict=True):
                for name, part in made_up.items():
                    setattr(case, name, _known(part, there_is, chance))
                case.call_and_validate(base_url=address, checks=[not_a_server_error])

        quick(given(case=operation.as_strategy())(one))()
    assert asked > 300


def _known(part: Any, there_is: dict[str, Any], chance: random.Random) -> Any:
    """What exists in the place of half of the names that were made up, so that more than 404 is reached."""
    if not isinstance(part, dict):
        return part
    found = {name: there_is[name] for name in part if name in there_is and chance.random() < 0.5}
    return {**part, **found}
