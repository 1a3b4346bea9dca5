"""Who may do what, asked of the real control server over the wire."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from safety_site import BY, PASSWORD, Site, site
from sqlalchemy import select

from modelkeep.app import control
from modelkeep.protocols.access import guard
from modelkeep.protocols.access.accounts import FRESH
from modelkeep.protocols.access.asgi import unguarded
from modelkeep.protocols.access.needs import CONTROL
from modelkeep.protocols.access.operations import RULES
from modelkeep.protocols.mlflow import tracking
from modelkeep.registry import access
from modelkeep.registry.access_rights import RIGHTS, place
from modelkeep.store import tables
from small import until

API = "/api/modelkeep"


@pytest.fixture(scope="module")
def told(place_of_all: Site) -> dict[str, Any]:
    """Two experiments with a run each, two models with a version each, and users who may little."""
    here = place_of_all
    made: dict[str, Any] = {}
    for name in ("mine", "theirs"):
        number = here.mlflow("root", "POST", "experiments/create", name=name).json()["experiment_id"]
        run = here.mlflow("root", "POST", "runs/create", experiment_id=number).json()["run"]["info"]
        logged = here.mlflow("root", "POST", "logged-models", experiment_id=number, name="m").json()["model"][
            "info"
        ]
        here.mlflow("root", "POST", "runs/log-metric", run_id=run["run_id"], key="a", value=1, timestamp=1)
        path = run["artifact_uri"].removeprefix("mlflow-artifacts:/")
        put = here.ask("root", "PUT", f"/api/2.0/mlflow-artifacts/artifacts/{path}/f.txt", content=b"secret")
        assert put.status_code == 200, put.text
        here.mlflow("root", "POST", "registered-models/create", name=name)
        said = {"source": f"runs:/{run['run_id']}/x", "run_id": run["run_id"]}
        version = here.mlflow("root", "POST", "model-versions/create", name=name, **said)
        assert version.status_code == 200, version.text
        made[name] = {"experiment": number, "run": run["run_id"], "files": path, "logged": logged["model_id"]}
    number = made["mine"]["experiment"]
    here.add("nobody")
    here.add("reader", f"reader@experiment:{number}", "reader@model:mine")
    here.add("writer", f"writer@experiment:{number}", "writer@model:mine")
    here.add("deployer", "deployer@model:mine")
    here.add("approver", "approver@model:mine")
    time.sleep(FRESH)
    return made


def refused(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.json()["error_code"]) == (403, "PERMISSION_DENIED"), answer.text


def test_every_route_says_what_it_needs(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        app: Any = control.config(here.keep, dict, str).app
        assert len(app.routes) > 20
        assert unguarded(app.routes, CONTROL) == []


def test_every_operation_of_mlflow_says_what_it_needs() -> None:
    operations = {(operation.method, operation.path) for operation in tracking.OPERATIONS}
    assert len(operations) > 50
    assert operations - set(RULES) == set(), "operations that nobody stated a rule for are refused to all"
    assert set(RULES) - operations == set(), "rules of operations that are not there"
    assert {rule.right for rule in RULES.values()} <= set(RIGHTS)


def test_a_route_nobody_spoke_of_is_refused_to_all(place_of_all: Site) -> None:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from starlette.testclient import TestClient

    from modelkeep.protocols.access.accounts import Read
    from modelkeep.protocols.access.asgi import Guarded
    from modelkeep.protocols.access.guard import Guard
    from modelkeep.protocols.access.hosts import Hosts

    keep = place_of_all.keep
    keeper = Guard(Read(keep.db), keep.clock, hosts=Hosts(["testserver"]))
    routes = [Route(path, lambda _: PlainTextResponse("here")) for path in ("/forgotten", "/health")]
    app = Starlette(routes=routes, middleware=[Middleware(Guarded, guard=keeper, needs=CONTROL)])
    client = TestClient(app)
    auth = {"authorization": f"Bearer {place_of_all.tokens['root']}"}
    assert client.get("/health").text == "here"
    assert client.get("/forgotten").status_code == 401
    assert client.get("/forgotten", headers=auth).status_code == 403
    assert client.get("/not-there", headers=auth).status_code == 404
    keeper.close()


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/events",
        f"{API}/models",
        f"{API}/openapi.json",
        "/api/2.0/mlflow/experiments/search",
        "/ajax-api/2.0/mlflow/server-info",
        "/get-artifact?run_id=x&path=y",
        "/nothing",
        "/api/2.0/mlflow/nothing",
        "/api/2.0/mlflow-artifacts/artifacts/0/x",
        "/pages/stream",
        "/api/3.0/mlflow/experiments/search?x",
        "//events",
        "/static/../events",
    ],
)
def test_without_a_name_nothing_is_told(place_of_all: Site, path: str) -> None:
    answer = place_of_all.ask("", "GET", path)
    assert answer.status_code == 401, answer.text
    assert answer.json()["error_code"] == "UNAUTHENTICATED"
    assert "Basic" in answer.headers["www-authenticate"]


@pytest.mark.parametrize(
    "header",
    [
        "Bearer",
        "Bearer x",
        "Bearer mk_0000000000000000_" + "A" * 43,
        "Basic",
        "Basic !!!",
        "Basic " + "é",
        "Digest x",
        "",
        "Basic AAAA",
        "Basic " + base64.b64encode(b"root:wrong wrong wrong").decode(),
        "Basic " + base64.b64encode(b"no colon").decode(),
        "Basic " + base64.b64encode(b"\xff:\xff").decode(),
        "Basic " + base64.b64encode(b"nobody-there:x").decode(),
        "Basic " + base64.b64encode(b"root:").decode(),
        "Bearer " + "x" * 5000,
    ],
)
def test_what_is_no_credential_lets_nobody_in(place_of_all: Site, header: str) -> None:
    raw = header.encode("utf-8")
    for path in ("/api/2.0/mlflow/experiments/get?experiment_id=0", f"{API}/models"):
        assert place_of_all.ask("", "GET", path, headers={b"authorization": raw}).status_code == 401


def test_what_anybody_may_ask(place_of_all: Site) -> None:
    for path in ("/health", "/version"):
        assert place_of_all.ask("", "GET", path).status_code == 200
        assert place_of_all.ask("", "GET", path, headers={"host": "evil.example"}).status_code == 403


def test_a_password_and_a_token_open_hot_and_cold_routes(place_of_all: Site) -> None:
    basic = {"authorization": "Basic " + base64.b64encode(f"root:{PASSWORD}".encode()).decode()}
    as_password = f"x:{place_of_all.tokens['root']}".encode()
    for headers in (
        basic,
        {"authorization": f"Bearer {place_of_all.tokens['root']}"},
        {"authorization": "Basic " + base64.b64encode(as_password).decode()},
        {"authorization": f"bearer {place_of_all.tokens['root']}"},
    ):
        for _ in range(3):
            for path in ("/api/2.0/mlflow/experiments/get?experiment_id=0", f"{API}/models", "/"):
                answer = place_of_all.ask("", "GET", path, headers=headers)
                assert answer.status_code == 200, (path, answer.text)


OPERATIONS_ON = {
    "read": [
        ("GET", "experiments/get", {"experiment_id": "experiment"}),
        ("GET", "experiments/get-by-name", {"experiment_name": "name"}),
        ("GET", "runs/get", {"run_id": "run"}),
        ("GET", "runs/get", {"run_uuid": "run"}),
        ("GET", "metrics/get-history", {"run_id": "run", "metric_key": "=a"}),
        ("GET", "metrics/get-history-bulk", {"run_id": "run", "metric_key": "=a"}),
        ("GET", "metrics/get-history-bulk-interval", {"run_ids": "run", "metric_key": "=a"}),
        ("GET", "logged-models/{logged}", {}),
        ("GET", "registered-models/get", {"name": "name"}),
        ("POST", "registered-models/get-latest-versions", {"name": "name"}),
        ("GET", "model-versions/get", {"name": "name", "version": "=1"}),
        ("GET", "model-versions/get-download-uri", {"name": "name", "version": "=1"}),
    ],
    "write": [
        ("POST", "experiments/set-experiment-tag", {"experiment_id": "experiment", "key": "=k", "value": "=v"}),
        ("POST", "runs/create", {"experiment_id": "experiment"}),
        ("POST", "runs/log-metric", {"run_id": "run", "key": "=b", "value": "=1", "timestamp": "=1"}),
        ("POST", "runs/log-batch", {"run_id": "run"}),
        ("POST", "runs/set-tag", {"run_id": "run", "key": "=k", "value": "=v"}),
        ("POST", "runs/update", {"run_id": "run", "run_name": "=x"}),
        ("POST", "runs/restore", {"run_id": "run"}),
        ("POST", "logged-models", {"experiment_id": "experiment", "name": "=m2"}),
        ("PATCH", "logged-models/{logged}/tags", {}),
        ("POST", "registered-models/set-tag", {"name": "name", "key": "=k", "value": "=v"}),
        ("PATCH", "registered-models/update", {"name": "name", "description": "=d"}),
        ("POST", "model-versions/set-tag", {"name": "name", "version": "=1", "key": "=k", "value": "=v"}),
    ],
    "deploy": [
        ("POST", "registered-models/alias", {"name": "name", "version": "=1", "alias": "=a"}),
        ("POST", "model-versions/transition-stage", {"name": "name", "version": "=1", "stage": "=Staging"}),
    ],
    "approve": [
        (
            "POST",
            "model-versions/set-tag",
            {"name": "name", "version": "=1", "key": "=modelkeep.approval.by", "value": "=v"},
        ),
    ],
    "admin": [
        ("GET", "webhooks", {}),
        ("POST", "webhooks", {"name": "=x", "url": "=https://example.com"}),
        ("POST", "experiments/create", {"name": "=new"}),
    ],
}
MAY = {
    "nobody": set(),
    "reader": {"read"},
    "writer": {"read", "write"},
    "deployer": {"deploy"},
    "approver": {"approve"},
}


@pytest.mark.parametrize("who", MAY)
@pytest.mark.parametrize("right", OPERATIONS_ON)
def test_everybody_may_what_their_role_says_and_no_more(
    place_of_all: Site, told: dict[str, Any], who: str, right: str
) -> None:
    for method, path, fields in OPERATIONS_ON[right]:
        for owner in ("mine", "theirs"):
            things = {**told[owner], "name": owner}
            body = {key: value[1:] if value[0] == "=" else things[value] for key, value in fields.items()}
            answer = place_of_all.mlflow(who, method, path.format(**things), **body)
            if who in ("deployer", "approver") and "experiment" not in path and right == "read":
                continue  # these read models too, which the table of rights does not single out
            if owner == "mine" and right in MAY[who]:
                assert answer.status_code == 200, (method, path, answer.text)
            else:
                refused(answer)


def test_files_go_with_their_experiment(place_of_all: Site, told: dict[str, Any]) -> None:
    root = "/api/2.0/mlflow-artifacts/artifacts"
    for who, may in (("nobody", ""), ("reader", "r"), ("writer", "rw")):
        for owner in ("mine", "theirs"):
            things, presigned = told[owner], "/api/2.0/mlflow/artifacts/presigned"
            allowed = may if owner == "mine" else ""
            asked = [
                ("r", "GET", f"{root}/{things['files']}/f.txt", {}),
                ("r", "GET", f"{root}?path={things['files']}", {}),
                ("r", "GET", f"/get-artifact?run_id={things['run']}&path=f.txt", {}),
                ("r", "GET", f"/api/2.0/mlflow/artifacts/list?run_id={things['run']}", {}),
                ("w", "PUT", f"{root}/{things['files']}/g.txt", {"content": b"x"}),
                (
                    "w",
                    "POST",
                    f"/api/2.0/mlflow-artifacts/mpu/create/{things['files']}",
                    {"json": {"path": "h", "num_parts": 1}},
                ),
                ("r", "GET", f"/api/2.0/mlflow-artifacts/presigned/{things['files']}/f.txt", {}),
                ("r", "POST", f"{presigned}-download-url", {"json": {"run_id": things["run"], "path": "f.txt"}}),
                ("w", "POST", f"{presigned}-upload-url", {"json": {"run_id": things["run"], "path": "h.txt"}}),
                ("w", "DELETE", f"{root}/{things['files']}/g.txt", {}),
            ]
            for right, method, path, options in asked:
                answer = place_of_all.ask(who, method, path, **options)
                if right in allowed:
                    assert answer.status_code == 200, (who, method, path, answer.text)
                else:
                    assert answer.status_code == 403, (who, method, path, answer.text)
                    assert b"secret" not in answer.content


def test_who_asks_at_once_for_one_file_is_judged_each_by_themselves(
    place_of_all: Site, told: dict[str, Any]
) -> None:
    asked = [(who, owner) for who in ("reader", "nobody", "root") for owner in ("mine", "theirs")] * 8

    def get(each: tuple[str, str]) -> int:
        path = f"/api/2.0/mlflow-artifacts/artifacts/{told[each[1]]['files']}/f.txt"
        return place_of_all.ask(each[0], "GET", path).status_code

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(get, asked))
    allowed = {("reader", "mine"), ("root", "mine"), ("root", "theirs")}
    assert answers == [200 if each in allowed else 403 for each in asked]


def test_a_presigned_url_is_enough_for_its_file(place_of_all: Site, told: dict[str, Any]) -> None:
    run, presigned = told["mine"]["run"], "/api/2.0/mlflow/artifacts/presigned"
    up = place_of_all.ask(
        "writer", "POST", f"{presigned}-upload-url", json={"run_id": run, "path": "p.txt"}
    ).json()
    assert place_of_all.ask("", "PUT", up["presigned_url"], content=b"signed").status_code == 200
    down = place_of_all.ask(
        "reader", "POST", f"{presigned}-download-url", json={"run_id": run, "path": "p.txt"}
    ).json()
    assert place_of_all.ask("", "GET", down["presigned_url"]).content == b"signed"
    assert place_of_all.ask("", "DELETE", down["presigned_url"]).status_code == 401
    assert place_of_all.ask("", "GET", down["presigned_url"].replace("signed/", "signed/A")).status_code == 400
    assert place_of_all.ask("", "POST", f"{presigned}-download-url", json={"run_id": run}).status_code == 401


def test_a_version_cannot_be_made_of_what_one_may_not_read(place_of_all: Site, told: dict[str, Any]) -> None:
    theirs = told["theirs"]
    for said in (
        {"source": f"runs:/{theirs['run']}/x"},
        {"source": "models:/theirs/1"},
        {"source": f"models:/{theirs['logged']}"},
        {"source": f"mlflow-artifacts:/{theirs['files']}/x"},
        {"source": f"mlflow-artifacts://{theirs['files']}/x"},
        {"source": "https://example.com/x", "run_id": theirs["run"]},
        {"source": "https://example.com/x", "model_id": theirs["logged"]},
    ):
        answer = place_of_all.mlflow("writer", "POST", "model-versions/create", name="mine", **said)
        assert answer.status_code in (400, 403), said
        assert answer.status_code == 403 or "://" in said["source"], (said, answer.text)
    mine = {"name": "mine", "source": f"runs:/{told['mine']['run']}/x", "run_id": told["mine"]["run"]}
    own = place_of_all.mlflow("writer", "POST", "model-versions/create", **mine)
    assert own.status_code == 200, own.text
    refused(
        place_of_all.mlflow(
            "writer",
            "POST",
            "model-versions/create",
            name="mine",
            source=f"runs:/{told['mine']['run']}/x",
            tags=[{"key": "modelkeep.approval", "value": "yes"}],
        )
    )
    refused(place_of_all.mlflow("writer", "POST", "registered-models/rename", name="mine", new_name="other"))


def test_a_metric_of_somebody_elses_model_is_refused(place_of_all: Site, told: dict[str, Any]) -> None:
    metric = {"key": "a", "value": 1, "timestamp": 1, "model_id": told["theirs"]["logged"]}
    mine = told["mine"]["run"]
    refused(place_of_all.mlflow("writer", "POST", "runs/log-metric", run_id=mine, **metric))
    refused(place_of_all.mlflow("writer", "POST", "runs/log-batch", run_id=mine, metrics=[metric]))
    use = {"models": [{"model_id": told["theirs"]["logged"]}]}
    refused(place_of_all.mlflow("writer", "POST", "runs/log-inputs", run_id=mine, **use))
    refused(place_of_all.mlflow("writer", "POST", "runs/outputs", run_id=mine, **use))


def test_searches_show_only_what_may_be_read(place_of_all: Site, told: dict[str, Any]) -> None:
    both = [told["mine"]["experiment"], told["theirs"]["experiment"]]

    def seen(who: str) -> list[set[str]]:
        asked = [
            ("POST", "experiments/search", {"max_results": 100}, "experiments", lambda x: x["experiment_id"]),
            ("POST", "runs/search", {"experiment_ids": both}, "runs", lambda x: x["info"]["experiment_id"]),
            (
                "POST",
                "logged-models/search",
                {"experiment_ids": both},
                "models",
                lambda x: x["info"]["experiment_id"],
            ),
            ("GET", "registered-models/search", {}, "registered_models", lambda x: x["name"]),
            ("GET", "model-versions/search", {}, "model_versions", lambda x: x["name"]),
        ]
        found = []
        for method, path, body, field, name in asked:
            answer = place_of_all.mlflow(who, method, path, **body)
            assert answer.status_code == 200, answer.text
            found.append({name(each) for each in answer.json().get(field, [])})
        return found

    mine = told["mine"]["experiment"]
    assert seen("reader") == [{mine}, {mine}, {mine}, {"mine"}, {"mine"}]
    assert seen("nobody") == [set()] * 5
    assert seen("root") == [{"0", *both}, set(both), set(both), {"mine", "theirs"}, {"mine", "theirs"}]


def test_pages_of_a_search_tell_nothing_of_what_is_hidden(place_of_all: Site, told: dict[str, Any]) -> None:
    """With one row a page, a token after the only row one may see would tell that there are others."""
    for path, body in (
        ("experiments/search", {"max_results": 1}),
        ("experiments/search", {"max_results": 1, "filter": "name LIKE 't%'"}),
    ):
        answer = place_of_all.mlflow("reader", "POST", path, **body).json()
        assert "next_page_token" not in answer, answer
    answer = place_of_all.mlflow("reader", "GET", "registered-models/search", max_results=1).json()
    assert "next_page_token" not in answer


def test_the_control_api_and_pages(place_of_all: Site, told: dict[str, Any]) -> None:
    for path, status in (
        (f"{API}/models", 403),
        (f"{API}/events", 403),
        ("/", 403),
        ("/models/mine", 200),
        ("/models/theirs", 403),
        (f"{API}/models/mine/versions/1", 200),
        (f"{API}/models/theirs/versions/1", 403),
        (f"{API}/openapi.json", 200),
    ):
        assert place_of_all.ask("reader", "GET", path).status_code == status, path
    post = ("POST", f"{API}/models/mine/rollback")
    assert place_of_all.ask("writer", *post, json={}).status_code == 403
    assert place_of_all.ask("deployer", *post, json={}).status_code not in (401, 403)
    assert (
        place_of_all.ask("writer", "POST", f"{API}/labels", json={"prediction_id": "a", "label": 1}).status_code
        == 403
    )


def test_the_history_names_who_did_it(place_of_all: Site, told: dict[str, Any]) -> None:
    answer = place_of_all.mlflow(
        "deployer", "POST", "registered-models/alias", name="mine", version="1", alias="live"
    )
    assert answer.status_code == 200
    refused(
        place_of_all.mlflow("writer", "POST", "registered-models/alias", name="theirs", version="1", alias="live")
    )

    def found(kind: str, actor: str) -> bool:
        return any(event.actor == actor for event in place_of_all.history(kind))

    assert any(
        event.actor == "deployer/t" and "live" in str(event.data) for event in place_of_all.history("alias.")
    )
    until(lambda: found("access.refused", "writer/t"))
    version = {"name": "mine", "source": "s3://b/m"}
    assert place_of_all.mlflow("writer", "POST", "model-versions/create", **version).status_code == 200
    assert found("version.created", "writer/t")


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as found:
        yield found


GET = "/api/2.0/mlflow/experiments/get?experiment_id=0"


def test_what_is_taken_away_is_gone_within_a_second(own: Site) -> None:
    with httpx.Client(
        base_url=own.address, headers={"authorization": f"Bearer {own.add('anna', 'reader')}"}
    ) as client:
        time.sleep(FRESH)
        assert client.get(GET).status_code == client.get(GET).status_code == 200
        own.keep.db.write(lambda conn: access.withdraw(conn, "anna", "reader", place("everything"), **BY))
        time.sleep(FRESH)
        assert client.get(GET).status_code == 403
        own.keep.db.write(lambda conn: access.revoke_token(conn, "anna", "t", **BY))
        time.sleep(FRESH)
        assert client.get(GET).status_code == 401


def test_a_token_ends_at_its_time_and_no_request_later(own: Site) -> None:
    now = own.keep.clock.now()
    token = own.keep.db.write(
        lambda conn: access.create_token(conn, "root", "short", now=now, actor="t", expires=now + FRESH + 1.5)
    )
    with httpx.Client(base_url=own.address, headers={"authorization": f"Bearer {token}"}) as client:
        time.sleep(FRESH)
        assert client.get(GET).status_code == 200
        while own.keep.clock.now() < now + FRESH + 1.5:
            time.sleep(0.05)
        assert client.get(GET).status_code == 401


def test_a_new_password_counts_at_once_and_the_old_one_no_more(own: Site) -> None:
    from modelkeep.registry.access_secrets import hash_password

    old, new = ("root", PASSWORD), ("root", "another long password")
    with httpx.Client(base_url=own.address) as client:
        assert client.get(GET, auth=old).status_code == client.get(GET, auth=old).status_code == 200
        hashed = hash_password(new[1])
        own.keep.db.write(lambda conn: access.set_password(conn, "root", hashed, **BY))
        time.sleep(FRESH)
        assert client.get(GET, auth=old).status_code == 401
        assert client.get(GET, auth=new).status_code == 200


def test_whoever_asks_too_often_is_told_when_to_come_again(own: Site) -> None:
    token = own.keep.db.write(lambda conn: access.create_token(conn, "root", "slow", rate=2, **BY))
    time.sleep(FRESH)
    with httpx.Client(base_url=own.address, headers={"authorization": f"Bearer {token}"}) as client:
        hot = [client.get(GET) for _ in range(6)]
        cold = [client.get(f"{API}/models") for _ in range(3)]
    assert hot[0].status_code == 200
    for answers in (hot, cold):
        assert answers[-1].status_code == 429
        assert int(answers[-1].headers["retry-after"]) >= 1
        assert answers[-1].json()["error_code"] == "REQUEST_LIMIT_EXCEEDED"


def test_guessing_passwords_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # so slowly that a slow machine sees it too
    monkeypatch.setattr(guard, "_GUESSES", (1 / 3600, 10.0))
    monkeypatch.setattr(guard, "_GUESSES_OF_ADDRESS", (1 / 3600, 15.0))
    with site(tmp_path) as own, httpx.Client(base_url=own.address, timeout=60) as client:
        found = [client.get(GET, auth=("root", f"wrong number {n}")).status_code for n in range(11)]
        assert found == [401] * 10 + [429]
        assert client.get(GET, auth=("root", PASSWORD)).status_code == 429, (
            "the right one too, or it would be told"
        )
        assert client.get(GET, headers={"authorization": f"Bearer {own.tokens['root']}"}).status_code == 200
        until(lambda: own.history("access.guessed"))
        others = [client.get(GET, auth=(f"user{n}", "x")).status_code for n in range(40)]
        assert others[0] == 401 and others[-1] == 429, "nor by trying other names"


def test_a_refused_change_changes_nothing(place_of_all: Site, told: dict[str, Any]) -> None:
    def rows() -> list[Any]:
        with place_of_all.keep.db.read() as conn:
            return [
                conn.execute(select(table)).all()
                for table in (tables.tags, tables.params, tables.metrics, tables.runs)
            ]

    before = rows()
    for method, path, fields in OPERATIONS_ON["write"]:
        things = {**told["theirs"], "name": "theirs"}
        body = {key: value[1:] if value[0] == "=" else things[value] for key, value in fields.items()}
        refused(place_of_all.mlflow("writer", method, path.format(**things), **body))
    assert rows() == before
