"""Relational work on Spark; ``test_spark_frames.py`` runs this apart from all else."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.frames import FramesSuite
from modelkeep.engines.opening import open_engine


@pytest.fixture(scope="module")
def opened():
    # Nothing here runs long enough for what is compiled to be worth the time of its compiler.
    os.environ["PYSPARK_SUBMIT_ARGS"] = (
        '--driver-java-options "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC" pyspark-shell'
    )
    with open_engine("spark", limit=60) as engine:
        for name, value in {"shuffle.partitions": "3", "codegen.wholeStage": "false"}.items():
            engine.session.conf.set(f"spark.sql.{name}", value)
        yield engine


class TestSpark(FramesSuite):
    # What Spark does by itself, a query each, takes seconds: the work that crosses partitions is asked for here.
    test_filter_cast_and_aggregate = None
    test_forward_fills = None
    test_an_engine_that_brings_it_prepares_the_same = None

    @pytest.fixture
    def frames(self, opened):
        with opened.frames() as frames:
            yield frames
