"""A network of Keras 3 on its PyTorch back end, in this process."""

from __future__ import annotations

import os
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"  # the one whose networks Modelkeep can keep; before keras is imported

import keras
import numpy as np

DEFAULTS = {"epochs": 10, "batch": 32, "rate": 0.003, "hidden": 16, "dropout": 0.2, "seed": 0}


def fit(data: Any, params: dict[str, Any], run: Any) -> keras.Model:
    """What Modelkeep calls: loss and accuracy of every epoch go to the run, also on a fifth held out."""
    given = DEFAULTS | params
    keras.utils.set_random_seed(given["seed"])
    rows = np.asarray(data.matrix, np.float32)
    codes = np.searchsorted(np.asarray(data.classes), data.target)
    order = np.random.default_rng(given["seed"]).permutation(len(rows))
    network = keras.Sequential(
        [
            keras.Input((rows.shape[1],)),
            keras.layers.Dense(given["hidden"], activation="relu"),
            keras.layers.Dropout(given["dropout"]),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    network.compile(keras.optimizers.Adam(given["rate"]), "binary_crossentropy", metrics=["accuracy"])
    network.fit(
        rows[order],
        codes[order],
        batch_size=given["batch"],
        epochs=given["epochs"],
        validation_split=0.2,
        verbose=0,
        callbacks=[Told(run)],
    )
    return network


class Told(keras.callbacks.Callback):
    """Passes on what Keras measured."""

    def __init__(self, run: Any) -> None:
        super().__init__()
        self._run = run

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        for name, value in (logs or {}).items():
            self._run.log_metric(name, value, epoch + 1)
