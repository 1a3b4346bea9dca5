"""scikit-learn pipelines as files that run no code on loading, through skops.

skops rebuilds objects from a tree of named types, and asks which types it may build. We let it build the classes
of scikit-learn and SciPy and our own steps, linear models and networks; whatever else a file names must be
trusted by its exact name.
https://skops.readthedocs.io/en/stable/persistence.html
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from modelkeep.core.errors import Damaged, Refused
from modelkeep.formats.steps import UserFunction

# skops asks scikit-learn for all its estimators, which imports every package of scikit-learn: also those that hold
# no estimator and bring PyTorch and Dask where these are installed, at a cost of two seconds and 250 MB
_BRINGS = [f"sklearn.externals.array_api_compat.{name}" for name in ("torch", "dask", "cupy")]
_hidden = [name for name in _BRINGS if name not in sys.modules]
for _name in _hidden:
    sys.modules[_name] = None  # type: ignore[assignment] # there is no such module
try:
    import skops.io
    from skops.io._utils import SaveContext, get_state
finally:
    for _name in _hidden:
        del sys.modules[_name]

_CLASSES_OF = (
    *("sklearn.", "scipy.sparse.", "modelkeep.formats.steps.", "modelkeep.formats.network."),
    *("modelkeep.train.linear.estimator.", "modelkeep.formats.coded."),
)
_NAMES = frozenset({"sklearn.utils.validation.check_array", "functools.partial", "numpy.dtype"})
"""A partial is as harmless as its function, which is asked about by itself."""
VOUCHED = frozenset(
    {
        *("collections.OrderedDict", "collections.defaultdict"),
        *("lightgbm.basic.Booster", "lightgbm.sklearn.LGBMClassifier", "lightgbm.sklearn.LGBMRegressor"),
        *("lightgbm.sklearn.LGBMRanker", "lightgbm.sklearn._LGBMLabelEncoder"),
        *("xgboost.core.Booster", "xgboost.sklearn.XGBClassifier", "xgboost.sklearn.XGBRegressor"),
    }
)
"""Types of other packages that may be built: their state is text or numbers, not code."""
_SCHEMA = "schema.json"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first date a zip can hold


def dumps(pipeline: Any) -> bytes:
    """The pipeline as bytes: the same bytes for the same pipeline, stored, so that equal parts are kept once.

    Raises:
        Refused: It holds something skops cannot write.
    """
    try:
        with warnings.catch_warnings(), _as_on_one_thread(pipeline):
            warnings.simplefilter("ignore")
            members = _Members()
            return _archive(_schema(pipeline, members), members)
    except Exception as error:  # skops raises what its parts raise
        raise Refused(
            f"the trained model cannot be kept without pickle: {type(error).__name__}: {error}",
            hint="keep its state in NumPy arrays and plain values, or use a scikit-learn estimator",
        ) from error


def untrusted(data: bytes, trusted: Sequence[str] = ()) -> list[str]:
    """Names of types and functions that loading would use and nobody vouches for: not ours, not scikit-learn's,
    not in ``trusted``. Sorted.

    Raises:
        Damaged: It is no such file.
    """
    return [name for name in named_types(data) if not _allowed(name, trusted)]


def loads(data: bytes, *, trusted: Sequence[str] = ()) -> Any:
    """The pipeline of a file, set to one thread per prediction.

    Raises:
        Refused: It names a type that is not trusted, or a function for a ``UserFunction`` step to call.
        Damaged: It is no such file.
    """
    named = named_types(data)
    refuse(name for name in named if not _allowed(name, trusted))
    pipeline = skops.io.loads(data, trusted=named)
    refuse(name for name in functions(pipeline) if name not in trusted)
    return _single_threaded(pipeline)


def _allowed(name: str, trusted: Sequence[str]) -> bool:
    return name in trusted or name in VOUCHED or known(name)


def refuse(names: Iterable[str]) -> None:
    """Raise ``Refused`` with exactly what to write to trust the names; nothing when there are none."""
    unknown = sorted(set(names))
    if unknown:
        raise Refused(
            f"loading this model would run {', '.join(unknown)}",
            hint=f"if you wrote it, add to the declaration - trust: [{', '.join(unknown)}]",
        )


def functions(root: Any) -> list[str]:
    """The user's functions, as ``module.name``, that ``UserFunction`` steps anywhere inside would call."""
    found: set[str] = set()
    seen: set[int] = set()
    todo = [root]
    while todo:
        item = todo.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, UserFunction):
            found.add(str(item.function).replace(":", "."))
        if isinstance(item, dict):
            todo += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set | frozenset):
            todo += list(item)
        elif isinstance(item, np.ndarray):
            todo += item.ravel().tolist() if item.dtype == object else []
        elif hasattr(item, "__dict__") and not isinstance(item, type):
            todo.append(vars(item))
    return sorted(found)


