"""librdkafka's performance program as a load tool, built from the sources that our tests' client
vendors, so that its version is the one of `Cargo.lock`.

It writes the latency of each record in microseconds, from which the percentiles are taken here.
"""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .child import Child
from .tool import FIGURES, GRACE_SECONDS, SHARES, Outcome, finish, kafka_options

OFF = ("ssl", "gssapi", "curl", "zstd", "lz4-ext", "syslog")
TOTAL = re.compile(r"(\d+) msgs/s (?:and|\()")


def install(root, place):
    """Builds the program once; where it lies."""
    program = place / "examples" / "rdkafka_performance"
    argv = ["cargo", "metadata", "--format-version", "1", "--locked"]
    told = subprocess.run(argv, cwd=root, capture_output=True, text=True, check=True)
    packages = json.loads(told.stdout)["packages"]
    found = [one for one in packages if one["name"] == "rdkafka-sys"]
    source = Path(found[0]["manifest_path"]).parent / "librdkafka"
    stamp = place / "source"
    if program.is_file() and stamp.is_file() and stamp.read_text() == str(source):
        return program
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(source, place)
    with open(place / "build.log", "wb") as log:
        for argv in (
            ["./configure", *(f"--disable-{name}" for name in OFF)],
            ["make", "-j2", "-C", "src", "librdkafka.a"],
            ["make", "-C", "examples", "rdkafka_performance"],
        ):
            subprocess.run(argv, cwd=place, stdout=log, stderr=log, check=True)
    stamp.write_text(str(source))
    return program


@dataclass(frozen=True)
class Librdkafka:
    """rdkafka_performance."""

    program: Path
    name: str = "librdkafka"

    def produce(self, load, port, seconds, warm_up, folder):
        options = kafka_options(load)
        rate = float(options.rate)
        latencies = Path(folder) / "latencies"
        words = [*self.producer(options, port, rate), "-c", round(rate * (seconds + warm_up))]
        text = self.ask([*words, "-l", "-A", latencies], folder, seconds + warm_up)
        figures, curve = figures_of(latencies, round(rate * warm_up), "produce")
        return Outcome(figures | {"produce_per_s": total(text)}, {"produce": curve}, raw=text)

    def consume(self, load, port, records, folder):
        options = kafka_options(load)
        words = [*self.consumer(options, port), "-c", records]
        words += ["-X", f"fetch.message.max.bytes={options.fetch_bytes}"]
        text = self.ask(words, folder, GRACE_SECONDS)
        return Outcome({"consume_per_s": total(text)}, raw=text)

    def end_to_end(self, options, port, rate, records, lead, folder):
        """A consumer and a producer; the latencies are the consumer's."""
        latencies = Path(folder) / "latencies"
        both = records + lead
        words = [*self.consumer(options, port), "-c", both, "-l", "-A", latencies]
        words += ["-X", "fetch.wait.max.ms=500"]
        reader = Child([self.program, *words], Path(folder) / "reader.out", Path(folder) / "tool.err")
        try:
            words = [*self.producer(options, port, rate), "-c", both, "-l"]
            self.ask(words, folder, both / rate)
            code = reader.wait(GRACE_SECONDS)
        finally:
            reader.stop()
        if code != 0:
            raise RuntimeError(f"the reader ended with code {code}:\n{reader.last_words()}")
        figures, curve = figures_of(latencies, lead, "e2e")
        return Outcome(figures, {"e2e": curve})

    def producer(self, options, port, rate):
        properties = {
            "linger.ms": options.linger,
            "batch.size": options.batch_bytes,
            "max.in.flight": options.in_flight,
            "enable.idempotence": str(options.idempotent).lower(),
        }
        acks = "-1" if options.acks == "all" else options.acks
        words = ["-P", "-t", options.topic, "-p", 0, "-b", f"127.0.0.1:{port}", "-a", acks]
        words += ["-s", options.record_size, "-r", round(rate), "-z", options.codec]
        return words + [word for key, value in properties.items()
                        for word in ("-X", f"{key}={value}")]

    def consumer(self, options, port):
        return ["-C", "-t", options.topic, "-p", 0, "-b", f"127.0.0.1:{port}", "-o", "beginning"]

    def ask(self, words, folder, seconds):
        return finish([self.program, *words], folder, seconds + GRACE_SECONDS)


def total(text):
    """Records per second, from the last line that tells a total."""
    found = TOTAL.findall(text)
    if not found:
        raise RuntimeError(f"rdkafka_performance gave no total:\n{text[-1000:]}")
    return float(found[-1])


def figures_of(path, lead, kind):
    """Percentiles in milliseconds of all records but the first `lead`."""
    micros = sorted(int(line) for line in path.read_text().split()[lead:])
    path.unlink()
    if not micros:
        raise RuntimeError("rdkafka_performance told no latency")
    at = {name: micros[min(len(micros) - 1, int(len(micros) * share))] / 1e3
          for name, share in SHARES.items()}
    at["max"] = micros[-1] / 1e3
    curve = [[share, at[name]] for name, share in SHARES.items()]
    return {f"{kind}_{name}": at[key] for key, name in FIGURES.items()}, curve
