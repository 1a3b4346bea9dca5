"""The demo's first months, played for real: processes, HTTP, training, rollout. Only time is moved."""

import json

import pytest

from modelkeep.app.demo.run import run


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("quick_python")
def test_the_kept_model_is_renewed_by_itself_and_beats_the_one_left_alone(tmp_path, monkeypatch, capsys):
    for name in ("MODELKEEP_CLOCK", "MODELKEEP_HOME"):
        monkeypatch.setenv(name, "")  # so that what the demo sets is undone
    told = run(end=True, as_json=True, folder=tmp_path / "demo", last_month=3)
    printed = json.loads(capsys.readouterr().out)
    assert printed["year"] == told.year
    assert [month.month for month in told.months] == ["2013-02", "2013-03"]
    assert sum(month.flights for month in told.months) == 51513
    assert len(told.promotions) >= 2
    assert not any(promotion["gates_failed"] for promotion in told.promotions)
    assert told.promotions[1]["because"] != "the first January"
    march = told.months[-1]
    assert len(march.versions) >= 2
    assert march.kept[0] > march.alone[0]
    assert told.year["kept_roc_auc"] > told.year["alone_roc_auc"]
