"""A real worker process: answers, swaps, faults, an absent database, capture."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import threading
import time

import numpy as np
import pytest
from load import Load
from serving_kit import Home, Made, about, named, tensor, version_served, worker

DROPPED = "modelkeep_capture_dropped_total{"


def output(response: dict, name: str) -> list:
    return next(one["data"] for one in response["outputs"] if one["name"] == name)


def dropped(metrics: str) -> float:
    return sum(float(line.split()[-1]) for line in metrics.splitlines() if line.startswith(DROPPED))


def test_no_request_is_lost_while_versions_are_swapped(home: Home, first: Made, second: Made) -> None:
    made = {1: first, 2: second}
    packages = {number: home.keep(model) for number, model in made.items()}
    home.serve("tumours", (1, packages[1], 1.0, "stable"))
    with worker(home) as found:
        port = int(found.url.rsplit(":", 1)[1])
        bodies = [json.dumps(tensor(first, [row])).encode() for row in range(100)]
        load = Load(port, "/v2/models/tumours/infer", bodies, keep=True)
        thread = threading.Thread(target=lambda: asyncio.run(load.run(2.5, 16)))
        thread.start()
        swaps = 0
        while thread.is_alive() and load.going:
            number = 2 - swaps % 2
            home.serve("tumours", (number, packages[number], 1.0, "stable"))
            found.until(lambda health, number=number: version_served(health, "tumours") == number)
            swaps += 1
        thread.join()
        assert load.failed == []
        assert swaps >= 3
        assert len(load.latencies) > 500
        seen = set()
        for place, body in load.keep or ():
            answer = json.loads(body)
            version = int(answer["model_version"])
            seen.add(version)
            expected = made[version].probability[place]  # type: ignore[index]
            assert np.allclose(output(answer, "probability"), expected, atol=1e-5)
        assert seen == {1, 2}
        assert found.stop() == 0
    rows = home.captured_rows("tumours")
    lost = sum(about(table)["dropped"] for table in home.captured())
    assert rows.num_rows + lost == len(load.latencies)
    assert {about(table)["version"] for table in home.captured()} == {1, 2}


def test_captured_is_what_was_sent_and_answered(home: Home, mixed: Made) -> None:
    home.serve("flights", (7, home.keep(mixed), 1.0, "stable"))
    with worker(home) as found:
        before = time.time()
        one = found.infer("flights", {**named(mixed, [0]), "id": "order/17"}, **{"x-modelkeep-key": "ann"}).json()
        many = found.infer("flights", named(mixed, range(1, 60))).json()
        refused = found.infer("flights", {"inputs": [{**t, "data": [None]} for t in named(mixed, [0])["inputs"]]})
        assert refused.status_code == 400
        assert found.stop() == 0
    assert one["id"] == "order/17"
    rows = home.captured_rows("flights").to_pylist()
    ids = ["order/17"] + [f"{many['id']}/{row}" for row in range(59)]
    assert [row["prediction_id"] for row in rows] == ids
    for place, row in enumerate(rows):
        sent = mixed.frame.iloc[place]
        assert row["in.carrier"] == sent.carrier
        assert row["in.hour"] == sent.hour
        assert row["in.distance"] == (None if np.isnan(sent.distance) else sent.distance)
        assert row["out.label"] == mixed.labels[place]
        assert np.allclose(row["out.probability"], mixed.probability[place], atol=1e-5)  # type: ignore[index]
        assert before - 1 <= row["time"].timestamp() <= time.time()
        assert 0 < row["latency_ms"] < 20_000
        assert row["key"] == ("ann" if place == 0 else None)
    assert sum(about(table)["errors"] for table in home.captured()) == 1
    facts = about(home.captured()[0])
    assert (facts["endpoint"], facts["model"], facts["version"], facts["mode"]) == (
        "flights", "flights-model", 7, "stable",
    )  # fmt: skip
    assert not list((home.path / "capture").glob("*.tmp"))


def test_masked_columns_never_leave_the_request_and_samples_are_shares(home: Home, mixed: Made) -> None:
    home.serve("flights", (1, home.keep(mixed), 1.0, "stable"), mask=["carrier", "hour"], sample=0.5)
    with worker(home) as found:
        for row in range(300):
            assert found.infer("flights", named(mixed, [row])).status_code == 200
        found.stop()
    rows = home.captured_rows("flights")
    assert [name for name in rows.column_names if name.startswith("in.")] == ["in.distance"]
    assert 90 < rows.num_rows < 210


def test_a_canary_gets_its_share_by_key_and_a_shadow_only_watches(home: Home, first: Made, second: Made) -> None:
    a, b = home.keep(first), home.keep(second)
    home.serve("tumours", (1, a, 0.7, "stable"), (2, b, 0.3, "canary"), (3, b, 1.0, "shadow"))
    with worker(home) as found:
        by_key: dict[str, set[str]] = {}
        for _ in range(2):
            for key in range(150):
                reply = found.infer("tumours", tensor(first, [key]), **{"x-modelkeep-key": f"k{key}"}).json()
                by_key.setdefault(f"k{key}", set()).add(reply["model_version"])
        assert all(len(versions) == 1 for versions in by_key.values())
        assert 20 <= sum(versions == {"2"} for versions in by_key.values()) <= 75
        for ref, version in (("champion", "1"), ("challenger", "2"), ("2", "2"), ("3", "3")):
            reply = found.client.post(f"/v2/models/tumours/versions/{ref}/infer", json=tensor(first, [0]))
            assert reply.json()["model_version"] == version
        assert found.client.post("/v2/models/tumours/versions/9/infer", json=tensor(first, [0])).status_code == 404
        found.stop()
    shadow = home.captured_rows("tumours", "shadow")
    answered = home.captured_rows("tumours").num_rows + home.captured_rows("tumours", "canary").num_rows
    assert answered == 303
    assert shadow.num_rows == 304  # what was answered, and the request that asked for the shadow by number
    expected = {tuple(np.round(second.probability[row], 4)) for row in range(150)}  # type: ignore[index]
    assert {tuple(np.round(p, 4)) for p in shadow["out.probability"].to_pylist()} <= expected


def test_a_shadow_that_cannot_take_the_rows_harms_nobody(home: Home, first: Made, mixed: Made) -> None:
    home.serve("tumours", (1, home.keep(first), 1.0, "stable"), (2, home.keep(mixed), 1.0, "shadow"))
    with worker(home) as found:
        for row in range(20):
            assert found.infer("tumours", tensor(first, [row])).status_code == 200
        found.stop()
    shadows = [about(t) for t in home.captured() if about(t)["mode"] == "shadow"]
    assert sum(facts["errors"] for facts in shadows) == 20


def test_a_damaged_package_leaves_the_old_version_serving(home: Home, first: Made, second: Made) -> None:
    home.serve("tumours", (1, home.keep(first), 1.0, "stable"))
    package = home.keep(second)
    shutil.move(home.path / "blobs", home.path / "elsewhere")
    with worker(home, ready=False) as found:
        shutil.copytree(home.path / "elsewhere", home.path / "blobs", dirs_exist_ok=True)
        found.until(lambda health: version_served(health, "tumours") == 1)
        listing = json.loads(home.blobs.open(package).read())
        for digest in (listing["files"]["model.onnx"],):
            blob = home.path / "blobs" / "blobs" / digest[:2] / digest[2:]
            blob.write_bytes(blob.read_bytes()[:-7] + b"garbage")
        home.serve("tumours", (2, package, 1.0, "stable"))
        health = found.until(lambda health: health["faults"])
        assert "tumours" in health["faults"]
        assert found.infer("tumours", tensor(first, [0])).json()["model_version"] == "1"
        shutil.copytree(home.path / "elsewhere", home.path / "blobs", dirs_exist_ok=True)
        found.until(lambda health: version_served(health, "tumours") == 2 and not health["faults"])


def test_killed_and_started_without_database_and_store(home: Home, first: Made) -> None:
    home.serve("tumours", (4, home.keep(first), 1.0, "stable"))
    with worker(home) as found:
        found.infer("tumours", tensor(first, [0]))
        os.kill(found.process.pid, signal.SIGKILL)
        found.process.wait()
    home.db.close()
    for name in ("modelkeep.db", "modelkeep.db-wal", "modelkeep.db-shm", "blobs"):
        if (home.path / name).exists():
            (home.path / name).rename(home.path / f"{name}.away")
    with worker(home) as found:
        health = found.health()
        assert health["database"] is False
        assert found.infer("tumours", tensor(first, [0])).json()["model_version"] == "4"
        assert not (home.path / "modelkeep.db").exists()
        for name in ("modelkeep.db", "modelkeep.db-wal", "modelkeep.db-shm", "blobs"):
            if (home.path / f"{name}.away").exists():
                (home.path / f"{name}.away").rename(home.path / name)
        found.until(lambda health: health["database"])
        assert found.infer("tumours", tensor(first, [0])).json()["model_version"] == "4"


def test_a_spool_that_cannot_be_written_costs_rows_not_requests(home: Home, first: Made) -> None:
    home.serve("tumours", (1, home.keep(first), 1.0, "stable"))
    (home.path / "capture").write_text("in the way")
    with worker(home) as found:
        for row in range(10):
            assert found.infer("tumours", tensor(first, [row])).status_code == 200
        end = time.monotonic() + 10
        while dropped(found.client.get("/metrics").text) < 10:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert found.infer("tumours", tensor(first, [0])).status_code == 200
        (home.path / "capture").unlink()
        assert found.infer("tumours", tensor(first, [0])).status_code == 200
        found.stop()
    assert sum(about(table)["dropped"] for table in home.captured()) >= 10


def test_endpoints_come_and_go(home: Home, first: Made, regression: Made) -> None:
    with worker(home, ready=False) as found:
        found.until(lambda health: health["generation"] == 0)
        assert found.infer("prices", named(regression, [0])).status_code == 404
        home.serve("prices", (1, home.keep(regression), 1.0, "stable"))
        found.until(lambda health: version_served(health, "prices") == 1)
        reply = found.infer("prices", named(regression, range(5))).json()
        assert np.allclose(output(reply, "prediction"), regression.labels[:5])
        assert found.infer("prices-model", named(regression, [0])).json()["model_name"] == "prices"


@pytest.mark.parametrize("many", [1, 300])
def test_batches_name_the_guilty_row_and_answer_the_others(home: Home, first: Made, many: int) -> None:
    home.serve("tumours", (1, home.keep(first), 1.0, "stable"))
    with worker(home) as found:
        port = int(found.url.rsplit(":", 1)[1])
        bad = tensor(first, range(many))
        bad["inputs"][0]["data"][30 * (many - 1) + 2] = None
        name = first.frame.columns[2]
        bodies = [json.dumps(tensor(first, [row])).encode() for row in range(9)] + [json.dumps(bad).encode()]
        load = Load(port, "/v2/models/tumours/infer", bodies, keep=True)
        asyncio.run(load.run(0.5, 12))
        assert load.failed
        for reply in load.failed:
            status, _, body = reply.partition(b"\r\n\r\n")
            assert status.startswith(b"HTTP/1.1 400")
            assert [p["path"] for p in json.loads(body)["problems"]] == [f"inputs.{name}[{many - 1}]"]
        for place, body in load.keep or ():
            assert np.allclose(output(json.loads(body), "probability"), first.probability[place], atol=1e-5)  # type: ignore[index]
