"""ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from modelkeep.core.errors import Damaged
from modelkeep.formats.batch import Layout
from modelkeep.formats.signature import Signature

_ERRORS_ONLY = 3


def options(threads: int, *, mapped: bool = False) -> Any:
    """How sessions run here: quiet, and never spinning while they wait.

    Args:
        mapped: Whether weights are in a file of their own. Then they are used as they lie there, not in copies
            laid out anew, which would be every process's own.
    """
    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads = threads
    made.inter_op_num_threads = 1
    made.log_severity_level = _ERRORS_ONLY
    made.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if mapped:
        made.add_session_config_entry("session.disable_prepacking", "1")
    return made


class OnnxModel:
    """A whole pipeline as one graph. Safe to call from several threads: a session's ``run`` is.

    Args:
        graph: The ONNX file, whose weights beside it are mapped into memory and shared; or its bytes.
        numbers: Columns of its input ``numbers``, in order.
        strings: Columns of its input ``strings``, in order.
        signature: Of the package.
        threads: Of one prediction; one leaves the other cores to other requests.
        weights: Where the weights are apart: their file's name, with its bytes when the graph is bytes too.

    Raises:
        Damaged: ONNX Runtime cannot load it.
    """

    def __init__(
        self,
        graph: Path | bytes,
        numbers: Sequence[str],
        strings: Sequence[str],
        signature: Signature,
        *,
        threads: int = 1,
        weights: tuple[str, bytes] | None = None,
    ) -> None:
        made = options(threads, mapped=weights is not None)
        if weights is not None and isinstance(graph, bytes):
            name, data = weights
            made.add_external_initializers_from_files_in_memory([name], [data], [len(data)])
        try:
            self._session = onnxruntime.InferenceSession(
                graph if isinstance(graph, bytes) else str(graph), made, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions share no base class
            raise Damaged(f"ONNX Runtime cannot load the graph: {error}") from error
        self._run = _quick(self._session)
        self._outputs = [output.name for output in self._session.get_outputs()]
        self.signature = signature
        self.layout = Layout(signature)
        self._numbers = [self.layout.number_at[name] for name in numbers]
        self._all = self._numbers == list(range(len(self.layout.numbers)))
        self._strings = [self.layout.string_at[name] for name in strings]

    def predict(self, columns: Mapping[str, Any]) -> Mapping[str, Any]:
        """Arrays by input name (fastest as a ``Batch``) to arrays by output name."""
        batch = self.layout.pack(columns)
        feed: dict[str, Any] = {}
        if self._numbers:
            feed["numbers"] = batch.matrix(self._numbers, whole=self._all)
        if self._strings:
            feed["strings"] = batch.texts(self._strings)
        return dict(zip(self._outputs, self._run(self._outputs, feed, None), strict=True))


def _quick(session: Any) -> Any:
    """What ``session.run`` calls once it has looked whether every input is given, as they are here.

    Looking takes a quarter of the time of a small model's run. Without that inner session, ``run`` itself.
    """
    return getattr(getattr(session, "_sess", None), "run", session.run)
