"""Which sidecar a client takes when nobody says: the first that it may use, looked for anew until one has answered."""

import os
import shutil
import socket
import tempfile
import threading
import time

from bobbin_loader import Plan, connection, stream  # noqa: F401  (all of it, before this process is somebody else)
from checks import check, equal, options, refused

given = options()
sidecar = os.environ.pop("BOBBIN_SIDECAR")[len("unix:") :]
NOBODY = 65534
# Nothing that is asked for here may take so long.
LONG_S = 600


def listen(path, mode):
    """A socket that passes everything on to the sidecar."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    server = socket.socket(socket.AF_UNIX)
    server.bind(path + ".new")
    os.chmod(path + ".new", mode)
    server.listen()
    os.rename(path + ".new", path)
    threading.Thread(target=accept, args=(server,), daemon=True).start()


def accept(server):
    while True:
        client, _ = server.accept()
        upstream = socket.socket(socket.AF_UNIX)
        upstream.connect(sidecar)
        for source, target in ((client, upstream), (upstream, client)):
            threading.Thread(target=pump, args=(source, target), daemon=True).start()


def pump(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    for end in (source, target):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def as_somebody(work):
    """In a child that is not root, whom no mode would stop."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        work()
        os._exit(0)
    except BaseException as error:
        check("nothing else goes wrong", False, error)
        os._exit(1)


def create(**more):
    return Plan.create(given["reference"], global_batch=24, seed=7, **more)


def main(folder):
    os.chmod(folder, 0o755)
    own, unit = f"{folder}/cache/loader/loader.sock", f"{folder}/run/loader.sock"
    os.environ["BOBBIN_CACHE"] = f"{folder}/cache"
    connection._UNIT_SOCKET = unit
    listen(unit, 0o000)

    def comes_later():
        wanted = f"{folder}/cache/wanted"
        while not os.path.exists(wanted):
            time.sleep(0.05)
        # When the client has looked at least once.
        time.sleep(0.5)
        listen(own, 0o666)

    os.makedirs(os.path.dirname(own))
    os.chmod(f"{folder}/cache", 0o777)
    threading.Thread(target=comes_later, daemon=True).start()

    def starts_first():
        open(f"{folder}/cache/wanted", "w").close()
        plan = create(patience=LONG_S)
        equal("a client that starts before its user's loader finds it when it comes", str(plan.address), f"unix:{own}")
        equal("and reads from it", sum(len(batch.samples) for batch in plan.batches(transport="tar")) > 0, True)

    as_somebody(starts_first)

    def may_not():
        with refused("a socket that may not be opened is not asked again", "SIDECAR_UNREACHABLE", unit, "may not"):
            create(sidecar=f"unix:{unit}", patience=LONG_S)
        with refused("nor are two", "SIDECAR_UNREACHABLE", own, unit, "Permission denied"):
            create(patience=LONG_S)

    os.chmod(own, 0o000)
    as_somebody(may_not)
    os.unlink(own)

    def waits():
        words = (f"there is no socket {own}", f"may not open {unit}", "BOBBIN_SIDECAR")
        with refused("the error says what was looked at", "SIDECAR_UNREACHABLE", *words):
            create(patience=0.2)

    as_somebody(waits)

    def takes_the_units():
        plan = create(patience=LONG_S)
        equal("the unit's, where it may be opened", str(plan.address), f"unix:{unit}")
        # The plan stays where it was made, though the other is there by now.
        os.symlink(unit, own)
        equal("and that is where the plan's batches come from", str(plan.address), f"unix:{unit}")
        next(plan.batches(transport="tar")).samples

    os.chmod(unit, 0o666)
    os.chmod(os.path.dirname(own), 0o777)
    as_somebody(takes_the_units)


if __name__ == "__main__":
    folder = tempfile.mkdtemp()
    try:
        main(folder)
    finally:
        shutil.rmtree(folder)
