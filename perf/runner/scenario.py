"""Scenarios: a question to the brokers, as a file. Pure but for reading the files.

A file of `perf/scenarios/` holds

    question   one sentence
    kind       "load" (unless said otherwise) or "lifecycle"
    load       the arguments of `corelog load`, without broker, times and output
    seconds    how long is measured;  warm_up: how long the same load runs before
    fill       a load that runs first, for fill_seconds, and is not measured
    restart    true: the broker restarts after filling, with nothing left in the page cache
    warm       a load to warm up with instead, after the restart
    brokers    the brokers that it is asked of, if not all
    settings   of the brokers, by Kafka's names: "log.retention.ms=60000"
    skip       why it cannot be asked now

and for the kind "lifecycle": idle_seconds, partitions, connections.
"""

import shlex
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

BROKERS = ("corelog", "kafka", "kafka-flush")
KINDS = ("load", "lifecycle")
MODES = ("produce", "consume", "e2e", "mixed", "verify")
# What may be in a list.
LISTS = {
    "brokers": lambda value: value in BROKERS,
    "settings": lambda value: isinstance(value, str) and "=" in value,
}


class Refused(Exception):
    """A scenario or a command line that makes no sense, in a sentence."""


@dataclass(frozen=True)
class Scenario:
    name: str
    question: str
    kind: str = "load"
    load: str = ""
    seconds: float = 20
    warm_up: float = 5
    fill: str = ""
    fill_seconds: float = 20
    restart: bool = False
    warm: str = ""
    brokers: tuple = BROKERS
    settings: tuple = ()
    skip: str = ""
    idle_seconds: float = 20
    partitions: int = 0
    connections: int = 0

    @property
    def mode(self):
        return words(self.load)[0] if self.load else ""

    def shortened(self, seconds):
        """The same question with at most so much time for each part of it."""
        values = vars(self) | {
            part: min(getattr(self, part), seconds)
            for part in ("seconds", "warm_up", "fill_seconds", "idle_seconds")
        }
        return Scenario(**values)


def read(path):
    """The scenario in a file."""
    path = Path(path)
    try:
        return judged(path.stem, tomllib.loads(path.read_text()))
    except tomllib.TOMLDecodeError as error:
        raise Refused(f"{path}: {error}") from None


def read_all(folder):
    return [read(path) for path in sorted(Path(folder).glob("*.toml"))]


def judged(name, values):
    """The scenario that `values` say, if they make sense."""
    known = {field.name: type(field.default) for field in fields(Scenario)[2:]} | {"question": str}
    for key, value in values.items():
        if key not in known:
            raise Refused(f"scenario {name}: there is no `{key}`; there are {', '.join(known)}")
        if not _fits(key, value, known[key]):
            raise Refused(f"scenario {name}: `{key}` cannot be {value!r}")
    values = values | {key: tuple(values[key]) for key in LISTS if key in values}
    scenario = Scenario(name=name, **({"question": ""} | values))
    for is_right, wrong in _rules(scenario):
        if not is_right:
            raise Refused(f"scenario {name}: {wrong}")
    return scenario


def _fits(key, value, wanted):
    if wanted is tuple:
        return isinstance(value, list) and all(LISTS[key](one) for one in value)
    if wanted is bool:
        return isinstance(value, bool)
    if wanted in (int, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
    return isinstance(value, wanted)


def _rules(scenario):
    loads = [load for load in (scenario.load, scenario.fill, scenario.warm) if load]
    own = ("--bootstrap", "--duration", "--warm-up", "--json", "--html", "--hdr-log")
    yield scenario.question.endswith("?"), "`question` is no question"
    yield scenario.kind in KINDS, f"`kind` is one of {', '.join(KINDS)}"
    yield (scenario.kind == "load") == bool(scenario.load), "`load` is for the kind \"load\""
    yield all(words(load)[0] in MODES for load in loads), f"a load begins with {', '.join(MODES)}"
    yield not any(option in words(load) for load in loads for option in own), (
        f"the runner itself gives {', '.join(own)}"
    )
    yield scenario.seconds > 0, "`seconds` is above 0"
    yield not scenario.restart or bool(scenario.fill), "`restart` comes after `fill`"


def words(load):
    """A load as arguments."""
    return shlex.split(load)
