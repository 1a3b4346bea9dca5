"""ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnxruntime

from modelkeep.core.errors import Damaged
from modelkeep.formats.batch import Layout
from modelkeep.formats.signature import Signature

_ERRORS_ONLY = 3


def options(threads: int) -> Any:
    """How sessions run here: quiet, and never spinning while they wait."""
    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads = threads
    made.inter_op_num_threads = 1
    made.log_severity_level = _ERRORS_ONLY
    made.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return made


class OnnxModel:
    """A whole pipeline as one graph. Safe to call from several threads: a session's ``run`` is.

    Args:
        data: The ONNX file.
        numbers: Columns of its input ``numbers``, in order.
        strings: Columns of its input ``strings``, in order.
        signature: Of the package.
        threads: Of one prediction; one leaves the other cores to other requests.

    Raises:
        Damaged: ONNX Runtime cannot load it.
    """

    def __init__(
        self,
        data: bytes,
        numbers: Sequence[str],
        strings: Sequence[str],
        signature: Signature,
        *,
        threads: int = 1,
    ) -> None:
        try:
            self._session = onnxruntime.InferenceSession(
                data, options(threads), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions share no base class
            raise Damaged(f"ONNX Runtime cannot load the graph: {error}") from error
        self._run = self._session.run
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
        return dict(zip(self._outputs, self._run(self._outputs, feed), strict=True))
