"""A child that is told to end closes what it has opened, and ends in any case."""

from __future__ import annotations

import signal
import subprocess
import sys

import psutil
import pytest

from small import until

BEGIN = """
import hashlib, sys, time
from modelkeep.app.children import end_when_told
heard = end_when_told(float(sys.argv[1]))
def lost():
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        pass  # as in a callback, whose errors are not passed on
try:
    print("ready", flush=True)
    {work}
except KeyboardInterrupt:
    heard()
    print("closed", flush=True)
"""
LOST, IN_A_LIBRARY = "lost(); time.sleep(600)", "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"


@pytest.mark.parametrize(
    ("work", "busy", "grace", "said"), [(LOST, 0, "600", "closed\n"), (IN_A_LIBRARY, 0.3, "0.1", "")]
)
def test_it_ends(work, busy, grace, said):
    words = [sys.executable, "-c", BEGIN.format(work=work), grace]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        there, before = psutil.Process(process.pid), psutil.Process(process.pid).cpu_times().user
        until(lambda: there.cpu_times().user >= before + busy, limit=60)
        for _ in range(3):
            process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60)[0] == said
    finally:
        process.kill()
