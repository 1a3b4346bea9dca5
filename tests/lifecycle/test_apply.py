"""Plan and apply, end to end on a small real table."""

from __future__ import annotations

import json
import shutil
import time

import pytest
from msgspec.structs import replace
from sqlalchemy import select

from forks import Forks
from modelkeep.core.errors import Conflict, Invalid, NotFound
from modelkeep.formats import runtimes
from modelkeep.lifecycle import ask, locks, plan, rollout, stages
from modelkeep.lifecycle.reproduce import changed_packages, reproduce
from modelkeep.registry import endpoints, models, runs, snapshots
from modelkeep.store import tables
from modelkeep.store.blobs import read_files
from small import Project


def planned(project: Project) -> dict[str, tuple[str, str]]:
    with project.opened() as keep:
        found = plan.plan(keep, project.declaration())
    return {stage.name: (stage.action, stage.because) for stage in found.stages}


def actions(project: Project) -> dict[str, str]:
    return {name: action for name, (action, _) in planned(project).items()}


def done(applied) -> dict[str, str]:
    return {stage.name: stage.action for stage in applied.stages}


def running(found: dict[str, str]) -> list[str]:
    return [name for name, action in found.items() if action == "run"]


def champion(project: Project) -> int | None:
    with project.opened() as keep, keep.db.read() as conn:
        return models.alias(conn, "late", "champion")


def set_c(value: float):
    return lambda said: said["train"]["params"].update(C=value)


def test_first_apply_does_all_of_it_and_the_second_nothing(project: Project) -> None:
    assert running(actions(project)) == list(stages.NAMES)
    assert project.kinds() == []
    first = project.apply()
    assert (first.version, first.champion, first.passed) == (1, True, True)
    assert list(done(first)) == list(stages.NAMES)
    assert running(done(first)) == list(stages.NAMES)
    assert all(gate.passed for gate in first.gates)
    assert first.metrics["roc_auc"] > 0.8
    assert project.kinds() == ["version.registered", "version.promoted"]
    assert project.running() == []
    before = project.state()
    found = planned(project)
    assert {action for action, _ in found.values()} == {"reuse"}
    assert found["train"][1] == "version 1 was made from exactly this"
    second = project.apply()
    assert running(done(second)) == []
    assert (second.version, second.champion, second.metrics) == (1, True, first.metrics)
    assert project.state() == before
    with project.opened() as keep, keep.db.read() as conn:
        run = runs.get(conn, first.run_id)
        assert run.status == "FINISHED"
        assert run.params["C"] == "1.0"
        assert run.metrics["roc_auc"] == pytest.approx(first.metrics["roc_auc"])


def test_a_training_parameter_reruns_training_and_plan_says_which(project: Project) -> None:
    project.apply()
    project.declare(set_c(0.1))
    found = planned(project)
    after_data = ["train", "evaluate", "package", "gate", "register", "rollout"]
    assert running(actions(project)) == after_data
    assert found["train"][1] == "train.params.C: 1.0 -> 0.1"
    assert found["evaluate"][1] == "train runs"
    applied = project.apply()
    assert running(done(applied)) == after_data
    assert (applied.version, applied.champion) == (2, True)
    assert running(actions(project)) == []


def test_a_gate_reruns_what_judges_and_nothing_before(project: Project) -> None:
    project.apply()
    project.declare(lambda said: said.update(gates=["roc_auc >= 0.55"]))
    found = planned(project)
    assert found["train"] == ("reuse", "done already, from exactly this")
    assert found["evaluate"] == ("run", "gates[0]: roc_auc >= 0.6 -> roc_auc >= 0.55")
    assert running(done(project.apply())) == ["evaluate", "package", "gate", "register", "rollout"]


