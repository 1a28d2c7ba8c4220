"""Loads that run before or beside the measured one, with a tool that only counts."""

import json
import os
import random
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

from runner import beside, child, tool, turn
from runner.scenario import Refused, judged

FILLED = {"question": "Is it?", "load": "consume", "fill": "produce"}


def interval(at, p99, phase="measured"):
    values = {"min": 0.1, "p50": 0.2, "p75": 0.3, "p90": 0.5, "p95": 0.8, "p99": 1, "p99.9": 1.1,
              "p99.99": 1.2, "max": 2}
    latency = {name: p99 * times for name, times in values.items()} | {"count": 1000}
    return {"at": at, "seconds": 1, "phase": phase, "latency_us": latency, "delivery_us": None}


class Beside(unittest.TestCase):
    class Tool:
        def __init__(self, folder, seconds=0):
            self.runs, self.folder, self.seconds = 0, Path(folder), seconds

        def run(self, load, port, seconds, warm_up, folder):
            self.runs += 1
            return tool.Outcome({"failed_records": self.runs // 9}, produced_bytes=1e9)

        def start(self, load, port, seconds, folder):
            program = ["sleep", str(self.seconds)]
            return child.Child(program, self.folder / "out", self.folder / "err")

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def test_it_is_filled_until_there_is_enough(self):
        for gigabytes, runs in [(0, 1), (1, 1), (2.5, 3)]:
            counting = self.Tool(self.folder)
            one = judged("x", FILLED | {"fill_gb": gigabytes})
            tool.fill(counting, one, 1, self.folder)
            self.assertEqual(counting.runs, runs)
        with self.assertRaisesRegex(RuntimeError, "lost"):
            tool.fill(counting, judged("x", FILLED | {"fill_gb": 99}), 1, self.folder)

    def test_the_load_beside_lasts_as_long_as_the_measured_one(self):
        one, broker = judged("x", FILLED | {"beside": "consume"}), mock.Mock(port=1)
        with beside.running(one, broker, self.Tool(self.folder, seconds=600), 0, self.folder):
            pass
        with self.assertRaisesRegex(RuntimeError, "ended before"):
            with beside.running(one, broker, self.Tool(self.folder), 0, self.folder):
                time.sleep(0.5)

    def test_a_load_beside_runs_and_stands_by_turns(self):
        told = FILLED | {"beside": "consume", "beside_turns": 0.4}
        broker = mock.Mock(port=1, pid=os.getpid())
        with beside.running(
            judged("x", told), broker, self.Tool(self.folder, seconds=600), 0, self.folder
        ) as turns:
            states = []
            for _ in range(40):
                stat = Path(f"/proc/{turns.child.pid}/stat").read_text()
                states.append((time.time(), "T" not in stat.split(")")[1]))
                time.sleep(0.05)
        self.assertFalse(turns.child.is_running())
        self.assertEqual({runs for _, runs in states}, {True, False})
        wrong = [
            (at, runs) for at, runs in states
            if beside.state(turns.changes, at + 0.2, at - 0.2) not in (runs, None)
        ]
        self.assertEqual(wrong, [])

    def test_a_load_apart_has_a_broker_of_its_own(self):
        told = FILLED | {"beside": "consume --topic old", "apart": "produce --topic kept"}
        one, log = judged("x", told | {"seconds": 600}), Path(self.folder) / "corelog.log"
        brokers = [mock.MagicMock(name=name, port=port) for name, port in (("a", 1), ("b", 2))]
        for broker in brokers:
            broker.__enter__.return_value = broker
        ports = {}

        class Tool(self.Tool):
            lead_seconds = 0

            def run(self, load, port, seconds, warm_up, folder):
                ports.setdefault(" ".join(load), port)
                return super().run(load, port, seconds, warm_up, folder)

            def start(self, load, port, seconds, folder):
                ports[" ".join(load)] = port
                return super().start(load, port, seconds, folder)

        usage = mock.Mock()
        usage.of.return_value.since.return_value = {"cpu_s": 1}
        with mock.patch.object(turn, "Broker", side_effect=brokers), \
                mock.patch.object(turn, "Usage", usage):
            turn.take(one, mock.Mock(), Tool(self.folder, seconds=600), self.folder, log.parent)
        expected = {"produce": 2, "consume": 1, "consume --topic old": 2, "produce --topic kept": 2}
        self.assertEqual(ports, expected)
        self.assertFalse((log.parent / "apart").exists())
        with self.assertRaisesRegex(Refused, "apart"):
            judged("x", FILLED | {"apart": "produce"})

    def test_turns_are_about_a_load_beside(self):
        with self.assertRaisesRegex(Refused, "beside_turns"):
            judged("x", FILLED | {"beside_turns": 2})

    def test_seconds_with_the_load_are_put_beside_those_without(self):
        changes = [(100, True), (104, False), (108, True), (112, False), (116, True), (120, None)]
        slow = {101.0: 9, 102.5: 6, 103.5: 4, 110.0: 4, 106.0: 2, 107.0: 2, 114.0: 2}
        intervals = [interval(at - 100, 1e3 * p99) for at, p99 in slow.items()]
        # Of a second of both, of one near a change, and of the warm-up, nothing is said.
        intervals += [interval(4.5, 1e6), interval(7.9, 1e6), interval(6, 1e6, "warm-up")]
        # Nor of half a pair.
        intervals += [interval(18, 1e6)]
        found = beside.moved(changes, 100, intervals)
        usual = [found[f"produce_{name}"] for name in
                 ("beside_usual_p99_ms", "alone_usual_p99_ms", "usual_p99_moved")]
        self.assertEqual(usual, [4, 2, 2])
        self.assertEqual(found["produce_turns"], 2)
        self.assertAlmostEqual(found["produce_alone_p99_ms"], 2)
        self.assertTrue(4 < found["produce_beside_p99_ms"] < 6)
        self.assertEqual(beside.moved(changes[:2], 100, intervals), {})

    def test_what_a_load_beside_receives_is_told_per_second_that_it_ran(self):
        # Alone, in a turn, between turns, where it stands, in a turn.
        received = {99.5: 9000, 101.5: 300, 104.2: 70, 106.0: 0, 110.0: 100}
        intervals = [{"at": at - 90, "seconds": 1, "received": count}
                     for at, count in received.items()]
        consume = {"records": 1000, "bytes": 1_000_000}
        report = {"began_ms": 90_000, "runs": [{"consume": consume, "intervals": intervals}]}
        path = Path(self.folder) / tool.BESIDE
        path.write_text(json.dumps(report))
        turns = beside.Turns(None, 0, mock.Mock(beside_turns=4), path)
        turns.changes = [(95, True), (104, False), (108, True), (112, None)]
        found = turns.figures({"began_ms": 100_000, "runs": [{"intervals": []}]})
        self.assertEqual(found, {"beside_received_mb_per_s": 0.2})
        for one in intervals:
            one["received"] = 0
        path.write_text(json.dumps(report))
        with self.assertRaisesRegex(RuntimeError, "fill_gb"):
            turns.figures({"began_ms": 100_000, "runs": [{"intervals": []}]})

    def test_the_ends_hold_what_is_true_nineteen_of_twenty_times(self):
        chance, true, below, above = random.Random(7), 1.5, 0, 0

        def seconds(p99):
            return [interval(1, p99 * chance.lognormvariate(0, 0.4))["latency_us"]]

        with mock.patch.object(beside, "DRAWS", 100):
            for _ in range(200):
                # What the machine does to both halves of a pair is no part of the ratio.
                drift = (chance.lognormvariate(0, 0.2) for _ in range(40))
                ends = beside.ends([{True: seconds(true * one), False: seconds(one)}
                                    for one in drift])
                below += ends["least"] > true
                above += ends["most"] < true
        self.assertTrue(2 <= below <= 20 and 2 <= above <= 20, (below, above))

    def test_turns_come_in_pairs_of_random_order(self):
        told, broker = mock.Mock(beside_turns=0.001), mock.Mock(pid=os.getpid())
        with beside.Turns(mock.Mock(), broker.pid, told, Path(self.folder)) as turns:
            while len(turns.changes) < 64:
                time.sleep(0.001)
        states = [runs for _, runs in turns.changes[:64]]
        pairs = set(zip(states[::2], states[1::2]))
        self.assertEqual(pairs, {(True, False), (False, True)})

    def test_the_p99_of_all_is_between_those_of_the_parts(self):
        fast, slow = (interval(1, p99)["latency_us"] for p99 in (1e3, 9e3))
        self.assertAlmostEqual(beside.p99_of_all([fast, fast]), 1e3)
        # A twentieth is slow, and of that a fifth is what the p99 is about: its p80.
        found = beside.p99_of_all([fast] * 19 + [slow])
        self.assertTrue(slow["p75"] < found < slow["p90"], found)
        # One record of a thousand decides nothing.
        stalled = fast | {"max": 1e6}
        self.assertAlmostEqual(beside.p99_of_all([stalled] * 3), 1e3)
