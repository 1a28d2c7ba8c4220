"""The load generator against independent tools, on the same brokers: `corelog load`, Kafka's own
performance tools and librdkafka's, in turns A B C A B C, at fixed rates.

A round starts each broker freshly and puts all tools to it, each with a topic of its own: writing
at a rate, reading a backlog as fast as it goes, and the way from producer to consumer at a rate so
low that no record waits for another (Kafka's tool sends the next one when it has received the
last).
"""

import json

from . import librdkafka, machine, tool
from .broker import Broker, install_kafka
from .figures import LABELS, spread
from .summary import markdown

PRODUCE = "produce --rate {rate} --record-size 1024 --acks all --linger 0 --topic {topic}"
FILL = "produce --rate max --record-size 1024 --acks all --linger 5 --batch-bytes 65536"
CONSUME = "consume --topic {topic}"
E2E = "e2e --rate {rate} --record-size 1024 --acks all --topic {topic}"
E2E_RATE = 200
WARM_UP_SECONDS = 5
FILL_SECONDS = 3
FIGURES = {
    "produce": ("produce_per_s", "produce_p50_ms", "produce_p99_ms"),
    "consume": ("consume_per_s",),
    "e2e": ("e2e_p50_ms", "e2e_p99_ms"),
}
EXPLAINED = """\
How the tools differ, and what that does to the figures:

- `corelog load` counts from the time at which a record was meant to be sent, the others from the
  call of `send`: what delays the tool itself is in its latency and not in theirs.
- ProducerPerformance tells its percentiles in whole milliseconds, rounded down, and sends in bursts
  between its pauses; EndToEndLatency tells them likewise, and waits for each record before it sends
  the next. Both run on a JVM that has just started; its warm-up is as long as the others'.
- rdkafka_performance pauses after each record, longer than it asked for, so that it falls behind a
  rate of thousands a second. It counts to the delivery report, which another thread hands to the
  one that sends.
- ConsumerPerformance joins a group first, which its own fetch time leaves out, and hands out
  records one by one; `corelog load consume` and rdkafka_performance read partition 0 at once.
"""


def run(options, root, target, recipes, out):
    """Every turn, then the table; returns how many turns failed."""
    jars = target / "kafka"
    install_kafka(jars)
    program = librdkafka.install(root, target / "librdkafka")
    ours = tool.CorelogLoad((options.load or options.corelog).resolve())
    tools = [
        Ours(ours),
        Theirs(tool.KafkaTools(recipes["kafka"].java("-Xmx512m")), ours),
        Peer(librdkafka.Librdkafka(program), ours),
    ]
    seconds = options.seconds or 10
    folder = out / "validation"
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    for number in range(1, options.rounds + 1):
        for name in options.brokers.split(","):
            machine.settle()
            results += turn(recipes[name], tools, number, seconds, options, folder)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    lines = machine.describe(options.data, root)
    lines |= {name: recipes[name].version() for name in options.brokers.split(",")}
    (out / "validation.md").write_text(write(results, lines, options.validate_rate, seconds))
    print(f"{out}/validation.md")
    return sum(1 for result in results if result["error"])


def turn(recipe, tools, number, seconds, options, folder):
    """All tools on one broker, case by case."""
    results = []
    with Broker(recipe, options.data, folder / f"{recipe.name}.log") as broker:
        for case in FIGURES:
            for index, one in enumerate(tools):
                topic = f"{case}-{index}"
                broker.create_topic(topic, 1)
                place = {"scenario": f"{recipe.name}/{case}", "round": number, "asked": one.name}
                result = place | {"figures": {}, "notes": [], "error": ""}
                try:
                    ask = Ask(broker.port, topic, options.validate_rate, seconds, folder)
                    outcome = getattr(one, case)(ask)
                    result |= {"figures": outcome.figures, "notes": outcome.notes}
                except Exception as error:
                    result["error"] = f"{type(error).__name__}: {error}"
                told = [name for name in FIGURES[case] if name in result["figures"]]
                words = result["error"] or ", ".join(
                    f"{name} {result['figures'][name]:.4g}" for name in told)
                print(f"{place['scenario']} {number} {one.name}: {words}", flush=True)
                results.append(result)
    for left in ("tool.out", "tool.err", "reader.out", "load.json"):
        (folder / left).unlink(missing_ok=True)
    return results


