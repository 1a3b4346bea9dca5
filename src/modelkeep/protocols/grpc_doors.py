"""The gRPC doors of a serving process: every service over one data plane, on one port."""

from __future__ import annotations

import socket

from modelkeep.protocols.grpc.health import HealthService
from modelkeep.protocols.grpc.server import GrpcServer
from modelkeep.protocols.oip_grpc import service as oip_grpc
from modelkeep.protocols.tfserving import service as tfserving
from modelkeep.serve.dataplane import DataPlane


async def serve(plane: DataPlane, listener: socket.socket, *, max_message: int) -> GrpcServer:
    """Answer gRPC on a listening socket.

    Args:
        max_message: Bytes of the largest message taken.
    """
    health = HealthService(plane, (oip_grpc.SERVICE, tfserving.SERVICE))
    methods = {
        **oip_grpc.InferenceService(plane).methods(),
        **tfserving.PredictionService(plane).methods(),
        **health.methods(),
    }
    server = GrpcServer(methods, max_message=max_message)
    server.stopping.append(health.stop)
    await server.start(listener)
    return server
