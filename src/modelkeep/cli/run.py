"""``up``, ``serve`` and ``demo``: what keeps running."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from modelkeep.cli.common import declared, example, file_option, json_option
from modelkeep.cli.output import print_json, say

if TYPE_CHECKING:
    from modelkeep.app.protection import Protection
    from modelkeep.app.up import Addresses

F = TypeVar("F", bound=Callable[..., Any])
_PORT = click.IntRange(0, 65535)
_GRPC_PORT = click.option(
    "--grpc-port", type=_PORT, show_default="8081; 0 if that of HTTP is", help="Serving, gRPC."
)
_PROTECTION = (
    click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind."),
    click.option(
        "--auth",
        type=click.Choice(["auto", "on", "off"]),
        default="auto",
        show_default=True,
        help="Whether clients must say who they are; auto: once there is a user, and always beyond this machine.",
    ),
    click.option("--tls-cert", type=click.Path(path_type=Path), help="PEM file: speak TLS with this certificate."),
    click.option("--tls-key", type=click.Path(path_type=Path), help="PEM file: its key."),
    click.option("--allowed-host", "hosts", multiple=True, help="Another name to answer to; may be repeated."),
    click.option(
        "--trusted-proxy",
        "proxies",
        multiple=True,
        help="Address or network of a proxy in front, whose X-Forwarded-For and -Proto count; may be repeated.",
    ),
    click.option(
        "--rate-limit",
        "rate",
        type=float,
        default=0.0,
        help="Requests a second of each user or token; 0: no limit.",
    ),
)


def protected(command: F) -> F:
    """Where a server listens and who may ask, as ``host`` and the fields of ``app.protection.Protection``."""
    for option in reversed(_PROTECTION):
        command = option(command)
    return command


@click.command(
    epilog=example(
        "modelkeep up",
        "modelkeep up --port 0 --serve-port 0       # free ports; which ones is said",
        "modelkeep up --no-loop                     # serve, but do not watch and renew",
        "modelkeep up --no-serve                    # control alone",
        "modelkeep up --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem   # for others; needs an admin",
    )
)
@click.option("--port", type=_PORT, default=5000, show_default=True, help="Control; 0 picks one.")
@click.option("--serve-port", type=_PORT, default=8080, show_default=True, help="Serving, HTTP.")
@_GRPC_PORT
@click.option("--no-serve", is_flag=True, help="Start no serving process.")
@click.option("--no-loop", is_flag=True, help="Do not watch and renew.")
@protected
@file_option
@json_option
def up(
    *,
    host: str,
    port: int,
    serve_port: int,
    grpc_port: int | None,
    no_serve: bool,
    no_loop: bool,
    file: Path,
    as_json: bool,
    **protection: Any,
) -> None:
    """Serve, watch, and keep applying by evidence until told to stop (Ctrl-C or SIGTERM)."""
    from modelkeep.app.protection import Protection
    from modelkeep.app.settings import settings
    from modelkeep.app.up import Options
    from modelkeep.app.up import up as run

    base, blobs = _project(file)
    chosen = Protection(**protection)
    options = Options(
        host=host,
        port=port,
        serve_port=serve_port,
        grpc_port=_beside(serve_port) if grpc_port is None else grpc_port,
        serve=not no_serve,
        loop=not no_loop,
        protection=chosen,
    )

    def ready(addresses: Addresses) -> None:
        if as_json:
            told = {"control": addresses.control, "serving": addresses.serving, "grpc": addresses.grpc}
            print_json(told, one_line=True)
            return
        say(f"[green]up[/]  control  [bold]{addresses.control}[/]")
        if addresses.serving:
            say(f"    serving  [bold]{addresses.serving}[/]")
            say(f"    gRPC     [bold]{addresses.grpc}[/]")
        say("    stop with Ctrl-C")
        sys.stdout.flush()

    _until_stopped(chosen, host, lambda: run(settings(base, blobs=blobs), base, options, ready))


@click.command(
    epilog=example(
        "modelkeep serve                            # beside it: modelkeep up --no-serve",
        "modelkeep serve --port 0                   # free ports; which ones is said",
        "modelkeep serve --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem   # for others; needs an admin",
    )
)
@click.option("--port", type=_PORT, default=8080, show_default=True, help="HTTP; 0 picks one.")
@_GRPC_PORT
@protected
@file_option
@json_option
def serve(*, host: str, port: int, grpc_port: int | None, file: Path, as_json: bool, **protection: Any) -> None:
    """Serve what the registry wants served, without control: so that may be stopped or renewed beside it.

    Starts from the home's own copies while the database is away.
    """
    from modelkeep.app import serve as app
    from modelkeep.app.protection import Protection
    from modelkeep.app.settings import settings

    base, blobs = _project(file)
    chosen = Protection(**protection)
    options = app.Options(host, port, _beside(port) if grpc_port is None else grpc_port, chosen)

    def ready(serving: str, grpc: str) -> None:
        if as_json:
            print_json({"serving": serving, "grpc": grpc}, one_line=True)
            return
        say(f"[green]serving[/]  [bold]{serving}[/]")
        say(f"gRPC     [bold]{grpc}[/]")
        say("stop with Ctrl-C")
        sys.stdout.flush()

    _until_stopped(chosen, host, lambda: app.serve(settings(base, blobs=blobs), options, ready))


def _until_stopped(chosen: Protection, host: str, work: Callable[[], None]) -> None:
    """Run what ends when it is told to, after what its keeper should know of how it is protected."""
    from modelkeep.app.protection import warnings
    from modelkeep.app.up import stop_on_terminate

    for warning in warnings(chosen, host):
        click.echo(warning, err=True)
    stop_on_terminate()
    with contextlib.suppress(KeyboardInterrupt):  # being told to stop is how this ends well
        work()


def _project(file: Path) -> tuple[Path, str]:
    """A declaration's folder, and the blobs it names."""
    return (file if file.is_dir() else file.parent).resolve(), declared(file).blobs if file.is_file() else ""


def _beside(port: int) -> int:
    """The port of gRPC where nothing else is said."""
    return 8081 if port else 0


@click.command(
    epilog=example(
        "modelkeep demo           # about three minutes; then the server stays up",
        "modelkeep demo --exit    # end after the story",
    )
)
@click.option("--exit", "end", is_flag=True, help="End after the story instead of leaving the server up.")
@json_option
def demo(end: bool, as_json: bool) -> None:
    """Watch a model live through a year of real flights: trained, served, drifting, renewed, proved, promoted."""
    from modelkeep.app.demo.run import run as play

    play(end=end, as_json=as_json)
