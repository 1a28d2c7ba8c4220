"""The floor: what the machine allows, measured in the same run, before each round.

It is a result as brokers have one, with the figures of a broker that does nothing but pass bytes
on: a write takes a loopback round trip and a write with its flush; a cold read is as fast as the
device or loopback, whichever is slower.
"""

import mmap
import os
import socket
import tempfile
import threading
import time
from pathlib import Path

PIECE = 1 << 20
FILE_PIECES = 1024
READERS = 4
LOOPBACK_SECONDS = 2


def take(scenario, generator, base, folder):
    """The floor for a scenario; nothing where it asks for none."""
    if scenario.kind != "load":
        return {"figures": {}}
    figures, raw = {}, None
    if scenario.mode != "consume":
        seconds = min(10, scenario.seconds)
        words = ["floor", "--duration", f"{seconds}s", "--data-dir", base]
        raw = generator.ask(words, folder, seconds)
        figures |= figures_of(raw)
    else:
        figures |= read_limits(base, small=scenario.seconds < 5)
    return {"figures": figures, "raw": raw}


def read_limits(base, small):
    device, loopback = read_device(base, FILE_PIECES // (16 if small else 1)), pass_through()
    return {
        "device_read_mb_per_s": device,
        "loopback_mb_per_s": loopback,
        "consume_mb_per_s": min(device, loopback),
    }


def read_device(base, pieces):
    """MB/s of direct reads by several threads, of a file that was just written."""
    with tempfile.NamedTemporaryFile(dir=base, prefix="floor-") as file:
        for _ in range(pieces):
            file.write(os.urandom(PIECE))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.monotonic()
        readers = [
            threading.Thread(target=_read_every, args=(file.name, first, pieces))
            for first in range(READERS)
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        return pieces * PIECE / 1e6 / (time.monotonic() - began)


def _read_every(path, first, pieces):
    """Reads each fourth piece, past the page cache where the file system allows it."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        file = os.open(path, os.O_RDONLY)
    try:
        with mmap.mmap(-1, PIECE) as room:
            for at in range(first, pieces, READERS):
                os.preadv(file, [room], at * PIECE)
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
