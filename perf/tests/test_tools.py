"""What the load tools and the kernel print is read right."""

import os
import unittest

from runner import child, floor, tool, turn
from runner.scenario import Refused, words

# As ProducerPerformance and ConsumerPerformance of Kafka 4.4.0 print them.
PRODUCER = """\
4999 records sent, 999.8 records/sec (0.98 MB/sec), 9.0 ms avg latency, 99.0 ms max latency.
10000 records sent, 9990.0 records/sec (9.76 MB/sec), 3.31 ms avg latency, 215.00 ms max latency, \
2 ms 50th, 9 ms 95th, 70 ms 99th, 210 ms 99.9th.
8000 steady state records sent, 9970.0 records/sec (9.74 MB/sec), \
1.31 ms avg latency, 15.00 ms max latency, \
1 ms 50th, 4 ms 95th, 7 ms 99th, 14 ms 99.9th.
"""
CONSUMER = """\
start.time, end.time, data.consumed.in.MB, MB.sec, data.consumed.in.nMsg, nMsg.sec, \
rebalance.time.ms, fetch.time.ms, fetch.MB.sec, fetch.nMsg.sec
2026-11-25 08:16:40:078, 2026-11-25 08:16:44:078, 100.0, 25.0, 102400, 25600.0, 3000, 1000, \
100.0, 102400.0
"""


def latency(scale):
    names = ("min", "p50", "p75", "p90", "p95", "p99", "p99.9", "p99.99", "max")
    return {name: scale * (at + 1) for at, name in enumerate(names)}


def report(**changes):
    count = {"records": 100, "bytes": 1000, "records_per_second": 50.0, "mb_per_second": 0.5}
    nothing = {"records": 0, "bytes": 0, "records_per_second": 0.0, "mb_per_second": 0.0}
    run = {
        "produce": count, "consume": nothing, "latency_us": latency(1000), "delivery_us": None,
        "lateness_us": latency(1), "failed_records": 0, "kept_up": True, "errors": {},
        "generator": {"saturated": False},
        "intervals": [{"acknowledged": 50, "received": 0}, {"acknowledged": 100, "received": 0}],
    }
    return {"runs": [run | changes]}


class CorelogLoad(unittest.TestCase):
    def test_a_report_becomes_figures(self):
        found = tool.outcome_of_corelog(report())
        self.assertEqual(found.figures["produce_per_s"], 50)
        self.assertEqual(found.figures["produce_p50_ms"], 2)
        self.assertEqual(found.figures["produce_p999_ms"], 7)
        self.assertNotIn("consume_per_s", found.figures)
        self.assertEqual(found.curves["produce"][-1], [0.9999, 8])
        # The warm-up's records passed through the broker as well.
        self.assertEqual((found.produced_bytes, found.consumed_bytes), (1500, 0))
        self.assertEqual(found.notes, [])

    def test_what_limits_a_figure_is_told(self):
        wrong = report(kept_up=False, generator={"saturated": True}, errors={"LOST": 3})
        notes = tool.outcome_of_corelog(wrong).notes
        self.assertEqual(len(notes), 3)
        self.assertIn("LOST 3 times", notes)

    def test_a_long_run_tells_how_its_end_compares_with_its_beginning(self):
        interval = {"phase": "measured", "acknowledged": 1, "received": 0}
        p99s = [100] * 30 + [400] * 30 + [150] * 29 + [9000]
        long = [interval | {"latency_us": {"p99": p99}} for p99 in p99s]
        warm_up = interval | {"phase": "warm-up", "latency_us": {"p99": 7000}}
        self.assertEqual(tool.drift([warm_up, *long]), {"produce_drift": 1.5})
        self.assertEqual(tool.drift(long[1:]), {})

    def test_cpu_per_gigabyte_is_told_for_one_direction_only(self):
        used = {"cpu_s": 3.0}
        self.assertEqual(
            turn.per_gigabyte(used, tool.Outcome({}, produced_bytes=2e9)),
            {"cpu_s_per_gb_produced": 1.5},
        )
        self.assertEqual(
            turn.per_gigabyte(used, tool.Outcome({}, consumed_bytes=1e9)),
            {"cpu_s_per_gb_consumed": 3.0},
        )
        both = tool.Outcome({}, produced_bytes=1e9, consumed_bytes=1e9)
        self.assertEqual(turn.per_gigabyte(used, both), {})


class KafkaTools(unittest.TestCase):
    def test_the_total_after_the_warm_up_counts(self):
        found = tool.outcome_of_producer(PRODUCER, 1024)
        self.assertEqual(found.figures["produce_per_s"], 9970)
        self.assertEqual(found.figures["produce_p99_ms"], 7)
        self.assertEqual(found.produced_bytes, 10_000 * 1024)
        with self.assertRaises(RuntimeError):
            tool.outcome_of_producer("Exception in thread main", 1024)

    def test_the_time_of_joining_a_group_does_not_count(self):
        found = tool.outcome_of_consumer(CONSUMER)
        self.assertEqual(found.figures["consume_per_s"], 102_400)
        self.assertEqual(found.consumed_bytes, 100 * 2**20)

    def test_what_they_cannot_do_is_refused(self):
        self.assertEqual(tool.kafka_options(["produce", "--rate", "5"]).rate, "5")
        for load in ("mixed", "produce --producers 2", "produce --keys uniform:5"):
            with self.assertRaises(Refused, msg=load):
                tool.kafka_options(words(load))


class Kernel(unittest.TestCase):
    def test_cpu_time_is_found_behind_any_name(self):
        ticks = 2 * child.TICKS
        stat = f"7 (a) b) c) S 1 7 7 0 -1 4194560 9 0 0 0 {ticks} {child.TICKS} 0 0 20 0"
        self.assertEqual(child.parse_cpu(stat), 3)

    def test_this_process_has_used_something(self):
        before = child.Usage.of(os.getpid())
        sum(range(10**6))
        used = child.Usage.of(os.getpid()).since(before)
        self.assertGreater(used["rss_peak_mb"], 1)
        self.assertGreaterEqual(used["cpu_s"], 0)


class Floor(unittest.TestCase):
    def test_it_is_asked_at_the_same_rate(self):
        load = "produce --rate 50 --acks all --record-size 9 --partitions 2"
        self.assertEqual(floor.same_load(load), ["--rate", "50", "--record-size", "9"])
