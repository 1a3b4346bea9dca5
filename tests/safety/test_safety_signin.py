"""People at their browsers: signing in, other sites talking to them, and what pages can be made to run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from safety_site import BY, PASSWORD, Site, site

from modelkeep.registry import endpoints, events, findings, models, snapshots
from modelkeep.registry.endpoints import Route, Wanted
from modelkeep.registry.findings import Finding
from modelkeep.registry.snapshots import Part, Record

HTML = {"accept": "text/html,application/xhtml+xml"}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NASTY = [
    "<script>window.pwned=1</script>",
    '"><img src=x onerror=window.pwned=1>',
    "'-window.pwned=1-'",
    "</script><script>window.pwned=1</script>",
    "javascript:window.pwned=1",
    "{{7*7}}${7*7}<svg/onload=window.pwned=1>",
    "\u2028window.pwned=1//<!--",
]


def form(here: Site, **said: str) -> httpx.Response:
    headers = {"origin": here.address, **HTML}
    return httpx.post(f"{here.address}/sign-in", data=said, headers=headers, follow_redirects=False, timeout=30)


def test_signing_in_and_out(tmp_path: Path) -> None:
    with site(tmp_path) as here, httpx.Client(base_url=here.address, headers=HTML, timeout=30) as browser:
        first = browser.get("/events?kind=user.")
        assert first.status_code == 303 and first.headers["location"] == "/sign-in?next=/events%3Fkind%3Duser."
        shown = browser.get(first.headers["location"])
        assert 'name="next" value="/events?kind=user."' in shown.text
        said = {"user": "root", "password": PASSWORD, "next": "/events?kind=user."}
        answer = browser.post("/sign-in", data=said, headers={"origin": here.address})
        assert (answer.status_code, answer.headers["location"]) == (303, "/events?kind=user.")
        cookie = answer.headers["set-cookie"]
        assert all(word in cookie for word in ("HttpOnly", "SameSite=strict", "Path=/", "Max-Age=43200")), cookie
        assert "Secure" not in cookie and "secure" not in cookie
        page = browser.get("/events")
        assert page.status_code == 200 and "user.signed_in" in page.text
        assert "Signed in as root" in browser.get("/sign-in").text
        kept = dict(browser.cookies)
        assert browser.post("/sign-out", headers={"origin": here.address}).status_code == 303
        assert browser.get("/events").status_code == 303
        again = httpx.get(f"{here.address}/events", cookies=kept, headers=HTML)
        assert again.status_code == 303, "a session that was left is over, also for whoever kept its cookie"
        said = [(event.kind, event.actor) for event in here.history("user.") if "signed" in event.kind]
        assert said == [("user.signed_in", "root"), ("user.signed_out", "root")]


@pytest.mark.parametrize(
    "back", ["//evil.example", "/\\evil.example", "https://evil.example", "/a\nb", "", "\x00", "x"]
)
def test_signing_in_leads_nowhere_else(place_of_all: Site, back: str) -> None:
    answer = form(place_of_all, user="root", password=PASSWORD, next=back)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


def test_what_does_not_sign_in(place_of_all: Site) -> None:
    for said in (
        {"user": "root", "password": "wrong wrong wrong"},
        {"user": "nobody", "password": "x"},
        {},
        {"user": "root"},
    ):
        answer = form(place_of_all, **said)
        assert answer.status_code == 401 and "set-cookie" not in answer.headers
        assert "wrong user or password" in answer.text
    answer = form(place_of_all, user="<script>x</script>", password="y")
    assert "<script>" not in answer.text
    assert form(place_of_all, user="root", password="x" * 20_000).status_code == 401


def session(here: Site) -> dict[str, str]:
    return dict(form(here, user="root", password=PASSWORD).cookies)


def test_a_cookie_makes_changes_only_for_pages_of_this_server(place_of_all: Site) -> None:
    here, cookies = place_of_all, session(place_of_all)
    body = {"name": "by-cookie"}
    port = httpx.URL(here.address).port
    hot, cold = "/api/2.0/mlflow/experiments/create", "/api/modelkeep/labels"
    for path in (hot, cold):
        for headers, allowed in (
            ({}, False),
            ({"origin": f"http://127.0.0.1:{(port or 0) + 1}"}, False),
            ({"origin": "https://evil.example"}, False),
            ({"origin": "null"}, False),
            ({"sec-fetch-site": "cross-site"}, False),
            ({"sec-fetch-site": "same-site"}, False),
            ({"sec-fetch-site": "none"}, False),
            ({"origin": here.address}, True),
            ({"sec-fetch-site": "same-origin"}, True),
        ):
            answer = httpx.post(f"{here.address}{path}", json=body, cookies=cookies, headers=headers)
            assert (answer.status_code != 403) == allowed, (path, headers, answer.text)
    assert httpx.get(f"{here.address}/", cookies=cookies).status_code == 200


def test_a_session_is_no_token_and_a_token_no_session(place_of_all: Site) -> None:
    ((name, value),) = session(place_of_all).items()
    path = f"{place_of_all.address}/api/modelkeep/models"
    assert httpx.get(path, headers={"authorization": f"Bearer {value}"}).status_code == 401
    assert httpx.get(path, cookies={name: place_of_all.tokens["root"]}).status_code == 401
    assert httpx.get(path, cookies={name: value}).status_code == 200
    assert httpx.get(path, cookies={name: value}, headers={"authorization": "Bearer x"}).status_code == 401


def test_scripts_get_no_password_dialogue(place_of_all: Site) -> None:
    plain = place_of_all.ask("", "GET", "/pages/stream")
    script = place_of_all.ask("", "GET", "/pages/stream", headers={"sec-fetch-mode": "cors"})
    assert plain.status_code == script.status_code == 401
    assert "www-authenticate" in plain.headers and "www-authenticate" not in script.headers


def test_pages_forbid_foreign_scripts_and_frames(place_of_all: Site) -> None:
    for path in ("/", "/events", "/data", "/sign-in"):
        headers = place_of_all.ask("root", "GET", path).headers
        policy = headers["content-security-policy"]
        assert (
            "script-src 'self'" in policy and "frame-ancestors 'none'" in policy and "default-src 'none'" in policy
        )
        assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]
        assert headers["x-content-type-options"] == "nosniff"


def test_files_never_come_as_pages(place_of_all: Site) -> None:
    run = place_of_all.mlflow("root", "POST", "runs/create", experiment_id="0").json()["run"]["info"]
    root = run["artifact_uri"].removeprefix("mlflow-artifacts:/")
    for name in ("x.html", "x.svg", "x.js", "x.xml", "x", '"><script>.html', "x.html;charset=utf-8", "é.html"):
        path = f"/api/2.0/mlflow-artifacts/artifacts/{root}/{httpx.QueryParams({'a': name})['a']}"
        body = b"<script>window.pwned=1</script>"
        url = httpx.URL(place_of_all.address).copy_with(path=path)
        auth = {"authorization": f"Bearer {place_of_all.tokens['root']}"}
        assert httpx.put(url, content=body, headers={**auth, "content-type": "text/html"}).status_code == 200, name
        params = {"run_id": run["run_id"], "path": name}
        for answer in (
            httpx.get(url, headers=auth),
            place_of_all.ask("root", "GET", "/get-artifact", params=params),
        ):
            assert answer.content == body
            assert answer.headers["content-type"] == "application/octet-stream"
            assert answer.headers["content-disposition"].startswith("attachment")
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "sandbox" in answer.headers["content-security-policy"]


def fill(here: Site) -> list[str]:
    """Everything a page shows, named by somebody who means harm; the pages to look at."""
    digest = "0" * 64

    def work(conn: object) -> None:
        for number, text in enumerate(NASTY):
            evaluation = {
                "evaluation": {"metrics": {text: {"value": 0.5, "low": 0.4, "high": 0.6}}, "task": text},
                "gates": [{"gate": text, "passed": False, "value": 1, "needed": 2, "evidence": text}],
            }
            made = models.register(
                conn,
                text,
                run_id=text,
                package="",
                lineage=None,
                evaluation=evaluation,
                runtime=text,
                note=text,
                now=BY["now"],
            )
            models.set_alias(conn, text, "champion", made.version, BY["now"])
            routes = (Route(version=1, package="", weight=1.0, mode="stable"),)
            endpoints.put(conn, Wanted(endpoint=text, model=text, routes=routes))
            evidence = {"text": text, "columns": [{"column": text, "distance": 0.5}]}
            found = {"model": text, "endpoint": text, "version": 1, "kind": "drift", "at": BY["now"]}
            findings.add(conn, Finding(**found, window=None, evidence=evidence))
            events.append(conn, f"model.{text}", text, {"because": text, text: text}, now=BY["now"], actor=text)
            parts = {text: Part(fingerprint=text, digest=digest, rows=1)}
            taken = {"name": text, "digest": f"{number}" * 64, "manifest": digest, "created": BY["now"]}
            snapshots.record(conn, Record(**taken, rows=1, fingerprints=parts))

    here.keep.db.write(work)
    named = [httpx.URL("/").copy_with(path=f"/models/{text}") for text in NASTY if "/" not in text]
    return [
        "/",
        "/events",
        "/data",
        *(f"{url.raw_path.decode()}" for url in named),
        *(f"{url.raw_path.decode()}/1" for url in named),
    ]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")
def test_in_a_real_browser_nothing_stored_runs(tmp_path: Path, browser: Browser) -> None:
    with site(tmp_path) as here:
        paths = fill(here)
        page: Page = browser.new_page()
        said: list[str] = []
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda line: said.append(line.text) if line.type == "error" else None)
        page.goto(f"{here.address}/events")
        page.get_by_label("User").fill("root")
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Sign in").click()
        expect(page.locator("h1")).to_contain_text("Events")
        seen = 0
        for path in paths:
            page.goto(here.address + path)
            expect(page.locator("h1")).to_be_visible()
            assert page.evaluate("window.pwned") is None, path
            assert page.locator("[onerror], [onload], main script:not([type='application/json'])").count() == 0, (
                path
            )
            seen += page.content().count("pwned")
        assert seen > 50, "the names are shown, as text"
        assert said == []
        cookies = page.context.cookies()
        assert [(cookie["httpOnly"], cookie["sameSite"]) for cookie in cookies] == [(True, "Strict")]
        assert page.evaluate("document.cookie") == ""
        page.close()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")
def test_in_a_real_browser_another_site_changes_nothing(tmp_path: Path, browser: Browser) -> None:
    """A page of another origin, in the same browser, posts with everything a browser lets it."""
    with site(tmp_path / "a") as here, site(tmp_path / "b") as foreign:
        page = browser.new_page()
        page.goto(f"{here.address}/sign-in")
        page.get_by_label("User").fill("root")
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Sign in").click()
        expect(page.locator("h1")).to_be_visible()
        for address in (foreign.address, foreign.address.replace("127.0.0.1", "localhost")):
            page.goto(f"{address}/sign-in")
            told = page.evaluate(
                """async (url) => {
                    const body = '{"name": "evil"}';
                    const asked = {method: 'POST', credentials: 'include', mode: 'no-cors', body};
                    try { return (await fetch(url, asked)).type } catch (e) { return 'failed' }
                }""",
                f"{here.address}/api/2.0/mlflow/experiments/create",
            )
            assert told in ("opaque", "failed")
        page.close()
        found = here.mlflow("root", "GET", "experiments/get-by-name", experiment_name="evil")
        assert found.status_code == 404


def test_json_within_a_page_cannot_end_its_script(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        paths = fill(here)
        for path in paths:
            text = here.ask("root", "GET", path).text
            for block in text.split('<script type="application/json"')[1:]:
                body = block.partition(">")[2].partition("</script>")[0]
                json.loads(body.replace("&quot;", '"').replace("&#34;", '"'))
                assert "<" not in body
