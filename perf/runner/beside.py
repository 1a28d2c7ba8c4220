"""A load beside the measured one: throughout, or by turns, so that one run tells with and without.

    the load beside     runs ──── stands ──│─ stands ── runs ────│─ …    by SIGSTOP and SIGCONT
    seconds measured    . w w w . o o o o .│. o o o o . w w w w .│ …     . is a change: not counted

Between two runs a shared machine moves a p99 more than the load beside does; within one run, what
it does falls on both sides. Turns come in pairs, each in random order: what the machine does every
few seconds, or over minutes, is then no part of the ratio but of its spread, which is taken from
the pairs by drawing them anew (Efron, Bootstrap Methods, 1979).
"""

import contextlib
import json
import random
import shutil
import signal
import statistics
import threading
import time
from pathlib import Path

from .child import Usage
from .scenario import words
from .tool import BESIDE, SHARES

# A load beside another is stopped; by itself it would end so much later.
MORE_SECONDS = 30
# So much later than a change the clocks of runner and load tool may see it.
SLACK_SECONDS = 0.3
MEASURED = {"produce": "latency_us", "e2e": "delivery_us"}
# Pairs of turns are drawn anew so often; the shares of the draws below `least` and `most`.
DRAWS = 2000
ENDS = {"least": 0.05, "most": 0.95}


@contextlib.contextmanager
def running(scenario, broker, tool, lead, folder):
    """Runs the load beside, which must last as long as the measured one; gives its `Turns`, or
    None where it runs throughout or not at all."""
    if not scenario.beside:
        yield None
        return
    seconds = scenario.seconds + lead + MORE_SECONDS
    child = tool.start(words(scenario.beside), broker.port, seconds, folder)
    turns = None
    if scenario.beside_turns:
        turns = Turns(child, broker.pid, scenario, Path(folder) / BESIDE)
    try:
        with turns or contextlib.nullcontext():
            yield turns
        if not child.is_running():
            raise RuntimeError(f"the load beside ended before the other:\n{child.last_words()}")
    finally:
        child.stop()


@contextlib.contextmanager
def kept(scenario, broker, tool, folder):
    """Has the broker of a load that runs apart take in records meanwhile: it would read as fast as
    it can otherwise."""
    if not scenario.apart:
        yield
        return
    folder = Path(folder) / "apart"
    folder.mkdir(exist_ok=True)
    child = tool.start(words(scenario.apart), broker.port, scenario.seconds + MORE_SECONDS, folder)
    try:
        yield
        if not child.is_running():
            raise RuntimeError(f"the load apart ended before the others:\n{child.last_words()}")
    finally:
        child.stop()
        shutil.rmtree(folder, ignore_errors=True)


class Turns:
    """Stops and continues a load every `seconds`, and knows when it did."""

    def __init__(self, child, broker_pid, scenario, report):
        self.child, self.broker_pid, self.report = child, broker_pid, report
        self.seconds = scenario.beside_turns
        self.changes, self.read = [], []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._take, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()
        # Stopped, it would not hear that it is to end.
        self.child.signal(signal.SIGCONT)

    def _take(self):
        ran, before, pair = False, None, []
        while not self.over.is_set():
            now, usage = time.time(), Usage.of(self.broker_pid)
            if ran:
                self.read.append(usage.since(before)["disk_read_mb"] / (usage.at - before.at))
            pair = pair or random.sample((True, False), 2)
            before, ran = usage, pair.pop()
            self.child.signal(signal.SIGCONT if ran else signal.SIGSTOP)
            self.changes.append((now, ran))
            self.over.wait(self.seconds)
        self.changes.append((time.time(), None))

    def figures(self, report):
        """How the load beside moved the p99, what it received itself while it ran, and how fast the
        broker read from disk meanwhile."""
        run = report["runs"][0]
        found = moved(self.changes, report["began_ms"] / 1e3, run["intervals"])
        if self.read:
            found["beside_read_mb_per_s"] = statistics.median(self.read)
        of_beside = json.loads(self.report.read_text())
        return found | received(of_beside, self.changes, report["began_ms"] / 1e3)


