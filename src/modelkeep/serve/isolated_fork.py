"""The program that runs models in processes of their own: ``python -m modelkeep.serve.isolated_fork KIND FD``.

It imports once what models of its kind need, then forks a process for each that is asked for, so that a new one is
there in milliseconds. It runs no model itself. Everything ends with the serving process: this program when its
socket closes, even by kill -9, and its children when it ends.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from modelkeep.core.ports import Model
from modelkeep.formats import runtimes
from modelkeep.formats.batch import Layout
from modelkeep.formats.manifest import Folder
from modelkeep.formats.outputs import form_of
from modelkeep.serve import isolated_wire as wire
from modelkeep.serve import memory
from modelkeep.serve.isolated_wire import Arena, Note, Order, Told

_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str]) -> int:
    """Fork for every order until the socket closes."""
    kind, fd = arguments
    # a terminal's Ctrl-C and an orchestrator's SIGTERM are for the serving process, which drains first
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    runtimes.prepare(kind)
    gc.collect()
    gc.freeze()
    _serve(socket.socket(fileno=int(fd)))
    return 0


def _serve(control: socket.socket) -> None:
    running: set[int] = set()
    own = os.getpid()

    def reap(number: int, frame: Any) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            running.discard(pid)
            try:
                wire.send(control, Note(pid, os.waitstatus_to_exitcode(status)))
            except OSError:
                pass  # nobody is left to hear of it

    signal.signal(signal.SIGCHLD, reap)
    while (given := _next(control)) is not None:
        order, fds = given
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        pid = os.fork()
        if pid == 0:
            _child(own, control, order, fds)
        if order is not None:
            running.add(pid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        for fd in fds:
            os.close(fd)
    for pid in running:
        os.kill(pid, signal.SIGKILL)


def _next(control: socket.socket) -> tuple[Order | None, list[int]] | None:
    """The next order with its socket and its memory; a socket alone for a deputy; None at the end."""
    head, fds, _, _ = socket.recv_fds(control, 4, 2)
    if len(head) < 4 or not fds:
        return None
    data = wire.exactly(control, int.from_bytes(head, "little"))
    return (msgspec.msgpack.decode(data, type=Order) if data else None), fds


def _child(parent: int, control: socket.socket, order: Order | None, fds: list[int]) -> NoReturn:
    """Be the process of a model, or a deputy, which waits with all its imports until this program dies."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        control.close()
        if order is not None:
            code = _become(parent, order, *fds)
        else:
            _serve(socket.socket(fileno=fds[0]))
            code = 0
    finally:
        os._exit(code)


def _become(parent: int, order: Order, data: int, shared: int) -> int:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        return 1
    _limit(order.memory)
    with socket.socket(fileno=data) as sock:
        return _work(sock, Arena(shared), order)


def _limit(most: int) -> None:
    """Let allocations beyond ``most`` bytes more than there are now fail, rather than the machine."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[5])
    except (OSError, IndexError):
        return  # not Linux: only what is resident is watched, from outside
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = pages * resource.getpagesize() + most
    if hard == resource.RLIM_INFINITY or wanted < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


def _work(sock: socket.socket, arena: Arena, order: Order) -> int:
    """Load, say so, and answer until the socket closes."""
    pid = os.getpid()
    try:
        files = Folder(Path(order.folder))
        model = runtimes.load(files, trusted=order.trusted)
        layout = Layout(runtimes.signature(files))
    except Exception as error:
        wire.send(sock, Told(pid, fault=wire.fault_of(error)))
        return 1
    wire.send(sock, Told(pid))
    gc.collect()
    gc.freeze()
    memory.give_back()
    while True:
        try:
            data = wire.receive(sock)
        except (EOFError, OSError):
            return 0
        try:
            said = _answered(pid, model, layout, arena, data)
        except Exception as error:
            said = Told(pid, fault=wire.fault_of(error))
        try:
            wire.send(sock, said)
        except OSError:
            return 0


def _answered(pid: int, model: Model, layout: Layout, arena: Arena, data: bytes) -> Told:
    """Predict the batch that lies in shared memory, and lay the answer there."""
    batch = wire.take_batch(arena, layout, data)
    found = model.predict(batch)
    return Told(pid, wire.put_answer(arena, found, batch.numbers), form=form_of(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
