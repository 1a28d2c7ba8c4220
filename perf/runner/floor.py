"""The floor: what the machine allows, measured in the same run, before each round.

It is a result as brokers have one, of a broker without a protocol: at the scenario's rate it takes
records from loopback, writes and flushes all that has arrived as one group, and acknowledges it; a
cold read is as fast as the device or loopback, whichever is slower.
"""

import contextlib
import mmap
import os
import socket
import tempfile
import threading
import time

from .scenario import words
from .tool import curve, latency_figures

FLOOR_SECONDS = 9
RECOVERY_SECONDS = 4
# Scenarios below this are about whether the runner works.
SHORT_SECONDS = 5
PIECE = 1 << 20
FILE_PIECES = 1024
READERS = 4
LOOPBACK_SECONDS = 2


def take(scenario, generator, base, folder):
    """The floor for a scenario; nothing where it asks for none."""
    if scenario.kind == "recovery":
        return {"figures": recovery_limits(generator, base, folder)}
    if scenario.kind != "load":
        return {"figures": {}}
    if scenario.mode == "consume":
        return {"figures": read_limits(base, small=scenario.seconds < SHORT_SECONDS)}
    seconds = min(FLOOR_SECONDS, scenario.seconds)
    asked = ["floor", "--duration", f"{seconds}s", "--data-dir", base, *same_load(scenario.load)]
    report = generator.ask(asked, folder, seconds)
    floor = report["floor"]
    figures, curves = waits(floor), {}
    if floor.get("paced_us"):
        figures |= latency_figures("produce", floor["paced_us"])
        curves["produce"] = curve(floor["paced_us"])
    return {"figures": figures, "curves": curves, "raw": report}


def waits(floor):
    figures = {}
    for name in ("loopback", "flush"):
        micros = floor[f"{name}_us"]
        figures |= {f"{name}_p50_ms": micros["p50"] / 1e3, f"{name}_p99_ms": micros["p99"] / 1e3}
    return figures


def recovery_limits(generator, base, folder):
    """What a start after a crash is bound by: reading, and the flush of a first write."""
    asked = ["floor", "--duration", f"{RECOVERY_SECONDS}s", "--data-dir", base]
    floor = generator.ask(asked, folder, RECOVERY_SECONDS)["floor"]
    return waits(floor) | {"device_read_mb_per_s": read_device(base, FILE_PIECES)}


def same_load(load):
    """The options of a load that its floor shares: at a fixed rate, latency at that rate."""
    load = words(load)
    kept = [name for name in ("--rate", "--record-size", "--in-flight") if name in load]
    return [word for name in kept for word in (name, load[load.index(name) + 1])]


def read_limits(base, small):
    pieces = FILE_PIECES // (16 if small else 1)
    device, loopback = read_device(base, pieces), pass_through()
    return {
        "device_read_mb_per_s": device,
        "loopback_mb_per_s": loopback,
        "device_to_loopback_mb_per_s": read_device(base, pieces, sends=True),
        "consume_mb_per_s": min(device, loopback),
    }


def read_device(base, pieces, sends=False):
    """MB/s of direct reads by several threads, of a file that was just written; of such that each
    send what they read to another process, if wanted, and do nothing else with it."""
    with tempfile.NamedTemporaryFile(dir=base, prefix="floor-") as file:
        for _ in range(pieces):
            file.write(os.urandom(PIECE))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with contextlib.ExitStack() as stack:
            use = [stack.enter_context(_drain()) if sends else len for _ in range(READERS)]
            began = time.monotonic()
            readers = [
                threading.Thread(target=_read_every, args=(file.name, first, pieces, use[first]))
                for first in range(READERS)
            ]
            for reader in readers:
                reader.start()
            for reader in readers:
                reader.join()
            return pieces * PIECE / 1e6 / (time.monotonic() - began)


@contextlib.contextmanager
def _drain():
    """Sends to a process of its own, which takes it from loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taker = os.fork()
        if taker == 0:
            _take(server.getsockname())
        with server.accept()[0] as connection:
            yield connection.sendall
        os.waitpid(taker, 0)


def _take(address):
    """In a process of its own: takes what comes, and ends with it."""
    try:
        with socket.create_connection(address) as connection:
            room = bytearray(PIECE)
            while connection.recv_into(room):
                pass
    finally:
        os._exit(0)


def _read_every(path, first, pieces, use):
    """Reads each fourth piece, past the page cache where the file system allows it."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        file = os.open(path, os.O_RDONLY)
    try:
        with mmap.mmap(-1, PIECE) as room:
            for at in range(first, pieces, READERS):
                os.preadv(file, [room], at * PIECE)
                use(room)
    finally:
        os.close(file)


def pass_through():
    """MB/s of one loopback connection from a process to another."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = os.fork()
        if sender == 0:
            _send(server.getsockname())
        with server.accept()[0] as connection:
            room, received, began = bytearray(PIECE), 0, time.monotonic()
            while count := connection.recv_into(room):
                received += count
            seconds = time.monotonic() - began
        os.waitpid(sender, 0)
    return received / 1e6 / seconds


def _send(address):
    """In a process of its own: sends for a while and ends."""
    try:
        with socket.create_connection(address) as connection:
            data, until = bytes(PIECE), time.monotonic() + LOOPBACK_SECONDS
            while time.monotonic() < until:
                connection.sendall(data)
    finally:
        os._exit(0)
