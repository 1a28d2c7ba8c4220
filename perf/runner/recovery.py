"""Recovery: how long a broker takes from its start to the first acknowledged write, after it was
killed and after an orderly stop, by the bytes and by the partitions that it holds. On the way, what
partitions cost in memory and in open files.
"""

import os
import random
import time

from . import wire
from .broker import Broker
from .child import Usage
from .lifecycle import SETTLE_SECONDS, first_write
from .tool import fill

TOPICS_PER_REQUEST = 20
READ_BACK = 2000
SEED = 1


def take(scenario, recipe, tool, base, folder):
    """The figures of one broker that starts empty, is filled, killed and stopped."""
    log = folder / f"{recipe.name}.log"
    with Broker(recipe, base, log, first_write, scenario.settings) as broker:
        figures = {"metadata_alone_ms": metadata_ms(broker, "first")}
        if scenario.partitions:
            figures |= spread(scenario, broker)
        if scenario.fill:
            for name, partitions in scenario.created():
                broker.create_topic(name, partitions)
            fill(tool, scenario, broker.port, folder)
        figures["open_files"] = len(os.listdir(f"/proc/{broker.pid}/fd"))
        figures["data_gb"] = size(broker.folder) / 1e9
        for how in ("crash", "stop"):
            figures[f"{how}_to_write_ms"] = broker.restart(first_write, how == "crash") * 1e3
            figures[f"{how}_read_mb"] = Usage.of(broker.pid).read_bytes / 1e6
            if scenario.partitions:
                figures["read_back"] = min(figures.get("read_back", 1), read_back(scenario, broker))
        figures["metadata_ms"] = metadata_ms(broker, "first")
        return figures


def spread(scenario, broker):
    """Creates the partitions and writes a record into each."""
    names = [name_of(index) for index in range(scenario.topics)]
    count = scenario.topics * scenario.partitions
    before = Usage.of(broker.pid).rss_bytes
    began = time.monotonic()
    with wire.Connection(broker.port) as connection:
        for first in range(0, len(names), TOPICS_PER_REQUEST):
            connection.create_topics(
                names[first : first + TOPICS_PER_REQUEST], scenario.partitions)
        figures = {"create_s": time.monotonic() - began}
        time.sleep(SETTLE_SECONDS)
        grown = Usage.of(broker.pid).rss_bytes - before
        figures["rss_bytes_per_idle_partition"] = grown / count
        for name in names:
            connection.write_each(name, {at: value(name, at) for at in range(scenario.partitions)})
        time.sleep(SETTLE_SECONDS)
        grown = Usage.of(broker.pid).rss_bytes - before
        figures["rss_bytes_per_written_partition"] = grown / count
    return figures


def name_of(index):
    return f"many-{index}"


def value(name, partition):
    """What is written there, and nowhere else."""
    return f"{name}/{partition}.".encode()


def read_back(scenario, broker):
    """The share of some partitions, chosen by chance, that hold what was written there."""
    chance, right = random.Random(SEED), 0
    with wire.Connection(broker.port) as connection:
        for _ in range(READ_BACK):
            name = name_of(chance.randrange(scenario.topics))
            partition = chance.randrange(scenario.partitions)
            right += value(name, partition) in connection.read(name, partition)
    return right / READ_BACK


def metadata_ms(broker, topic):
    """The median of some answers about one topic."""
    times = []
    with wire.Connection(broker.port) as connection:
        for _ in range(101):
            began = time.monotonic()
            connection.leaders(topic)
            times.append(time.monotonic() - began)
    return sorted(times)[50] * 1e3


def size(folder):
    """Bytes that the files of a folder occupy."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
