"""The pages: server-rendered, readable without JavaScript, refreshed by it.

Nothing on a page runs that was not shipped with this package: the content security policy allows scripts from this
server only, none inline. Inline styles stay allowed because Plotly sets them on its drawings.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from functools import cache
from importlib.metadata import version as release_of
from pathlib import Path
from typing import Any

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from modelkeep import __version__
from modelkeep.core.errors import ModelkeepError, NotFound
from modelkeep.web.evidence import CURVES, confusion, curves, drifted, slices
from modelkeep.web.figures import Point, curve, drift, over_time, over_versions, residuals
from modelkeep.web.present import FILTERS
from modelkeep.web.views import data, history, model, overview, stamp, version

Read = Callable[[], AbstractContextManager[Connection]]
Gather = Callable[[Connection, Request], dict[str, Any]]

_HERE = Path(__file__).parent
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
}

LOOK_EVERY = 1.0
"""Seconds between two looks for a change."""
STREAM_FOR = 30.0
"""Seconds after which a stream ends and the browser asks again, so that it never holds up a shutdown for long."""


def routes(read: Read) -> list[BaseRoute]:
    """The pages, for the control server to mount.

    Args:
        read: Opens a read transaction.
    """
    return [
        _page(read, "/", "overview.html", lambda conn, _: overview(conn)),
        _page(read, "/models/{name}", "model.html", _model),
        _page(read, "/models/{name}/{ref}", "version.html", _version),
        _page(read, "/data", "data.html", lambda conn, _: data(conn)),
        _page(read, "/events", "events.html", _events),
        Route("/pages/stream", _stream(read), methods=["GET"]),
        Route("/static/plotly.js", _plotly, methods=["GET"]),
        Mount("/static", StaticFiles(directory=_HERE / "static"), name="static"),
    ]


def _page(read: Read, path: str, template: str, gather: Gather) -> Route:
    def work(request: Request) -> tuple[int, str]:
        active = "/" if path.startswith("/models") else path
        try:
            with read() as conn:
                seen = stamp(conn)  # first: what changes in between is told once too often rather than never
                content = gather(conn, request)
        except ModelkeepError as error:
            missing = isinstance(error, NotFound)
            title = "Not found" if missing else "This does not work now"
            return 404 if missing else 500, render("error.html", active, title=title, message=error.message)
        return 200, render(template, active, seen=seen, **content)

    async def answer(request: Request) -> Response:
        status, text = await run_in_threadpool(work, request)
        return HTMLResponse(text, status, headers=HEADERS)

    return Route(path, answer, methods=["GET"])


def _model(conn: Connection, request: Request) -> dict[str, Any]:
    found = model(conn, request.path_params["name"])
    points = [
        Point(row.version.version, row.metric.value, row.metric.low, row.metric.high)
        for row in reversed(found["rows"])
        if row.metric is not None
    ]
    marks = [mark for finding in found["findings"] for mark in drifted(finding)]
    drawn = {
        "live": [
            over_time([*s.live, *s.estimated], name=s.metric, reference=s.reference) for s in found["served"]
        ],
        "versions": over_versions(points, name=found["metric"]) if points else None,
        "drift": drift(marks) if marks else None,
    }
    return {**found, "figures": drawn}


def _version(conn: Connection, request: Request) -> dict[str, Any]:
    found = version(conn, request.path_params["name"], request.path_params["ref"])
    said = found["evaluation"]
    drawn = [
        (name, title, curve(lines, x=x, y=y, diagonal=diagonal, marks=name == "calibration"))
        for name, title, x, y, diagonal in CURVES
        if (lines := curves(said, name))
    ]
    left = said.get("residuals")
    if isinstance(left, dict) and all(left.get(name) for name in ("predicted", "q05", "q50", "q95")):
        drawn.append(("residuals", "Residuals", residuals(left)))
    return {
        **found,
        "figures": {"curves": drawn},
        "confusion": confusion(said),
        "slices": slices(said, found["main"]),
    }


def _events(conn: Connection, request: Request) -> dict[str, Any]:
    asked = request.query_params
    page = asked.get("page", "1")
    return history(
        conn,
        subject=asked.get("subject", "").strip(),
        kind=asked.get("kind", "").strip(),
        page=min(int(page), 1000) if page.isdecimal() and len(page) < 10 and int(page) else 1,
    )


def _stream(read: Read) -> Callable[[Request], Any]:
    """Server-sent events (WHATWG HTML, section 9.2): ``changed`` whenever a page may look different.

    A page names the state it shows (``seen``), and a browser that comes back the last one it was told of, so that
    nothing is missed before a stream begins or between two.
    """

    def look() -> str:
        with read() as conn:
            return stamp(conn)

    async def changes(known: str, now: str) -> AsyncIterator[str]:
        yield "retry: 1000\n\n"
        for _ in range(round(STREAM_FOR / LOOK_EVERY)):
            if now != known:
                known = now
                yield f"event: changed\nid: {now}\ndata: \n\n"
            await asyncio.sleep(LOOK_EVERY)
            now = await run_in_threadpool(look)

    async def answer(request: Request) -> Response:
        now = await run_in_threadpool(look)  # before the page hears that it is live
        known = request.headers.get("last-event-id") or request.query_params.get("seen") or now
        return StreamingResponse(changes(known, now), media_type="text/event-stream", headers=HEADERS)

    return answer


async def _plotly(_: Request) -> Response:
    """The drawing library, from the files of the installed Python package: nothing comes from elsewhere."""
    spec = importlib.util.find_spec("plotly")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "package_data" / "plotly.min.js"
        if path.is_file():
            kept = {"cache-control": "public, max-age=604800", "x-content-type-options": "nosniff"}
            return FileResponse(path, media_type="text/javascript", headers=kept)
    raise HTTPException(404, "plotly is installed without its JavaScript")


def render(template: str, active: str, *, seen: str = "", **content: Any) -> str:
    """A page from a template.

    Args:
        active: The path of the page in the list of pages.
        seen: The stamp of the state that it shows, if it shows one.
    """
    return _templates().get_template(template).render(active=active, seen=seen, **content)


@cache
def _templates() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= FILTERS | {"json": lambda value: msgspec.json.encode(value).decode()}
    made.globals |= {"release": __version__, "plotly": release_of("plotly")}
    return made
