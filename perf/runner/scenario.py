"""Scenarios: a question to the brokers, as a file. Pure but for reading the files.

A file of `perf/scenarios/` holds

    question   one sentence
    kind       "load" (unless said otherwise), "lifecycle" or "recovery"
    load       the arguments of `corelog load`, without broker, times and output
    seconds    how long is measured;  warm_up: how long the same load runs before
    rounds     the most rounds, of a scenario that takes long
    fill       a load that runs first, for fill_seconds, and is not measured
    restart    true: the broker restarts after filling, with nothing left in the page cache
    warm       a load to warm up with instead, after the restart
    beside     a load that runs while the measured one does, and is not measured itself
    beside_turns  seconds for which that runs and stands by turns: the seconds with it are put
               beside those without it
    apart      a load for a second broker of the same kind, to which `fill` and `beside` are put
               then: what these move is the machine's doing, not the measured broker's
    brokers    the brokers that it is asked of, if not all
    settings   of the brokers, by Kafka's names: "log.retention.ms=60000"
    variants   tables of what differs, by name: each broker has a turn as above, and one for each
               variant; "corelog-NAME" is what they are called in the results
    skip       why it cannot be asked now

For the kind "lifecycle": idle_seconds, partitions, connections. For the kind "recovery", which
kills a broker with its data and waits until it acknowledges again: fill_gb, the least that `fill`
writes, in as many pieces of fill_seconds as that takes; topics with partitions each, which get a
record each.
"""

import dataclasses
import shlex
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path

BROKERS = ("corelog", "kafka", "kafka-flush")
KINDS = ("load", "lifecycle", "recovery")
MODES = ("produce", "consume", "e2e", "mixed", "verify")
# What may be in a list.
LISTS = {
    "brokers": lambda value: value in BROKERS,
    "settings": lambda value: isinstance(value, str) and "=" in value,
}
# What a variant may say.
VARIED = ("load", "beside", "beside_turns", "apart", "settings")


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
    rounds: int = 0
    fill: str = ""
    fill_seconds: float = 20
    restart: bool = False
    warm: str = ""
    beside: str = ""
    beside_turns: float = 0
    apart: str = ""
    brokers: tuple = BROKERS
    settings: tuple = ()
    variants: dict = field(default_factory=dict)
    skip: str = ""
    idle_seconds: float = 20
    fill_gb: float = 0
    topics: int = 1
    partitions: int = 0
    connections: int = 0

    @property
    def mode(self):
        return words(self.load)[0] if self.load else ""

    def created(self):
        """The topics of all loads, in turn, with their numbers of partitions."""
        for load in filter(None, (self.fill, self.warm, self.beside, self.apart, self.load)):
            yield from topics(words(load))

    def shortened(self, seconds):
        """The same question with at most so much time for each part of it."""
        values = vars(self) | {
            part: min(getattr(self, part), seconds)
            for part in ("seconds", "warm_up", "fill_seconds", "idle_seconds")
        } | {"fill_gb": 0}
        return Scenario(**values)

    def varied(self):
        """The scenario as it is, under no name, and each of its variants."""
        yield "", self
        for name, values in self.variants.items():
            yield name, dataclasses.replace(self, variants={}, **values)


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
    known = {one.name: type(one.default) for one in fields(Scenario)[2:]} | {
        "question": str, "variants": dict,
    }
    _check(name, values, known)
    variants = values.get("variants", {})
    for variant, changed in variants.items():
        _check(f"{name}, variant {variant}", changed, {key: known[key] for key in VARIED})
    values = _with_tuples(values)
    if variants:
        values["variants"] = {key: _with_tuples(changed) for key, changed in variants.items()}
    scenario = Scenario(name=name, **({"question": ""} | values))
    for _, one in scenario.varied():
        for is_right, wrong in _rules(one):
            if not is_right:
                raise Refused(f"scenario {name}: {wrong}")
    return scenario


def _check(name, values, known):
    """Refuses what no scenario says, or not so."""
    for key, value in values.items():
        if key not in known:
            raise Refused(f"scenario {name}: there is no `{key}`; there are {', '.join(known)}")
        if not _fits(key, value, known[key]):
            raise Refused(f"scenario {name}: `{key}` cannot be {value!r}")


def _with_tuples(values):
    return values | {key: tuple(values[key]) for key in LISTS if key in values}


def _fits(key, value, wanted):
    if wanted is tuple:
        return isinstance(value, list) and all(LISTS[key](one) for one in value)
    if wanted is bool:
        return isinstance(value, bool)
    if wanted is dict:
        return isinstance(value, dict) and all(isinstance(one, dict) for one in value.values())
    if wanted in (int, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
    return isinstance(value, wanted)


def _rules(scenario):
    every = (scenario.load, scenario.fill, scenario.warm, scenario.beside, scenario.apart)
    loads = [load for load in every if load]
    own = ("--bootstrap", "--duration", "--warm-up", "--json", "--html", "--hdr-log")
    yield scenario.question.endswith("?"), "`question` is no question"
    yield scenario.kind in KINDS, f"`kind` is one of {', '.join(KINDS)}"
    yield (scenario.kind == "load") == bool(scenario.load), "`load` is for the kind \"load\""
    yield all(words(load)[0] in MODES for load in loads), f"a load begins with {', '.join(MODES)}"
    yield not any(option in words(load) for load in loads for option in own), (
        f"the runner itself gives {', '.join(own)}"
    )
    yield scenario.seconds > 0, "`seconds` is above 0"
    yield not scenario.beside_turns or bool(scenario.beside), "`beside_turns` is about `beside`"
    yield not scenario.apart or bool(scenario.beside), "`apart` is about `beside`"
    yield not scenario.restart or bool(scenario.fill), "`restart` comes after `fill`"
    yield not scenario.fill_gb or bool(scenario.fill), "`fill_gb` is about `fill`"


def words(load):
    """A load as arguments."""
    return shlex.split(load)


def topics(load):
    """The topics of a load with their numbers of partitions."""
    def option(name, otherwise):
        return load[load.index(name) + 1] if name in load[:-1] else otherwise

    name, count = option("--topic", "load"), int(option("--topics", "1"))
    names = [name] if count == 1 else [f"{name}-{index}" for index in range(count)]
    return [(name, int(option("--partitions", "1"))) for name in names]
