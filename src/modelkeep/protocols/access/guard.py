"""The guard: who is asking, and may they. One object decides for every entrance of a process.

Whatever is not allowed is refused. What was found out about a request's head is remembered in a ``Pass``, which
counts until the accounts change, so that a client who asks again and again is looked up once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from modelkeep.core.clock import Clock
from modelkeep.core.errors import Refused
from modelkeep.protocols.access import credentials
from modelkeep.protocols.access.credentials import Password, Secret, Verified
from modelkeep.protocols.access.hosts import Hosts
from modelkeep.protocols.access.limits import Bucket, Buckets, Noted, source
from modelkeep.protocols.access.refusals import Refusal, forbidden, too_often, unknown
from modelkeep.registry.access import UNKNOWN, Accounts, Token, User
from modelkeep.registry.access_rights import EVERYTHING, Principal, of_roles, of_scopes
from modelkeep.registry.access_secrets import same, split, verify_password

Mode = Literal["auto", "on", "off"]
"""``auto``: authentication is on as soon as there is a user."""

_GUESSES = (1 / 6, 10.0)
_GUESSES_OF_ADDRESS = (1.0, 30.0)
_WEIGHTY = frozenset({"deploy", "approve", "admin"})
_WAITING = 32
_MOST = 10_000


class Pass:
    """A request that was let in.

    Attributes:
        epoch: What the guard knew then.
        who: Who asks; None while authentication is off.
    """

    __slots__ = ("_bucket", "_clock", "epoch", "who")

    def __init__(self, epoch: object, who: Principal | None, bucket: Bucket | None, clock: Clock) -> None:
        self.epoch = epoch
        self.who = who
        self._bucket = bucket
        self._clock = clock

    def turn(self) -> Refusal | None:
        """Asked at every request: whether the token still lives and its client does not ask too often."""
        who = self.who
        if who is None:
            return None
        if who.until != _FOREVER and self._clock.now() >= who.until:
            return unknown("this token or session has expired")
        if self._bucket is not None:
            wait = self._bucket.take()
            if wait:
                return too_often(wait, f"{who.name} asks more often than its limit")
        return None


_FOREVER = float("inf")


class Guard:
    """Who is asking, and may they.

    Args:
        accounts: Gives the accounts; the same object as long as they are the same.
        clock: By which tokens expire.
        mode: ``on``: nobody unknown is answered; ``off``: everybody is; ``auto``: ``on`` once there is a user.
        hosts: Which names are this server's.
        secure: Whether requests come over TLS.
        rate: Requests a second of each user or token that has no limit of its own; 0 for no limit.
        note: Told what belongs into the history: kind, subject, data, actor.
    """

    def __init__(
        self,
        accounts: Callable[[], Accounts],
        clock: Clock,
        *,
        mode: Mode = "auto",
        hosts: Hosts | None = None,
        secure: bool = False,
        rate: float = 0.0,
        note: Callable[[str, str, dict[str, Any], str], None] = lambda *_: None,
    ) -> None:
        self._accounts = accounts
        self._known = Accounts(UNKNOWN)
        self._epoch = object()
        self._clock = clock
        self._mode = mode
        self.hosts = hosts or Hosts()
        self.secure = secure
        self._rate = rate
        self._note = note
        self._verified = Verified()
        self._principals: dict[str, Principal] = {}
        self._passes: dict[bytes, Pass] = {}
        self._buckets: dict[str, Bucket] = {}
        self._guesses = Buckets(*_GUESSES)
        self._addresses = Buckets(*_GUESSES_OF_ADDRESS)
        self._noted = Noted()
        self._argon = ThreadPoolExecutor(2, thread_name_prefix="modelkeep-password")
        self._verifying: dict[tuple[str, Password], asyncio.Task[User | Refusal]] = {}

    def current(self) -> object:
        """Another object whenever something may be decided otherwise than before."""
        if self._mode == "off":
            return self._epoch
        found = self._accounts()
        if found is not self._known or self._verified.sweep():
            self._known = found
            self._principals, self._passes = {}, {}
            self._epoch = object()
        return self._epoch

    @property
    def on(self) -> bool:
        """Whether clients must say who they are."""
        self.current()
        return self._demands

    @property
    def _demands(self) -> bool:
        return self._mode == "on" or (self._mode == "auto" and (self._unknown or bool(self._known.users)))

    @property
    def _unknown(self) -> bool:
        return self._known.generation == UNKNOWN

    def judge(self, method: str, headers: Mapping[bytes, bytes]) -> Pass | Refusal | None:
        """Who asks. None when a password must be verified first: then ``judge_slowly``.

        Args:
            headers: By lower-case name.
        """
        epoch = self.current()
        fault = self.hosts.fault(method, headers, cookie=credentials.has_cookie(headers, secure=self.secure))
        if fault:
            return forbidden(fault)
        shown = headers.get(b"authorization", b"")
        passed = self._passes.get(shown)
        if passed is not None:
            return passed
        if not self._demands:
            return Pass(epoch, None, None, self._clock)
        said = credentials.given(headers, secure=self.secure)
        if said is None:
            return self._stranger(headers)
        if isinstance(said, Secret):
            who = self._by_secret(said)
            if who is None:
                return self._stranger(headers, "this token or session is not known")
        elif self._verified.holds(said, self._known):
            who = self._by_name(self._known.users[said.user])
        else:
            return None
        passed = self._pass(who)
        if shown:
            if len(self._passes) >= _MOST:
                self._passes.clear()
            self._passes[shown] = passed
        return passed

    async def judge_slowly(self, method: str, headers: Mapping[bytes, bytes], client: str = "") -> Pass | Refusal:
        """The same, verifying a password if there is one.

        Args:
            client: Address of the client, whose wrong guesses are counted.
        """
        found = self.judge(method, headers)
        if found is not None:
            return found
        said = credentials.given(headers, secure=self.secure)
        assert isinstance(said, Password)
        user = await self.verify(said, client)
        return self._pass(self._by_name(user)) if isinstance(user, User) else user

    async def verify(self, said: Password, client: str) -> User | Refusal:
        """The user whose password this is. After ten wrong guesses one in six seconds is tried.

        Who sends the same one many times at once is verified once.
        """
        self.current()
        asked = (source(client), said)
        running = self._verifying.get(asked)
        if running is None:
            if len(self._verifying) >= _WAITING:
                return too_often(1, "too many passwords are being verified")
            running = asyncio.create_task(self._verify(said, client, asked[0]))
            self._verifying[asked] = running
            running.add_done_callback(lambda _: self._verifying.pop(asked, None))
        return await asyncio.shield(running)

    async def _verify(self, said: Password, client: str, origin: str) -> User | Refusal:
        guesses, all_guesses = self._guesses.of((origin, said.user[:200])), self._addresses.of(origin)
        wait = max(guesses.left(), all_guesses.left())
        if wait:
            self.note("access.guessed", said.user[:200], {"client": client}, said.user[:200], origin)
            return too_often(wait, "too many wrong passwords")
        # a guess counts before it is known to be wrong: verifying is slow, and others come meanwhile
        guesses.take()
        all_guesses.take()
        user = self._known.users.get(said.user)
        kept = user.password if user else ""
        loop = asyncio.get_running_loop()
        right = await loop.run_in_executor(self._argon, verify_password, kept, said.password)
        if user is None or not right:
            return unknown("wrong user or password")
        guesses.give_back()
        all_guesses.give_back()
        self._verified.remember(said, user)
        return user

    def require(self, who: Principal | None, right: str, kind: str = EVERYTHING, name: str = "*") -> None:
        """Raises ``Refused`` unless ``who`` may; None, while authentication is off, may everything."""
        if who is None or who.may(right, kind, name):
            return
        where = kind if kind == EVERYTHING else f"{kind}:{name}"
        if right in _WEIGHTY:
            self.note("access.refused", where, {"right": right}, who.name, who.name)
        raise Refused(
            f"{who.name} may not {right} on {where}",
            hint=f"an admin can allow it: modelkeep roles grant {who.user} ROLE --on {where}",
        )

    def note(self, kind: str, subject: str, data: dict[str, Any], actor: str, origin: str) -> None:
        """Write a refusal into the history, unless there are too many: then the next one tells how many were not.

        Args:
            kind: Of the event.
            subject: Of the event.
            data: Of the event.
            actor: Who was refused.
            origin: Where that comes from, which cannot be made up: an address, or a user that is known.
        """
        untold = self._noted.take(kind, subject, actor, origin)
        if untold is not None:
            self._note(kind, subject, {**data, "not_told": untold} if untold else data, actor)

    def close(self) -> None:
        """End the threads that verify passwords."""
        self._argon.shutdown(wait=False, cancel_futures=True)

    def _stranger(self, headers: Mapping[bytes, bytes], message: str = "") -> Refusal:
        if self._unknown:
            message = "who may ask is not known yet: the database has not been reached"
        elif not self._known.users:
            message = "nobody may come in yet: on the server, modelkeep users add NAME --admin"
        return unknown(message, browser=b"sec-fetch-mode" in headers)

    def _pass(self, who: Principal) -> Pass:
        rate = who.rate or self._rate
        bucket = None
        if rate:
            bucket = self._buckets.get(who.token or who.user)
            if bucket is None or bucket.rate != rate:
                bucket = self._buckets[who.token or who.user] = Bucket(rate, max(rate, 1.0))
        return Pass(self._epoch, who, bucket, self._clock)

    def _by_name(self, user: User) -> Principal:
        found = self._principals.get(user.name)
        if found is None:
            found = self._principals[user.name] = Principal(user.name, of_roles(user.roles))
        return found

    def _by_secret(self, said: Secret) -> Principal | None:
        parts = split(said.text)
        if parts is None:
            return None
        token = self._known.tokens.get(parts[0])
        if token is None or not same(token.digest, parts[1]) or (token.kind == "session") != said.session:
            return None
        found = self._principals.get(f"@{token.key}")
        if found is None:
            found = self._principals[f"@{token.key}"] = _of_token(token, self._known.users[token.user])
        return found


def _of_token(token: Token, user: User) -> Principal:
    return Principal(
        user.name if token.kind == "session" else f"{user.name}/{token.name}",
        of_roles(user.roles),
        of_scopes(token.scopes),
        user=user.name,
        token=token.key,
        session=token.kind == "session",
        until=_FOREVER if token.expires is None else token.expires,
        rate=token.rate,
    )
