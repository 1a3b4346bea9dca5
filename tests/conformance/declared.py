"""What holds of whole declarations, wherever they are worked on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from modelkeep.app.wiring import open_keep
from modelkeep.core.plugins import load_object
from modelkeep.data import pieces
from modelkeep.lifecycle.apply import apply
from small import Project

FLIGHTS = Path(__file__).resolve().parents[2] / "examples" / "flights"


class DeclaredSuite:
    """A declaration with blobs on S3 and a function of its own: fixtures ``address``, ``opened``, ``s3``."""

    def test_a_version_made_there_is_the_version_made_here(self, address, opened, s3, tmp_path, monkeypatch):
        # small pieces, so that there are several
        monkeypatch.setattr(pieces, "MOST", 20_000)
        monkeypatch.setattr(pieces, "LEAST", 1_000)
        made = {}
        for where, engine, blobs in (("here", "local", ""), ("there", address, s3)):
            project = Project(tmp_path / where)
            for number in range(3):
                project.write(f"part{number}", 700, first=700 * number)
            (project.folder / "own_features.py").write_text(
                "import numpy as np\ndef squares(values):\n    return np.hstack([values, np.square(values)])\n"
            )
            project.said["features"].append({"function": {"function": "own_features:squares", "columns": ["x"]}})
            # searched there too
            project.said["train"] = {
                "algorithm": "logistic_regression",
                "metric": "roc_auc",
                "tune": {"trials": 3, "folds": 2, "space": {"C": {"low": 0.01, "high": 10, "log": True}}},
            }
            project.said |= {"engine": engine, "blobs": blobs, "trust": ["own_features.squares"]}
            project.declare()
            sys.modules.pop("own_features", None)
            keep = open_keep(project.folder, blobs=blobs)
            try:
                made[where] = apply(keep, project.declaration())
            finally:
                keep.close()
        assert made["there"].champion
        assert made["there"].metrics == pytest.approx(made["here"].metrics, abs=1e-9)

    def test_flights_end_with_the_champion_of_one_machine(self, address, opened, s3, tmp_path, monkeypatch):
        """The example as it is, of two months; only ``engine`` and ``blobs`` differ."""
        monkeypatch.setattr(pieces, "MOST", 2 << 20)
        monkeypatch.setattr(pieces, "LEAST", 1 << 20)
        write_months = load_object("prepare:write_months", base=FLIGHTS, path="data")
        made = {}
        for where, engine, blobs in (("here", "local", ""), ("there", address, s3)):
            project = Project(tmp_path / where)
            write_months(project.folder / "data", [1, 2])
            project.said = yaml.safe_load((FLIGHTS / "modelkeep.yaml").read_text())
            project.said |= {"engine": engine, "blobs": blobs}
            project.declare()
            keep = open_keep(project.folder, blobs=blobs)
            try:
                made[where] = apply(keep, project.declaration())
            finally:
                keep.close()
        assert made["there"].champion and made["there"].metrics["roc_auc"] > 0.6
        assert made["there"].metrics == pytest.approx(made["here"].metrics, abs=1e-9)
