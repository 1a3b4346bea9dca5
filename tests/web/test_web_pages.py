"""The pages say what the registry holds, escape everything, and run no script but their own."""

from __future__ import annotations

import html
import re
import threading
import time
from urllib.parse import quote

import msgspec
import plotly.graph_objects as go
import pytest
from sqlalchemy import update
from starlette.applications import Starlette
from starlette.testclient import TestClient

from modelkeep.registry import events
from modelkeep.store.database import Database
from modelkeep.store.tables import events as event_table
from modelkeep.web import pages

NASTY = "<script>alert('x')</script>&\""  # a model of this name is in the seeded home
ALL = ["/", "/models/flights", "/models/flights/2", "/models/flights/champion", "/data", "/events"]


@pytest.mark.parametrize("path", [*ALL, f"/models/{quote(NASTY, safe='')}", "/models/none"])
def test_no_page_lets_a_script_in(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert "script-src 'self';" in answer.headers["content-security-policy"]
    assert NASTY not in answer.text
    assert re.findall(r"<script(?![^>]*\bsrc=\"/static/)", answer.text) == []
    assert re.findall(r"\son\w+=", answer.text) == []
    assert re.findall(r"(?:src|href)=\"(?:https?:)?//", answer.text) == []


def test_overview_says_what_is_live(client: TestClient) -> None:
    text = client.get("/").text
    assert "v2 live since" in text and "2013-03-02 00:00" in text
    assert "canary 10% 1d" in text
    assert 'class="canary" x="90.0" y="0" width="10.0"' in text
    assert "minute_of_day and origin differ from training" in text


def test_an_estimate_is_shown_as_one(client: TestClient) -> None:
    found = re.search(r'id="live-1"[^>]*data-figure="([^"]*)"', client.get("/models/flights").text)
    assert found is not None
    traces = msgspec.json.decode(html.unescape(found[1]))["data"]
    rows = {trace["name"]: len(trace["x"]) for trace in traces}
    assert rows == {"v1": 29, "v2": 26, "estimated, no labels yet": 3}


def test_a_version_is_found_by_alias_and_says_where_it_came_from(client: TestClient) -> None:
    text = client.get("/models/flights/champion").text
    assert text == client.get("/models/flights/2").text
    assert "with uncommitted changes" in text
    assert "27,000 rows" in text
    assert "algorithm: logistic_regression" in text


@pytest.mark.parametrize(("path", "count"), [("/models/flights", 3), ("/models/flights/2", 3)])
def test_figures_are_valid_plotly(client: TestClient, path: str, count: int) -> None:
    drawn = re.findall(r'data-figure="([^"]*)"', client.get(path).text)
    assert len(drawn) == count
    for text in drawn:
        figure = msgspec.json.decode(html.unescape(text))
        plain = msgspec.json.decode(re.sub(rb'"var:[a-z-]+"', b'"#123456"', msgspec.json.encode(figure)))
        assert len(go.Figure(plain).data) >= 1  # raises for anything Plotly does not know


def test_every_static_file_is_served(client: TestClient) -> None:
    text = client.get("/models/flights").text
    for address in re.findall(r'(?:src|href)="(/static/[^"]+)"', text):
        assert client.get(html.unescape(address)).status_code == 200, address
    assert "plotly.js v" in client.get("/static/plotly.js").text[:400]
    assert client.get("/static/../pages.py").status_code == 404


def test_unknown_names_are_not_found(client: TestClient) -> None:
    for path in ("/models/none", "/models/flights/99", "/models/flights/nobody"):
        assert client.get(path).status_code == 404


def test_events_are_filtered_and_paged(client: TestClient) -> None:
    assert client.get("/events?kind=rollout.").text.count("<tr>") == 2
    assert client.get("/events?subject=flights@2").text.count("<tr>") == 3
    assert "No event like this" in client.get("/events?subject=nobody").text
    assert client.get("/events?page=x").status_code == 200


def test_an_empty_home_says_how_to_begin(empty: TestClient) -> None:
    assert "modelkeep init" in empty.get("/").text
    for path in ("/data", "/events"):
        assert empty.get(path).status_code == 200


def test_a_changed_event_shows(tmp_path: pytest.TempPathFactory) -> None:
    db = Database.open(f"sqlite:///{tmp_path}/modelkeep.db")
    page = TestClient(Starlette(routes=pages.routes(db.read)))
    for number in range(3):
        db.write(lambda conn, n=number: events.append(conn, "model.noted", "a", {"n": n}, now=1.0))
    assert "verified: 3 events" in page.get("/events").text
    db.write(lambda conn: conn.execute(update(event_table).where(event_table.c.seq == 2).values(data='{"n":7}')))
    text = page.get("/events").text
    assert "chain broken" in text and "event 2: was changed" in text
    db.close()


def test_the_stream_tells_of_a_change(tmp_path: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "LOOK_EVERY", 0.02)
    monkeypatch.setattr(pages, "STREAM_FOR", 0.6)
    db = Database.open(f"sqlite:///{tmp_path}/modelkeep.db")
    client = TestClient(Starlette(routes=pages.routes(db.read)))
    assert "changed" not in client.get("/pages/stream").text

    def change() -> None:
        time.sleep(0.2)
        db.write(lambda conn: events.append(conn, "model.noted", "a", {}, now=1.0))

    writer = threading.Thread(target=change)
    writer.start()
    assert client.get("/pages/stream").text.count("event: changed") == 1
    writer.join()
    db.close()


def test_the_stream_misses_nothing_before_it_or_between_two(
    tmp_path: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(pages, "STREAM_FOR", 0.05)
    db = Database.open(f"sqlite:///{tmp_path}/modelkeep.db")
    client = TestClient(Starlette(routes=pages.routes(db.read)))

    def told(stream: str, since: str = "") -> list[str]:
        said = client.get(stream, headers={"last-event-id": since} if since else {}).text
        assert said.count("event: changed") == said.count("id: ")
        return re.findall(r"^id: (\S+)$", said, re.MULTILINE)

    stream = re.search(r'data-stream="([^"]+)"', client.get("/").text)[1]
    assert told(stream) == []
    db.write(lambda conn: events.append(conn, "model.noted", "a", {}, now=1.0))
    [now] = told(stream)
    assert told(stream, now) == []
    db.write(lambda conn: events.append(conn, "model.noted", "a", {}, now=2.0))
    assert len(told(stream, now)) == 1
    assert len(told(stream, "no stamp of ours")) == 1
    db.close()
