"""Scenarios: those of the tree make sense, and those that do not are refused with a reason."""

import unittest
from pathlib import Path

from runner import bars, scenario, turn

FOLDER = Path(__file__).resolve().parent.parent / "scenarios"
GOOD = {"question": "Is it fast?", "load": "produce --rate 10"}


class Scenarios(unittest.TestCase):
    def test_those_of_the_tree_make_sense_and_answer_every_bar(self):
        names = {one.name for one in scenario.read_all(FOLDER)}
        self.assertLessEqual(set(bars.SCENARIOS), names)
        self.assertGreaterEqual(len(names), 18)

    def test_nonsense_is_refused_by_name(self):
        for wrong, word in [
            ({"question": "fast"}, "question"),
            ({"loads": "produce"}, "loads"),
            ({"load": "fly --rate 1"}, "a load begins"),
            ({"load": "produce --json x"}, "--json"),
            ({"brokers": ["rabbit"]}, "brokers"),
            ({"settings": ["log.retention.ms"]}, "settings"),
            ({"settings": "log.retention.ms=1"}, "settings"),
            ({"seconds": "10"}, "seconds"),
            ({"seconds": 0}, "seconds"),
            ({"seconds": True}, "seconds"),
            ({"restart": True}, "restart"),
            ({"kind": "lifecycle"}, "load"),
        ]:
            with self.assertRaisesRegex(scenario.Refused, word, msg=wrong):
                scenario.judged("x", GOOD | wrong)

    def test_a_shortened_scenario_asks_the_same(self):
        one = scenario.judged("x", GOOD | {"seconds": 20, "warm_up": 1})
        short = one.shortened(2)
        self.assertEqual((short.seconds, short.warm_up, short.load), (2, 1, one.load))

    def test_topics_of_a_load(self):
        self.assertEqual(turn.topics(["consume"]), [("load", 1)])
        load = scenario.words("produce --topics 2 --topic t --partitions 7")
        self.assertEqual(turn.topics(load), [("t-0", 7), ("t-1", 7)])
