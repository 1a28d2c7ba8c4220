"""Brokers: how each is started on a fresh folder and a free port, and stopped.

Invariants
  B1  A broker's folder is made for one turn and removed after it; all lie on one device.
  B2  Nothing of a broker runs before its turn or after it.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from . import wire
from .child import Child

HERE = Path(__file__).resolve().parent.parent
START_SECONDS = 120
RESTART_SECONDS = 600
FORMAT_SECONDS = 120

# The flags of Kafka's documentation ("Java version"), with a heap for this machine.
KAFKA_JAVA = (
    "-server -Xms2g -Xmx2g -XX:MetaspaceSize=96m -XX:+UseG1GC -XX:MaxGCPauseMillis=20 "
    "-XX:InitiatingHeapOccupancyPercent=35 -XX:G1HeapRegionSize=16M "
    "-XX:MinMetaspaceFreeRatio=50 -XX:MaxMetaspaceFreeRatio=80 "
    "-XX:+ExplicitGCInvokesConcurrent -Djava.awt.headless=true"
).split()


@dataclass(frozen=True)
class Corelog:
    """The broker that a binary holds, flushing before it acknowledges."""

    binary: Path
    name: str = "corelog"
    durability: str = "flushed before the acknowledgement (durability=fsync, its default)"

    def prepare(self, folder, port, settings):
        if not self.binary.is_file():
            raise FileNotFoundError(f"{self.binary} is not there: cargo build --release")

    def argv(self, folder, port, settings):
        words = [self.binary, "serve", "--data-dir", folder / "data"]
        words += ["--listen", f"127.0.0.1:{port}"]
        for setting in ("group.initial.rebalance.delay.ms=0", *settings):
            words += ["--set", setting]
        return words

    def version(self):
        return _first_line([self.binary, "--version"])


@dataclass(frozen=True)
class Kafka:
    """Apache Kafka; `extra` are lines of its server.properties."""

    jars: Path
    name: str = "kafka"
    extra: str = ""
    durability: str = "acknowledged from memory, flushed when the kernel likes (its default)"

    def prepare(self, folder, port, settings):
        install_kafka(self.jars)
        template = (HERE / "kafka" / "server.properties").read_text()
        ports = {"port": port, "controller_port": free_port()}
        lines = template.format(folder=folder / "data", **ports) + self.extra
        lines += "".join(f"{setting}\n" for setting in settings)
        (folder / "server.properties").write_text(lines)
        tool = [*self.java("-Xmx256m"), "kafka.tools.StorageTool"]
        identity = _first_line([*tool, "random-uuid"])
        config = ["-c", folder / "server.properties"]
        done = subprocess.run(
            [*tool, "format", "-t", identity, *config],
            capture_output=True, text=True, timeout=FORMAT_SECONDS,
        )
        if done.returncode != 0:
            raise RuntimeError(f"Kafka's storage cannot be formatted: {done.stdout}{done.stderr}")

    def argv(self, folder, port, settings):
        return [*self.java(*KAFKA_JAVA), "kafka.Kafka", folder / "server.properties"]

    def java(self, *flags):
        log = f"-Dlog4j2.configurationFile={HERE / 'kafka' / 'log4j2.xml'}"
        return ["java", *flags, log, "-cp", f"{self.jars}/*"]

    def version(self):
        install_kafka(self.jars)
        jar = next(self.jars.glob("kafka_2.13-*.jar")).stem
        java = _first_line(["java", "--version"])
        return f"Apache Kafka {jar.removeprefix('kafka_2.13-')}, {java}"


def recipes(corelog, jars):
    """Every broker that can be measured, by name."""
    flush = "log.flush.interval.messages=1"
    every = [
        Corelog(Path(corelog)),
        Kafka(jars),
        Kafka(jars, "kafka-flush", flush + "\n", f"flushed before the acknowledgement ({flush})"),
    ]
    return {recipe.name: recipe for recipe in every}


def install_kafka(jars):
    """Copies Kafka's jars from Maven Central, once."""
    pom = HERE / "kafka" / "pom.xml"
    stamp = jars / "pom.xml"
    if stamp.is_file() and stamp.read_text() == pom.read_text():
        return
    shutil.rmtree(jars, ignore_errors=True)
    goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={jars}"]
    subprocess.run(["mvn", "-q", "-B", "-f", str(pom), *goal], check=True)
    shutil.copy(pom, stamp)


class Broker:
    """A running broker on a fresh folder; a context, at whose end both are gone.

    `first` is what it must have answered to count as started; `started_s` is how long that took.
    """

    def __init__(self, recipe, base, log, first=wire.Connection.greet, settings=()):
        self.recipe, self.base, self.log, self.first = recipe, Path(base), Path(log), first
        self.settings = settings
        self.child = self.folder = self.started_s = None

    def __enter__(self):
        self.base.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.recipe.name}-", dir=self.base))
        try:
            self.port = free_port()
            self.recipe.prepare(self.folder, self.port, self.settings)
            began = time.monotonic()
            self.launch()
            self.serve(START_SECONDS, self.first)
            self.started_s = time.monotonic() - began
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.child:
            self.child.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def pid(self):
        if not self.child.is_running():
            raise RuntimeError(f"{self.recipe.name} ended:\n{self.child.last_words()}")
        return self.child.pid

    def launch(self):
        argv = self.recipe.argv(self.folder, self.port, self.settings)
        self.child = Child(argv, "/dev/null", self.log)

    def serve(self, seconds, action=wire.Connection.greet, pause=wire.RETRY_SECONDS):
        """Waits until `action` succeeds."""
        try:
            return wire.persist(self.port, action, seconds, self.child.is_running, pause)
        except (RuntimeError, TimeoutError, wire.Refusal) as error:
            words = self.child.last_words()
            raise RuntimeError(f"{self.recipe.name}: {error}\n{words}") from None

    def restart(self, action=wire.Connection.greet, crash=False):
        """Stops it, or kills it, and starts it again on its data, with nothing of that in the
        page cache; how many seconds passed from the start until `action` succeeded."""
        if crash:
            self.child.kill()
        self.child.stop()
        drop_from_cache(self.folder)
        began = time.monotonic()
        self.launch()
        self.serve(RESTART_SECONDS, action)
        return time.monotonic() - began

    def create_topic(self, name, partitions):
        """Returns when every partition has a leader."""
        pause = wire.METADATA_SECONDS if partitions > 1 else wire.RETRY_SECONDS
        self.serve(RESTART_SECONDS, lambda one: one.create_topic(name, partitions), pause)


def drop_from_cache(folder):
    """Takes the files of a folder out of the page cache, once they are on the device."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _first_line(argv):
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[0]
