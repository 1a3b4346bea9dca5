"""MLflow's scoring requests to models of which nobody knows what rows they take: passed on whole, as they came."""

from __future__ import annotations

from collections.abc import Callable

from modelkeep.core.errors import Invalid, ModelkeepError
from modelkeep.protocols import errors
from modelkeep.serve.calls import Batch, Call
from modelkeep.serve.columns import Rows


def rows(body: bytes) -> Rows:
    """A request as the one row that such a model takes. Raises ``Invalid`` when it is no text."""
    try:
        return Rows(1, cells=[body.decode("utf-8-sig")])
    except UnicodeDecodeError as error:
        raise Invalid(f"the body is not UTF-8: {error}") from None


class Verbatim:
    """Answers with what the model said.

    Args:
        id_line: Makes the header line of an id.
    """

    def __init__(self, id_line: Callable[[str], bytes]) -> None:
        self._id_line = id_line

    def answer(self, call: Call, batch: Batch) -> None:
        call.sink.write(200, batch.outputs["answer"][call.start].encode(), self._id_line(call.id))

    def refuse(self, call: Call, error: ModelkeepError) -> None:
        errors.refuse(call.sink, error)
