"""Users, tokens, sessions and roles: how they change, and all of them at once for whoever must decide quickly.

Every change is an event with the name of whoever made it, and raises the counter that readers watch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, Row, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from modelkeep.core.errors import Conflict, Invalid, NotFound, Refused
from modelkeep.registry import counters, events
from modelkeep.registry.access_rights import EVERYTHING, ROLES, Place, of_scopes
from modelkeep.registry.access_secrets import mint
from modelkeep.store.access_tables import access_tokens, grants, users
from modelkeep.store.bulk import encode

UNKNOWN = -1
"""The generation of accounts that could not be read: they let nobody in."""

_COUNTER = "access"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+\-]{0,127}\Z")
_TOKEN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+\- ]{0,127}\Z")


class User(Struct, frozen=True, kw_only=True):
    """One account.

    Attributes:
        password: argon2id in PHC form; empty when only tokens open it.
        roles: What it was granted: (role, place).
        created: Seconds since 1970.
    """

    name: str
    password: str
    created: float
    roles: tuple[tuple[str, Place], ...] = ()


class Token(Struct, frozen=True, kw_only=True):
    """A token or a browser's session; its secret is kept nowhere.

    Attributes:
        key: The public half: names it.
        kind: ``token`` or ``session``.
        digest: BLAKE3 of the secret half.
        scopes: What it narrows its user's roles to; empty for nothing.
        rate: Requests a second; 0 for no limit of its own.
        expires: Seconds since 1970; None for never.
    """

    key: str
    user: str
    name: str
    kind: str
    digest: str
    scopes: tuple[str, ...]
    rate: float
    created: float
    expires: float | None


class Accounts(Struct, frozen=True):
    """Everything about access at one moment.

    Attributes:
        generation: Grows with every change.
        users: By name.
        tokens: By public half, also those that have expired.
    """

    generation: int = 0
    users: dict[str, User] = {}
    tokens: dict[str, Token] = {}

    @property
    def admins(self) -> list[str]:
        """Users who are admin of everything."""
        top = ("admin", Place())
        return [user.name for user in self.users.values() if top in user.roles]


def generation(conn: Connection) -> int:
    """A number that changes with any change: cheap to ask again and again."""
    return counters.value(conn, _COUNTER)


def load(conn: Connection) -> Accounts:
    """Everything, in three queries."""
    number = generation(conn)
    given: dict[int, list[tuple[str, Place]]] = {}
    for row in conn.execute(select(grants).order_by(grants.c.role, grants.c.kind, grants.c.name)):
        given.setdefault(row.user_id, []).append((row.role, Place(row.kind, row.name)))
    names: dict[int, str] = {}
    found: dict[str, User] = {}
    for row in conn.execute(select(users).order_by(users.c.name)):
        names[row.id] = row.name
        found[row.name] = User(
            name=row.name,
            password=row.password,
            created=row.created,
            roles=tuple(given.get(row.id, ())),
        )
    tokens = {row.key: _token(row, names[row.user_id]) for row in conn.execute(select(access_tokens))}
    return Accounts(number, found, tokens)


def add_user(conn: Connection, name: str, hashed: str, *, now: float, actor: str) -> None:
    """Make an account without any role.

    Args:
        hashed: From ``access_secrets.hash_password``; empty for an account that only tokens open.

    Raises:
        Invalid: The name.
        Conflict: There is one of that name.
    """
    if not _NAME.match(name):
        raise Invalid(
            f"{name[:200]!r} cannot be a user's name; expected up to 128 letters, digits and . _ @ + -",
            path="name",
        )
    try:
        with conn.begin_nested():
            conn.execute(insert(users), {"name": name, "password": hashed, "created": now})
    except IntegrityError:
        raise Conflict(f"there is a user {name!r} already", hint="modelkeep users list") from None
    _changed(conn, "user.added", name, {"password": bool(hashed)}, now, actor)


def set_password(conn: Connection, name: str, hashed: str, *, now: float, actor: str) -> None:
    """Give another password, and end every session of the account. Raises ``NotFound``."""
    row = _user(conn, name)
    conn.execute(update(users).where(users.c.id == row.id).values(password=hashed))
    sessions = (access_tokens.c.user_id == row.id) & (access_tokens.c.kind == "session")
    conn.execute(delete(access_tokens).where(sessions))
    _changed(conn, "user.password_changed", name, {}, now, actor)


def remove_user(conn: Connection, name: str, *, now: float, actor: str) -> None:
    """Remove an account with its roles, tokens and sessions.

    Raises:
        NotFound: There is none of that name.
        Refused: It is the last admin, and others would be left without one.
    """
    row = _user(conn, name)
    _keep_an_admin(conn, name, alone=True)
    for table in (grants, access_tokens):
        conn.execute(delete(table).where(table.c.user_id == row.id))
    conn.execute(delete(users).where(users.c.id == row.id))
    _changed(conn, "user.removed", name, {}, now, actor)


def grant(conn: Connection, name: str, role: str, where: Place, *, now: float, actor: str) -> None:
    """Give a role; no error when it was given. Raises ``NotFound``, ``Invalid``."""
    if role not in ROLES:
        raise Invalid(f"{role[:100]!r} is no role; expected one of {', '.join(ROLES)}", path="role")
    row = _user(conn, name)
    wanted = {"user_id": row.id, "role": role, "kind": where.kind, "name": where.name}
    try:
        with conn.begin_nested():
            conn.execute(insert(grants), wanted)
    except IntegrityError:
        return
    _changed(conn, "role.granted", name, {"role": role, "on": str(where)}, now, actor)


def withdraw(conn: Connection, name: str, role: str, where: Place, *, now: float, actor: str) -> None:
    """Take a role away. Raises ``NotFound``, ``Refused``: nobody would be admin."""
    row = _user(conn, name)
    if role == "admin" and where.kind == EVERYTHING:
        _keep_an_admin(conn, name, alone=False)
    same = (grants.c.user_id == row.id) & (grants.c.role == role)
    gone = conn.execute(delete(grants).where(same, grants.c.kind == where.kind, grants.c.name == where.name))
    if not gone.rowcount:
        raise NotFound(f"{name} has no role {role} on {where}", hint=f"modelkeep roles list {name}")
    _changed(conn, "role.revoked", name, {"role": role, "on": str(where)}, now, actor)


def create_token(
    conn: Connection,
    user: str,
    name: str,
    *,
    now: float,
    actor: str,
    scopes: Sequence[str] = (),
    expires: float | None = None,
    rate: float = 0.0,
    kind: str = "token",
) -> str:
    """Make a token of a user and return it; it cannot be had again.

    Args:
        scopes: ``RIGHT`` or ``RIGHT@KIND:NAME`` each; none for all that the user may.
        expires: Seconds since 1970; None for never.
        rate: Requests a second; 0 for no limit of its own.
        kind: ``token`` or ``session``; the latter makes no event but ``user.signed_in``.

    Raises:
        NotFound: There is no such user.
        Invalid: The name, a scope, the rate or a time that has passed.
        Conflict: The user has a token of that name.
    """
    row = _user(conn, user)
    if not _TOKEN_NAME.match(name):
        raise Invalid(f"{name[:200]!r} cannot be a token's name; expected up to 128 plain characters", path="name")
    if not 0 <= rate < float("inf"):
        raise Invalid(f"{rate} is no rate; expected requests a second, 0 for no limit", path="rate")
    if expires is not None and not now < expires < float("inf"):
        raise Invalid("would have expired already; expected a time to come", path="expires")
    of_scopes(scopes)
    table = access_tokens
    held = select(table.c.key).where(table.c.user_id == row.id, table.c.name == name, table.c.kind == "token")
    if kind == "token" and conn.execute(held).first() is not None:
        raise Conflict(
            f"{user} has a token {name!r} already", hint=f"modelkeep tokens rotate {user} {name}, or another name"
        )
    if kind == "session":
        _forget(conn, now)
    key, digest, told = mint()
    values = {"key": key, "user_id": row.id, "name": name, "kind": kind, "digest": digest, "rate": rate}
    conn.execute(insert(table), values | {"scopes": encode(list(scopes)), "created": now, "expires": expires})
    data = {"token": name, "key": key, "scopes": list(scopes), "expires": expires}
    _changed(conn, "token.created" if kind == "token" else "user.signed_in", user, data, now, actor)
    return told


def rotate_token(conn: Connection, user: str, name: str, *, now: float, actor: str, grace: float = 0.0) -> str:
    """Replace a token by a new one of the same name, scopes and lifetime; the new one is returned.

    Args:
        grace: Seconds for which the old one still works, so that those who hold it can change over.

    Raises:
        NotFound: The user has no such token.
        Invalid: The grace is no length of time.
    """
    if not 0 <= grace < float("inf"):
        raise Invalid(f"{grace} is no length of time; expected seconds from 0", path="grace")
    found = _find_token(conn, user, name)
    life = None if found.expires is None else now + (found.expires - found.created)
    table = access_tokens
    if grace > 0:
        ends = now + grace if found.expires is None else min(now + grace, found.expires)
        conn.execute(
            update(table)
            .where(table.c.key == found.key)
            .values(expires=ends, name=f"{name} until {found.key}", kind="retired")
        )
    else:
        conn.execute(delete(table).where(table.c.key == found.key))
    key, digest, told = mint()
    values = {"key": key, "user_id": found.user_id, "name": name, "kind": "token", "digest": digest}
    values |= {"scopes": found.scopes, "rate": found.rate, "created": now, "expires": life}
    conn.execute(insert(table), values)
    data = {"token": name, "key": key, "before": found.key, "grace": grace, "expires": life}
    _changed(conn, "token.rotated", user, data, now, actor)
    return told


def revoke_token(conn: Connection, user: str, name: str, *, now: float, actor: str) -> None:
    """End a token at once, with what rotating left of it. Raises ``NotFound``."""
    found = _find_token(conn, user, name)
    left = access_tokens.c.name.startswith(f"{name} until ", autoescape=True) & (access_tokens.c.kind == "retired")
    mine = access_tokens.c.user_id == found.user_id
    conn.execute(delete(access_tokens).where(mine & ((access_tokens.c.key == found.key) | left)))
    _changed(conn, "token.revoked", user, {"token": name, "key": found.key}, now, actor)


def end_session(conn: Connection, key: str, *, now: float, actor: str) -> None:
    """End one session by its public half, and forget those that ended by themselves."""
    _forget(conn, now)
    gone = conn.execute(delete(access_tokens).where(access_tokens.c.key == key))
    if gone.rowcount:
        _changed(conn, "user.signed_out", actor, {"key": key}, now, actor)


def _forget(conn: Connection, now: float) -> None:
    """Forget sessions and rotated tokens that have ended."""
    over = (access_tokens.c.kind != "token") & (access_tokens.c.expires < now)
    conn.execute(delete(access_tokens).where(over))


def _find_token(conn: Connection, user: str, name: str) -> Row[Any]:
    row = _user(conn, user)
    table = access_tokens
    mine = (table.c.user_id == row.id) & (table.c.name == name) & (table.c.kind == "token")
    found = conn.execute(select(table).where(mine)).first()
    if found is None:
        raise NotFound(f"{user} has no token {name!r}", hint=f"modelkeep tokens list {user}")
    return found


def _user(conn: Connection, name: str) -> Row[Any]:
    found = conn.execute(select(users).where(users.c.name == name)).first()
    if found is None:
        known = conn.execute(select(users.c.name).order_by(users.c.name).limit(10)).scalars()
        raise NotFound(f"there is no user {name[:200]!r}; there are: {', '.join(known) or 'none'}")
    return found


def _keep_an_admin(conn: Connection, name: str, *, alone: bool) -> None:
    """Raises ``Refused`` when ``name`` is the only admin; if ``alone``, only while there are other users."""
    held = load(conn)
    if held.admins == [name] and not (alone and len(held.users) == 1):
        raise Refused(f"{name} is the only admin", hint="make another first: modelkeep roles grant NAME admin")


def _token(row: Row[Any], user: str) -> Token:
    return Token(
        key=row.key,
        user=user,
        name=row.name,
        kind=row.kind,
        digest=row.digest,
        scopes=msgspec.json.decode(row.scopes, type=tuple[str, ...]),
        rate=row.rate,
        created=row.created,
        expires=row.expires,
    )


def _changed(conn: Connection, kind: str, subject: str, data: dict[str, Any], now: float, actor: str) -> None:
    counters.raise_(conn, _COUNTER)
    events.append(conn, kind, subject, data, now=now, actor=actor)
