"""The serving process, as a program: ``python -m modelkeep.app.serving --home ... --port ...``."""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path

from modelkeep.app.children import die_with_parent
from modelkeep.app.protection import Protection
from modelkeep.core import clock
from modelkeep.core.errors import ModelkeepError
from modelkeep.protocols.access.accounts import Followed
from modelkeep.protocols.serving import ServingDoors
from modelkeep.serve import pressure
from modelkeep.serve.orders import DRAIN, END
from modelkeep.serve.pressure import ModelsMemory
from modelkeep.serve.worker import open_existing, run_worker


def main(arguments: list[str]) -> int:
    """Serve until told to stop."""
    given = _parser().parse_args(arguments)
    die_with_parent(END)
    time = clock.from_environment()
    protection = Protection(
        auth=given.auth,
        tls_cert=given.tls_cert,
        tls_key=given.tls_key,
        hosts=tuple(given.allowed_host),
        rate=given.rate,
        proxies=tuple(given.trusted_proxy),
    )
    accounts = Followed(lambda: open_existing(given.database), given.home / "serve" / "accounts.json")
    try:
        guard = protection.guard(accounts, time, given.host)
        run_worker(
            given.home,
            given.database,
            given.blobs,
            host=given.host,
            port=given.port,
            clock=time,
            doors=partial(ServingDoors, guard=guard, tls=protection.tls, proxies=protection.proxies),
            drain=given.drain,
            capture_every=given.capture_every,
            grpc_port=given.grpc_port,
            leash=given.leash,
            models_memory=ModelsMemory(given.models_memory, given.models_reserve, given.machine),
        )
    except ModelkeepError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    finally:
        accounts.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Serve what the registry wants served.")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--database", required=True)
    parser.add_argument("--blobs", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--grpc-port", type=int, help="no gRPC without it")
    parser.add_argument("--auth", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second of each user or token")
    parser.add_argument("--allowed-host", action="append", default=[], help="another name to answer to")
    parser.add_argument("--trusted-proxy", action="append", default=[], help="address of a proxy in front")
    parser.add_argument("--tls-cert", type=Path)
    parser.add_argument("--tls-key", type=Path)
    parser.add_argument("--leash", type=int, help="descriptor of the socket to the fleet that hands out listeners")
    parser.add_argument(
        "--models-memory",
        type=int,
        default=int(os.environ.get("MODELKEEP_MODELS_MEMORY", "0")),
        help="bytes that all models may take; those asked longest ago are unloaded; 0 for no limit",
    )
    parser.add_argument(
        "--models-reserve",
        default=os.environ.get(pressure.SETTING, pressure.RESERVE),
        help="what is to be left of the machine, as 5%% or in bytes; models that rest are unloaded for it",
    )
    parser.add_argument("--machine", type=Path, default=Path("/"), help="where proc and sys are")
    parser.add_argument("--drain", type=int, default=DRAIN, help="seconds for what is under way when told to end")
    parser.add_argument("--capture-every", type=float, default=1.0, help="seconds between files of captured rows")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
