"""Feature steps fitted by mergeable statistics over parts of a table, exported as one scikit-learn transformer.

Columns that go through the same steps form a branch. All branches are fitted together, one pass over the parts per
depth of the chains, so a table larger than memory needs only its parts.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline

from modelkeep.core.errors import Invalid, ModelkeepError
from modelkeep.core.here import Here
from modelkeep.core.ports import Engine
from modelkeep.data.columns import Kind, kinds, resolve
from modelkeep.data.encoders import FITTERS, FunctionFitter, TfidfFitter
from modelkeep.data.fitters import Fitter, State
from modelkeep.data.frames import plain, to_frame
from modelkeep.data.statistics import counts_in
from modelkeep.data.streams import Read
from modelkeep.formats import unfit
from modelkeep.formats.steps import DATE_PARTS, Numbers, Strings, UserFunction, only_fills
from modelkeep.spec.steps import DateParts, FeatureStep, Function, Tfidf

PART_ROWS = 100_000
"""Rows worked on at once."""

_BLOCK = {"numeric": "numeric", "boolean": "numeric", "categorical": "string", "text": "string", "time": "time"}
_ADVICE = {
    "categorical": "add '- encode: {{columns: [{name}], method: onehot}}' under features, or exclude it",
    "text": "add '- tfidf: {{columns: [{name}]}}' under features, or exclude it",
    "time": "add '- date_parts: {{columns: [{name}]}}' under features, or exclude it",
    "other": "add it to data.exclude, or flatten it in the source",
}


@dataclass(frozen=True)
class Branch:
    """Columns that go through the same steps.

    Attributes:
        name: Unique.
        columns: Input columns, in order.
        kind: Of all of them.
        fitters: The steps, in order; none passes the numbers through.
        made: The fitted transformers so far, in order.
    """

    name: str
    columns: tuple[str, ...]
    kind: Kind
    fitters: tuple[Fitter, ...]
    made: tuple[Any, ...] = ()

    def block(self, part: pa.Table) -> npt.NDArray[Any]:
        """The branch's columns after the steps fitted so far, shape (rows, k), of a part with rows."""
        if self.made and isinstance(self.made[0], UserFunction):  # it sees what it will see when it is served
            block: Any = to_frame(part, self.columns)
        else:
            first = [plain(part.column(name), self.kind) for name in self.columns]
            block = np.empty((part.num_rows, len(first)), dtype=first[0].dtype, order="F")  # worked on by column
            for index, column in enumerate(first):
                block[:, index] = column
        for transformer in self.made:
            if isinstance(transformer, Strings):
                continue
            if getattr(block, "dtype", None) == np.float64 and only_fills(transformer):
                block = np.where(np.isnan(block), transformer.statistics_, block)
            else:
                block = transformer.transform(block)
        return np.asarray(block)

    def frame(self, part: pa.Table) -> pd.DataFrame:
        """The same with names, as a function that comes next sees it."""
        if not self.made:
            return to_frame(part, self.columns)
        names = list(self.columns)
        for transformer in self.made:
            names = list(transformer.get_feature_names_out(names))
        return pd.DataFrame(self.block(part), columns=names)


@dataclass(frozen=True)
class FittedFeatures:
    """Feature steps with their statistics.

    Attributes:
        inputs: The model's input columns, in order.
        branches: How they become features.
        sample: The first rows of the inputs, from which scikit-learn learns the layout.
    """

    inputs: tuple[str, ...]
    branches: tuple[Branch, ...]
    sample: pa.Table = field(repr=False)

    def to_sklearn(self, *, dense: bool = False) -> ColumnTransformer:
        """A fitted ColumnTransformer of DataFrames that hold the inputs (others are ignored).

        It refits and clones like any other.

        Args:
            dense: Never give a sparse matrix, whatever the share of zeros.

        Raises:
            Invalid: A step does not take what the sample holds, such as missing values; names its columns.
        """
        frame = to_frame(self.sample, self.inputs)
        parts = [(branch.name, _assembled(branch), _selected(branch)) for branch in self.branches]
        frozen = [
            (name, part if part == "passthrough" else _Frozen(part), columns) for name, part, columns in parts
        ]
        made = ColumnTransformer(
            frozen, sparse_threshold=0.0 if dense else 0.3, verbose_feature_names_out=False, remainder="drop"
        )
        try:
            made.fit_transform(frame)
        except ModelkeepError:
            raise
        except Exception as error:
            if not (found := unfit.of_branches(parts, frame)):
                raise
            raise unfit.told(found, len(frame)) from error
        made.transformers = parts
        made.transformers_ = [
            (name, part.inner if isinstance(part, _Frozen) else part, columns)
            for name, part, columns in made.transformers_
        ]
        return made

    def to_builtins(self) -> dict[str, Any]:
        """What was fitted, in JSON types: per branch its columns, and each transformer with what it learnt."""
        return {
            "inputs": list(self.inputs),
            "branches": [
                {
                    "name": branch.name,
                    "columns": list(branch.columns),
                    "kind": branch.kind,
                    "steps": [{"transformer": type(made).__name__, **_learnt(made)} for made in branch.made],
                }
                for branch in self.branches
            ],
        }


