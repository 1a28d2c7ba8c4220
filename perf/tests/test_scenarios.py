"""Scenarios: those of the tree make sense, and those that do not are refused with a reason."""

import json
import unittest
from pathlib import Path

from runner import bars, scenario

FOLDER = Path(__file__).resolve().parent.parent / "scenarios"
GOOD = {"question": "Is it fast?", "load": "produce --rate 10"}


class Scenarios(unittest.TestCase):
    def test_those_of_the_tree_make_sense_and_answer_every_bar(self):
        names = {one.name for one in scenario.read_all(FOLDER)}
        self.assertLessEqual({*bars.SCENARIOS, *bars.STORAGE_SCENARIOS}, names)
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
            ({"fill_gb": 3}, "fill_gb"),
            ({"beside": "fly"}, "a load begins"),
            ({"variants": {"fast": 3}}, "variants"),
            ({"variants": {"fast": {"seconds": 3}}}, "variant fast: there is no `seconds`"),
            ({"variants": {"fast": {"settings": ["x"]}}}, "variant fast: `settings`"),
            ({"variants": {"fast": {"beside": "consume --duration 3"}}}, "--duration"),
        ]:
            with self.assertRaisesRegex(scenario.Refused, word, msg=wrong):
                scenario.judged("x", GOOD | wrong)

    def test_a_shortened_scenario_asks_the_same(self):
        one = scenario.judged("x", GOOD | {"seconds": 20, "warm_up": 1})
        short = one.shortened(2)
        self.assertEqual((short.seconds, short.warm_up, short.load), (2, 1, one.load))

    def test_a_variant_is_the_scenario_with_what_differs(self):
        told = GOOD | {"seconds": 7, "settings": ["a=1"], "variants": {"busy": {
            "beside": "consume --topic old", "settings": ["a=2"]}}}
        one = scenario.judged("x", told)
        (plain, same), (name, busy) = one.varied()
        self.assertEqual((plain, same.beside, same.settings), ("", "", ("a=1",)))
        self.assertEqual((name, busy.beside, busy.settings, busy.load, busy.seconds),
                         ("busy", "consume --topic old", ("a=2",), one.load, 7))
        self.assertEqual(list(busy.varied()), [("", busy)])
        self.assertEqual(dict(busy.created()), {"old": 1, "load": 1})
        self.assertEqual(list(one.shortened(2).varied())[1][1].seconds, 2)
        # As it comes back from the results.
        again = scenario.Scenario(**json.loads(json.dumps(vars(one))))
        self.assertEqual(list(again.varied())[1][1].beside, busy.beside)

    def test_topics_of_a_load(self):
        self.assertEqual(scenario.topics(["consume"]), [("load", 1)])
        load = scenario.words("produce --topics 2 --topic t --partitions 7")
        self.assertEqual(scenario.topics(load), [("t-0", 7), ("t-1", 7)])
