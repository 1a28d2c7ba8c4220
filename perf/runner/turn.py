"""A turn: one scenario put to one broker, from its fresh start to its end.

    start ─► fill ─► (restart, cold) ─► warm up ─► [ measured load ] ─► stop, remove
                                                    ^ usage        ^ usage
                                                   (a load beside it)

    or the load beside, what it needs, and one that keeps writing are put to another broker
"""

import contextlib

from . import beside, lifecycle, recovery
from .broker import Broker
from .child import Usage
from .scenario import words
from .tool import Outcome, fill


BACKLOG_MODES = ("consume", "mixed")


def take(scenario, recipe, tool, base, folder):
    """A result without its place: figures, curves, notes, raw. `folder` takes the logs."""
    log = folder / f"{recipe.name}.log"
    if scenario.kind == "lifecycle":
        return {"figures": lifecycle.take(scenario, recipe, base, log)}
    if scenario.kind == "recovery":
        return {"figures": recovery.take(scenario, recipe, tool, base, folder)}
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(Broker(recipe, base, log, settings=scenario.settings))
        other = stack.enter_context(second(scenario, recipe, base, log)) or broker
        prepare(scenario, broker, other, tool, folder)
        stack.enter_context(beside.kept(scenario, other, tool, folder))
        before = Usage.of(broker.pid)
        load = words(scenario.load)
        # What reads a backlog would have read it before the measuring began.
        reads_backlog = scenario.fill and scenario.mode in BACKLOG_MODES
        lead = 0 if reads_backlog else tool.lead_seconds
        with beside.running(scenario, other, tool, lead, folder) as turns:
            outcome = tool.run(load, broker.port, scenario.seconds, lead, folder)
        used = Usage.of(broker.pid).since(before)
        moved = turns.figures(outcome.raw) if turns else {}
    return {
        "figures": outcome.figures | moved | used | per_gigabyte(used, outcome),
        "curves": outcome.curves,
        "notes": outcome.notes,
        "raw": outcome.raw,
    }


def second(scenario, recipe, base, log):
    """The broker of a load that runs apart; None where it is the measured one."""
    if not scenario.apart:
        return contextlib.nullcontext()
    return Broker(recipe, base, log.with_suffix(".apart.log"), settings=scenario.settings)


def prepare(scenario, broker, other, tool, folder):
    """Everything before the measured load, which is `broker`'s; `other` is filled."""
    for name, partitions in scenario.created():
        for one in {broker, other}:
            one.create_topic(name, partitions)
    if scenario.fill:
        fill(tool, scenario, other.port, folder)
    if scenario.restart:
        other.restart()
    # The measured load itself would read the backlog that it is about.
    warm = scenario.warm or ("" if scenario.fill else scenario.load)
    if warm and scenario.warm_up:
        tool.run(words(warm), broker.port, scenario.warm_up, 0, folder)


def per_gigabyte(used, outcome: Outcome):
    """CPU seconds of the broker per GB of values, where only one direction was used."""
    both = {"produced": outcome.produced_bytes, "consumed": outcome.consumed_bytes}
    active = {way: amount for way, amount in both.items() if amount}
    if len(active) != 1:
        return {}
    (way, amount), = active.items()
    return {f"cpu_s_per_gb_{way}": used["cpu_s"] / (amount / 1e9)}
