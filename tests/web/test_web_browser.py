"""In a real browser: plots are drawn, the page follows changes, nothing breaks the security policy."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect, sync_playwright
from starlette.applications import Starlette

from modelkeep.registry import events
from modelkeep.store.database import Database
from modelkeep.web import routes

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")


@pytest.fixture(scope="module")
def address(home: Database) -> Iterator[str]:
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(Starlette(routes=routes(home.read)), log_level="warning", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    found = browser.new_page()
    said: list[str] = []
    found.on(
        "console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None
    )
    found.on("pageerror", lambda error: said.append(str(error)))
    yield found
    found.close()
    assert said == []


@pytest.mark.parametrize(("path", "plots"), [("/models/flights", 3), ("/models/flights/2", 3)])
def test_plots_are_drawn(page: Page, address: str, path: str, plots: int) -> None:
    page.goto(address + path)
    expect(page.locator(".canvas .main-svg >> nth=0")).to_be_visible()
    assert page.locator(".canvas .plot-container").count() == plots


def test_the_page_follows_a_change(page: Page, address: str, home: Database) -> None:
    page.goto(address + "/")
    expect(page.locator(".state")).to_have_text("live")
    home.write(
        lambda conn: events.append(conn, "model.noted", "flights", {"text": "seen without reload"}, now=9e8)
    )
    expect(page.get_by_text("seen without reload")).to_be_visible()


def test_every_page_reads_without_javascript(browser: Browser, address: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    for path in ("/", "/models/flights", "/models/flights/2", "/data", "/events"):
        page.goto(address + path)
        expect(page.locator("h1")).to_be_visible()
        assert page.locator(".canvas:visible").count() == 0
    page.goto(address + "/models/flights")
    page.locator("summary").click()
    expect(page.locator("details table")).to_be_visible()
    context.close()
