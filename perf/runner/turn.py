"""A turn: one scenario put to one broker, from its fresh start to its end.

    start ─► fill ─► (restart, cold) ─► warm up ─► [ measured load ] ─► stop, remove
                                                    ^ usage        ^ usage
"""

from . import lifecycle
from .broker import Broker
from .child import Usage
from .scenario import words
from .tool import Outcome


def take(scenario, recipe, tool, base, folder):
    """A result without its place: figures, curves, notes, raw. `folder` takes the logs."""
    log = folder / f"{recipe.name}.log"
    if scenario.kind == "lifecycle":
        return {"figures": lifecycle.take(scenario, recipe, base, log)}
    with Broker(recipe, base, log, settings=scenario.settings) as broker:
        prepare(scenario, broker, tool, folder)
        before = Usage.of(broker.pid)
        load = words(scenario.load)
        # What reads a backlog would have read it before the measuring began.
        lead = 0 if scenario.fill else tool.lead_seconds
        outcome = tool.run(load, broker.port, scenario.seconds, lead, folder)
        used = Usage.of(broker.pid).since(before)
    return {
        "figures": outcome.figures | used | per_gigabyte(used, outcome),
        "curves": outcome.curves,
        "notes": outcome.notes,
        "raw": outcome.raw,
    }


def prepare(scenario, broker, tool, folder):
    """Everything before the measured load."""
    for load in filter(None, (scenario.fill, scenario.warm, scenario.load)):
        for name, partitions in topics(words(load)):
            broker.create_topic(name, partitions)
    if scenario.fill:
        fill = tool.run(words(scenario.fill), broker.port, scenario.fill_seconds, 0, folder)
        failed = fill.figures.get("failed_records", 0)
        if failed:
            raise RuntimeError(f"{failed} records were lost while filling")
    if scenario.restart:
        broker.restart()
    # The measured load itself would read the backlog that it is about.
    warm = scenario.warm or ("" if scenario.fill else scenario.load)
    if warm and scenario.warm_up:
        tool.run(words(warm), broker.port, scenario.warm_up, 0, folder)


def topics(load):
    """The topics of a load with their numbers of partitions."""
    def option(name, otherwise):
        return load[load.index(name) + 1] if name in load[:-1] else otherwise

    name, count = option("--topic", "load"), int(option("--topics", "1"))
    names = [name] if count == 1 else [f"{name}-{index}" for index in range(count)]
    return [(name, int(option("--partitions", "1"))) for name in names]


def per_gigabyte(used, outcome: Outcome):
    """CPU seconds of the broker per GB of values, where only one direction was used."""
    both = {"produced": outcome.produced_bytes, "consumed": outcome.consumed_bytes}
    active = {way: amount for way, amount in both.items() if amount}
    if len(active) != 1:
        return {}
    (way, amount), = active.items()
    return {f"cpu_s_per_gb_{way}": used["cpu_s"] / (amount / 1e9)}
