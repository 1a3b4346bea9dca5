"""What attributes of spans mean to MLflow: type, inputs, outputs, tokens, costs, model, session, user.

MLflow's own names count first; then those of OpenTelemetry's conventions for generative AI, OpenInference and
OpenLLMetry (Traceloop), of which those MLflow shows are translated.

Source: opentelemetry.io/docs/specs/semconv/gen-ai, github.com/Arize-ai/openinference (semantic conventions),
github.com/traceloop/openllmetry (semantic conventions).
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from typing import Any

from modelkeep.registry import traces
from modelkeep.registry.traces_spans import COSTS, Span, Spans
from modelkeep.store.bulk import encode

TYPE = "mlflow.spanType"
INPUTS = "mlflow.spanInputs"
OUTPUTS = "mlflow.spanOutputs"
USAGE = "mlflow.chat.tokenUsage"
COST = "mlflow.llm.cost"
MODEL = "mlflow.llm.model"
PROVIDER = "mlflow.llm.provider"
TAG = "mlflow.traceTag."
PREVIEW = 1000
"""Characters of a preview."""

_TYPES = {
    "gen_ai.operation.name": {
        "chat": "CHAT_MODEL",
        "create_agent": "AGENT",
        "embeddings": "EMBEDDING",
        "execute_tool": "TOOL",
        "generate_content": "LLM",
        "invoke_agent": "AGENT",
        "text_completion": "LLM",
        "response": "LLM",
    },
    "openinference.span.kind": {
        name: name
        for name in (
            "TOOL",
            "CHAIN",
            "LLM",
            "RETRIEVER",
            "EMBEDDING",
            "AGENT",
            "RERANKER",
            "GUARDRAIL",
            "EVALUATOR",
        )
    },
    "traceloop.span.kind": {"workflow": "WORKFLOW", "task": "TASK", "agent": "AGENT", "tool": "TOOL"},
}
_INPUTS = ("gen_ai.input.messages", "gen_ai.tool.call.arguments", "input.value", "traceloop.entity.input")
_OUTPUTS = ("gen_ai.output.messages", "gen_ai.tool.call.result", "output.value", "traceloop.entity.output")
_TOKENS = {
    "input_tokens": ("gen_ai.usage.input_tokens", "llm.token_count.prompt", "gen_ai.usage.prompt_tokens"),
    "output_tokens": (
        "gen_ai.usage.output_tokens",
        "llm.token_count.completion",
        "gen_ai.usage.completion_tokens",
    ),
    "total_tokens": ("llm.token_count.total", "llm.usage.total_tokens"),
    "cache_read_input_tokens": (
        "gen_ai.usage.cache_read.input_tokens",
        "llm.token_count.prompt_details.cache_read",
    ),
    "cache_creation_input_tokens": (
        "gen_ai.usage.cache_write.input_tokens",
        "gen_ai.usage.cache_creation.input_tokens",
        "llm.token_count.prompt_details.cache_write",
    ),
}
_MODELS = ("gen_ai.response.model", "gen_ai.request.model", "llm.model_name")
_PROVIDERS = ("gen_ai.provider.name", "llm.provider", "gen_ai.system")
_SAID = {"gen_ai.system.message": "system", "gen_ai.user.message": "user", "gen_ai.assistant.message": "assistant"}
_FOREIGN = frozenset(
    {*_TYPES, *_INPUTS, *_OUTPUTS, *_MODELS, *_PROVIDERS, *(key for keys in _TOKENS.values() for key in keys)}
)
_SESSIONS = ("session.id", "gen_ai.conversation.id")
_ATOMS = ("string_value", "bool_value", "int_value")


def plain(value: dict[str, Any]) -> Any:
    """An ``AnyValue`` in protobuf's JSON as a value of Python's."""
    for kind, held in value.items():
        if kind in _ATOMS:
            return held
        if kind == "double_value":
            return float(held)
        if kind == "array_value":
            return [plain(each) for each in held["values"]]
        if kind == "kvlist_value":
            return {each["key"]: plain(each["value"]) for each in held["values"]}
        try:
            return base64.b64decode(held).decode("utf-8", "replace")
        except binascii.Error:
            return held
    return None


class Facts:
    """What a span's attributes say. Translations are added to ``attributes`` under MLflow's names."""

    __slots__ = ("attributes", "cost", "model", "provider", "type", "usage")

    def __init__(self, attributes: dict[str, Any], events: list[dict[str, Any]]) -> None:
        self.attributes = attributes
        if not _FOREIGN.isdisjoint(attributes):
            self._translate()
        if events and (INPUTS not in attributes or OUTPUTS not in attributes):
            self._from_events(events)
        self.type = self._text(TYPE)
        self.model = self._text(MODEL)
        self.provider = self._text(PROVIDER)
        self.usage = _counts(self._object(USAGE)) or None
        cost = self._object(COST)
        self.cost = {name: float(cost[name]) for name in COSTS if _finite(cost.get(name))} or None

    def tell(self, trace: Spans, span: Span) -> None:
        """Add to what is known of the trace."""
        if trace.session is None:
            trace.session = self._first(_SESSIONS)
        if trace.user is None:
            trace.user = self._first(("user.id",))
        if span.parent_id is not None:
            return
        trace.name = span.name or None
        trace.status = "ERROR" if span.status == "ERROR" else "OK"
        trace.request_preview = _preview(self._plain(INPUTS), "user")
        trace.response_preview = _preview(self._plain(OUTPUTS), "assistant")
        for key, value in self.attributes.items():
            if key.startswith(TAG) and len(key) > len(TAG):
                trace.tags[key[len(TAG) :][:250]] = _shown(_unwrapped(plain(value)))
        trace.name = trace.tags.pop(traces.NAME, trace.name)

    def _translate(self) -> None:
        known = self.attributes
        if TYPE not in known or self._text(TYPE) == "UNKNOWN":
            for key, types in _TYPES.items():
                found = types.get(str(_unwrapped(plain(known[key])))) if key in known else None
                if found is not None:
                    known[TYPE] = {"string_value": found}
                    break
        self._copy(INPUTS, _INPUTS)
        self._copy(OUTPUTS, _OUTPUTS)
        self._copy(MODEL, _MODELS)
        self._copy(PROVIDER, _PROVIDERS)
        if USAGE not in known:
            self._count_tokens()

    def _count_tokens(self) -> None:
        counts = {name: self._count(keys) for name, keys in _TOKENS.items()}
        found = {name: count for name, count in counts.items() if count is not None}
        if "total_tokens" not in found and {"input_tokens", "output_tokens"} <= found.keys():
            found["total_tokens"] = found["input_tokens"] + found["output_tokens"]
        if {"input_tokens", "output_tokens", "total_tokens"} & found.keys():
            pairs = [{"key": name, "value": {"int_value": count}} for name, count in found.items()]
            self.attributes[USAGE] = {"kvlist_value": {"values": pairs}}

    def _copy(self, name: str, others: tuple[str, ...]) -> None:
        known = self.attributes
        if name not in known:
            for key in others:
                if known.get(key) and self._plain(key) not in ("", None, [], {}):
                    known[name] = known[key]
                    return

    def _from_events(self, events: list[dict[str, Any]]) -> None:
        asked, told = [], []
        for event in events:
            said = {each["key"]: each["value"] for each in event["attributes"]}
            content = said.get("content")
            role = _SAID.get(event["name"])
            if content and role:
                asked.append(_message({"string_value": role}, content))
            elif content and event["name"] == "gen_ai.choice":
                told.append(_message(said.get("role", {"string_value": "assistant"}), content))
        for name, messages in ((INPUTS, asked), (OUTPUTS, told)):
            if messages:
                self.attributes.setdefault(name, {"array_value": {"values": messages}})

    def _plain(self, key: str) -> Any:
        value = self.attributes.get(key)
        return None if value is None else _unwrapped(plain(value))

    def _text(self, key: str) -> str | None:
        found = self._plain(key)
        return found[:500].replace("\0", "\ufffd") if isinstance(found, str) else None

    def _object(self, key: str) -> dict[str, Any]:
        found = self._plain(key)
        return found if isinstance(found, dict) else {}

    def _first(self, keys: tuple[str, ...]) -> str | None:
        for key in keys:
            found = self._plain(key)
            if found not in (None, ""):
                return _shown(found)[:250]
        return None

    def _count(self, keys: tuple[str, ...]) -> int | None:
        for key in keys:
            found = self._plain(key) if key in self.attributes else None
            if isinstance(found, str) and found.isdecimal() and len(found) < 16:
                found = int(found)
            if found is not None and _finite(found):
                return int(found)
        return None


def resource_tags(resource: dict[str, Any]) -> dict[str, str]:
    """Tags of a trace from the attributes of what sent it; what tools say of themselves is left out."""
    kept = {
        key: value for key, value in resource.items() if key and not key.startswith(("telemetry.sdk.", "mlflow."))
    }
    return {key[:250]: _shown(plain(value)) for key, value in kept.items()}


def _message(role: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    return {"kvlist_value": {"values": [{"key": "role", "value": role}, {"key": "content", "value": content}]}}


def _unwrapped(value: Any) -> Any:
    """A value that some senders write as JSON inside a string."""
    if isinstance(value, str) and value[:1] in ('"', "{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _counts(said: dict[str, Any]) -> dict[str, int]:
    return {str(key): int(value) for key, value in said.items() if _finite(value)}


def _finite(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and abs(value) < 2**53
    )


def _shown(value: Any) -> str:
    found = value if isinstance(value, str) else encode(value)
    return found[:8000].replace("\0", "\ufffd")


def _preview(value: Any, role: str) -> str | None:
    if value is None:
        return None
    said = _spoken(value, role)
    found = (said if said is not None else json.dumps(value, ensure_ascii=False)).replace("\0", "\ufffd")
    return found if len(found) <= PREVIEW else f"{found[: PREVIEW - 3]}..."


def _spoken(value: Any, role: str) -> str | None:
    """The last message of a conversation by this role, in the forms chat models are called with."""
    if not isinstance(value, dict):
        return None
    messages = value.get("messages")
    choices = value.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        messages = [choices[0].get("message")]
    if not isinstance(messages, list):
        return None
    said = [each for each in messages if isinstance(each, dict) and isinstance(each.get("content"), str | list)]
    mine = [each for each in said if each.get("role") == role] or said
    if not mine:
        return None
    content = mine[-1]["content"]
    if isinstance(content, str):
        return content
    texts = [part.get("text") for part in content if isinstance(part, dict)]
    return next((text for text in texts if isinstance(text, str)), None)
