"""The gRPC doors of a serving process: every service over one data plane, on one port."""

from __future__ import annotations

import socket
import ssl

from modelkeep.protocols.grpc.health import HealthService
from modelkeep.protocols.grpc.server import Doorman, GrpcServer
from modelkeep.protocols.oip_grpc import service as oip_grpc
from modelkeep.protocols.tfserving import service as tfserving
from modelkeep.serve.dataplane import DataPlane


async def serve(
    plane: DataPlane,
    listener: socket.socket,
    *,
    max_message: int,
    doorman: Doorman | None = None,
    tls: ssl.SSLContext | None = None,
) -> GrpcServer:
    """Answer gRPC on a listening socket.

    Args:
        max_message: Bytes of the largest message taken.
        doorman: Who may call; None for everybody.
        tls: Offers ``h2`` by ALPN.
    """
    health = HealthService(plane, (oip_grpc.SERVICE, tfserving.SERVICE))
    methods = {
        **oip_grpc.InferenceService(plane).methods(),
        **tfserving.PredictionService(plane).methods(),
        **health.methods(),
    }
    server = GrpcServer(methods, max_message=max_message, doorman=doorman, turns=plane.turns)
    server.stopping.append(health.stop)
    await server.start(listener, tls)
    return server
