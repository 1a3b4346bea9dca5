"""Spark keeps the promises of the port: a real cluster of two machines, of which one is killed in the middle."""

from __future__ import annotations

from engines.clusters import holds_inside


def test_the_promises_hold_on_a_cluster_of_two_machines():
    holds_inside("on_spark.py")
