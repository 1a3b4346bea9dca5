"""``users`` and ``roles``: who may ask for what.

These commands work on the home itself: whoever can write its database needs no password for them. What they do is
in the history under the name of the account they were run from.
"""

from __future__ import annotations

import contextlib
import getpass
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from modelkeep.cli.common import example, file_option, json_option, opened
from modelkeep.cli.output import moment, print_json, say, table, text
from modelkeep.core.errors import Invalid, NotFound

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from modelkeep.lifecycle.keep import Keep
    from modelkeep.registry.access import Accounts
    from modelkeep.registry.access_rights import Place

T = TypeVar("T")

_PASSWORD = click.option(
    "--password-stdin", is_flag=True, help="Read the password from standard input instead of asking."
)
_ON = click.option(
    "--on",
    "where",
    default="everything",
    show_default=True,
    help="everything, or experiment:, model: or endpoint: and a name; * for all of the kind.",
)


@click.group(epilog=example("modelkeep users add anna --admin", "modelkeep users list"))
def users() -> None:
    """Who may come in. Authentication is on as soon as there is a user."""


@users.command(
    epilog=example(
        "modelkeep users add anna --admin       # asks for a password",
        "modelkeep users add bob --role writer",
        "modelkeep users add ci --no-password   # only its tokens let it in",
    )
)
@click.argument("name")
@click.option("--admin", is_flag=True, help="May do everything.")
@click.option("--role", multiple=True, help="A role on everything; for less, modelkeep roles grant.")
@click.option("--no-password", is_flag=True, help="Only tokens let it in.")
@_PASSWORD
@file_option
@json_option
def add(
    *,
    name: str,
    admin: bool,
    role: tuple[str, ...],
    no_password: bool,
    password_stdin: bool,
    file: Path,
    as_json: bool,
) -> None:
    """Add a user."""
    from modelkeep.registry import access
    from modelkeep.registry.access_rights import Place

    roles = [*role, *(["admin"] if admin else [])]
    with changing(file) as change:
        hashed = "" if no_password else _hashed(password_stdin)

        def work(conn: Connection, told: dict[str, Any]) -> None:
            access.add_user(conn, name, hashed, **told)
            for each in roles:
                access.grant(conn, name, each, Place(), **told)

        change(work)
    done(
        as_json,
        {"added": name},
        f"added [bold]{text(name)}[/]{', ' + text(', '.join(roles)) if roles else ', who may nothing yet'}",
    )


@users.command("list", epilog=example("modelkeep users list", "modelkeep users list --json"))
@file_option
@json_option
def list_users(file: Path, as_json: bool) -> None:
    """List the users, their roles and how many tokens each has."""
    found = accounts(file)
    rows: list[dict[str, Any]] = [
        {
            "name": user.name,
            "roles": [f"{role} on {where}" for role, where in user.roles],
            "password": bool(user.password),
            "tokens": sum(token.user == user.name and token.kind == "token" for token in found.tokens.values()),
            "created": user.created,
        }
        for user in found.users.values()
    ]
    if as_json:
        print_json({"users": rows})
        return
    if not rows:
        say("there is no user: everybody who reaches the server may do everything, and only this machine can")
        return
    shown = (
        (row["name"], ", ".join(row["roles"]), row["password"], row["tokens"], moment(row["created"]))
        for row in rows
    )
    table(("user", "roles", "password", "tokens", "since (UTC)"), shown, right=("tokens",))


@users.command(epilog=example("modelkeep users remove bob"))
@click.argument("name")
@file_option
@json_option
def remove(name: str, file: Path, as_json: bool) -> None:
    """Remove a user with roles, tokens and sessions."""
    from modelkeep.registry import access

    with changing(file) as change:
        change(lambda conn, told: access.remove_user(conn, name, **told))
    done(as_json, {"removed": name}, f"removed [bold]{text(name)}[/]")


@users.command(
    epilog=example("modelkeep users passwd anna", "pass show anna | modelkeep users passwd anna --password-stdin")
)
@click.argument("name")
@_PASSWORD
@file_option
@json_option
def passwd(name: str, password_stdin: bool, file: Path, as_json: bool) -> None:
    """Give a user another password, which ends all sessions in browsers; tokens stay."""
    from modelkeep.registry import access

    with changing(file) as change:
        _known(change.keep, name)
        hashed = _hashed(password_stdin)
        change(lambda conn, told: access.set_password(conn, name, hashed, **told))
    done(as_json, {"changed": name}, f"[bold]{text(name)}[/] has another password")


@click.group(epilog=example("modelkeep roles grant bob writer --on experiment:churn", "modelkeep roles list"))
def roles() -> None:
    """What users may: reader, writer, deployer, approver or admin; on everything, a kind of thing or one thing."""


