"""Plays systemd for one service: its NOTIFY_SOCKET, and the store of descriptors that outlives it.

    python3 fd_store.py NOTIFY_SOCKET COMMAND [ARGUMENT]...

Reads one word a line and answers each with one line of JSON:
    start   starts COMMAND with what is stored, and waits for its READY=1: {"pid": …}
    kill    SIGKILL to it alone, as a crash would be: {"status": …}
    stop    SIGTERM: {"status": …}
    names   what is stored, sorted: {"names": […]}
At the end of its input it kills the service and closes what is stored.
"""

import array
import json
import os
import signal
import socket
import sys
import threading

FIRST_FD = 3
READY_SECONDS = 30

address, command = sys.argv[1], sys.argv[2:]
stored = {}
lock = threading.Lock()
ready = threading.Event()
child = 0


def listen():
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind(address)
    threading.Thread(target=take, args=(receiver,), daemon=True).start()


def take(receiver):
    while True:
        data, ancillary, _, _ = receiver.recvmsg(4096, socket.CMSG_SPACE(16 * 4))
        fds = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        lines = dict(line.split("=", 1) for line in data.decode().splitlines())
        with lock:
            if lines.get("FDSTORE") == "1":
                for fd in fds:
                    stored.setdefault(lines["FDNAME"], []).append(fd)
            elif lines.get("FDSTOREREMOVE") == "1":
                for fd in stored.pop(lines["FDNAME"], []):
                    os.close(fd)
        if lines.get("READY") == "1":
            ready.set()


def start():
    global child
    ready.clear()
    with lock:
        named = [(name, fd) for name, fds in sorted(stored.items()) for fd in fds]
        child = os.fork()
        if child == 0:
            environment = {**os.environ, "NOTIFY_SOCKET": address}
            if named:
                # Out of the way first, so that none is overwritten before it was moved.
                moved = [os.dup(fd) for _, fd in named]
                high = [os.dup2(fd, 1000 + i, inheritable=False) for i, fd in enumerate(moved)]
                for i, fd in enumerate(high):
                    os.dup2(fd, FIRST_FD + i)
                environment["LISTEN_PID"] = str(os.getpid())
                environment["LISTEN_FDS"] = str(len(named))
                environment["LISTEN_FDNAMES"] = ":".join(name for name, _ in named)
            os.closerange(FIRST_FD + len(named), 4096)
            os.execvpe(command[0], command, environment)
    if not ready.wait(READY_SECONDS):
        return {"error": "no READY=1"}
    return {"pid": child}


def end(number):
    global child
    os.kill(child, number)
    _, status = os.waitpid(child, 0)
    child = 0
    return {"status": os.waitstatus_to_exitcode(status)}


def names():
    with lock:
        return {"names": sorted(stored)}


listen()
answers = {
    "start": start,
    "kill": lambda: end(signal.SIGKILL),
    "stop": lambda: end(signal.SIGTERM),
    "names": names,
}
for line in sys.stdin:
    print(json.dumps(answers[line.strip()]()), flush=True)
if child != 0:
    end(signal.SIGKILL)
