"""Load tools: `corelog load`, and Kafka's own performance tools to check it against.

Each runs a load (the arguments of `corelog load`) against a port and gives an `Outcome`. Kafka's
tools can do less: what they cannot is refused, never done by halves.
"""

import argparse
import json
import re
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from .child import Child
from .scenario import Refused, words

# Beyond the time that a load is given: connecting, and the end of what is in flight.
GRACE_SECONDS = 180
# Records of a closed loop by Kafka's tool, which knows no duration, per second of the scenario.
KAFKA_RECORDS_PER_S = 100_000
# The JSON of a load beside another.
BESIDE = "beside.json"
# A run of fewer intervals says nothing of its beginning and end.
DRIFT_INTERVALS_MIN = 90
SHARES = {"min": 0, "p50": 0.5, "p75": 0.75, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999,
          "p99.99": 0.9999}
FIGURES = {"p50": "p50_ms", "p99": "p99_ms", "p99.9": "p999_ms", "max": "max_ms"}


@dataclass
class Outcome:
    """What a load tool found; the bytes are all that went through the broker meanwhile."""

    figures: dict
    curves: dict = field(default_factory=dict)
    produced_bytes: float = 0
    consumed_bytes: float = 0
    notes: list = field(default_factory=list)
    raw: object = None


@dataclass(frozen=True)
class CorelogLoad:
    """The generator that a `corelog` binary holds."""

    binary: Path
    name: str = "corelog"
    lead_seconds: float = 1
    runs_beside: bool = True

    def check(self, load):
        """It does every load."""

    def run(self, load, port, seconds, warm_up, folder):
        words = [*load, "--bootstrap", f"127.0.0.1:{port}"]
        words += ["--duration", f"{seconds}s", "--warm-up", f"{warm_up}s"]
        return outcome_of_corelog(self.ask(words, folder, seconds + warm_up))

    def start(self, load, port, seconds, folder):
        """A load that nobody waits for: its process. When it is stopped it writes its JSON."""
        words = ["load", *load, "--bootstrap", f"127.0.0.1:{port}", "--duration", f"{seconds}s"]
        words += ["--json", folder / BESIDE]
        return Child([self.binary, *words], folder / "beside.out", folder / "beside.err")

    def ask(self, words, folder, seconds):
        """The JSON that the generator writes."""
        report = Path(folder) / "load.json"
        argv = [self.binary, "load", *words, "--json", report]
        finish(argv, folder, seconds + GRACE_SECONDS)
        return json.loads(report.read_text())


def fill(tool, scenario, port, folder):
    """Runs what fills a broker, again and again until it has written enough."""
    written = 0
    while True:
        filled = tool.run(words(scenario.fill), port, scenario.fill_seconds, 0, folder)
        failed = filled.figures.get("failed_records", 0)
        if failed:
            raise RuntimeError(f"{failed} records were lost while filling")
        written += filled.produced_bytes
        if written >= scenario.fill_gb * 1e9:
            return


def outcome_of_corelog(report):
    run = report["runs"][0]
    figures, curves, notes = {}, {}, []
    for kind in ("produce", "consume"):
        if run[kind]["records"]:
            figures[f"{kind}_per_s"] = run[kind]["records_per_second"]
            figures[f"{kind}_mb_per_s"] = run[kind]["mb_per_second"]
    for kind, measured in (("produce", "latency_us"), ("e2e", "delivery_us")):
        if run[measured]:
            figures |= latency_figures(kind, run[measured])
            figures |= usual_p99(kind, run["intervals"], measured)
            curves[kind] = curve(run[measured])
    figures |= drift(run["intervals"])
    if run["lateness_us"]:
        figures["lateness_p99_ms"] = run["lateness_us"]["p99"] / 1e3
    if run["failed_records"]:
        figures["failed_records"] = run["failed_records"]
    if not run["kept_up"]:
        notes.append("the rate was not kept up")
    if run["generator"]["saturated"]:
        notes.append("the load tool used all of its CPU")
    notes += [f"{name} {count} times" for name, count in run["errors"].items()]
    bytes_of = {kind: total_bytes(run, kind) for kind in ("produce", "consume")}
    return Outcome(figures, curves, bytes_of["produce"], bytes_of["consume"], notes, report)