def test_a_setting_of_the_deployment_changes_only_the_deployment(project: Project) -> None:
    project.apply()
    project.declare(lambda said: said.update(deploy={"abort": ["error_rate > 1%"]}))
    assert running(actions(project)) == ["rollout"]
    applied = project.apply()
    assert running(done(applied)) == ["rollout"]
    assert (applied.version, applied.champion) == (1, True)
    with project.opened() as keep, keep.db.read() as conn:
        served = endpoints.get(conn, "late")
        assert served is not None
        assert served.settings["declaration"]["deploy"]["abort"] == ["error_rate > 1%"]
    assert running(actions(project)) == []
    assert project.kinds() == ["version.registered", "version.promoted"]


def test_inputs_in_range_are_a_matter_of_the_package_alone(project: Project) -> None:
    project.apply()
    checks = {"columns": {"x": {"min": -50.0}, "z": {"off": True}}}
    project.declare(lambda said: (said["data"].update(checks=checks), said.update(deploy={"in_range": "numeric"})))
    project.apply()
    project.declare(lambda said: said.update(deploy={"in_range": ["x"]}))
    found = planned(project)
    assert (found["train"][0], found["package"]) == (
        "reuse",
        ("run", "deploy.in_range: numeric -> unset; deploy.in_range[0]: unset -> x"),
    )
    applied = project.apply()
    assert not {"prepare", "train"} & set(running(done(applied)))
    inputs = []
    with project.opened() as keep, keep.db.read() as conn:
        for number in (1, 2, 3):
            files = read_files(keep.blobs, models.version(conn, "late", number).package)
            inputs.append({field.name: field for field in runtimes.signature(files).inputs})
    strict = [[name for name, field in fields.items() if field.strict] for fields in inputs]
    assert strict == [[], ["x", "z"], ["x"]]
    free = inputs[0]
    for fields in inputs[1:]:
        assert (fields["x"].min, fields["x"].max) == (-50.0, free["x"].max)
        assert (fields["z"].min, fields["z"].max) == (free["z"].min, free["z"].max)


@pytest.mark.parametrize(
    ("name", "said"), [("zz", "no column 'zz' - did you mean 'z'?"), ("place", "has no range")]
)
def test_an_input_that_has_no_range_is_told(project: Project, name: str, said: str) -> None:
    project.declare(lambda declared: declared.update(deploy={"in_range": [name]}))
    with pytest.raises(Invalid) as refused:
        project.apply()
    assert [problem.path for problem in refused.value.problems] == ["deploy.in_range"]
    assert said in refused.value.problems[0].message
    with project.opened() as keep, keep.db.read() as conn:
        trained = conn.execute(select(tables.runs.c.run_id)).all()
    assert bool(trained) == (name == "place")  # a wrong name is told before the training


def test_a_new_file_snapshots_only_its_rows_and_its_version_takes_its_turn(project: Project) -> None:
    project.apply()
    old = (project.folder / "data" / "one.csv").stat().st_atime_ns
    project.write("two", 200, first=10_000)
    assert planned(project)["snapshot"] == ("run", "new or changed: data/two.csv")
    applied = project.apply()
    assert (applied.version, applied.champion) == (2, True)
    with project.opened() as keep, keep.db.read() as conn:
        records = snapshots.named(conn, "late")
        assert [record.rows for record in records] == [600, 800]
        assert records[1].parent == records[0].digest
        shared = records[0].fingerprints["data/one.csv"].digest
        assert records[1].fingerprints["data/one.csv"].digest == shared
        assert records[1].fingerprints["data/two.csv"].rows == 200
        found = ask.diff(keep, "late@1", "late@2")
    assert found.data == {"added": ["data/two.csv"], "removed": [], "changed": []}
    assert found.rows == (600, 800)
    assert found.declaration == {}
    assert running(actions(project)) == []
    assert (project.folder / "data" / "one.csv").stat().st_atime_ns == old


def test_back_to_the_data_of_before(project: Project) -> None:
    project.apply()
    added = project.write("two", 200, first=10_000)
    project.apply()
    added.unlink()
    applied = project.apply()
    assert running(done(applied)) == ["snapshot", "rollout"]
    assert (applied.version, applied.champion) == (1, True)
    assert running(actions(project)) == []


