"""Drawings as SVG, written by hand: latency by percentile, and bars with their spread. Pure."""

import math
from html import escape

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 80, 150, 48, 56
COLOURS = {"corelog": "#0b6e4f", "kafka": "#c1442e", "kafka-flush": "#e0a02e", "floor": "#7a7f87"}
SHARES = [0, 0.5, 0.9, 0.99, 0.999, 0.9999]
SHARE_MAX = 0.99999
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#222}.title{font-size:15px;font-weight:600}"
    ".axis{fill:#666;font-size:12px}.grid{stroke:#e4e4e4}"
)


def latency(title, curves):
    """Percentile against latency, both logarithmic. `curves`: by name, for each round a list of
    [share, milliseconds]; the line is the median of the rounds, the band reaches from the fastest
    to the slowest."""
    bands = {name: _band(rounds) for name, rounds in curves.items()}
    values = [value for band in bands.values() for row in band for value in row[1:]]
    low, high = _decades(values)
    across, up = _nines_scale(), _log_scale(low, high)
    parts = [_text(LEFT, 28, title, "title"), _text(LEFT, TOP - 4, "ms", "axis")]
    for decade in range(low, high + 1):
        parts += _row_line(up(10**decade), f"{10.0**decade:g}")
    for share in SHARES:
        parts += _column_line(across(share), f"p{share * 100:g}")
    for name, band in bands.items():
        colour = COLOURS.get(name, "#333")
        top = [(across(share), up(most)) for share, _, _, most in band]
        bottom = [(across(share), up(least)) for share, _, least, _ in band]
        middle = [(across(share), up(median)) for share, median, _, _ in band]
        area = _points(top + bottom[::-1])
        parts.append(f'<polygon points="{area}" fill="{colour}" opacity="0.15"/>')
        line = f'fill="none" stroke="{colour}" stroke-width="2"'
        parts.append(f'<polyline points="{_points(middle)}" {line}/>')
    ends = [(up(band[-1][1]), name) for name, band in bands.items() if band]
    return _page(parts + _names(ends))


def bars(title, spreads):
    """A bar for each name, as long as its median, with a line from its least to its most."""
    reach = max((spread.most for spread in spreads.values()), default=0) or 1
    height = TOP + 44 * len(spreads) + 16

    def across(value):
        return LEFT + 40 + (WIDTH - LEFT - RIGHT - 40) * value / reach

    parts = [_text(16, 28, title, "title")]
    for at, (name, spread) in enumerate(spreads.items()):
        y, colour = TOP + 44 * at, COLOURS.get(name, "#333")
        width = across(spread.median) - across(0)
        parts.append(_text(16, y + 18, name))
        shape = f'x="{across(0):.1f}" y="{y}" width="{width:.1f}" height="26"'
        parts.append(f'<rect {shape} fill="{colour}"/>')
        ends = f'x1="{across(spread.least):.1f}" x2="{across(spread.most):.1f}"'
        parts.append(f'<line {ends} y1="{y + 13}" y2="{y + 13}" stroke="#222" stroke-width="2"/>')
        parts.append(_text(across(spread.most) + 8, y + 18, spread.text()))
    return _page(parts, height)


def _band(rounds):
    """(share, median, least, most) wherever each round has a value."""
    by_share = {}
    for curve in rounds:
        for share, value in curve:
            by_share.setdefault(min(share, SHARE_MAX), []).append(max(value, 1e-4))
    rows = []
    for share, values in sorted(by_share.items()):
        values.sort()
        rows.append((share, values[len(values) // 2], values[0], values[-1]))
    return rows


def _decades(values):
    low = math.floor(math.log10(min(values, default=0.1)))
    return low, max(low + 1, math.ceil(math.log10(max(values, default=1))))


def _nines_scale():
    """Each further nine takes the same width, as tails deserve."""
    width = (WIDTH - LEFT - RIGHT) / -math.log10(1 - SHARE_MAX)
    return lambda share: LEFT - width * math.log10(1 - share)


def _log_scale(low, high):
    height = (HEIGHT - TOP - BOTTOM) / (high - low)
    return lambda value: HEIGHT - BOTTOM - height * (math.log10(value) - low)


def _names(ends):
    """The names at the ends of their lines, moved apart."""
    parts, last = [], -math.inf
    for y, name in sorted(ends):
        last = max(y + 4, last + 16)
        colour = COLOURS.get(name, "#333")
        place = f'x="{WIDTH - RIGHT + 8}" y="{last:.1f}" style="fill:{colour}"'
        parts.append(f"<text {place}>{escape(name)}</text>")
    return parts


def _row_line(y, label):
    return [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>',
        f'<text class="axis" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>',
    ]


def _column_line(x, label):
    low = HEIGHT - BOTTOM
    return [
        f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{low}"/>',
        f'<text class="axis" x="{x:.1f}" y="{low + 20}" text-anchor="middle">{label}</text>',
    ]


def _points(points):
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _text(x, y, text, kind=""):
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _page(parts, height=HEIGHT):
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{STYLE}</style>'
    paper = f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>'
    return "\n".join([head, paper, *parts, "</svg>"]) + "\n"
