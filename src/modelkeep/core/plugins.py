"""Loading code the user named, and optional dependencies."""

from __future__ import annotations

import contextlib
import importlib
import linecache
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from modelkeep.core.errors import Invalid, MissingExtra, UserCodeFailed


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say exactly how to install it.

    Raises:
        MissingExtra: The module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != module.split(".", maxsplit=1)[0]:
            raise
        raise MissingExtra(module, extra) from None


def load_object(reference: str, *, base: Path, path: str) -> Any:
    """Import ``package.module:name`` (or ``package.module.name``), looking in ``base`` first.

    Args:
        reference: What the declaration says.
        base: The declaration's folder.
        path: The field's path, for errors.

    Raises:
        Invalid: There is no such module or name.
        UserCodeFailed: The module raised while being imported.
    """
    module_name, _, attribute = reference.partition(":") if ":" in reference else reference.rpartition(".")
    if not module_name or not attribute:
        raise Invalid(f"{reference!r} is not an import path; expected 'package.module:name'", path=path)
    with _on_path(base), user_code(f"importing {module_name}"):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if (error.name or "") != module_name and not module_name.startswith(f"{error.name}."):
                raise
            raise Invalid(
                f"no module {module_name!r} in {base} or among the installed packages", path=path
            ) from None
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise Invalid(f"{module_name!r} has no {attribute!r}", path=path)
        found = getattr(found, part)
    return found


def load_function(reference: str, *, base: Path, path: str) -> Callable[..., Any]:
    """Like ``load_object``, for something that must be callable."""
    found = load_object(reference, base=base, path=path)
    if not callable(found):
        raise Invalid(f"{reference!r} is a {type(found).__name__}, expected a function", path=path)
    return found  # type: ignore[no-any-return]


@contextlib.contextmanager
def user_code(doing: str) -> Iterator[None]:
    """Turn whatever the user's code raises into ``UserCodeFailed`` with only the user's own frames."""
    try:
        yield
    except (Invalid, MissingExtra, UserCodeFailed):
        raise
    except Exception as error:
        own = _own_frames(error.__traceback__)
        text = "".join(traceback.format_list(own)) + "".join(traceback.format_exception_only(error))
        raise UserCodeFailed(f"{doing} failed", traceback=text.rstrip()) from error


def _own_frames(trace: TracebackType | None) -> list[traceback.FrameSummary]:
    linecache.checkcache()
    here = str(Path(__file__).resolve().parents[1])
    frames = traceback.extract_tb(trace)
    own = [f for f in frames if not f.filename.startswith((here, "<frozen")) and "site-packages" not in f.filename]
    return own or frames[-1:]


@contextlib.contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(entry)
