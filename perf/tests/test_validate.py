"""What the independent tools print is read right, and becomes one table for each broker."""

import tempfile
import unittest
from pathlib import Path

from runner import librdkafka, tool, validate

# As EndToEndLatency of Kafka 4.4.0 and rdkafka_performance of librdkafka 2.12.1 print them.
END_TO_END = """\
0\t12.5
1000\t0.9
Avg latency: 1.0731 ms
Percentiles: 50th = 1, 99th = 4, 99.9th = 11
"""
PRODUCER = """\
% 49995 messages produced (51194880 bytes), 49990 delivered (offset 0, 0 failed) in 4999ms: \
9999 msgs/s and 10.24 MB/s, 0 produce failures, 5 in queue, no compression
% 50000 messages produced (51200000 bytes), 50000 delivered (offset 0, 0 failed) in 5001ms: \
9998 msgs/s and 10.24 MB/s, 0 produce failures, 0 in queue, no compression
"""
CONSUMER = """\
% 0 messages (0 bytes) consumed in 0ms: 0 msgs/s (0.00 MB/s)
% 705413 messages (722342912 bytes) consumed in 700ms: 1007397 msgs/s (1031.58 MB/s)
"""


def result(asked, number, **figures):
    return {"scenario": "corelog/e2e", "asked": asked, "round": number, "figures": figures,
            "notes": [], "error": ""}


class Validation(unittest.TestCase):
    def test_totals_are_read(self):
        self.assertEqual(tool.outcome_of_end_to_end(END_TO_END).figures,
                         {"e2e_p50_ms": 1, "e2e_p99_ms": 4, "e2e_p999_ms": 11})
        self.assertEqual(librdkafka.total(PRODUCER), 9998)
        self.assertEqual(librdkafka.total(CONSUMER), 1007397)
        with self.assertRaises(RuntimeError):
            tool.outcome_of_end_to_end("Avg latency")
        with self.assertRaises(RuntimeError):
            librdkafka.total("% ERROR: timed out")

    def test_percentiles_leave_the_warm_up_out(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "latencies"
            path.write_text("99000\n" * 5 + "".join(f"{n}000\n" for n in range(100, 0, -1)))
            figures, curve = librdkafka.figures_of(path, 5, "e2e")
            self.assertFalse(path.exists())
        self.assertEqual((figures["e2e_p50_ms"], figures["e2e_p99_ms"]), (51, 100))
        self.assertEqual((figures["e2e_max_ms"], curve[0]), (100, [0, 1]))

    def test_the_table_names_tools_medians_and_what_went_wrong(self):
        results = [result("corelog load", 1, e2e_p50_ms=1), result("corelog load", 2, e2e_p50_ms=3)]
        results.append(result("librdkafka", 1) | {"error": "TimeoutError: long\nmore"})
        text = validate.write(results, {"machine": "this one"}, 10_000, 5)
        self.assertIn("| end to end p50, ms", text)
        self.assertIn("2.00 (1.00..3.00)", text)
        self.assertIn("- corelog/e2e, librdkafka, round 1: TimeoutError: long\n", text)


if __name__ == "__main__":
    unittest.main()