def fit(
    steps: Sequence[FeatureStep],
    table: pa.Table,
    inputs: Sequence[str],
    *,
    base: Path = Path(),
    pieces: Sequence[Read] | None = None,
    engine: Engine | None = None,
) -> FittedFeatures:
    """Fit every step on the rows.

    Args:
        steps: As declared.
        table: Training rows; at least the columns ``inputs``.
        inputs: The model's input columns.
        base: The declaration's folder, for the user's functions.
        pieces: Read the rows, when they are more than ``table``; ``table`` then is the start of them.
        engine: Where pieces are worked on; here unless given.

    Raises:
        Invalid: A step does not fit its columns, a column needs a step, or a statistic does not exist.
        UserCodeFailed: A function of the user's raised.
    """
    chosen = table.select(list(inputs))
    branches = plan(steps, chosen, base)
    again = _slices(chosen) if pieces is None else pieces
    where = engine or Here()
    for depth in range(max((len(branch.fitters) for branch in branches), default=0)):
        deep = [branch for branch in branches if depth < len(branch.fitters)]
        merged: list[State] | None = None
        for states in where.map(functools.partial(_partials, where.put(deep), depth), again):
            merged = merge(deep, merged, states, depth) if merged and states else merged or states
        if merged is None:
            raise Invalid("there is no training row to learn from", path="features")
        grown = iter([_grown(branch, depth, state) for branch, state in zip(deep, merged, strict=True)])
        branches = [next(grown) if depth < len(branch.fitters) else branch for branch in branches]
    return FittedFeatures(tuple(inputs), tuple(branches), chosen.slice(0, 100))


def plan(steps: Sequence[FeatureStep], table: pa.Table, base: Path = Path()) -> list[Branch]:
    """Which columns go through which steps; nothing is fitted yet.

    Raises:
        Invalid: As ``fit`` does, where types alone tell.
    """
    known = kinds(table)
    chains: dict[str, list[int]] = {name: [] for name in known}
    for index, step in enumerate(steps):
        for name in resolve(step.columns, known, f"features[{index}].columns"):
            chains[name].append(index)
    grouped: dict[tuple[Any, ...], list[str]] = {}
    for name, chain in chains.items():
        _check_chain(name, known[name], [steps[i] for i in chain], chain)
        alone = name if any(isinstance(steps[i], Tfidf) for i in chain) else ""
        # Types that ONNX tells apart stay apart.
        kind = "string" if known[name] in ("categorical", "text") else known[name]
        grouped.setdefault((kind, alone, *chain), []).append(name)
    _check_functions(steps, list(grouped))
    branches, used = [], set[str]()
    for key, columns in grouped.items():
        fitters = tuple(FITTERS[type(steps[i])](steps[i], tuple(columns), f"features[{i}]", base) for i in key[2:])
        name = "_".join(_tag(fitter.step) for fitter in fitters) or f"pass_{key[0]}"
        while name in used:
            name = f"{name}_{columns[0]}"
        used.add(name)
        kind = known[columns[0]]
        first = (Strings(),) if key[0] == "string" else (Numbers(),) if kind == "boolean" and fitters else ()
        for made in first:
            made.n_features_in_ = len(columns)
        branches.append(Branch(name, tuple(columns), kind, fitters, first))
    return branches


def partial(branch: Branch, part: pa.Table, depth: int) -> State:
    """The statistics that the branch's step at ``depth`` needs of one part with rows; None without such a step."""
    if depth >= len(branch.fitters):
        return None
    fitter = branch.fitters[depth]
    if (
        fitter.counts
        and branch.kind in ("categorical", "text")
        and all(isinstance(m, Strings) for m in branch.made)
    ):
        return [counts_in(part.column(name)) for name in branch.columns]
    if isinstance(fitter, FunctionFitter):
        return fitter.partial(branch.frame(part.slice(0, FunctionFitter.ROWS)))
    return fitter.partial(branch.block(part))


def merge(branches: Sequence[Branch], a: Sequence[State], b: Sequence[State], depth: int) -> list[State]:
    """The statistics of both parts, branch by branch."""
    return [
        branch.fitters[depth].merge(left, right) if depth < len(branch.fitters) else None
        for branch, left, right in zip(branches, a, b, strict=True)
    ]


def _partials(branches: Callable[[], list[Branch]], depth: int, read: Read) -> list[State] | None:
    """The statistics of a piece, branch by branch; only their columns are read. None of a piece without rows."""
    mine = branches()
    part = read(list(dict.fromkeys(name for branch in mine for name in branch.columns)))
    if not part.num_rows:
        return None
    found = (
        [partial(branch, part.slice(start, PART_ROWS), depth) for branch in mine]
        for start in range(0, part.num_rows, PART_ROWS)
    )
    return functools.reduce(lambda a, b: merge(mine, a, b, depth), found)