def named_types(data: bytes) -> list[str]:
    """The types and functions a file names that skops itself does not vouch for."""
    try:
        return list(skops.io.get_untrusted_types(data=data))
    except Exception as error:  # whatever its parser raises on bytes that are no such file
        raise Damaged(f"model.skops cannot be read: {type(error).__name__}: {error}") from error


def known(name: str) -> bool:
    """Whether the name is a class of a package we trust. Functions never are, save those listed."""
    if name in _NAMES:
        return True
    if not name.startswith(_CLASSES_OF):
        return False
    module, _, attribute = name.rpartition(".")
    try:
        return isinstance(getattr(importlib.import_module(module), attribute, None), type)
    except ImportError:
        return False


def _single_threaded(pipeline: Any) -> Any:
    """One thread per prediction: starting a pool costs more than a row, and other requests want the cores."""
    if hasattr(pipeline, "get_params"):
        many = [name for name in pipeline.get_params(deep=True) if name.rpartition("__")[2] == "n_jobs"]
        if many:
            pipeline.set_params(**dict.fromkeys(many, 1))
    return pipeline


@contextlib.contextmanager
def _as_on_one_thread(pipeline: Any) -> Iterator[None]:
    """Histogram boosting remembers how many threads it was binned with; equal models must not differ in that."""
    parts = [part for _, part in getattr(pipeline, "steps", [("", pipeline)])]
    mappers = [found for part in parts if (found := getattr(part, "_bin_mapper", None)) is not None]
    before = [mapper.n_threads for mapper in mappers]
    for mapper in mappers:
        mapper.n_threads = 1
    try:
        yield
    finally:
        for mapper, threads in zip(mappers, before, strict=True):
            mapper.n_threads = threads


class _Members:
    """What skops writes to: an archive that is not written yet. Holds the files by name."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def writestr(self, name: str, data: bytes) -> None:
        self.files[name] = bytes(data)

    def namelist(self) -> list[str]:
        return list(self.files)


def _schema(pipeline: Any, members: _Members) -> dict[str, Any]:
    """The schema that ``skops.io.dumps`` writes, without the indentation that makes it slow."""
    context = SaveContext(zip_file=members)
    state: dict[str, Any] = get_state(pipeline, context)
    return {**state, "protocol": context.protocol, "_skops_version": skops.__version__}


def _archive(schema: dict[str, Any], members: _Members) -> bytes:
    """The archive, with the memory addresses in it replaced by numbers in order, and without dates."""
    numbers: dict[int, int] = {}
    renamed: dict[str, str] = {}
    _renumber(schema, numbers, renamed)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for old, new in renamed.items():
            archive.writestr(zipfile.ZipInfo(new, _EPOCH), members.files[old])
        archive.writestr(zipfile.ZipInfo(_SCHEMA, _EPOCH), json.dumps(schema, separators=(",", ":")))
    return out.getvalue()


def _renumber(node: Any, numbers: dict[int, int], renamed: dict[str, str]) -> None:
    if isinstance(node, list | tuple):
        for item in node:
            _renumber(item, numbers, renamed)
    elif isinstance(node, dict):
        if isinstance(node.get("__id__"), int):
            node["__id__"] = numbers.setdefault(node["__id__"], len(numbers))
        file = node.get("file")
        if isinstance(file, str):
            suffix = file[file.rfind(".") :]
            node["file"] = renamed.setdefault(file, f"{len(renamed):06d}{suffix}")
        for item in node.values():
            _renumber(item, numbers, renamed)
