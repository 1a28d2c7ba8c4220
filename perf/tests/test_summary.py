"""Medians, ratios, verdicts, tables and drawings of results that are known."""

import unittest
from xml.etree import ElementTree

from runner import bars, figures, plot, scenario, summary

ONE = scenario.judged("steady-10k", {"question": "Is it fast?", "load": "produce --rate 10"})


def result(number, asked, p99, **more):
    curve = [[0, 0.1], [0.5, p99 / 2], [0.99, p99]]
    return {"scenario": "steady-10k", "round": number, "asked": asked, "error": "", "notes": [],
            "figures": {"produce_p99_ms": p99}, "curves": {"produce": [*curve]}} | more


RESULTS = [
    result(1, "floor", 1.0), result(1, "kafka", 10.0), result(1, "corelog", 1.2),
    result(2, "floor", 2.0), result(2, "kafka", 30.0), result(2, "corelog", 3.0),
    result(3, "floor", 1.0), result(3, "kafka", 20.0), result(3, "corelog", 1.4),
]


class Figures(unittest.TestCase):
    def test_median_and_spread(self):
        found = figures.spread(RESULTS, "steady-10k", "kafka", "produce_p99_ms")
        self.assertEqual((found.median, found.least, found.most), (20, 10, 30))
        self.assertIsNone(figures.spread(RESULTS, "steady-10k", "kafka-flush", "produce_p99_ms"))

    def test_ratios_are_formed_round_by_round(self):
        ours, floor = (("steady-10k", who, "produce_p99_ms") for who in ("corelog", "floor"))
        found = figures.ratio(RESULTS, ours, floor)
        self.assertEqual((found.median, found.least, found.most), (1.4, 1.2, 1.5))
        # A round without one of the two has no ratio.
        self.assertEqual(figures.ratio(RESULTS[:3] + RESULTS[3:5], ours, floor).median, 1.2)

    def test_numbers_are_short(self):
        for value, text in [(0, "0"), (123_456.7, "123,457"), (1.239, "1.24"), (0.0123, "0.012"),
                            (0.00001, "1.0e-05")]:
            self.assertEqual(figures.number(value), text)


class Bars(unittest.TestCase):
    def bar(self, text):
        return next(bar for bar in bars.BARS if bar.figure.startswith(text))

    def test_verdicts(self):
        self.assertEqual(self.bar("produce p99 at 10,000 rec/s / floor").verdict(RESULTS), "met")
        slow = [result(number, "corelog", 1.6) for number in (1, 3)]
        rest = [one for one in RESULTS if one["asked"] != "corelog"]
        self.assertEqual(
            self.bar("produce p99 at 10,000 rec/s / floor").verdict(rest + slow), "missed"
        )
        self.assertEqual(self.bar("idle CPU").verdict(RESULTS), "not measured")

    def test_more_is_better_where_the_bar_says_at_least(self):
        bar = self.bar("highest produce rate")
        rates = [{"scenario": "throughput-1k", "round": 1, "asked": who,
                  "figures": {"produce_per_s": rate}} for who, rate in
                 (("corelog", 30.0), ("kafka", 10.0))]
        self.assertEqual(bar.verdict(rates), "met")
        rates[0]["figures"]["produce_per_s"] = 19.0
        self.assertEqual(bar.verdict(rates), "missed")

    def test_a_variant_is_judged_against_the_scenario_itself(self):
        bar = next(bar for bar in bars.STORAGE if "second, median, beside drain" in bar.figure)
        found = [{"scenario": "drain", "round": 1, "asked": asked,
                  "figures": {"produce_usual_p99_ms": value}}
                 for asked, value in (("corelog", 1.0), ("corelog-draining", 1.1))]
        self.assertEqual(bar.verdict(found), "met")
        found[1]["figures"]["produce_usual_p99_ms"] = 1.3
        self.assertEqual(bar.verdict(found), "missed")
        self.assertIn("corelog / corelog-draining", summary.write(
            found, [scenario.judged("drain", {"question": "?", "load": "produce"})], {}))

    def test_rounds_with_a_slow_floor_do_not_count(self):
        bar = self.bar("end-to-end p99 at 10,000")
        found = [{"scenario": "end-to-end-10k", "round": number, "asked": asked,
                  "figures": {figure: value}} for number, asked, figure, value in (
                      (1, "floor", "produce_p99_ms", 0.5), (1, "corelog", "e2e_p99_ms", 1.5),
                      (2, "floor", "produce_p99_ms", 4.0), (2, "corelog", "e2e_p99_ms", 9.0))]
        self.assertEqual(bar.measured(found).most, 1.5)


class Summary(unittest.TestCase):
    def test_a_table_holds_medians_spreads_ratios_and_what_went_wrong(self):
        failed = result(4, "kafka", 5.0, error="TimeoutError: too slow\nmore", figures={})
        text = summary.write(RESULTS + [failed], [ONE], {"kernel": "6.1"})
        self.assertIn("- kernel: 6.1", text)
        self.assertIn("produce p99, ms | 1.40 (1.20..3.00) | 20.00 (10.00..30.00)", text)
        self.assertIn("| corelog / kafka", text)
        self.assertIn("0.100 (0.070..0.120)", text)
        self.assertIn("- kafka, round 4: TimeoutError: too slow\n", text)
        self.assertIn("produce p99 at 10,000 rec/s / floor", text)

    def test_what_is_not_run_says_why(self):
        one = scenario.judged("x", {"question": "Is it?", "load": "mixed", "skip": "no retention"})
        self.assertIn("Not run: no retention", summary.write([], [one], {}))

    def test_drawings_are_whole_and_show_everyone(self):
        drawn = list(summary.plots(ONE, RESULTS))
        self.assertEqual([name for name, _, _ in drawn], ["steady-10k-produce-latency.svg"])
        _, title, (_, curves) = drawn[0]
        page = ElementTree.fromstring(plot.latency(title, curves))
        texts = [text.text for text in page.iter("{http://www.w3.org/2000/svg}text")]
        self.assertLessEqual({title, "corelog", "kafka", "floor", "p99"}, set(texts))
        lines = list(page.iter("{http://www.w3.org/2000/svg}polyline"))
        self.assertEqual(len(lines), 3)
        spreads = {"corelog": figures.Spread(3, 2, 4), "kafka": figures.Spread(1, 1, 1)}
        page = ElementTree.fromstring(plot.bars("MB/s <most>", spreads))
        self.assertEqual(len(list(page.iter("{http://www.w3.org/2000/svg}rect"))), 3)


if __name__ == "__main__":
    unittest.main()
