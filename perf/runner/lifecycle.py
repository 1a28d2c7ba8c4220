"""What a broker costs while it does nothing: start-up, idle CPU, memory at rest, memory of each
partition and each connection.
"""

import contextlib
import time

from . import wire
from .broker import Broker
from .child import Usage

# After each step, so that what it caused has come to its end.
SETTLE_SECONDS = 2


def take(scenario, recipe, base, log):
    """The figures of one fresh broker."""
    settle = min(SETTLE_SECONDS, scenario.idle_seconds)
    with Broker(recipe, base, log, first_write, scenario.settings) as broker:
        figures = {"start_to_write_ms": broker.started_s * 1e3}
        time.sleep(settle)
        before = Usage.of(broker.pid)
        time.sleep(scenario.idle_seconds)
        after = Usage.of(broker.pid)
        figures["idle_cpu_percent"] = after.since(before)["cpu_cores"] * 100
        figures["idle_rss_mb"] = after.rss_bytes / 1e6
        if scenario.partitions:
            broker.create_topic("many", scenario.partitions)
            figures["rss_kb_per_partition"] = growth(broker, after, scenario.partitions, settle)
        if scenario.connections:
            before = Usage.of(broker.pid)
            with connected(broker.port, scenario.connections):
                figures["rss_kb_per_connection"] = growth(
                    broker, before, scenario.connections, settle
                )
        return figures


def first_write(broker):
    """The first thing that a user waits for: a record that is acknowledged."""
    broker.create_topic("first", 1)
    broker.write("first", 0, b"hello")


def growth(broker, before, count, settle):
    """Kilobytes of resident memory that each of `count` things cost."""
    time.sleep(settle)
    return (Usage.of(broker.pid).rss_bytes - before.rss_bytes) / count / 1e3


@contextlib.contextmanager
def connected(port, count):
    """So many connections, each of which has asked and been answered."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(wire.Connection(port)).greet()
        yield
