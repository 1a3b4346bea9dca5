"""What the project measures: us and the peer side by side, ratios out."""

import signal
import sys


def stop_well() -> None:
    """Let a benchmark that is asked to end, as ``timeout`` does, end the servers it started too."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