def test_back_to_an_earlier_declaration(project: Project) -> None:
    project.apply()
    project.declare(set_c(0.1))
    project.apply()
    project.declare(set_c(1.0))
    assert running(actions(project)) == ["rollout"]
    applied = project.apply()
    assert (applied.version, applied.champion) == (1, True)
    with project.opened() as keep:
        assert len(ask.show(keep, "late").versions) == 2
    assert running(done(project.apply())) == []


def test_a_version_rolled_back_stays_so_until_something_changes(project: Project) -> None:
    project.apply()
    project.declare(set_c(0.1))
    project.apply()
    with project.opened() as keep:
        keep.db.write(lambda conn: rollout.roll_back(conn, "late", to=None, now=keep.clock.now(), because="bad"))
    assert champion(project) == 1
    before = project.state()
    assert running(actions(project)) == []
    applied = project.apply()
    assert (applied.version, applied.champion) == (2, False)
    assert applied.note == "version 1 is the champion; version 2 had its rollout"
    assert project.state() == before
    project.write("two", 200, first=10_000)
    applied = project.apply()
    assert (applied.version, applied.champion) == (3, True)


def test_a_refused_version_leaves_its_reasons_and_nothing_else(project: Project) -> None:
    project.declare(lambda said: said.update(gates=["roc_auc >= 0.6", "accuracy >= 0.999"]))
    applied = project.apply()
    assert (applied.version, applied.champion, applied.passed) == (None, False, False)
    assert [gate.passed for gate in applied.gates] == [True, False]
    assert applied.note == "refused: 1 of 2 gates did not pass"
    assert project.kinds() == ["version.refused"]
    assert project.running() == []
    with project.opened() as keep, keep.db.read() as conn:
        assert models.models(conn) == []
        assert endpoints.wanted(conn) == []
        assert runs.get(conn, applied.run_id).tags["modelkeep.gates"] == "refused"
    before = project.state()
    assert running(actions(project)) == []
    again = project.apply()
    assert (again.version, again.passed, again.note) == (None, False, applied.note)
    assert project.state() == before
    project.declare(lambda said: said.update(gates=["roc_auc >= 0.6"]))
    assert project.apply().version == 1


def test_a_gate_against_the_champion_decides_later_versions(project: Project) -> None:
    project.declare(lambda said: said.update(gates=["roc_auc >= champion.roc_auc - 0.02"]))
    first = project.apply()
    assert first.passed
    assert "no champion yet" in first.gates[0].evidence
    project.declare(set_c(0.9))
    second = project.apply()
    assert second.champion
    assert "paired on" in second.gates[0].evidence
    with project.opened() as keep:
        told = ask.trace(keep, "late@2")
        assert told.version.lineage is not None
        assert told.version.lineage.parent == 1
        assert told.evaluation["comparison"]["rows"] == told.evaluation["evaluation"]["rows"]
    project.declare(lambda said: said["train"].update(algorithm="decision_tree", params={"max_depth": 1}))
    third = project.apply()
    assert (third.version, third.passed) == (None, False)
    assert champion(project) == 2


def test_a_champion_that_cannot_answer_is_a_refusal_not_a_crash(project: Project) -> None:
    project.declare(lambda said: said.update(gates=["roc_auc >= champion.roc_auc - 0.02"]))
    project.apply()
    frame = project.folder / "data" / "one.csv"
    lines = [line.split(",") for line in frame.read_text().splitlines()]
    frame.write_text("\n".join(",".join(part for i, part in enumerate(line) if i != 2) for line in lines) + "\n")
    project.declare(lambda said: said["data"].update(checks={"infer": False}))
    with pytest.raises(Exception, match="it needs the column 'z'") as caught:
        project.apply()
    assert type(caught.value).__name__ == "Refused"
    assert project.running() == []
    assert champion(project) == 1


