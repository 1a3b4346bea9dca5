"""Feature steps: scikit-learn's transformers and our own, as ONNX."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from modelkeep.formats.onnx.calendar import date_parts
from modelkeep.formats.onnx.graph import INT64, MICROSOFT, Unconvertible
from modelkeep.formats.onnx.text import term_weights
from modelkeep.formats.onnx.values import MISSING, Columns, Inputs, Matrix, Value, codes

Array = npt.NDArray[Any]
Converter = Callable[[Inputs, Any, Value], Value]


def transform(inputs: Inputs, step: Any, value: Value) -> Value:
    """One fitted transformer.

    Raises:
        Unconvertible: There is no way to say it; the message names it.
    """
    if step is None or (isinstance(step, str) and step == "passthrough"):
        return value
    name = type(step).__name__
    home = type(step).__module__.partition(".")[0]
    converter = CONVERTERS.get(name) if home in ("sklearn", "modelkeep") else None
    if converter is None:
        raise Unconvertible(f"{name} has no conversion")
    try:
        return converter(inputs, step, value)
    except Unconvertible as error:
        raise error if error.args[0].startswith(name) else Unconvertible(f"{name}: {error}") from None


def pipeline(inputs: Inputs, step: Any, value: Value) -> Value:
    """Steps in order."""
    for _, part in step.steps:
        value = transform(inputs, part, value)
    return value


def column_transformer(inputs: Inputs, step: Any, value: Value) -> Value:
    """Each transformer on its columns; the results side by side."""
    parts: list[Value] = []
    for name, part, _ in step.transformers_:
        index = step._transformer_to_input_indices.get(name, [])
        if (isinstance(part, str) and part == "drop") or not len(index):
            continue
        parts.append(transform(inputs, part, _take(inputs, value, [int(i) for i in index])))
    return _side_by_side(inputs, parts)


def feature_union(inputs: Inputs, step: Any, value: Value) -> Value:
    """Every transformer on the same columns; the results side by side, weighed."""
    if step.transformer_weights:
        raise Unconvertible("its transformers are weighed")
    chosen = [part for _, part in step.transformer_list if part != "drop"]
    return _side_by_side(inputs, [transform(inputs, part, value) for part in chosen])


def _take(inputs: Inputs, value: Value, index: list[int]) -> Value:
    if isinstance(value, Columns):
        return value.take(index)
    return Matrix(inputs.graph.columns(value.name, index), len(index))


def _side_by_side(inputs: Inputs, parts: list[Value]) -> Value:
    if parts and all(isinstance(part, Columns) for part in parts):
        return Columns(tuple(column for part in parts if isinstance(part, Columns) for column in part.columns))
    made = [inputs.matrix(part) for part in parts]
    if not made:
        raise Unconvertible("no feature is left")
    widths = [part.width for part in made]
    return Matrix(inputs.graph.concat([part.name for part in made], widths), sum(widths))


def simple_imputer(inputs: Inputs, step: Any, value: Value) -> Value:
    """Missing values to a statistic; strings only remember what to become."""
    if step.add_indicator:
        raise Unconvertible("it adds indicator columns")
    statistics = step.statistics_
    if isinstance(value, Columns) and any(column.text for column in value.columns):
        if not (step.missing_values is None or step.missing_values == MISSING or _nan(step.missing_values)):
            raise Unconvertible(f"it replaces {step.missing_values!r}")
        return Columns(
            tuple(
                column.replacing([(MISSING, str(fill))])
                for column, fill in zip(value.columns, statistics, strict=True)
            )
        )
    x = inputs.matrix(value)
    known = np.asarray(statistics, np.float64)
    graph = inputs.graph
    if step.missing_values is not None and not _nan(step.missing_values):
        empty = graph.op("Equal", x.name, graph.const(np.array(float(step.missing_values))))
    else:
        empty = graph.op("IsNaN", x.name)
    filled = graph.op("Where", empty, graph.const(known), x.name)
    kept = np.flatnonzero(~np.isnan(known))
    if len(kept) == len(known) or step.keep_empty_features:
        return Matrix(filled, x.width)
    return Matrix(graph.columns(filled, kept.tolist()), len(kept))


def _nan(value: Any) -> bool:
    return isinstance(value, float) and bool(np.isnan(value))


def _elementwise(inputs: Inputs, value: Value, *operations: tuple[str, Array | None]) -> Matrix:
    x = inputs.matrix(value)
    name = x.name
    for kind, operand in operations:
        if operand is not None:
            name = inputs.graph.op(kind, name, inputs.graph.const(np.asarray(operand, np.float64)))
    return Matrix(name, x.width)


def standard_scaler(inputs: Inputs, step: Any, value: Value) -> Value:
    """(x - mean) / scale."""
    mean = step.mean_ if step.with_mean else None
    return _elementwise(inputs, value, ("Sub", mean), ("Div", step.scale_ if step.with_std else None))


def minmax_scaler(inputs: Inputs, step: Any, value: Value) -> Value:
    """x * scale + min, within the range when asked."""
    scaled = _elementwise(inputs, value, ("Mul", step.scale_), ("Add", step.min_))
    if not step.clip:
        return scaled
    low, high = (inputs.graph.const(np.array(float(bound))) for bound in step.feature_range)
    return Matrix(inputs.graph.op("Clip", scaled.name, low, high), scaled.width)


def robust_scaler(inputs: Inputs, step: Any, value: Value) -> Value:
    """(x - median) / interquartile range."""
    centre = step.center_ if step.with_centering else None
    return _elementwise(inputs, value, ("Sub", centre), ("Div", step.scale_ if step.with_scaling else None))


def maxabs_scaler(inputs: Inputs, step: Any, value: Value) -> Value:
    """x / largest absolute value."""
    return _elementwise(inputs, value, ("Div", step.scale_))


def one_hot_encoder(inputs: Inputs, step: Any, value: Value) -> Value:
    """Indicator columns; an unknown category is all zeros, or the infrequent column where there is one."""
    if step.drop_idx_ is not None:
        raise Unconvertible("it drops a category")
    _may_see_others(step)
    parts = []
    for index, categories in enumerate(step.categories_):
        output, width, rare = _grouped(step, index, len(categories))
        unknown = rare if step.handle_unknown in ("infrequent_if_exist", "warn") and rare >= 0 else width
        code = codes(inputs, value, index, categories, output=output, unknown=unknown)
        parts.append((code, width))
    return _indicators(inputs, parts)


def ordinal_encoder(inputs: Inputs, step: Any, value: Value) -> Value:
    """Each category's place; unknown and missing as the encoder says."""
    _may_see_others(step)
    parts = []
    graph = inputs.graph
    for index, categories in enumerate(step.categories_):
        places, _, _ = _grouped(step, index, len(categories))
        output = places.astype(np.float64)
        gone = np.array([_nan(item) or item is None for item in categories])
        output[gone] = float(step.encoded_missing_value)
        unknown = np.nan if step.unknown_value is None else float(step.unknown_value)
        found = codes(inputs, value, index, categories, output=output, unknown=unknown)
        parts.append(graph.op("Unsqueeze", found, graph.const(np.array([1], np.int64))))
    return Matrix(graph.concat(parts), len(parts))


