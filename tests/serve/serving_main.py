"""A serving process as the application starts it: HOME DATABASE_URL BLOBS_URL [PORT]."""

import logging
import os
import sys
from pathlib import Path

from modelkeep.core import clock
from modelkeep.protocols.serving import ServingDoors
from modelkeep.serve.pressure import ModelsMemory
from modelkeep.serve.worker import run_worker

if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    home, database, blobs, *port = sys.argv[1:]
    run_worker(
        Path(home),
        database,
        blobs,
        host="127.0.0.1",
        port=int(port[0]) if port else 0,
        clock=clock.from_environment(),
        doors=ServingDoors,
        drain=int(os.environ.get("MODELKEEP_DRAIN", "10")),
        models_memory=ModelsMemory(
            int(os.environ.get("MODELKEEP_MODELS_MEMORY", "0")),
            root=Path(os.environ.get("MODELKEEP_TEST_MACHINE", "/")),
        ),
    )