def test_show_trace_and_live_at(project: Project) -> None:
    project.apply(because="the first")
    between = time.time()
    project.declare(set_c(0.1))
    project.apply()
    with project.opened() as keep:
        shown = ask.show(keep, "late")
        assert [version.version for version in shown.versions] == [1, 2]
        assert shown.endpoints[0].routes[0].version == 2
        assert ask.live_at(keep, "late", between).version == 1
        assert ask.live_at(keep, "late", time.time()).version == 2
        with pytest.raises(NotFound, match="had no champion then"):
            ask.live_at(keep, "late", 1.0)
        told = ask.trace(keep, "late@1")
        assert told.snapshot is not None and told.snapshot.rows == 600
        assert told.run is not None and told.run.tags["modelkeep.because"] == "the first"
        assert [event.kind for event in told.events] == ["version.registered", "version.promoted"]
        assert told.version.lineage is not None and told.version.lineage.params["C"] == 1.0
        found = ask.diff(keep, "late@1", "late@2")
        assert found.declaration == {"train.params.C": (1.0, 0.1)}
        assert found.params == {"C": (1.0, 0.1)}
        assert found.metrics["roc_auc"][0] is not None
        for asked in (lambda: ask.trace(keep, "late@9"), lambda: ask.diff(keep, "late@1", "no@1")):
            with pytest.raises(NotFound):
                asked()
        with pytest.raises(Invalid):
            ask.split_ref("@1")


def test_reproduce_gives_the_same_metrics_and_predictions(project: Project) -> None:
    project.declare(lambda said: said["train"].update(algorithm="random_forest", params={"n_estimators": 20}))
    project.apply()
    shutil.rmtree(project.folder / "data")
    with project.opened() as keep:
        found = reproduce(keep, "late@1")
        assert (found.metrics_equal, found.predictions_equal) == (True, True)
        assert found.rows > 100
        assert found.metrics["roc_auc"][0] == pytest.approx(found.metrics["roc_auc"][1])
    before = project.state()
    with project.opened() as keep:
        reproduce(keep, "late@champion")
        with keep.db.read() as conn:
            version = models.version(conn, "late", 1)
        assert version.lineage is not None
        changed = replace(
            version.lineage,
            declaration_text=version.lineage.declaration_text.replace("n_estimators: 20", "n_estimators: 3"),
        )
        assert changed != version.lineage
    assert project.state() == before


def test_of_two_applies_at_once_one_is_told_of_the_other(project: Project) -> None:
    project.apply()
    with project.opened() as keep, locks.held(keep.home, "apply-late", doing="applying late"):
        with pytest.raises(Conflict, match=r"process \d+ is already applying late"):
            project.apply()
        other = Project(project.folder, project.said)
        other.declare(lambda said: said.update(model="other"))
        assert other.apply().champion
    other.declare(lambda said: said.update(model="late"))
    assert project.apply().version == 1


def test_two_processes_apply_one_model_at_once(project: Project, forks: Forks) -> None:
    both = [forks.run(["apply", "--json"], project.folder) for _ in range(2)]
    codes = sorted(process.wait() for process in both)
    refused = [process for process in both if process.code == 1]
    assert codes in ([0, 1], [0, 0])
    for process in refused:
        error = json.loads(process.out.read_text())["error"]
        assert error["kind"] == "conflict"
        assert "is already applying late" in error["message"]
    assert project.kinds() == ["version.registered", "version.promoted"]
    assert project.running() == []


def test_an_endpoint_of_another_model_is_not_taken(project: Project) -> None:
    project.apply()
    project.declare(lambda said: said.update(model="other", deploy={"endpoint": "late"}))
    before = project.state()
    for verb in (project.apply, lambda: planned(project)):
        with pytest.raises(Conflict, match="endpoint 'late' belongs to model 'late'"):
            verb()
    assert project.state() == before
    with project.opened() as keep, keep.db.read() as conn:
        served = endpoints.get(conn, "late")
        assert served is not None and served.model == "late"


def test_reproducing_tells_how_the_environment_differs() -> None:
    before = "numpy==1.0\nscipy==1.0\n"
    assert changed_packages(before, before) == changed_packages("", before) == ""
    said = changed_packages(before, "numpy==2.0\npandas==3.0\n")
    assert said == "the environment differs: numpy 1.0 -> 2.0, pandas absent -> 3.0, scipy 1.0 -> absent"
