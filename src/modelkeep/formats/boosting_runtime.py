"""XGBoost and LightGBM models from their own files, which hold trees and no code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from modelkeep.core.errors import Damaged, MissingExtra
from modelkeep.formats.batch import Layout
from modelkeep.formats.feed import Feed, Feeder, asked, failed, named
from modelkeep.formats.signature import Signature

Array = npt.NDArray[Any]


class BoostedModel:
    """Trees over a matrix of numbers. Safe to call from several threads.

    Args:
        booster: Loaded.
        signature: Of the package. With classes, what the trees say is made into labels and probabilities.
        feed: One matrix.
    """

    def __init__(self, booster: Booster, signature: Signature, feed: Feed) -> None:
        self._booster = booster
        self.signature = signature
        self.layout = Layout(signature)
        self._feeder = Feeder(feed, self.layout.number_at, self.layout.string_at)

    def predict(self, columns: Mapping[str, Any]) -> Mapping[str, Any]:
        """Arrays by input name to arrays by output name.

        Raises:
            Unfit: The trees refuse these rows.
            UserCodeFailed: They raised something else.
        """
        batch = self.layout.pack(columns)
        try:
            matrix = self._feeder.tensors(batch)[0]
            raw = np.asarray(asked("the trees", lambda: self._booster.raw(matrix)))
            if not self.signature.classes:
                return named(raw, batch.rows)
            probability = (np.column_stack([1 - raw, raw]) if raw.ndim == 1 else raw).astype(np.float64)
            label = np.asarray(self.signature.classes)[probability.argmax(axis=1)]
            return {**named({"label": label}, batch.rows), "probability": probability}
        except Exception as error:  # they raise what their parts raise
            raise failed("the trees", error) from error


class Booster:
    """What the two libraries have in common.

    Attributes:
        names: Of the features, as trained; empty when there were none.
        classes: How many classes it tells apart; 0 when it does not give probabilities.
    """

    names: list[str]
    classes: int

    def raw(self, matrix: Array) -> Array:
        """What the trees say of a matrix (n, features), NaN for missing."""
        raise NotImplementedError


class XGBooster(Booster):
    """XGBoost's JSON and UBJSON files. https://xgboost.readthedocs.io/en/stable/tutorials/saving_model.html"""

    def __init__(self, data: bytes, threads: int = 1) -> None:
        try:
            import xgboost
        except ImportError:
            raise MissingExtra("xgboost", "xgboost") from None
        if data[:1] not in (b"{", b"L"):  # the old binary format is no longer read either
            raise Damaged("the file is neither XGBoost's JSON nor its UBJSON")
        self._booster = xgboost.Booster({"nthread": threads})
        try:
            self._booster.load_model(bytearray(data))
            learner = json.loads(self._booster.save_config())["learner"]
        except (xgboost.core.XGBoostError, ValueError, KeyError) as error:
            raise Damaged(f"XGBoost cannot load the model: {str(error)[:300]}") from error
        self.names = list(self._booster.feature_names or [])
        objective = str(learner["objective"]["name"])
        many = int(learner["learner_model_param"].get("num_class", 0))
        self.classes = many if objective == "multi:softprob" else 2 if objective == "binary:logistic" else 0
        best = self._booster.attr("best_iteration")
        self._range = (0, int(best) + 1) if best is not None else (0, 0)

    def raw(self, matrix: Array) -> Array:
        """As ``Booster.raw``."""
        found = self._booster.inplace_predict(matrix, iteration_range=self._range, validate_features=False)
        return np.asarray(found)


class LightGBooster(Booster):
    """LightGBM's text files. https://lightgbm.readthedocs.io/en/stable/pythonapi/lightgbm.Booster.html"""

    def __init__(self, data: bytes, threads: int = 1) -> None:
        try:
            import lightgbm
        except ImportError:
            raise MissingExtra("lightgbm", "lightgbm") from None
        try:
            self._booster = lightgbm.Booster(model_str=data.decode())
        except (lightgbm.basic.LightGBMError, UnicodeDecodeError) as error:
            raise Damaged(f"LightGBM cannot load the model: {str(error)[:300]}") from error
        self.names = list(self._booster.feature_name())
        self.classes = 0  # a bare booster speaks as its author called it
        self._threads = threads

    def raw(self, matrix: Array) -> Array:
        """As ``Booster.raw``."""
        return np.asarray(self._booster.predict(matrix, num_threads=self._threads))
