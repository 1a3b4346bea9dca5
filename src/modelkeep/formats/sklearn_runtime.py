"""The original scikit-learn pipeline as a model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from modelkeep.core.errors import UserCodeFailed
from modelkeep.formats import unfit
from modelkeep.formats.batch import Layout
from modelkeep.formats.feed import Feed, Feeder, asked, named
from modelkeep.formats.frames import frame_of
from modelkeep.formats.signature import Signature
from modelkeep.formats.validate import MOST_PROBLEMS


class SklearnModel:
    """A pipeline of a DataFrame.

    Args:
        pipeline: Fitted; told to use one thread per prediction.
        signature: Its inputs in the order of fitting.
        feed: What it takes; none: a DataFrame as ``apply`` trained it with.
    """

    def __init__(self, pipeline: Any, signature: Signature, feed: Feed | None = None) -> None:
        self.pipeline = pipeline
        self.signature = signature
        self.layout = Layout(signature)
        self._feeder = Feeder(feed, self.layout.number_at, self.layout.string_at) if feed else None
        last = pipeline.steps[-1][1] if hasattr(pipeline, "steps") else pipeline
        self._offset = float(getattr(last, "offset_", -0.5))

    def predict(self, columns: Mapping[str, Any]) -> Mapping[str, Any]:
        """Arrays by input name to arrays by output name.

        Raises:
            Invalid: A step or the model does not take some values; names them.
            Unfit: The pipeline refuses these rows otherwise.
            UserCodeFailed: It raised something else.
        """
        batch = self.layout.pack(columns)
        frame = self._feeder.given(batch) if self._feeder else frame_of(batch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of categories never seen
            try:
                return asked("the pipeline", lambda: self._predict(frame))
            except UserCodeFailed as error:
                if self._feeder is None and (found := unfit.found(self.pipeline, frame)):
                    raise unfit.told_of_request(found, MOST_PROBLEMS) from error
                raise

    def _predict(self, frame: Any) -> dict[str, Any]:
        task = self.signature.task
        if task == "regression":
            found = self.pipeline.predict(frame)
            if self._feeder:
                return named(found, len(frame))
            return {"prediction": np.asarray(found, np.float64).reshape(-1)}
        if task == "anomaly":
            score = -np.asarray(self.pipeline.score_samples(frame), np.float64)
            return {"label": score > -self._offset, "score": score}
        classes = np.asarray(self.signature.classes)
        if not hasattr(self.pipeline, "predict_proba"):
            return {"label": _plain(np.asarray(self.pipeline.predict(frame)).reshape(-1))}
        probability = np.asarray(self.pipeline.predict_proba(frame), np.float64)
        return {"label": _plain(classes[probability.argmax(axis=1)]), "probability": probability}


def _plain(labels: Any) -> Any:
    return labels.astype(object) if labels.dtype.kind == "U" else labels
