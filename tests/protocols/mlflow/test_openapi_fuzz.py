"""The whole surface of the control server, asked what its OpenAPI document allows and what it does not: no 5xx."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

EXAMPLES = 6
"""Requests of each kind for each operation."""


@pytest.fixture
def known(address: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A server with something of everything, and what is in it by the names of the fields that ask for it."""
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
        yield (
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
def test_nothing_asked_is_our_fault(known: tuple[str, dict[str, Any]]) -> None:
    address, there_is = known
    schema = schemathesis.openapi.from_url(f"{address}/api/modelkeep/openapi.json")
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
    chance = random.Random(7)
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path.endswith("/test"):
            continue  # it would post to an address outside

        def one(case: Any) -> None:
            nonlocal asked
            asked += 1
            _known(case, there_is, chance)
            case.call_and_validate(checks=[not_a_server_error])

        quick(given(case=operation.as_strategy())(one))()
    assert asked > 300


def _known(case: Any, there_is: dict[str, Any], chance: random.Random) -> None:
    """Put what exists in the place of half of the names that were made up, so that more than 404 is reached."""
    for part in (case.path_parameters, case.query, case.body):
        if isinstance(part, dict):
            for name in part:
                if name in there_is and chance.random() < 0.5:
                    part[name] = there_is[name]
