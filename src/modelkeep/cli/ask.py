"""``show``, ``diff`` and ``trace``: questions about what is known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelkeep.cli.common import example, file_option, json_option, opened, split_ref
from modelkeep.cli.output import moment, print_json, say, short, show_gate, table, text
from modelkeep.cli.when import parse_moment
from modelkeep.core.errors import Invalid, NotFound

if TYPE_CHECKING:
    from modelkeep.lifecycle.ask import Difference, Traced
    from modelkeep.lifecycle.keep import Keep
    from modelkeep.registry.endpoints import Wanted
    from modelkeep.registry.models import Version


@click.command(
    epilog=example(
        "modelkeep show                          # every model and what is live",
        "modelkeep show flights                  # its versions, its endpoint, its findings",
        "modelkeep show flights@7                # one version; also flights@champion",
        "modelkeep show --at 2013-06-01T12:00    # what was live then",
    )
)
@click.argument("ref", required=False, metavar="[MODEL[@VERSION]]")
@click.option("--at", help="Answer for this moment: ISO 8601, UTC unless it says otherwise.")
@file_option
@json_option
def show(ref: str | None, at: str | None, file: Path, as_json: bool) -> None:
    """What is live, what was live, what a version is."""
    model, version = split_ref(ref) if ref else (None, None)
    if at and version:
        raise Invalid("--at asks which version was live; name the model without a version")
    with opened(file) as keep:
        if at:
            _live_at(keep, model, parse_moment(at), as_json)
        elif model is None:
            _everything(keep, as_json)
        elif version is None:
            _model(keep, model, as_json)
        else:
            _version(keep, f"{model}@{version}", as_json)


def _everything(keep: Keep, as_json: bool) -> None:
    from modelkeep.registry import endpoints, models

    found: list[dict[str, Any]] = []
    with keep.db.read() as conn:
        served = endpoints.wanted(conn)
        for name in models.models(conn):
            versions = models.versions(conn, name)
            found.append(
                {
                    "model": name,
                    "versions": len(versions),
                    "champion": models.alias(conn, name, "champion"),
                    "challenger": models.alias(conn, name, "challenger"),
                    "latest": versions[-1].created if versions else None,
                }
            )
    if as_json:
        print_json({"models": found, "endpoints": served})
        return
    if not found:
        say("no model yet; make one with [bold]modelkeep apply[/]")
        return
    table(
        ("model", "champion", "challenger", "versions", "latest (UTC)"),
        (
            (item["model"], item["champion"], item["challenger"], item["versions"], moment(item["latest"]))
            for item in found
        ),
        right=("champion", "challenger", "versions"),
    )
    for wanted in served:
        _endpoint(wanted)


def _endpoint(wanted: Wanted) -> None:
    routes = ", ".join(f"{route.mode} version {route.version} {route.weight:.0%}" for route in wanted.routes)
    say(f"endpoint [bold]{text(wanted.endpoint)}[/]: {routes or 'serves nothing'}")
    if wanted.rollout is not None:
        step, since = wanted.rollout.step + 1, moment(wanted.rollout.since)
        say(f"  rollout of version {wanted.rollout.version} is at step {step} since {since}")


def _model(keep: Keep, model: str, as_json: bool) -> None:
    from modelkeep.lifecycle import ask

    found = ask.show(keep, model)
    if as_json:
        print_json(found)
        return
    names = list(found.versions[-1].metrics)[:5] if found.versions else []
    table(
        ("version", "aliases", "made (UTC)", "runtime", *names, "note"),
        (
            (
                item.version,
                ", ".join(item.aliases),
                moment(item.created),
                item.runtime,
                *(item.metrics.get(name) for name in names),
                item.note,
            )
            for item in found.versions
        ),
        title=model,
        right=("version", *names),
    )
    for wanted in found.endpoints:
        _endpoint(wanted)
    if found.findings:
        table(
            ("found (UTC)", "what", "version"),
            ((moment(item.at), item.kind, item.version) for item in found.findings),
            title="findings, the newest first",
        )


def _version(keep: Keep, ref: str, as_json: bool) -> None:
    from modelkeep.lifecycle import ask

    found = ask.trace(keep, ref)
    if as_json:
        print_json({"version": found.version, "evaluation": found.evaluation})
        return
    _head(found.version)
    measured = found.evaluation.get("intervals") or found.evaluation.get("metrics") or {}
    if measured:
        rows = (_measured(name, of) for name, of in measured.items())
        table(("metric", "value", "low", "high"), rows, right=("value", "low", "high"))
    for gate in found.evaluation.get("gates") or ():
        show_gate(gate["gate"], gate["passed"], gate["evidence"])


def _measured(name: str, of: Any) -> tuple[Any, ...]:
    if isinstance(of, dict):
        return name, of.get("value"), of.get("low"), of.get("high")
    return name, of, None, None


def _head(found: Version) -> None:
    aliases = f"  ([green]{', '.join(found.aliases)}[/])" if found.aliases else ""
    say(f"[bold]{text(found.name)}[/]{aliases}")
    say(f"  made         {moment(found.created)} UTC")
    say(f"  runs on      {text(found.runtime)}")
    say(f"  package      {found.package}")
    if found.note:
        say(f"  note         {text(found.note)}")


def _live_at(keep: Keep, model: str | None, at: float, as_json: bool) -> None:
    from modelkeep.lifecycle import ask
    from modelkeep.registry import models

    with keep.db.read() as conn:
        names = [model] if model else models.models(conn)
    live = []
    for name in names:
        try:
            live.append(ask.live_at(keep, name, at))
        except NotFound:
            if model:
                raise
    if as_json:
        print_json({"at": at, "live": live})
    elif live:
        rows = ((item.model, item.version, moment(item.created), item.note) for item in live)
        table(("model", "version", "made (UTC)", "note"), rows, title=f"live at {moment(at)} UTC")
    else:
        say(f"nothing was live at {moment(at)} UTC")


@click.command(
    epilog=example(
        "modelkeep diff flights@6 flights@7",
        "modelkeep diff flights@champion flights@challenger",
        "modelkeep diff flights@6 7 --json",
    )
)
@click.argument("before", metavar="MODEL@VERSION")
@click.argument("after", metavar="[MODEL@]VERSION")
@file_option
@json_option
def diff(before: str, after: str, file: Path, as_json: bool) -> None:
    """What changed between two versions: declaration, data, code, parameters, metrics."""
    from modelkeep.lifecycle import ask

    model, ref = split_ref(before)
    if ref is None:
        raise Invalid(f"{before!r} names no version; expected such as {before}@6")
    after = after if "@" in after else f"{model}@{after}"
    with opened(file) as keep:
        found = ask.diff(keep, before, after)
    if as_json:
        print_json(found)
    else:
        _print_difference(found)


def _print_difference(found: Difference) -> None:
    say(f"[bold]{text(found.before)} → {text(found.after)}[/]")
    for title, fields in (("declaration", found.declaration), ("parameters as fitted", found.params)):
        if fields:
            say(f"{title}:")
        for path, (old, new) in fields.items():
            say(f"  {text(path)}: [red]{_said(old)}[/] → [green]{_said(new)}[/]")
    if any(found.data.values()):
        say(f"data: {found.rows[0]:,} → {found.rows[1]:,} rows")
        for sign, colour, kind in (("+", "green", "added"), ("-", "red", "removed"), ("~", "yellow", "changed")):
            for name in found.data.get(kind, ()):
                say(f"  [{colour}]{sign} {text(name)}[/]")
    if found.code[0] != found.code[1]:
        say(f"code: [red]{short(found.code[0]) or 'none'}[/] → [green]{short(found.code[1]) or 'none'}[/]")
    if found.environment:
        say("environment: differs")
    if found.metrics:
        table(
            ("metric", "before", "after", "change"),
            ((name, old, new, _change(old, new)) for name, (old, new) in found.metrics.items()),
            right=("before", "after", "change"),
        )


def _said(value: Any) -> str:
    return "unset" if value is None else text(value)


def _change(old: float | None, new: float | None) -> str:
    return f"{new - old:+.4g}" if old is not None and new is not None else ""


@click.command(epilog=example("modelkeep trace flights@7", "modelkeep trace flights@champion --json"))
@click.argument("ref", metavar="MODEL[@VERSION]")
@file_option
@json_option
def trace(ref: str, file: Path, as_json: bool) -> None:
    """From which rows, code, declaration and environment a version came, and what became of it."""
    from modelkeep.lifecycle import ask

    with opened(file) as keep:
        found = ask.trace(keep, ref)
    if as_json:
        print_json(found)
    else:
        _print_trace(found)


def _print_trace(found: Traced) -> None:
    _head(found.version)
    lineage, run, snapshot = found.version.lineage, found.run, found.snapshot
    if lineage is None:
        say("  registered from outside; nothing is known of where it came from")
    else:
        say(f"  snapshot     {lineage.snapshot}")
        if snapshot is not None:
            say(f"               {snapshot.rows:,} rows, taken {moment(snapshot.created)} UTC")
            for name, part in sorted(snapshot.fingerprints.items()):
                say(f"               [dim]{part.rows:>11,} rows  {short(part.digest)}  {text(name)}[/]")
        say(f"  declaration  {lineage.declaration}")
        dirty = f" with uncommitted changes ({short(lineage.code.dirty_diff)})" if lineage.code.dirty_diff else ""
        say(f"  code         {lineage.code.commit or 'not in a git repository'}{dirty}")
        say(f"  environment  {lineage.environment}")
        say(f"  parameters   {text(lineage.params)}")
        say(f"  seed         {lineage.seed}")
        say(f"  parent       {f'{found.version.model}@{lineage.parent}' if lineage.parent else 'none: the first'}")
    if run is not None:
        say(f"  run          {run.run_id} ({run.status.lower()})")
    table(
        ("#", "when (UTC)", "what", "because"),
        ((item.seq, moment(item.at), item.kind, item.data.get("because")) for item in found.events),
        title="what became of it",
    )