def _may_see_others(step: Any) -> None:
    """Names never seen are refused before a graph runs, as the signature says; numbers only by the original."""
    if step.handle_unknown == "error" and any(known.dtype.kind in "iuf" for known in step.categories_):
        raise Unconvertible("it refuses numbers that it has not seen")


def _grouped(step: Any, index: int, count: int) -> tuple[Array, int, int]:
    """Each category's column, how many columns there are, and the infrequent one or -1."""
    places = np.arange(count, dtype=np.int64)
    if getattr(step, "_infrequent_enabled", False):
        mapping = step._default_to_infrequent_mappings[index]
        if mapping is not None:
            places = np.asarray(mapping, np.int64)
            return places, int(places.max()) + 1, int(places.max())
    return places, count, -1


def _indicators(inputs: Inputs, parts: list[tuple[str, int]]) -> Matrix:
    """Vectors of codes as indicator columns side by side; a code out of range is all zeros."""
    return Matrix(inputs.graph.indicators(parts), sum(width for _, width in parts))


def bins(inputs: Inputs, step: Any, value: Value) -> Value:
    """KBinsDiscretizer: how many inner edges a value reaches, as ordinals or indicators."""
    graph, x = inputs.graph, inputs.matrix(value)
    most = max(len(edges) for edges in step.bin_edges_)
    inner = np.full((x.width, max(1, most - 2)), np.inf)
    for index, edges in enumerate(step.bin_edges_):
        inner[index, : len(edges) - 2] = edges[1:-1]
    last = graph.const(np.array([2], np.int64))
    reached = graph.op("GreaterOrEqual", graph.op("Unsqueeze", x.name, last), graph.const(inner))
    place = graph.op("ReduceSum", graph.double(reached), last, keepdims=0)
    if step.encode == "ordinal":
        return Matrix(place, x.width)
    whole = graph.op("Cast", place, to=INT64)
    widths = [len(edges) - 1 for edges in step.bin_edges_]
    return _indicators(inputs, [(graph.column(whole, index), width) for index, width in enumerate(widths)])


def hash_buckets(inputs: Inputs, step: Any, value: Value) -> Value:
    """MurmurHash3 of the text modulo the buckets, as indicators."""
    graph = inputs.graph
    if isinstance(value, Matrix) or any(column.kind != "string" for column in value.columns):
        raise Unconvertible("it hashes something else than strings")
    parts = []
    for column in value.columns:
        x = _replaced(inputs, column, inputs.string(column))
        hashed = graph.op("MurmurHash3", x, domain=MICROSOFT, positive=1, seed=0)
        place = graph.op("Mod", graph.op("Cast", hashed, to=INT64), graph.const(np.array(step.buckets, np.int64)))
        parts.append((place, int(step.buckets)))
    return _indicators(inputs, parts)


