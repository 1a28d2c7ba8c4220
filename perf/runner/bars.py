"""What Corelog must reach, as tables of ratios that the results answer. Pure.

Each bar divides one figure by another, round by round, and judges the median.
"""

from dataclasses import dataclass

from .figures import by_round, ratio, spread

STEADY = (("10,000", "steady-10k"), ("50,000", "steady-50k"))
TAIL = (("10,000", "end-to-end-10k"), ("50,000", "end-to-end-50k"))
FLUSH_MS_MAX = 1.0
WIDTHS = ("wide", "narrow")


@dataclass(frozen=True)
class Bar:
    """`top` and `bottom` are (scenario, asked, figure); without `bottom`, `top` itself counts."""

    figure: str
    top: tuple
    bottom: tuple | None
    limit: float
    is_most: bool = True
    unit: str = "times"
    # The bar counts only in rounds where this stays below FLUSH_MS_MAX.
    condition: tuple | None = None

    def text(self):
        bound = "most" if self.is_most else "least"
        return f"at {bound} {self.limit:g} {self.unit}".rstrip()

    def measured(self, results):
        if self.condition:
            slow = by_round(results, *self.condition)
            slow = {at for at, value in slow.items() if value >= FLUSH_MS_MAX}
            results = [result for result in results if result["round"] not in slow]
        if self.bottom:
            return ratio(results, self.top, self.bottom)
        return spread(results, *self.top)

    def verdict(self, results):
        found = self.measured(results)
        if found is None:
            return "not measured"
        is_met = found.median <= self.limit if self.is_most else found.median >= self.limit
        return "met" if is_met else "missed"


def _latency():
    for rate, scenario in STEADY:
        for name, limit in (("p50", 1.3), ("p99", 1.5)):
            figure = f"produce_{name}_ms"
            ours, floor = (scenario, "corelog", figure), (scenario, "floor", figure)
            yield Bar(f"produce {name} at {rate} rec/s / floor", ours, floor, limit)
    for rate, scenario in STEADY:
        for other, limit in (("kafka-flush", 0.2), ("kafka", 0.5)):
            figure = "produce_p99_ms"
            ours, theirs = (scenario, "corelog", figure), (scenario, other, figure)
            yield Bar(f"produce p99 at {rate} rec/s / {other}", ours, theirs, limit)
    for rate, scenario in TAIL:
        floor = (scenario, "floor", "produce_p99_ms")
        ours = (scenario, "corelog", "e2e_p99_ms")
        what = f"end-to-end p99 at {rate} rec/s, where the floor's is below {FLUSH_MS_MAX:g} ms"
        yield Bar(what, ours, None, 2, unit="ms", condition=floor)


def _against_kafka(what, scenario, figure, limit, is_most=True):
    ours, theirs = (scenario, "corelog", figure), (scenario, "kafka", figure)
    return Bar(f"{what} / kafka", ours, theirs, limit, is_most)


BARS = (
    *_latency(),
    _against_kafka("broker CPU per GB produced", "throughput-1k", "cpu_s_per_gb_produced", 0.25),
    _against_kafka("broker CPU per GB consumed", "read-cold", "cpu_s_per_gb_consumed", 0.25),
    _against_kafka("highest produce rate, 1 KiB", "throughput-1k", "produce_per_s", 2, False),
    Bar(
        "100 keyed producers: 10,000 partitions / one per core",
        ("keyed-100-wide", "corelog", "produce_per_s"),
        ("keyed-100-narrow", "corelog", "produce_per_s"),
        0.9,
        is_most=False,
    ),
    Bar(
        "cold read of a backlog / the device's or loopback's limit",
        ("read-cold", "corelog", "consume_mb_per_s"),
        ("read-cold", "floor", "consume_mb_per_s"),
        0.9,
        is_most=False,
    ),
    _against_kafka("start to first acknowledged write", "lifecycle", "start_to_write_ms", 0.02),
    _against_kafka("idle CPU", "lifecycle", "idle_cpu_percent", 0.2),
    _against_kafka("resident memory, idle", "lifecycle", "idle_rss_mb", 0.1),
)



def _storage():
    both = ("corelog-draining", "corelog")
    for figure, name in (("p99_ms", "p99"), ("usual_p99_ms", "p99 of a second, median")):
        moved, still = (("drain", asked, f"produce_{figure}") for asked in both)
        yield Bar(f"produce {name}, beside draining / without it", moved, still, 1.2)
    beside = (("isolation", "10,000/s", 20), ("isolation-2k", "2,000/s", 4))
    for scenario, rate, twice in beside:
        for kind in ("produce", "e2e"):
            what = f"{kind} {{}}, {rate}, beside a reader of a backlog / without it"
            # Not only the ratio that was seen: all that it may be in truth.
            for figure, name in (
                ("usual_p99_moved_most", "p99 of a second, median, 19 of 20 times below"),
                ("p99_moved", "p99"),
            ):
                moved = (scenario, "corelog", f"{kind}_{figure}")
                yield Bar(what.format(name), moved, None, 1.2)
        # Twice what comes in: whoever is behind catches up.
        received = (scenario, "corelog", "beside_received_mb_per_s")
        yield Bar(f"a reader of a backlog beside {rate} gets", received, None, twice, False, "MB/s")
    drift = ("retention", "corelog", "produce_drift")
    yield Bar("p99 past retention, last third of 30 min / first", drift, None, 1.2)
    for what, scenario in (
        ("1 GiB", "recovery-1gib"), ("10 GiB", "recovery-10gib"), ("50 GiB", "recovery-50gib"),
        ("10,000 partitions", "recovery-10k"), ("1,000,000 partitions", "recovery-1m"),
    ):
        crash = (scenario, "corelog", "crash_to_write_ms")
        yield Bar(f"start to first write after kill -9, {what}", crash, None, 5000, unit="ms")
    million = ("recovery-1m", "corelog")
    idle = (*million, "rss_bytes_per_idle_partition")
    yield Bar("memory of one of a million idle partitions", idle, None, 2048, unit="bytes")
    metadata = ((*million, "metadata_ms"), (*million, "metadata_alone_ms"))
    yield Bar("metadata of one topic among 1,000 of a million partitions / alone", *metadata, 1.2)
    yield Bar("open files with a million partitions", (*million, "open_files"), None, 256, unit="")
    read = (*million, "read_back")
    yield Bar("share read back of a million partitions", read, None, 1, False, unit="")
    wide, narrow = ((f"keyed-single-{one}", "corelog", "produce_per_s") for one in WIDTHS)
    what = "small batches (one record): 10,000 partitions / one per core"
    yield Bar(what, wide, narrow, 0.9, is_most=False)


# What storage must reach, in the figures of issue "Storage for as long as you want".
STORAGE = tuple(_storage())


def _scenarios(bars):
    """What a table needs, in its order."""
    return tuple(dict.fromkeys(
        place[0] for bar in bars for place in (bar.top, bar.bottom) if place
    ))


SCENARIOS = _scenarios(BARS)
STORAGE_SCENARIOS = _scenarios(STORAGE)
