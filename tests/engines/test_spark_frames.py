"""Relational work on Spark gives what it gives on DuckDB (``tests/data/test_relations.py``)."""

from __future__ import annotations

import pytest

from engines.clusters import holds_inside

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def test_relational_work_is_the_same_on_spark():
    holds_inside("on_spark_frames.py")
