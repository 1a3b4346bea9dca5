"""``up`` and ``demo``: what keeps running."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelkeep.cli.common import declared, example, file_option, json_option
from modelkeep.cli.output import print_json, say

if TYPE_CHECKING:
    from modelkeep.app.up import Addresses

_PORT = click.IntRange(0, 65535)


@click.command(
    epilog=example(
        "modelkeep up",
        "modelkeep up --port 0 --serve-port 0       # free ports; which ones is said",
        "modelkeep up --no-loop                     # serve, but do not watch and renew",
        "modelkeep up --no-serve                    # control alone",
    )
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind.")
@click.option("--port", type=_PORT, default=5000, show_default=True, help="Control; 0 picks one.")
@click.option("--serve-port", type=_PORT, default=8080, show_default=True, help="Serving, HTTP.")
@click.option(
    "--grpc-port",
    type=_PORT,
    show_default="8081; 0 if --serve-port is",
    help="Serving, gRPC.",
)
@click.option("--no-serve", is_flag=True, help="Start no serving process.")
@click.option("--no-loop", is_flag=True, help="Do not watch and renew.")
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
) -> None:
    """Serve, watch, and keep applying by evidence until told to stop (Ctrl-C or SIGTERM)."""
    from modelkeep.app.settings import settings
    from modelkeep.app.up import Options, stop_on_terminate
    from modelkeep.app.up import up as run

    base = (file if file.is_dir() else file.parent).resolve()
    blobs = declared(file).blobs if file.is_file() else ""
    if grpc_port is None:
        grpc_port = 8081 if serve_port else 0
    options = Options(
        host=host, port=port, serve_port=serve_port, grpc_port=grpc_port, serve=not no_serve, loop=not no_loop
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

    stop_on_terminate()
    with contextlib.suppress(KeyboardInterrupt):  # being told to stop is how this ends well
        run(settings(base, blobs=blobs), base, options, ready)


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
