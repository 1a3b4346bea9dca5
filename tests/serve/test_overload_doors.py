"""Deadlines, redaction and overload as a client sees them over HTTP."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from load import Load
from serving_kit import Home, Made, tensor, worker


def test_deadlines_and_redaction_over_http(home: Home, first: Made) -> None:
    package = home.keep(first)
    home.serve("open", (1, package, 1.0, "stable"))
    home.serve("shut", (1, package, 1.0, "stable"), declaration={"deploy": {"errors": "redacted"}})
    records = [first.frame.iloc[0].to_dict()]
    wrong = [{**records[0], "mean radius": "my secret"}]
    with worker(home) as found:

        def status(path: str, body: Any, timeout: str) -> int:
            return found.client.post(path, json=body, headers={"x-modelkeep-timeout-ms": timeout}).status_code

        for path, body in (
            ("/v2/models/open/infer", tensor(first, [0])),
            ("/endpoints/open/invocations", {"dataframe_records": records}),
        ):
            assert [status(path, body, timeout) for timeout in ("20000", "0", "soon", "-1", "nan")] == [
                200, 504, 400, 400, 400,
            ]  # fmt: skip
        shown = found.client.post("/endpoints/open/invocations", json={"dataframe_records": wrong})
        hidden = found.client.post("/endpoints/shut/invocations", json={"dataframe_records": wrong})
        assert shown.status_code == hidden.status_code == 400
        assert "my secret" in shown.text
        assert "my secret" not in hidden.text
        assert [p["path"] for p in hidden.json()["problems"]] == [p["path"] for p in shown.json()["problems"]]


def test_more_than_the_budget_allows_is_429_with_retry_after(home: Home, first: Made) -> None:
    deploy = {"batch": {"budget": "1ms", "max_rows": 200}}
    home.serve("tumours", (1, home.keep(first), 1.0, "stable"), declaration={"deploy": deploy})
    bodies = [json.dumps(tensor(first, range(row, row + 200))).encode() for row in range(20)]
    with worker(home) as found:
        load = Load(int(found.url.rsplit(":", 1)[1]), "/v2/models/tumours/infer", bodies)
        asyncio.run(load.run(2.0, 32))
        assert load.latencies
        assert load.failed
        for answer in load.failed:
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 429 ")
            assert b"\r\nretry-after: 1" in head
            assert "could not answer in time" in json.loads(body)["error"]
        assert "modelkeep_shed_total" in found.client.get("/metrics").text