@roles.command(
    epilog=example(
        "modelkeep roles grant bob reader",
        "modelkeep roles grant bob writer --on experiment:churn      # by name or number",
        "modelkeep roles grant bob deployer --on model:flights",
        "modelkeep roles grant shop reader --on endpoint:flights     # may ask for predictions",
    )
)
@click.argument("user")
@click.argument("role")
@_ON
@file_option
@json_option
def grant(*, user: str, role: str, where: str, file: Path, as_json: bool) -> None:
    """Give a USER a ROLE."""
    from modelkeep.registry import access

    with changing(file) as change:
        place = place_of(change.keep, where)
        change(lambda conn, told: access.grant(conn, user, role, place, **told))
    told = {"granted": role, "user": user, "on": str(place)}
    done(as_json, told, f"[bold]{text(user)}[/] is {text(role)} on {text(place)}")


@roles.command("revoke", epilog=example("modelkeep roles revoke bob writer --on experiment:churn"))
@click.argument("user")
@click.argument("role")
@_ON
@file_option
@json_option
def revoke_role(*, user: str, role: str, where: str, file: Path, as_json: bool) -> None:
    """Take a ROLE from a USER."""
    from modelkeep.registry import access

    with changing(file) as change:
        place = place_of(change.keep, where)
        change(lambda conn, told: access.withdraw(conn, user, role, place, **told))
    told = {"revoked": role, "user": user, "on": str(place)}
    done(as_json, told, f"[bold]{text(user)}[/] is no longer {text(role)} on {text(place)}")


@roles.command("list", epilog=example("modelkeep roles list", "modelkeep roles list bob --json"))
@click.argument("user", required=False)
@file_option
@json_option
def list_roles(user: str | None, file: Path, as_json: bool) -> None:
    """List what was granted, to a USER or to all; and what each role may."""
    from modelkeep.registry.access_rights import RIGHTS, ROLES

    found = accounts(file)
    if user is not None and user not in found.users:
        raise NotFound(f"there is no user {user!r}", hint="modelkeep users list")
    given = [
        {"user": each.name, "role": role, "on": str(where)}
        for each in found.users.values()
        for role, where in each.roles
        if user is None or each.name == user
    ]
    means = {role: [right for right in RIGHTS if right in rights] for role, rights in ROLES.items()}
    if as_json:
        print_json({"grants": given, "roles": means})
        return
    table(("user", "role", "on"), ((row["user"], row["role"], row["on"]) for row in given))
    say()
    table(("role", "may"), ((role, ", ".join(rights)) for role, rights in means.items()))


class _Change:
    """One change of the accounts of a home, in the name of who runs the command."""

    def __init__(self, keep: Keep) -> None:
        self.keep = keep
        self.now = keep.clock.now()

    def __call__(self, work: Callable[[Connection, dict[str, Any]], T]) -> T:
        told = {"now": self.now, "actor": f"{getpass.getuser()} at the command line"}
        return self.keep.db.write(lambda conn: work(conn, told))


@contextlib.contextmanager
def changing(file: Path) -> Iterator[_Change]:
    """The home of a declaration, for one change of its accounts."""
    with opened(file) as keep:
        yield _Change(keep)


def accounts(file: Path) -> Accounts:
    """All accounts of a home."""
    from modelkeep.registry import access

    with opened(file) as keep, keep.db.read() as conn:
        return access.load(conn)


def _known(keep: Keep, name: str) -> None:
    """Raises ``NotFound``, before anybody types a password."""
    from modelkeep.registry import access

    with keep.db.read() as conn:
        if name not in access.load(conn).users:
            raise NotFound(f"there is no user {name!r}", hint="modelkeep users list")


def _hashed(from_stdin: bool) -> str:
    from modelkeep.registry.access_secrets import hash_password

    if from_stdin:
        return hash_password(sys.stdin.readline().rstrip("\r\n"))
    if not sys.stdin.isatty():
        raise Invalid("there is no terminal to ask at", path="password", hint="use --password-stdin")
    return hash_password(click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))


def place_of(keep: Keep, where: str) -> Place:
    """A place, its experiment by number: names of experiments can change."""
    from modelkeep.registry import experiments
    from modelkeep.registry.access_rights import ALL, place

    found = place(where)
    if found.kind != "experiment" or found.name == ALL:
        return found
    with keep.db.read() as conn:
        if found.name.isascii() and found.name.isdecimal():
            number = experiments.get(conn, int(found.name)).id
        else:
            number = experiments.by_name(conn, found.name).id
    return place(f"experiment:{number}")


def done(as_json: bool, told: dict[str, Any], line: str) -> None:
    """Say what was done, as JSON or as a line."""
    if as_json:
        print_json(told)
    else:
        say(line)