class _Frozen:
    """Shows a fitted transformer to ColumnTransformer.fit as one that needs no fitting."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __sklearn_clone__(self) -> _Frozen:
        return self

    def fit(self, X: Any, y: Any = None) -> _Frozen:
        return self

    def fit_transform(self, X: Any, y: Any = None) -> Any:
        return self.inner.transform(X)

    def transform(self, X: Any) -> Any:
        return self.inner.transform(X)

    def get_feature_names_out(self, names: Any = None) -> Any:
        return self.inner.get_feature_names_out(names)


def _grown(branch: Branch, depth: int, state: State) -> Branch:
    if depth >= len(branch.fitters):
        return branch
    return replace(branch, made=(*branch.made, *branch.fitters[depth].finish(state)))


def _assembled(branch: Branch) -> Any:
    """The branch's transformer, knowing the names of its columns."""
    if not branch.made:
        if branch.kind == "boolean":
            made = Numbers()
            made.n_features_in_ = len(branch.columns)
            return _named(made, branch)
        return "passthrough"
    first, *rest = (copy.copy(made) for made in branch.made)
    if not any(isinstance(made.step, Tfidf) for made in branch.fitters):
        _named(first, branch)
    if not rest:
        return first
    names: list[str] = []
    for made in (first, *rest):
        name = type(made).__name__.lower()
        names.append(name if name not in names else f"{name}_{len(names)}")
    return Pipeline(list(zip(names, (first, *rest), strict=True)))


def _named(transformer: Any, branch: Branch) -> Any:
    transformer.feature_names_in_ = np.array(branch.columns, dtype=object)
    return transformer


def _selected(branch: Branch) -> Any:
    """Text goes in as one dimension: scikit-learn's vectorizers want a sequence of documents."""
    one = any(isinstance(fitter, TfidfFitter) for fitter in branch.fitters)
    return branch.columns[0] if one else list(branch.columns)


def _check_chain(name: str, kind: Kind, chain: list[FeatureStep], indices: list[int]) -> None:
    block = _BLOCK.get(kind, "other")
    for step, index in zip(chain, indices, strict=True):
        path, word = f"features[{index}]", _tag(step)
        fitter = FITTERS[type(step)]
        if block == "final":
            raise Invalid(f"{word}: no step can follow the one that encoded {name!r}", path=path)
        if block not in fitter.takes:
            needs = {"numeric": "numbers", "string": "strings", "time": "timestamps"}
            wanted = " or ".join(needs[kind] for kind in fitter.takes)
            holds = needs.get(block, "nested values")
            hint = (
                "encode it first"
                if block == "string" and "numeric" in fitter.takes
                else "cast it under data.clean"
            )
            raise Invalid(f"{word} needs {wanted}; {name!r} holds {holds}", path=path, hint=hint)
        if isinstance(step, DateParts) and (wrong := [part for part in step.parts if part not in DATE_PARTS]):
            raise Invalid(
                f"no part {wrong[0]!r} of a date; there are {', '.join(DATE_PARTS)}", path=f"{path}.parts"
            )
        final = getattr(step, "method", "") == "onehot" or getattr(step, "encode", "") == "onehot"
        block = "final" if final else block if fitter.gives == "same" else fitter.gives
    if block not in ("numeric", "final"):
        hint = _ADVICE["categorical"] if kind in ("categorical", "text") and chain else _ADVICE[kind]
        what = {"categorical": "strings", "text": "text", "time": "timestamps"}.get(
            kind, "values of a nested type"
        )
        raise Invalid(
            f"column {name!r} holds {what}, and no step makes numbers of it",
            path="features",
            hint=hint.format(name=name),
        )


def _check_functions(steps: Sequence[FeatureStep], groups: list[tuple[Any, ...]]) -> None:
    for index, step in enumerate(steps):
        if isinstance(step, Function) and sum(index in key[2:] for key in groups) > 1:
            raise Invalid(
                "the function's columns go through different steps, so it cannot see them together",
                path=f"features[{index}].columns",
                hint="give its columns the same steps and types, or split it into several functions",
            )


def _tag(step: FeatureStep) -> str:
    return str(step.__struct_config__.tag)


def _slices(table: pa.Table) -> list[Read]:
    return [table.select]


def _learnt(transformer: Any) -> dict[str, Any]:
    made = {}
    for name, value in vars(transformer).items():
        if name.endswith("_") and not name.startswith("_"):
            made[name] = _json(value)
    return made


def _json(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_json(item) for item in value.tolist()]
    if isinstance(value, dict):
        return {str(name): _json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, str | int | float | bool | None) else str(value)
