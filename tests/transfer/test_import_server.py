"""Importing a running MLflow server over REST."""

from __future__ import annotations

from typing import Any

import pytest
from same_mlflow import describe
from serving_mlflow import answering
from test_import_database import bring, counts

from modelkeep.core.errors import Invalid, Unavailable
from modelkeep.lifecycle.keep import Keep
from modelkeep.registry import webhooks


def test_everything_is_as_it_was_on_the_server(home: Keep, server: dict[str, Any]) -> None:
    report = bring(home, server["uri"])
    assert report.checked.faults == []
    assert {line.partition(",")[0] for line in report.left} >= {
        f"the secret of webhook {name!r}" for name in ("told", "unsigned")
    }
    with home.db.read() as conn:
        assert {each.status for each in webhooks.listing(conn, limit=10)} == {"DISABLED"}
    assert report.copied["points"] == report.checked.points >= 1507  # other tests may have worked on it
    assert report.copied["files"] == report.checked.files >= 6
    with answering(home) as here:
        assert describe(here) == describe(server["uri"])
    before = counts(home)
    bring(home, server["uri"])
    assert counts(home) == {**before, "events": 2}


def test_a_server_and_its_database_are_the_same(home: Keep, server: dict[str, Any]) -> None:
    """The second import, by the other way, finds everything here and changes nothing."""
    bring(home, f"sqlite:///{server['folder']}/mlflow.db", artifacts=str(server["folder"] / "files"))
    before = counts(home)
    report = bring(home, server["uri"])
    assert report.renamed == {}
    assert report.checked.faults == []
    after = counts(home)
    assert {name for name in after if after[name] != before[name]} == {"events", "imports"}


def test_addresses_of_no_mlflow_server(home: Keep) -> None:
    with pytest.raises(Unavailable, match="cannot be reached"):
        bring(home, "http://127.0.0.1:1")
    with pytest.raises(Invalid, match="no server's address"):
        bring(home, "http://")
