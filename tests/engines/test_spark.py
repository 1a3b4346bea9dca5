"""Spark keeps the promises of the port: a real cluster of two machines, of which one is killed in the middle."""

from __future__ import annotations

import pytest

from engines.clusters import holds_inside

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]


def test_the_promises_hold_on_a_cluster_of_two_machines():
    holds_inside("on_spark.py")
