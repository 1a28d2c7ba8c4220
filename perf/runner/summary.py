"""The summary of a run: what it must reach, and a table of medians, spreads and ratios for each
scenario. Pure: text from results.
"""

from .bars import BARS, STORAGE
from .figures import LABELS, Spread, ratio, spread
from .scenario import words

FLOOR = "floor"
OURS = "corelog"


def write(results, scenarios, about):
    """Markdown. `about` is the machine, the brokers and the tool, by name."""
    lines = ["# Corelog and other brokers side by side", ""]
    lines += [f"- {name}: {value}" for name, value in about.items()]
    lines += ["", "Each figure is the median of its rounds (least..most); ratios are formed round "
              "by round. Brokers took turns, each freshly started; the floor was taken before "
              "each round.", ""]
    lines += reach("What it must reach", BARS, results)
    lines += reach("Storage", STORAGE, results)
    for scenario in scenarios:
        lines += section(scenario, [r for r in results if r["scenario"] == scenario.name])
    return "\n".join(lines).rstrip() + "\n"


def reach(title, bars, results):
    """A table of bars, if any of them was measured."""
    rows = [
        (bar.figure, bar.text(), bar.measured(results), bar.verdict(results)) for bar in bars
    ]
    if not any(measured for _, _, measured, _ in rows):
        return []
    table = [
        (figure, text, measured.text() if measured else "", verdict)
        for figure, text, measured, verdict in rows
    ]
    head = ("figure", "bar", "measured", "verdict")
    return [f"## {title}", "", *markdown(head, table), ""]


def section(scenario, results):
    """One scenario: its question, its table, its notes and drawings."""
    lines = [f"## {scenario.name}", "", scenario.question, ""]
    if scenario.load:
        load = " ".join(words(scenario.load))
        lines += [f"`corelog load {load}`, {scenario.seconds:g} s", ""]
    if scenario.skip:
        return [*lines, f"Not run: {scenario.skip}", ""]
    asked = order(results)
    others = [name for name in asked if name not in (OURS, FLOOR) and OURS in asked]
    head = ["", *asked, *(f"corelog / {other}" for other in others)]
    rows = [row(scenario.name, results, figure, asked, others) for figure in LABELS]
    rows = [(LABELS[figure], *cells) for figure, cells in zip(LABELS, rows) if any(cells)]
    lines += [*markdown(head, rows), ""] if rows else []
    lines += [f"- {note}" for note in notes(results)]
    drawings = list(plots(scenario, results))
    lines += ["", *(f"![{title}]({name})" for name, title, _ in drawings)] if drawings else []
    return [*lines, ""]


def order(results):
    """Who was asked: Corelog first, the floor last."""
    asked = dict.fromkeys(result["asked"] for result in results)
    return sorted(asked, key=lambda name: (name == FLOOR, name != OURS, name))


def row(scenario, results, figure, asked, others):
    found = [spread(results, scenario, name, figure) for name in asked]
    ratios = [
        ratio(results, (scenario, OURS, figure), (scenario, other, figure)) for other in others
    ]
    return [one.text() if one else "" for one in found + ratios]


def notes(results):
    """What went wrong or limits a figure, once each."""
    found = {}
    for result in results:
        for note in [*result.get("notes", []), *filter(None, [result.get("error")])]:
            found.setdefault((result["asked"], note.splitlines()[0]), []).append(result["round"])
    for (asked, note), rounds in found.items():
        yield f"{asked}, round {', '.join(map(str, rounds))}: {note}"


def plots(scenario, results):
    """(file name, title, kind and data) of each drawing that the results allow."""
    for kind, title in (("produce", "Produce latency"), ("e2e", "End-to-end latency")):
        curves = {}
        for result in results:
            if kind in result.get("curves", {}):
                curves.setdefault(result["asked"], []).append(result["curves"][kind])
        if curves:
            title = f"{title}: {scenario.name}"
            yield f"{scenario.name}-{kind}-latency.svg", title, ("latency", curves)
    for figure in ("produce_mb_per_s", "consume_mb_per_s"):
        values = {name: spread(results, scenario.name, name, figure) for name in order(results)}
        values = {name: value for name, value in values.items() if isinstance(value, Spread)}
        if values:
            title = f"{LABELS[figure]}: {scenario.name}"
            name = figure.replace("_mb_per_s", "-throughput")
            yield f"{scenario.name}-{name}.svg", title, ("bars", values)


def markdown(head, rows):
    """A table whose columns are as wide as their widest cells."""
    table = [list(map(str, cells)) for cells in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(r, widths)) + " |" for r in table]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