def moved(changes, origin, intervals):
    """What the load beside did to the p99, in milliseconds with it and without it, and as a ratio:
    of the median second, and of all records. `changes` are (time, does it run), two by two in
    pairs; `origin` is the time from which the intervals count."""
    figures = {}
    for kind, measured in MEASURED.items():
        pairs = {}
        for one in intervals:
            end = origin + one["at"]
            turn = turn_of(changes, end - one["seconds"], end)
            if turn is not None and one.get("phase") == "measured" and one.get(measured):
                pair = pairs.setdefault(turn // 2, {True: [], False: []})
                pair[changes[turn][1]].append(one[measured])
        # A pair of which one half was not measured would tilt the comparison.
        pairs = [pair for pair in pairs.values() if all(pair.values())]
        if not pairs:
            continue
        figures[f"{kind}_turns"] = len(pairs)
        for name, p99 in (("usual_p99", usual), ("p99", p99_of_all)):
            beside, alone = (p99(side(pairs, runs)) / 1e3 for runs in (True, False))
            figures[f"{kind}_beside_{name}_ms"] = beside
            figures[f"{kind}_alone_{name}_ms"] = alone
            figures[f"{kind}_{name}_moved"] = beside / alone
        for end, value in ends(pairs).items():
            figures[f"{kind}_usual_p99_moved_{end}"] = value
    return figures


def side(pairs, runs):
    """The seconds of all pairs with the load beside, or without."""
    return [one for pair in pairs for one in pair[runs]]


def ends(pairs):
    """Between what the ratio of the p99 of the median second lies, as far as these pairs can tell:
    19 of 20 times above `least`, and as often below `most`."""
    draw = random.Random(len(pairs))
    ratios = sorted(
        usual(side(drawn, True)) / usual(side(drawn, False))
        for drawn in (draw.choices(pairs, k=len(pairs)) for _ in range(DRAWS))
    )
    return {end: ratios[int(share * DRAWS)] for end, share in ENDS.items()}


def usual(seconds):
    """The p99 of the median second, which a stall of the machine's does not decide."""
    return statistics.median(one["p99"] for one in seconds)


def p99_of_all(seconds):
    """The p99 of the records of all seconds, as well as their percentiles tell it."""
    least, most = 0, max(one["max"] for one in seconds)
    count = sum(one["count"] for one in seconds)
    for _ in range(60):
        middle = (least + most) / 2
        slower = sum(one["count"] * share_above(one, middle) for one in seconds)
        least, most = (middle, most) if slower > 0.01 * count else (least, middle)
    return most


def share_above(latency, micros):
    """The share of records that took longer, a straight line from percentile to percentile."""
    points = [(latency[name], 1 - share) for name, share in SHARES.items()] + [(latency["max"], 0)]
    below = (0, 1)
    for point in points:
        if micros < point[0]:
            (from_value, from_share), (to_value, to_share) = below, point
            part = (micros - from_value) / (to_value - from_value)
            return from_share + (to_share - from_share) * part
        below = point
    return 0


def received(report, changes, begin):
    """What the load beside receives a second, in the seconds in which it ran throughout, from
    `begin` on: before that it had the broker for itself."""
    run, origin = report["runs"][0], report["began_ms"] / 1e3
    ends = [(origin + one["at"], one) for one in run["intervals"]]
    seconds = [one for end, one in ends
               if end - one["seconds"] >= begin and state(changes, end - one["seconds"], end)]
    if not seconds or not run["consume"]["records"]:
        return {}
    if not any(one["received"] for one in seconds[-3:]):
        raise RuntimeError("the load beside had nothing left to read: `fill_gb` is too small")
    records = sum(one["received"] for one in seconds)
    size = run["consume"]["bytes"] / run["consume"]["records"]
    length = sum(one["seconds"] for one in seconds)
    return {"beside_received_mb_per_s": records * size / 1e6 / length}


def state(changes, begin, end):
    """Whether the load ran from `begin` to `end`; None if not throughout the one or the other."""
    turn = turn_of(changes, begin, end)
    return None if turn is None else changes[turn][1]


def turn_of(changes, begin, end):
    """The place in `changes` of the turn within which `begin` and `end` lie, if they do."""
    for turn, ((since, _), (until, _)) in enumerate(zip(changes, changes[1:])):
        if since + SLACK_SECONDS <= begin and end <= until - SLACK_SECONDS:
            return turn
    return None
