"""MLflow's scoring requests to models some of whose inputs are tensors: rows of nested lists.

https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/ (tensor input)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modelkeep.core.errors import Invalid, Problem
from modelkeep.serve.columns import Inputs, Rows

if TYPE_CHECKING:
    from modelkeep.protocols.mlflow.scoring import Invocation


def rows(inputs: Inputs, request: Invocation, *, ignore_unknown: bool = False) -> Rows:
    """The rows of a request.

    Raises:
        Invalid: Every problem found; a tensor of another shape at ``inputs.x[3]``, with both shapes.
    """
    if request.dataframe_split is not None:
        names = request.dataframe_split.columns or list(inputs.names)
        columns = _turned(names, request.dataframe_split.data, "dataframe_split.data")
    elif request.dataframe_records is not None:
        columns = _recorded(request.dataframe_records, "dataframe_records")
    else:
        path = "inputs" if request.instances is None else "instances"
        given = request.inputs if request.instances is None else request.instances
        if isinstance(given, dict):
            columns = {name: values if isinstance(values, list) else [values] for name, values in given.items()}
        elif given and all(isinstance(item, dict) for item in given):
            columns = _recorded(given, path)
        elif len(inputs.names) == 1:
            columns = {inputs.names[0]: given or []}
        else:
            known = ", ".join(inputs.names[:20])
            raise Invalid(f"expected objects by input; the inputs are {known}", path=path)
    return inputs.named(_plain(inputs, columns), ignore_unknown=ignore_unknown)


def _turned(names: Sequence[str], data: Sequence[Sequence[Any]], path: str) -> dict[str, list[Any]]:
    """Rows as columns."""
    ragged = [
        Problem(f"{path}[{row}]", f"has {len(values)} values, expected {len(names)}")
        for row, values in enumerate(data)
        if len(values) != len(names)
    ]
    if ragged:
        raise Invalid(ragged[:20])
    return {name: [values[place] for values in data] for place, name in enumerate(names)}


def _recorded(records: Sequence[dict[str, Any]], path: str) -> dict[str, list[Any]]:
    """Objects as columns."""
    names = dict.fromkeys(name for record in records for name in record)
    lacking = [
        Problem(f"{path}[{row}].{name}", "is missing")
        for row, record in enumerate(records)
        for name in names
        if name not in record
    ]
    if lacking:
        raise Invalid(lacking[:20])
    return {name: [record[name] for record in records] for name in names}


def _plain(inputs: Inputs, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Single values without the lists they may stand in, as inputs of shape [n, 1] have them."""
    single = {field.name for field in inputs.signature.inputs if not field.shape}
    return {
        name: [item[0] for item in values]
        if name in single and all(isinstance(item, list) and len(item) == 1 for item in values)
        else values
        for name, values in columns.items()
    }
