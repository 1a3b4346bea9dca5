"""What webhooks are told of: MLflow's kinds of change (mlflow.org/docs, "Webhooks"), read from the history."""

from __future__ import annotations

import contextlib
from typing import Any

from sqlalchemy import Connection

from modelkeep.core.errors import NotFound
from modelkeep.registry import catalog, model_contents
from modelkeep.registry.events import Event

Change = tuple[str, dict[str, Any]]
"""A kind of change, as ``model_version.created``, and its payload."""

PROMPT = "mlflow.prompt.is_prompt"
"""Tag of the registered models, and versions, that are prompts."""
_EXAMPLES: dict[str, dict[str, Any]] = {
    "registered_model.created": {"name": "example_model", "tags": {"key": "value"}, "description": "An example"},
    "model_version.created": {
        "name": "example_model",
        "version": "1",
        "source": "models:/123",
        "run_id": "abcd1234abcd5678",
        "tags": {"key": "value"},
        "description": "An example",
    },
    "model_version_tag.set": {"name": "example_model", "version": "1", "key": "key", "value": "value"},
    "model_version_tag.deleted": {"name": "example_model", "version": "1", "key": "key"},
    "model_version_alias.created": {"name": "example_model", "alias": "champion", "version": "1"},
    "model_version_alias.deleted": {"name": "example_model", "alias": "champion"},
    "prompt.created": {"name": "example_prompt", "tags": {"key": "value"}, "description": "An example"},
    "prompt_version.created": {
        "name": "example_prompt",
        "version": "1",
        "template": "Hello {{name}}!",
        "tags": {"key": "value"},
        "description": "An example",
    },
    "prompt_tag.set": {"name": "example_prompt", "key": "key", "value": "value"},
    "prompt_tag.deleted": {"name": "example_prompt", "key": "key"},
    "prompt_version_tag.set": {"name": "example_prompt", "version": "1", "key": "key", "value": "value"},
    "prompt_version_tag.deleted": {"name": "example_prompt", "version": "1", "key": "key"},
    "prompt_alias.created": {"name": "example_prompt", "alias": "production", "version": "1"},
    "prompt_alias.deleted": {"name": "example_prompt", "alias": "production"},
}
EVENTS = tuple(_EXAMPLES)
"""What a webhook may ask for."""


def example(event: str) -> dict[str, Any]:
    """What a test of a webhook sends."""
    return _EXAMPLES[event]


def change(conn: Connection, event: Event) -> Change | None:
    """What an event of the history means to webhooks; None when nothing, or what it speaks of is gone."""
    model, _, version = event.subject.partition("@")
    data = event.data
    with contextlib.suppress(NotFound):
        match event.kind:
            case "model.created":
                return _created(conn, model)
            case "version.created" | "version.registered":
                return _version_created(conn, model, int(version))
            case "rollout.started":
                return _alias(conn, model, "challenger", version)
            case "version.promoted" | "version.rolled_back":
                return _alias(conn, model, "champion", version)
            case "alias.set":
                return _alias(conn, model, data["alias"], version)
            case "alias.deleted":
                noun = _noun(conn, model, "model_version")
                return f"{noun}_alias.deleted", {"name": model, "alias": data["alias"]}
            case "tag.set" | "tag.deleted":
                noun = _noun(conn, model, "model_version" if version else "registered_model", bool(version))
                told = {"name": model, **({"version": version} if version else {}), "key": data["key"]}
                value = {"value": data["value"]} if event.kind == "tag.set" else {}
                return f"{noun}_tag.{event.kind.removeprefix('tag.')}", told | value
    return None


def _noun(conn: Connection, model: str, ours: str, version: bool = False) -> str:
    """``prompt`` or ``prompt_version`` for models that are prompts."""
    if _tags(conn, model).get(PROMPT, "").lower() != "true":
        return ours
    return "prompt_version" if version else "prompt"


def _tags(conn: Connection, model: str) -> dict[str, str]:
    row = catalog.find_model(conn, model)
    return dict(model_contents.Contents(conn, [row.id]).tags.get(row.id, ()))


def _created(conn: Connection, model: str) -> Change:
    row, tags = catalog.find_model(conn, model), _tags(conn, model)
    told = {"name": model, "tags": tags, "description": row.description or None}
    return f"{_noun(conn, model, 'registered_model')}.created", told


def _version_created(conn: Connection, model: str, number: int) -> Change:
    row = catalog.find_version(conn, model, number)
    tags = dict(model_contents.Contents(conn, [row.model]).version_tags.get((row.model, number), ()))
    told = {"name": model, "version": str(number), "tags": tags, "description": row.description or None}
    noun = _noun(conn, model, "model_version", True)
    if noun == "prompt_version":
        return f"{noun}.created", told | {"template": tags.get("mlflow.prompt.text", "")}
    return f"{noun}.created", told | {
        "source": row.source or f"models:/{model}/{number}",
        "run_id": row.run_id or None,
    }


def _alias(conn: Connection, model: str, alias: str, version: str) -> Change:
    return f"{_noun(conn, model, 'model_version')}_alias.created", {
        "name": model,
        "alias": alias,
        "version": version,
    }