def _replaced(inputs: Inputs, column: Any, x: str) -> str:
    graph = inputs.graph
    for old, new in column.replaced:
        same = graph.op("Equal", x, graph.const([old]))
        x = graph.op("Where", same, graph.const([new]), x)
    return x


def strings(inputs: Inputs, step: Any, value: Value) -> Value:
    """Everything as text; a number becomes text only in name, for its categories are looked up as numbers."""
    if isinstance(value, Matrix):
        raise Unconvertible("it makes strings of computed numbers")
    return Columns(tuple(replace(column, text=True) for column in value.columns))


def numbers(inputs: Inputs, step: Any, value: Value) -> Value:
    """Numbers are numbers already."""
    return inputs.matrix(value)


def rare_categories(inputs: Inputs, step: Any, value: Value) -> Value:
    """Rare names to one shared name."""
    if isinstance(value, Matrix):
        raise Unconvertible("it renames computed numbers")
    made = (
        column.replacing((str(name), str(step.other)) for name in rare)
        for column, rare in zip(value.columns, step.rare, strict=True)
    )
    return Columns(tuple(made))


def dates(inputs: Inputs, step: Any, value: Value) -> Value:
    """Calendar numbers of timestamps."""
    if isinstance(value, Matrix) or any(column.kind != "timestamp" for column in value.columns):
        raise Unconvertible("it takes something else than timestamps apart")
    graph = inputs.graph
    made = []
    for column in value.columns:
        micros = graph.columns("numbers", [inputs.number(column)])
        made += date_parts(graph, micros, list(step.parts))
    return Matrix(graph.concat(made), len(made))


def tfidf(inputs: Inputs, step: Any, value: Value) -> Value:
    """Words to weights."""
    if isinstance(value, Matrix) or value.width != 1:
        raise Unconvertible("it reads something else than one column of strings")
    text = _replaced(inputs, value.columns[0], inputs.string(value.columns[0]))
    name, width = term_weights(inputs.graph, step, text)
    return Matrix(name, width)


def select(inputs: Inputs, step: Any, value: Value) -> Value:
    """Feature selection: some columns only."""
    index = np.flatnonzero(step.get_support()).tolist()
    return _take(inputs, inputs.matrix(value), index)


def projection(inputs: Inputs, step: Any, value: Value) -> Value:
    """PCA and truncated SVD."""
    x = inputs.matrix(value)
    mean = getattr(step, "mean_", None)
    weights = np.asarray(step.components_, np.float64).T
    if getattr(step, "whiten", False):
        weights = weights / np.sqrt(np.maximum(step.explained_variance_, np.finfo(np.float64).eps))
    centred = x if mean is None else _elementwise(inputs, x, ("Sub", mean))
    return Matrix(inputs.graph.op("MatMul", centred.name, inputs.graph.const(weights)), weights.shape[1])


_FUNCTIONS = {"log": "Log", "exp": "Exp", "sqrt": "Sqrt", "absolute": "Abs", "log1p": "Log1p", "square": "Square"}


def function(inputs: Inputs, step: Any, value: Value) -> Value:
    """FunctionTransformer of nothing or of a common NumPy function."""
    if step.func is None:
        return value
    name = getattr(step.func, "__name__", "")
    if not isinstance(step.func, np.ufunc) or name not in _FUNCTIONS or step.kw_args:
        raise Unconvertible(f"{name or step.func!r} has no conversion")
    graph, x = inputs.graph, inputs.matrix(value)
    if name == "log1p":
        return Matrix(graph.op("Log", graph.op("Add", x.name, graph.const(np.array(1.0)))), x.width)
    if name == "square":
        return Matrix(graph.op("Mul", x.name, x.name), x.width)
    return Matrix(graph.op(_FUNCTIONS[name], x.name), x.width)


CONVERTERS: dict[str, Converter] = {
    "Pipeline": pipeline,
    "ColumnTransformer": column_transformer,
    "FeatureUnion": feature_union,
    "SimpleImputer": simple_imputer,
    "StandardScaler": standard_scaler,
    "MinMaxScaler": minmax_scaler,
    "RobustScaler": robust_scaler,
    "MaxAbsScaler": maxabs_scaler,
    "OneHotEncoder": one_hot_encoder,
    "OrdinalEncoder": ordinal_encoder,
    "KBinsDiscretizer": bins,
    "TfidfVectorizer": tfidf,
    "CountVectorizer": tfidf,
    "FunctionTransformer": function,
    "PCA": projection,
    "TruncatedSVD": projection,
    "VarianceThreshold": select,
    "SelectKBest": select,
    "SelectPercentile": select,
    "SelectFromModel": select,
    "Strings": strings,
    "Numbers": numbers,
    "RareCategories": rare_categories,
    "DateParts": dates,
    "HashBuckets": hash_buckets,
}
