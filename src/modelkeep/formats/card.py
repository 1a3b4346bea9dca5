"""The model card (Mitchell et al., FAccT 2019): what the model is for, how good, for whom, and what made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from modelkeep.formats.signature import Field, Signature

MOST_SLICES = 12


def write(
    signature: Signature,
    *,
    facts: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    gates: Sequence[Mapping[str, Any]],
    plots: Sequence[str],
    runtime: str,
    note: str,
) -> str:
    """The card as Markdown.

    Args:
        signature: Of the model.
        facts: ``model`` and ``description`` head the card; everything else is listed under "Where it comes from".
        evaluation: As in ``evaluation.json``.
        gates: Decided gates: ``gate``, ``passed``, ``evidence``.
        plots: Paths of the pictures.
        runtime: What serves it.
        note: Why it is not ONNX, when it is not.
    """
    rest = {key: value for key, value in facts.items() if key not in ("model", "description")}
    sections = [
        f"# {facts.get('model') or 'Model'}\n",
        f"{facts['description']}\n" if facts.get("description") else "",
        _table(("", ""), [("Task", signature.task), ("Runs on", runtime), *([("Note", note)] if note else [])]),
        _metrics(evaluation),
        _gates(gates),
        "".join(f"![{path.rpartition('/')[2].removesuffix('.svg')}]({path})\n" for path in plots),
        _slices(evaluation),
        _inputs(signature),
        _facts(rest),
    ]
    return "\n".join(section for section in sections if section)


def _metrics(evaluation: Mapping[str, Any]) -> str:
    metrics = evaluation.get("metrics") or {}
    if not metrics:
        return ""
    share = f"{100 * float(evaluation.get('confidence', 0.95)):g} %"
    main = evaluation.get("metric")
    rows = [
        (f"**{name}**" if name == main else name, _number(found["value"]), _interval(found))
        for name, found in metrics.items()
    ]
    told = f"On {evaluation.get('rows', 0):,} rows the model was not fitted on.\n\n"
    return "## How good it is\n\n" + told + _table(("metric", "value", f"{share} interval"), rows)


def _gates(gates: Sequence[Mapping[str, Any]]) -> str:
    if not gates:
        return ""
    rows = [
        (f"`{gate['gate']}`", "passed" if gate["passed"] else "**failed**", gate["evidence"]) for gate in gates
    ]
    return "## Gates\n\n" + _table(("gate", "", "evidence"), rows)


def _slices(evaluation: Mapping[str, Any]) -> str:
    slices, main = evaluation.get("slices") or {}, evaluation.get("metric")
    parts = []
    for column, groups in slices.items():
        found = [(group, group["metrics"].get(main)) for group in groups[:MOST_SLICES]]
        rows = [
            (group["value"], f"{group['rows']:,}", _number(metric["value"]), _interval(metric))
            for group, metric in found
            if metric
        ]
        if rows:
            parts.append(f"### By {column}\n\n" + _table((column, "rows", str(main), "interval"), rows))
    return "## For whom\n\n" + "\n".join(parts) if parts else ""


def _inputs(signature: Signature) -> str:
    rows = [(f"`{f.name}`", f.type, "yes" if f.required else "no", _seen(f)) for f in signature.inputs]
    outputs = ", ".join(f"`{field.name}`" for field in signature.outputs)
    classes = f"; classes {', '.join(f'`{item}`' for item in signature.classes[:50])}" if signature.classes else ""
    return (
        "## Inputs\n\n"
        + _table(("name", "type", "required", "seen in training"), rows)
        + f"\nGives {outputs}{classes}.\n"
    )


def _seen(field: Field) -> str:
    if field.categories is not None:
        shown = ", ".join(field.categories[:8])
        return f"{shown}, ... ({len(field.categories)})" if len(field.categories) > 8 else shown
    if field.min is None or field.max is None:
        return ""
    if field.type == "timestamp":
        seen = " to ".join(str(np.datetime64(int(end), "us")) for end in (field.min, field.max))
    else:
        seen = f"{field.min:g} to {field.max:g}"
    return f"{seen}; nothing else is taken" if field.strict else seen


def _facts(facts: Mapping[str, Any]) -> str:
    if not facts:
        return ""
    return "## Where it comes from\n\n" + _table(
        ("", ""), [(str(key), _plain(value)) for key, value in facts.items()]
    )


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {_plain(item)}" for key, item in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, list | tuple) else str(value)


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4g}"


def _interval(found: Mapping[str, Any]) -> str:
    if found.get("low") is None or found.get("high") is None:
        return ""
    return f"{found['low']:.4g} to {found['high']:.4g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(
        "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |\n"
        for line in lines
    )