def total_bytes(run, kind):
    """Of all intervals; the generator sums up the measured ones only."""
    measured = run[kind]
    if not measured["records"]:
        return 0
    name = {"produce": "acknowledged", "consume": "received"}[kind]
    records = sum(interval[name] for interval in run["intervals"])
    return measured["bytes"] / measured["records"] * records


def usual_p99(kind, intervals, measured):
    """The median of the intervals' p99: that of the run may be one stall of the machine's."""
    every = [one for one in intervals if one.get("phase") == "measured" and one.get(measured)]
    if not every:
        return {}
    return {f"{kind}_usual_p99_ms": statistics.median(one[measured]["p99"] for one in every) / 1e3}


def drift(intervals):
    """How the run's end compares with its beginning, in a run that is long enough to ask: the
    medians of the intervals' p99, which one stall of the machine does not decide."""
    measured = [one for one in intervals if one.get("phase") == "measured" and one["latency_us"]]
    if len(measured) < DRIFT_INTERVALS_MIN:
        return {}
    third = len(measured) // 3
    first, last = (
        statistics.median(one["latency_us"]["p99"] for one in part)
        for part in (measured[:third], measured[-third:])
    )
    return {"produce_drift": last / first} if first else {}


def latency_figures(kind, micros):
    return {f"{kind}_{name}": micros[key] / 1e3 for key, name in FIGURES.items()}


def curve(micros):
    """Latency in milliseconds by the share of records that are as fast."""
    return [[share, micros[key] / 1e3] for key, share in SHARES.items()]


@dataclass(frozen=True)
class KafkaTools:
    """ProducerPerformance and ConsumerPerformance."""

    java: list
    name: str = "kafka"
    # A Java program that has just begun is slow by itself.
    lead_seconds: float = 10
    runs_beside: bool = False

    def check(self, load):
        """Refuses what it cannot do."""
        kafka_options(load)

    def run(self, load, port, seconds, warm_up, folder):
        options = kafka_options(load)
        run = {"produce": self.produce, "consume": self.consume}[options.mode]
        return run(options, port, seconds, warm_up, folder)

    def produce(self, options, port, seconds, warm_up, folder):
        is_open = options.rate != "max"
        rate = float(options.rate) if is_open else KAFKA_RECORDS_PER_S
        words = ["--topic", options.topic, "--record-size", options.record_size]
        words += ["--num-records", round(rate * (seconds + warm_up))]
        words += ["--throughput", round(rate) if is_open else -1]
        if round(rate * warm_up):
            words += ["--warmup-records", round(rate * warm_up)]
        properties = {
            "bootstrap.servers": f"127.0.0.1:{port}",
            "acks": options.acks,
            "linger.ms": round(float(options.linger)),
            "batch.size": options.batch_bytes,
            "compression.type": options.codec,
            "max.in.flight.requests.per.connection": options.in_flight,
            "enable.idempotence": str(options.idempotent).lower(),
        }
        words += ["--command-property", *(f"{key}={value}" for key, value in properties.items())]
        text = self.ask("ProducerPerformance", words, folder, seconds + warm_up)
        return outcome_of_producer(text, int(options.record_size))

    def consume(self, options, port, seconds, warm_up, folder):
        words = ["--topic", options.topic, "--bootstrap-server", f"127.0.0.1:{port}"]
        words += ["--num-records", 10**12, "--timeout", 3000]
        words += ["--fetch-size", options.fetch_bytes]
        return outcome_of_consumer(self.ask("ConsumerPerformance", words, folder, seconds))

    def end_to_end(self, topic, port, records, record_bytes, folder):
        """EndToEndLatency: each record is sent when the one before has been received."""
        words = ["--bootstrap-server", f"127.0.0.1:{port}", "--topic", topic]
        words += ["--num-records", records, "--producer-acks", "all"]
        words += ["--record-size", record_bytes]
        return outcome_of_end_to_end(self.ask("EndToEndLatency", words, folder, records))

    def ask(self, tool, words, folder, seconds):
        argv = [*self.java, f"org.apache.kafka.tools.{tool}", *words]
        return finish(argv, folder, seconds + GRACE_SECONDS)


