"""Settings of serving in the declaration: what is refused, where, and what is meant by default."""

from __future__ import annotations

import pytest

from modelkeep.core.errors import Invalid
from modelkeep.spec.loading import dump, load_text

BODY = "model: m\ndata: {{source: rows.csv, target: y}}\ndeploy: {deploy}\n"


@pytest.mark.parametrize(
    ("deploy", "path", "said"),
    [
        ("{replicas: {min: -1}}", "deploy.replicas.min", "at least 0"),
        ("{replicas: {min: 0, max: 0}}", "deploy.replicas", "nothing would serve"),
        ("{replicas: {quiet: 0s}}", "deploy.replicas.quiet", "longer than nothing"),
        ("{replicas: {quiet: soon}}", "deploy.replicas.quiet", "not a duration"),
        ("{batch: {max_rows: 0}}", "deploy.batch.max_rows", "at least 1"),
        ("{batch: {budget: 0ms}}", "deploy.batch.budget", "within no time"),
        ("{batch: {budget: 10ms, wait: 10ms}}", "deploy.batch.wait", "uses up the budget"),
        ("{batch: {wait: 5}}", "deploy.batch.wait", "expected"),
        ("{batch: {size: 5}}", "deploy.batch.size", ""),
        ("{concurrency: 0}", "deploy.concurrency", "at least 1"),
        ("{cache: {rows: -1}}", "deploy.cache.rows", "at least 0"),
        ("{cache: {bytes: many}}", "deploy.cache.bytes", ""),
        ("{memory: 1000}", "deploy.memory", "at least 67108864"),
        ("{repeatable: maybe}", "deploy.repeatable", ""),
        ("{errors: none}", "deploy.errors", "redacted"),
        ("{in_range: bmi}", "deploy.in_range", "expected numeric, or for one input [bmi]"),
        ("{in_range: [a, a]}", "deploy.in_range[1]", "twice"),
        ("{in_range: [a, y]}", "deploy.in_range[1]", "'y' is the target"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_its_path(deploy: str, path: str, said: str) -> None:
    with pytest.raises(Invalid) as refused:
        load_text(BODY.format(deploy=deploy))
    assert [problem.path for problem in refused.value.problems] == [path]
    assert said in refused.value.problems[0].message


def test_all_of_it_survives_being_written_down() -> None:
    text = BODY.format(
        deploy="{replicas: {min: 0, max: 4, quiet: 10s}, errors: redacted, concurrency: 2, "
        "in_range: [a, b], batch: {max_rows: 64, wait: 2ms, budget: 50ms}, cache: {rows: 1000, bytes: 1000000}}"
    )
    found = load_text(text)
    assert load_text(dump(found)) == found
    assert (found.deploy.replicas.min, found.deploy.batch.budget, found.deploy.cache.rows) == (0, "50ms", 1000)


def test_versions_are_those_that_traffic_reaches_unless_all_are_wanted() -> None:
    assert load_text(BODY.format(deploy="{}")).deploy.versions == "routed"
    assert load_text(BODY.format(deploy="{versions: all}")).deploy.versions == "all"
