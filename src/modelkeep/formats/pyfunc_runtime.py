"""MLflow's ``python_function``: whatever its folder says, run by MLflow itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from modelkeep.core.errors import Damaged, Invalid, MissingExtra, ModelkeepError
from modelkeep.formats import params, trusting
from modelkeep.formats.batch import Layout
from modelkeep.formats.feed import Feed, Feeder, failed
from modelkeep.formats.manifest import Manifest
from modelkeep.formats.outputs import returned
from modelkeep.formats.signature import Signature

try:
    from mlflow import pyfunc
    from mlflow.exceptions import MlflowException
    from mlflow.pyfunc import scoring_server
except ImportError:
    raise MissingExtra("mlflow", "mlflow") from None


_REFUSED = "Invalid parameters found"
_RAISED = "Encountered an unexpected error while evaluating the model"


class PyfuncModel:
    """A model folder of MLflow.

    Loading runs the code that the folder brings, so the digest of the package must be trusted.

    Args:
        files: The package's.
        manifest: Its manifest.
        signature: Of the package.
        trusted: Digests.

    Raises:
        Refused: Its digest is not trusted.
        Damaged: MLflow cannot load it.
    """

    def __init__(
        self, files: Mapping[str, bytes], manifest: Manifest, signature: Signature, trusted: Sequence[str]
    ) -> None:
        trusting.trust(files, trusted, "code that its MLflow folder brings")
        folder = trusting.on_disk(files, manifest, self)
        try:
            self._model = pyfunc.load_model(str(folder))
        except ModelkeepError:
            raise
        except ModuleNotFoundError as error:
            raise Damaged(
                f"the model needs {error.name}, which is not installed",
                hint=f"pip install -r {folder}/requirements.txt",
            ) from error
        except Exception as error:  # it raises what the model's code raises
            raise Damaged(f"MLflow cannot load the model: {type(error).__name__}: {str(error)[:500]}") from error
        self.signature = signature
        self.layout = Layout(signature)
        self._feeder = Feeder(manifest.feed or Feed(), self.layout.number_at, self.layout.string_at)

    def predict(self, columns: Mapping[str, Any]) -> Mapping[str, Any]:
        """Arrays by input name to arrays by output name. MLflow adds the defaults to the params of a batch.

        Raises:
            Invalid: MLflow refuses the batch's params.
            Unfit: The model refuses these rows.
            UserCodeFailed: It raised something else.
        """
        batch = self.layout.pack(columns)
        try:
            given = self._feeder.given(batch)
            return returned(self._asked(given, batch.params), batch.rows)
        except Exception as error:  # what it gave is nothing that can be read
            raise failed("the model", error) from error

    def _asked(self, given: Any, packed: bytes) -> Any:
        try:
            return self._model.predict(given, params=params.unpacked(packed))
        except Exception as error:  # it raises what the model's code raises
            if packed and isinstance(error, MlflowException) and error.message.startswith(_REFUSED):
                raise Invalid(error.message[:500], path="params") from error
            raise failed("the model", error, given=True) from error


class VerbatimModel(PyfuncModel):
    """The same, given whole requests of MLflow's scoring protocol as texts, which MLflow's own server reads."""

    def predict(self, columns: Mapping[str, Any]) -> Mapping[str, Any]:
        """Texts of requests, JSON or CSV, to texts of answers, JSON; each request is predicted on its own.

        Raises:
            Invalid: MLflow refuses a request.
            Unfit: The model refuses a request.
            UserCodeFailed: It raised something else.
        """
        batch = self.layout.pack(columns)
        return {"answer": np.array([self._answer(text) for text in batch.strings[0]], dtype=object)}

    def _answer(self, text: str) -> str:
        kind = (
            scoring_server.CONTENT_TYPE_JSON
            if text.lstrip()[:1] in ("{", "[")
            else scoring_server.CONTENT_TYPE_CSV
        )
        schema = self._model.metadata.get_input_schema()
        try:
            answer: str = scoring_server.invocations(text, kind, self._model, schema).response
        except MlflowException as error:
            if error.message.startswith(_RAISED):
                raise failed("the model", error.__cause__ or error.__context__ or error, given=True) from error
            if error.get_http_status_code() < 500:
                raise Invalid(error.message.rpartition("\nError: ")[2][:500], path="request") from None
            raise failed("the model", error) from error
        except Exception as error:  # it raises what the model's code raises
            raise failed("the model", error) from error
        return answer