def kafka_options(load):
    """The options of a load that Kafka's tools can follow."""
    parser = argparse.ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_argument("mode", choices=["produce", "consume"])
    defaults = {"topic": "load", "partitions": "1", "rate": "max", "record-size": "1024",
                "acks": "all", "linger": "0", "batch-bytes": "16384", "codec": "none",
                "in-flight": "5", "fetch-bytes": str(1 << 20)}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--idempotent", action="store_true")
    try:
        options, rest = parser.parse_known_args(load)
    except argparse.ArgumentError as error:
        raise Refused(f"not for Kafka's tools: {error}") from None
    ones = ["--producers", "1", "--consumers", "1"]
    if rest and rest not in (ones[:2], ones[2:], ones):
        raise Refused(f"not for Kafka's tools: {' '.join(rest)}")
    return options


def outcome_of_producer(text, record_bytes):
    """From the last line of ProducerPerformance, which is about what follows its warm-up."""
    totals = re.compile(
        r"(\d+) (?:steady state )?records sent.*? ([\d.]+) records/sec "
        r"\(([\d.]+) MB/sec\), ([\d.]+) ms avg latency, "
        r"([\d.]+) ms max latency, (\d+) ms 50th, (\d+) ms 95th, (\d+) ms 99th, (\d+) ms 99.9th"
    )
    found = totals.findall(text)
    if not found:
        raise RuntimeError(f"ProducerPerformance gave no total:\n{text[-1000:]}")
    _, rate, _, _, slowest, p50, p95, p99, p999 = map(float, found[-1])
    figures = {
        "produce_per_s": rate,
        "produce_mb_per_s": rate * record_bytes / 1e6,
        "produce_p50_ms": p50,
        "produce_p99_ms": p99,
        "produce_p999_ms": p999,
        "produce_max_ms": slowest,
    }
    curves = {"produce": [[0.5, p50], [0.95, p95], [0.99, p99], [0.999, p999]]}
    # With a warm-up the first total is of all records, the last one of the rest.
    records = max(float(total[0]) for total in found)
    return Outcome(figures, curves, produced_bytes=records * record_bytes, raw=text)


def outcome_of_consumer(text):
    """From the CSV of ConsumerPerformance; the time that it waits for more at the end is taken
    off by its own fetch time."""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    rows = [row for row in rows if len(row) >= 10]
    if len(rows) < 2:
        raise RuntimeError(f"ConsumerPerformance gave no total:\n{text[-1000:]}")
    total = dict(zip(rows[0], rows[-1]))
    megabytes = float(total["data.consumed.in.MB"]) * 2**20 / 1e6
    figures = {
        "consume_per_s": float(total["fetch.nMsg.sec"]),
        "consume_mb_per_s": float(total["fetch.MB.sec"]) * 2**20 / 1e6,
    }
    return Outcome(figures, consumed_bytes=megabytes * 1e6, raw=text)


def outcome_of_end_to_end(text):
    """From the percentiles at the end of EndToEndLatency, which are whole milliseconds."""
    found = re.search(r"50th = (\d+), 99th = (\d+), 99.9th = (\d+)", text)
    if not found:
        raise RuntimeError(f"EndToEndLatency gave no percentiles:\n{text[-1000:]}")
    p50, p99, p999 = map(float, found.groups())
    figures = {"e2e_p50_ms": p50, "e2e_p99_ms": p99, "e2e_p999_ms": p999}
    return Outcome(figures, {"e2e": [[0.5, p50], [0.99, p99], [0.999, p999]]}, raw=text)


def finish(argv, folder, seconds):
    """Runs a tool to its end; its standard output."""
    child = Child(argv, Path(folder) / "tool.out", Path(folder) / "tool.err")
    try:
        code = child.wait(seconds)
    finally:
        child.stop()
    if code != 0:
        raise RuntimeError(f"the load tool ended with code {code}:\n{child.last_words()}")
    return child.out.read_text(errors="replace")