class Ask:
    """What a tool is asked, and where."""

    def __init__(self, port, topic, rate, seconds, folder):
        self.port, self.topic, self.seconds, self.folder = port, topic, seconds, folder
        self.produce = PRODUCE.format(rate=rate, topic=topic).split()
        self.consume = CONSUME.format(topic=topic).split()
        self.e2e = E2E.format(rate=E2E_RATE, topic=topic).split()

    def fill(self, ours):
        """Writes a backlog with our own tool; how many records it is."""
        words = [*FILL.split(), "--topic", self.topic]
        report = ours.run(words, self.port, FILL_SECONDS, 0, self.folder).raw
        rows = report["runs"][0]["intervals"]
        return sum(row["acknowledged"] for row in rows)


class Ours:
    """`corelog load`."""

    name = "corelog load"

    def __init__(self, generator):
        self.generator = generator

    def produce(self, ask):
        words, place = ask.produce, ask.folder
        return self.generator.run(words, ask.port, ask.seconds, WARM_UP_SECONDS, place)

    def consume(self, ask):
        ask.fill(self.generator)
        return self.generator.run(ask.consume, ask.port, 60, 0, ask.folder)

    def e2e(self, ask):
        words, place = ask.e2e, ask.folder
        return self.generator.run(words, ask.port, ask.seconds, WARM_UP_SECONDS, place)


class Theirs:
    """ProducerPerformance, ConsumerPerformance, EndToEndLatency."""

    name = "Kafka's tools"

    def __init__(self, tools, ours):
        self.tools, self.ours = tools, ours

    def produce(self, ask):
        words, place = ask.produce, ask.folder
        return self.tools.run(words, ask.port, ask.seconds, WARM_UP_SECONDS, place)

    def consume(self, ask):
        ask.fill(self.ours)
        return self.tools.run(ask.consume, ask.port, 60, 0, ask.folder)

    def e2e(self, ask):
        records = round(E2E_RATE * (ask.seconds + WARM_UP_SECONDS))
        return self.tools.end_to_end(ask.topic, ask.port, records, 1024, ask.folder)


class Peer:
    """rdkafka_performance."""

    name = "librdkafka"

    def __init__(self, tools, ours):
        self.tools, self.ours = tools, ours

    def produce(self, ask):
        words, place = ask.produce, ask.folder
        return self.tools.produce(words, ask.port, ask.seconds, WARM_UP_SECONDS, place)

    def consume(self, ask):
        records = ask.fill(self.ours)
        return self.tools.consume(ask.consume, ask.port, records, ask.folder)

    def e2e(self, ask):
        options = tool.kafka_options(["produce", "--topic", ask.topic])
        records, lead = round(E2E_RATE * ask.seconds), E2E_RATE * WARM_UP_SECONDS
        place = ask.folder
        return self.tools.end_to_end(options, ask.port, E2E_RATE, records, lead, place)


def write(results, about, rate, seconds):
    """Markdown: a table for each broker."""
    lines = ["# The load generator against independent tools", ""]
    lines += [f"- {name}: {value}" for name, value in about.items()]
    lines += [
        "",
        f"Writing: {rate:,.0f} records of 1 KiB a second into one partition, acks=all, no linger, "
        f"{seconds:g} s after {WARM_UP_SECONDS} s that do not count. Reading: a backlog of "
        f"{FILL_SECONDS} s of writing. End to end: {E2E_RATE} records a second. Each figure is the "
        "median of its rounds (least..most); the tools took turns on the same broker.",
        "",
    ]
    tools = list(dict.fromkeys(result["asked"] for result in results))
    for broker in dict.fromkeys(result["scenario"].split("/")[0] for result in results):
        rows = []
        for case, figures in FIGURES.items():
            for figure in figures:
                cells = [spread(results, f"{broker}/{case}", name, figure) for name in tools]
                rows.append((LABELS[figure], *(cell.text() if cell else "" for cell in cells)))
        lines += [f"## {broker}", "", *markdown(("", *tools), rows), ""]
    for result in results:
        for note in filter(None, [result["error"].split("\n")[0], *result["notes"]]):
            lines.append(f"- {result['scenario']}, {result['asked']}, round {result['round']}: "
                         f"{note}")
    return "\n".join([*lines, "", EXPLAINED])
