"""``tokens``: how programs come in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelkeep.cli.common import example, file_option, json_option
from modelkeep.cli.output import moment, print_json, table, text
from modelkeep.cli.users import accounts, changing, done, place_of

if TYPE_CHECKING:
    from modelkeep.lifecycle.keep import Keep


@click.group(epilog=example("modelkeep tokens create ci deploys --scope deploy@model:flights --expires 90d"))
def tokens() -> None:
    """Tokens: how programs come in, as MLFLOW_TRACKING_TOKEN or in an Authorization: Bearer header."""


@tokens.command(
    epilog=example(
        "modelkeep tokens create anna laptop",
        "modelkeep tokens create shop predictions --scope predict@endpoint:flights --rate 200",
        "modelkeep tokens create ci nightly --scope write@experiment:3 --expires 30d",
    )
)
@click.argument("user")
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, help="RIGHT or RIGHT@KIND:NAME; without any, all the user may.")
@click.option("--expires", help="After how long it ends, as 90d or 12h; never unless given.")
@click.option("--rate", type=float, default=0.0, help="Requests a second it may make; 0 for no limit of its own.")
@file_option
@json_option
def create(
    *, user: str, name: str, scopes: tuple[str, ...], expires: str | None, rate: float, file: Path, as_json: bool
) -> None:
    """Make a token of a USER and print it: it cannot be had again.

    Rights are read, predict, write, deploy, approve and admin.
    """
    from modelkeep.registry import access
    from modelkeep.spec.units import seconds

    with changing(file) as change:
        places = tuple(_scope(change.keep, scope) for scope in scopes)
        ends = change.now + seconds(expires) if expires else None
        told = change(
            lambda conn, by: access.create_token(conn, user, name, scopes=places, expires=ends, rate=rate, **by)
        )
    _tell(told, as_json, "this token is shown once")


@tokens.command("list", epilog=example("modelkeep tokens list", "modelkeep tokens list ci --json"))
@click.argument("user", required=False)
@file_option
@json_option
def list_tokens(user: str | None, file: Path, as_json: bool) -> None:
    """List tokens, of a USER or of all; never the secrets, which are not kept."""
    found = accounts(file)
    rows: list[dict[str, Any]] = [
        {
            "user": token.user,
            "name": token.name,
            "key": token.key,
            "kind": token.kind,
            "scopes": token.scopes,
            "rate": token.rate,
            "created": token.created,
            "expires": token.expires,
        }
        for token in sorted(found.tokens.values(), key=lambda token: (token.user, token.kind, token.created))
        if user is None or token.user == user
    ]
    if as_json:
        print_json({"tokens": rows})
        return
    columns = ("user", "name", "kind", "scopes", "rate", "since (UTC)", "until (UTC)")
    shown = (
        (
            *(row[name] for name in ("user", "name", "kind")),
            ", ".join(row["scopes"]) or "all",
            row["rate"] or "",
            moment(row["created"]),
            moment(row["expires"]) or "revoked",
        )
        for row in rows
    )
    table(columns, shown, right=("rate",))


@tokens.command(epilog=example("modelkeep tokens rotate ci nightly --grace 1d   # the old one works one day more"))
@click.argument("user")
@click.argument("name")
@click.option("--grace", help="How long the old one still works; not at all unless given.")
@file_option
@json_option
def rotate(*, user: str, name: str, grace: str | None, file: Path, as_json: bool) -> None:
    """Replace a token by a new one with the same scopes and lifetime, and print that."""
    from modelkeep.registry import access
    from modelkeep.spec.units import seconds

    with changing(file) as change:
        left = seconds(grace) if grace else 0.0
        told = change(lambda conn, by: access.rotate_token(conn, user, name, grace=left, **by))
    _tell(told, as_json, "the new token is shown once")


@tokens.command(epilog=example("modelkeep tokens revoke ci nightly"))
@click.argument("user")
@click.argument("name")
@file_option
@json_option
def revoke(user: str, name: str, file: Path, as_json: bool) -> None:
    """End a token; servers refuse it within a second."""
    from modelkeep.registry import access

    with changing(file) as change:
        change(lambda conn, told: access.revoke_token(conn, user, name, **told))
    done(as_json, {"revoked": name, "user": user}, f"revoked [bold]{text(name)}[/] of {text(user)}")


def _scope(keep: Keep, scope: str) -> str:
    right, at, where = scope.partition("@")
    return f"{right}@{place_of(keep, where)}" if at else scope


def _tell(token: str, as_json: bool, note: str) -> None:
    if as_json:
        print_json({"token": token})
        return
    click.echo(token)
    click.echo(f"{note}; keep it safe", err=True)
