"""The figures: what each is called, and how numbers, medians and spreads are written. Pure.

A result is what one turn gave: `scenario`, `round`, `asked` (a broker, or "floor"), `figures` by
name, `curves` of latency as [share, milliseconds], `error`, and the raw output of the load tool.
"""

import statistics
from dataclasses import dataclass

# In the order of a table's rows.
LABELS = {
    "produce_per_s": "acknowledged, records/s",
    "produce_mb_per_s": "acknowledged, MB/s",
    "produce_p50_ms": "produce p50, ms",
    "produce_p99_ms": "produce p99, ms",
    "produce_usual_p99_ms": "produce p99 of a second, median, ms",
    "produce_turns": "pairs of turns without and with the load beside",
    "produce_alone_usual_p99_ms": "the same, without the load beside, ms",
    "produce_beside_usual_p99_ms": "the same, with it, ms",
    "produce_usual_p99_moved": "with / without",
    "produce_usual_p99_moved_least": "19 of 20 times above",
    "produce_usual_p99_moved_most": "19 of 20 times below",
    "produce_alone_p99_ms": "produce p99 without the load beside, ms",
    "produce_beside_p99_ms": "the same, with it, ms",
    "produce_p99_moved": "with / without, all records",
    "produce_p999_ms": "produce p99.9, ms",
    "produce_max_ms": "produce slowest, ms",
    "produce_drift": "produce p99, last third of the run / first third",
    "consume_per_s": "received, records/s",
    "consume_mb_per_s": "received, MB/s",
    "e2e_p50_ms": "end to end p50, ms",
    "e2e_p99_ms": "end to end p99, ms",
    "e2e_usual_p99_ms": "end to end p99 of a second, median, ms",
    "e2e_turns": "pairs of turns without and with the load beside",
    "e2e_alone_usual_p99_ms": "the same, without the load beside, ms",
    "e2e_beside_usual_p99_ms": "the same, with it, ms",
    "e2e_usual_p99_moved": "with / without",
    "e2e_usual_p99_moved_least": "19 of 20 times above",
    "e2e_usual_p99_moved_most": "19 of 20 times below",
    "e2e_alone_p99_ms": "end to end p99 without the load beside, ms",
    "e2e_beside_p99_ms": "the same, with it, ms",
    "e2e_p99_moved": "with / without, all records",
    "e2e_p999_ms": "end to end p99.9, ms",
    "e2e_max_ms": "end to end slowest, ms",
    "beside_received_mb_per_s": "the load beside receives while it runs, MB/s",
    "beside_read_mb_per_s": "the broker reads from disk meanwhile, for itself too, MB/s",
    "failed_records": "failed, records",
    "lateness_p99_ms": "load tool late p99, ms",
    "cpu_s_per_gb_produced": "broker CPU s per GB produced",
    "cpu_s_per_gb_consumed": "broker CPU s per GB consumed",
    "cpu_cores": "broker CPU, cores",
    "rss_peak_mb": "broker memory peak, MB",
    "disk_written_mb": "broker wrote to disk, MB",
    "disk_read_mb": "broker read from disk, MB",
    "switches_voluntary": "context switches, voluntary",
    "switches_forced": "context switches, forced",
    "start_to_write_ms": "start to first acknowledged write, ms",
    "idle_cpu_percent": "idle CPU, % of a core",
    "idle_rss_mb": "idle memory, MB",
    "rss_kb_per_partition": "memory per partition, kB",
    "rss_kb_per_connection": "memory per connection, kB",
    "create_s": "creating all partitions, s",
    "metadata_ms": "metadata of one topic, ms",
    "metadata_alone_ms": "the same, where it is the only topic, ms",
    "rss_bytes_per_idle_partition": "memory per idle partition, bytes",
    "rss_bytes_per_written_partition": "memory per partition with a record, bytes",
    "open_files": "open files",
    "data_gb": "files, GB",
    "crash_to_write_ms": "start to first acknowledged write after kill -9, ms",
    "crash_read_mb": "read from disk meanwhile, MB",
    "stop_to_write_ms": "the same after an orderly stop, ms",
    "read_back": "share of the records looked for that were read back",
    "loopback_p50_ms": "loopback round trip p50, ms",
    "loopback_p99_ms": "loopback round trip p99, ms",
    "flush_p50_ms": "write and flush p50, ms",
    "flush_p99_ms": "write and flush p99, ms",
    "device_read_mb_per_s": "device, direct reads, MB/s",
    "loopback_mb_per_s": "loopback, MB/s",
    "device_to_loopback_mb_per_s": "direct reads that are sent on by loopback, MB/s",
}


@dataclass(frozen=True)
class Spread:
    """Several rounds of one figure."""

    median: float
    least: float
    most: float

    @staticmethod
    def of(values):
        return Spread(statistics.median(values), min(values), max(values)) if values else None

    def text(self):
        if self.least == self.most:
            return number(self.median)
        return f"{number(self.median)} ({number(self.least)}..{number(self.most)})"


def spread(results, scenario, asked, figure):
    """All rounds of a figure; None where there is none."""
    return Spread.of(list(by_round(results, scenario, asked, figure).values()))


def ratio(results, top, bottom):
    """Round by round, `top` divided by `bottom`, each (scenario, asked, figure)."""
    tops, bottoms = by_round(results, *top), by_round(results, *bottom)
    both = [at for at in sorted(tops) if bottoms.get(at)]
    return Spread.of([tops[at] / bottoms[at] for at in both])


def by_round(results, scenario, asked, figure):
    wanted = (scenario, asked)
    return {
        result["round"]: result["figures"][figure]
        for result in results
        if (result["scenario"], result["asked"]) == wanted and figure in result["figures"]
    }


def number(value):
    """Three digits, or all those before the point."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f}" if abs(value) >= 0.001 else f"{value:.1e}"
