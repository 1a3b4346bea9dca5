"""What nobody may have without end: guesses, lines of the history, memory; and what would let them begin anew."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from safety_site import PASSWORD, Site, site

from modelkeep.app.protection import Protection, checked
from modelkeep.core.errors import Invalid
from modelkeep.protocols.access import guard, limits
from modelkeep.protocols.access.accounts import FRESH
from modelkeep.protocols.access.hosts import Hosts
from modelkeep.protocols.access.limits import Noted, source
from small import until

GET = "/api/2.0/mlflow/experiments/get?experiment_id=0"


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns come back so slowly that a slow machine sees it too."""
    monkeypatch.setattr(guard, "_GUESSES", (1 / 3600, 4.0))
    monkeypatch.setattr(guard, "_GUESSES_OF_ADDRESS", (1 / 3600, 6.0))
    monkeypatch.setattr(limits, "_OF_ONE", (1 / 3600, 10.0))


@pytest.fixture
def own(tmp_path: Path, slowly: None) -> Iterator[Site]:
    with site(tmp_path) as found:
        yield found


def guess(own: Site, user: str, password: str, **headers: str) -> int:
    return httpx.get(own.address + GET, auth=(user, password), headers=headers, timeout=60).status_code


def test_guesses_at_once_are_counted_like_those_one_after_the_other(own: Site) -> None:
    with ThreadPoolExecutor(30) as pool:
        found = list(pool.map(lambda number: guess(own, "root", f"wrong number {number}"), range(30)))
    assert sorted(found) == [401] * 4 + [429] * 26


def test_who_is_right_many_times_at_once_is_not_kept_out(own: Site) -> None:
    with ThreadPoolExecutor(30) as pool:
        found = list(pool.map(lambda _: guess(own, "root", PASSWORD), range(30)))
    assert found == [200] * 30


def test_right_passwords_leave_the_guesses_that_are_left(own: Site) -> None:
    for _ in range(6):
        answer = httpx.post(own.address + "/sign-in", data={"user": "root", "password": PASSWORD}, timeout=60)
        assert answer.status_code == 303
    assert guess(own, "root", "wrong wrong wrong") == 401


def test_nobody_is_another_by_saying_so(own: Site) -> None:
    found = [guess(own, f"user{n}", "x", **{"x-forwarded-for": f"10.0.0.{n}"}) for n in range(8)]
    assert found[-1] == 429


def test_a_proxy_that_is_trusted_says_who_asks(tmp_path: Path, slowly: None) -> None:
    with site(tmp_path, protection=Protection(proxies=("127.0.0.0/8",))) as own:
        found = [guess(own, f"user{n}", "x", **{"x-forwarded-for": f"10.0.0.{n}"}) for n in range(8)]
        assert found == [401] * 8
        found = [guess(own, f"user{n}", "x", **{"x-forwarded-for": f"10.0.0.{n}, 10.9.9.9"}) for n in range(8)]
        assert found[-1] == 429, "the last address is what the proxy saw, those before are what the client said"


@pytest.mark.parametrize("wrong", ["*", "proxy.example", "10.0.0.0/33", ""])
def test_a_proxy_is_named_by_its_address(wrong: str) -> None:
    with pytest.raises(Invalid, match="trusted-proxy"):
        checked(Protection(proxies=(wrong,)), "127.0.0.1", list)


def test_networks_that_one_client_has_are_one_client() -> None:
    assert source("2001:db8:1:2::1") == source("2001:db8:1:2:ffff::9") != source("2001:db8:1:3::1")
    assert source("::ffff:10.0.0.1") == source("10.0.0.1") != source("10.0.0.2")
    assert source("fe80::1%eth0") == source("fe80::2") and source("") == "" and source("unix") == "unix"


def test_guesses_do_not_fill_the_history(own: Site) -> None:
    with httpx.Client(base_url=own.address, timeout=60) as client:
        for number in range(120):
            client.get(GET, auth=(f"user{number}", "x"))
    until(lambda: own.history("access.guessed"))
    time.sleep(0.1)
    assert 1 <= len(own.history("access.guessed")) <= 10


def test_refusals_of_one_user_do_not_fill_the_history(own: Site) -> None:
    own.add("reader", "reader")
    time.sleep(FRESH)
    for number in range(60):
        said = {"name": f"m{number}", "alias": "a", "version": "1"}
        assert own.mlflow("reader", "POST", "registered-models/alias", **said).status_code == 403
    until(lambda: own.history("access.refused"))
    time.sleep(0.1)
    assert 1 <= len(own.history("access.refused")) <= 10


def test_what_is_not_told_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(limits.time, "monotonic", lambda: now[0])
    noted = Noted()
    assert noted.take("guessed", "anna", "anna", "10.0.0.1") == 0
    assert [noted.take("guessed", "anna", "anna", "10.0.0.1") for _ in range(5)] == [None] * 5
    assert noted.take("guessed", "bob", "bob", "10.0.0.1") == 5
    assert [noted.take("guessed", f"u{n}", f"u{n}", "10.0.0.1") for n in range(50)].count(None) == 42
    told = [noted.take("guessed", "x", f"u{n}", f"10.0.1.{n}") for n in range(200)]
    assert told[0] == 42 and told.count(None) == 110, "a hundred in all"
    now[0] += 60
    assert noted.take("guessed", "anna", "anna", "10.0.0.1") == 110


def test_what_is_remembered_of_strangers_is_short() -> None:
    hosts = Hosts()
    assert hosts.fault("GET", {b"host": b"a" * 60_000})
    assert hosts.fault("GET", {b"host": b"localhost", b"origin": b"http://" + b"a" * 60_000})
    assert not hosts._found
