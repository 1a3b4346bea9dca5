"""What an endpoint without a declaration is told, in a declaration's own words: ``deploy.batch.budget=200ms``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from modelkeep.core.errors import Invalid
from modelkeep.spec import loading
from modelkeep.spec.expressions import RolloutStep

_BARE = {"model": "any", "data": {"source": "any.csv", "target": "any"}}
_ELSEWHERE = {
    "deploy.endpoint": "name it with --endpoint",
    "deploy.rollout": "--canary and --shadow are by hand; a declaration's endpoint has rollouts",
    "deploy.abort": "there is no rollout to end; a declaration's endpoint has rollouts",
}


def settings(said: Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """An endpoint's settings, as ``registry.endpoints.Wanted`` holds them.

    Nothing is captured unless ``monitor.log.sample`` says how much: nobody has said yet what to mask.

    Args:
        said: ``FIELD=VALUE`` each, a declaration's fields under ``deploy`` and ``monitor.log``, values as YAML.
        given: Further values by field, which ``said`` may change.

    Raises:
        Invalid: No such field, or a value that no declaration could have.
    """
    values: dict[str, Any] = {**given, **dict(_pair(text) for text in said)}
    declaration = loading.from_builtins({**_BARE, **_nested(values)})
    log = declaration.monitor.log
    return {
        "deploy": loading.to_builtins(declaration).get("deploy", {}),
        "unknown_fields": declaration.deploy.unknown_fields,
        "sample": log.sample if "monitor.log.sample" in values else 0.0,
        "mask": list(log.mask),
    }


def step(canary: str, *, shadow: bool) -> RolloutStep | None:
    """How a version stands beside the one that answers; None for a version that takes all traffic.

    Args:
        canary: A share of the requests, such as ``10%``; empty for none.
        shadow: Whether it answers nobody and sees all.

    Raises:
        Invalid: No share between 0 and 100 %, or both.
    """
    if canary and shadow:
        raise Invalid("a version answers a share or nobody: --canary and --shadow exclude each other")
    if shadow:
        return RolloutStep("shadow", 0.0, 0.0, "shadow")
    if not canary:
        return None
    found = re.fullmatch(r"(\d{1,3}(?:\.\d{1,6})?)%", canary.strip(), re.ASCII)
    weight = float(found[1]) / 100 if found else 0.0
    if not 0.0 < weight < 1.0:
        raise Invalid(f"{canary[:40]!r}: expected a share between 0% and 100%, such as 10%", path="--canary")
    return RolloutStep("canary", weight, 0.0, f"canary {canary.strip()}")


def _pair(text: str) -> tuple[str, Any]:
    field, equals, value = text.partition("=")
    if not equals:
        raise Invalid(f"--set {text!r} is no setting; expected FIELD=VALUE, such as deploy.batch.budget=200ms")
    if field in _ELSEWHERE:
        raise Invalid(f"cannot be set here: {_ELSEWHERE[field]}", path=field)
    if not field.startswith(("deploy.", "monitor.log.")):
        raise Invalid("is no field under deploy or monitor.log, which can be set here", path=field)
    try:
        return field, yaml.safe_load(value)
    except yaml.YAMLError:
        raise Invalid(f"{value!r} is no YAML", path=field) from None


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field, value in values.items():
        *folders, last = field.split(".")
        place = found
        for name in folders:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise Invalid(f"has no fields: {name!r} is given a value", path=field)
        place[last] = value
    return found
