"""What was measured, as figures beside their goals, a table and a picture.

Decides what is compared with what, and which goals there are. A figure is a median; it never leaves
out what failed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from .measure import Result, Results

RTT_SECONDS = 0.5  # of the work "trips"
HANDSHAKES = 1  # one behind the other: that of the data connection goes on meanwhile
AGENTS = ("ours", "ours-changed")  # with default settings; with those that look at what changed
PEERLESS = ("sequence", "pipe", "pipe-marked", *AGENTS, "ssh")

Found = Mapping[str, Results]


@dataclass(frozen=True)
class About:
    """One run of the benchmark."""

    date: str
    command: str
    zfs: str
    machine: str
    versions: dict[str, str]
    rounds: int


@dataclass(frozen=True)
class Figure:
    """One figure; `goal` is the most that `ratio` may be, or `value` where there is no baseline."""

    name: str
    value: float
    unit: str
    baseline: float | None = None
    goal: float | None = None
    ratio: float | None = None

    @property
    def reached(self) -> str:
        """Say whether the goal is reached."""
        if self.goal is None:
            return ""
        measured = self.value if self.ratio is None else self.ratio
        return "yes" if measured <= self.goal else "no"


def beside(name: str, times: Sequence[float], base: Sequence[float], goal: float | None) -> Figure:
    """Compare times round by round: what slows the machine for a while slows both.

    Who has run for long enough has fewer rounds; only those that both have are paired.
    """
    ratio = median(one / other for one, other in zip(times, base, strict=False))
    return Figure(name, median(times), "s", median(base), goal, ratio)


def middle(result: Result | None, key: str) -> float | None:
    """Return the median of all runs, None where there is none."""
    if result is None or result.failed:
        return None
    values = [one[key] for one in result.runs if key in one]
    return median(values) if values else None


def walls(found: Found, work: str, who: str) -> Sequence[float]:
    """Return the times of one contender at one work, a round each."""
    result = found.get(work, {}).get(who)
    runs = [] if result is None or result.failed else result.runs
    return [one["wall"] for one in runs if "wall" in one]


def goals(found: Found) -> Iterator[Figure]:
    """Return the figures that have a goal, as far as they were measured."""
    for work, results in found.items():
        kind, _, size = work.partition("/")
        for who in AGENTS:
            if ours := walls(found, work, who):
                yield from _against_others(found, work, who, ours)
        if kind == "own":
            agent = results["ours"]
            cpu, memory = middle(agent, "cpu"), middle(agent, "memory")
            if cpu is not None and memory is not None:
                small, large = int(size) <= 500, int(size) <= 10_000
                yield Figure(f"{work}: agent's own CPU", cpu, "s", None, 0.35 if small else None)
                yield Figure(f"{work}: agent's memory", memory, "MB", None, 45 if large else None)
        if kind in {"check", "services"}:
            checked, bare = (walls(found, work, one) for one in ("check", "import nagiosplugin"))
            if checked and bare and kind == "check" and size == "1":
                yield beside(f"{work} to importing nagiosplugin", checked, bare, 1.25)
            elif checked and bare:
                goal = 0.25 * median(bare) + 0.06 if kind == "check" else None
                beyond = median(checked) - median(bare)
                yield Figure(f"{work}: beyond importing nagiosplugin", beyond, "s", None, goal)


def _against_others(found: Found, work: str, who: str, ours: Sequence[float]) -> Iterator[Figure]:
    kind, _, size = work.partition("/")
    sequence, pipe = walls(found, work, "sequence"), walls(found, work, "pipe")
    if kind in {"one", "idle", "all"} and sequence:
        goal = 0.7 if work == "one/20" else None
        yield beside(f"{work}: {who} to the bare sequence", ours, sequence, goal)
    if kind == "bulk" and pipe:
        goal = 1.03 if size == "1000" else None
        yield beside(f"{work}: {who} to the bare pipe", ours, pipe, goal)
    others = [walls(found, work, name) for name in found[work] if name not in PEERLESS]
    fastest = min((one for one in others if one), key=median, default=None)
    if fastest and kind != "bulk":
        goal = 0.4 if kind == "one" and size in {"20", "100"} else None
        yield beside(f"{work}: {who} to the fastest other program", ours, fastest, goal)
    one_target = walls(found, "targets/1", who)
    if kind == "targets" and size != "1" and one_target:
        goal = 1.3 if size == "4" else None
        yield beside(f"{work}: {who} to one target", ours, one_target, goal)
    trips, handshake = (_trips(found, work, one) for one in (who, "ssh"))
    if trips is not None and handshake is not None:
        yield Figure(f"{work}: round trips of a connection", handshake, "")
        beyond = trips - HANDSHAKES * handshake
        yield Figure(f"{work}: {who}, round trips beyond connecting", beyond, "", None, 8)


def _trips(found: Found, work: str, who: str) -> float | None:
    """Return how many round trips one contender's runs wait for, by what the link adds to them."""
    result = found[work].get(who)
    runs = [] if result is None or result.failed else result.runs
    added = [one["wall"] - one["near"] for one in runs if "near" in one]
    return median(added) / RTT_SECONDS if added else None


def everything(found: Found) -> Iterator[Figure]:
    """Return every median; times stand beside the bare sequence's."""
    units = {"cpu": "s", "memory": "MB"}
    for work, results in found.items():
        for who, result in results.items():
            times, base = walls(found, work, who), walls(found, work, "sequence")
            if times and base:
                yield beside(f"{work} {who} wall", times, base, None)
            elif times:
                yield Figure(f"{work} {who} wall", median(times), "s")
            for key, unit in units.items():
                if (value := middle(result, key)) is not None:
                    yield Figure(f"{work} {who} {key}", value, unit)
            for key, count in result.counts.items():
                yield Figure(f"{work} {who} {key}", count, "")


def write(folder: Path, name: str, about: About, found: Found) -> None:
    """Write JSON, Markdown and SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = [*goals(found), *everything(found)]
    whole = {
        **asdict(about),
        "figures": [asdict(one) for one in figures],
        "failed": {
            work: {who: one.failed for who, one in results.items() if one.failed}
            for work, results in found.items()
        },
        "runs": {
            work: {who: one.runs for who, one in results.items() if one.runs}
            for work, results in found.items()
        },
        "parts": {
            work: {who: one.parts for who, one in results.items() if one.parts}
            for work, results in found.items()
        },
    }
    (folder / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n")
    (folder / f"{name}.md").write_text("\n".join(page(name, about, found)) + "\n")
    (folder / f"{name}.svg").write_text(picture(about, found))


def page(name: str, about: About, found: Found) -> Iterator[str]:
    """Return the lines of the Markdown page."""
    yield f"# Benchmark with {about.zfs}"
    yield ""
    yield f"{about.date}; {about.machine}; medians of {about.rounds} rounds, fewer where n says so."
    yield "Only ratios mean anything; each is the median of its rounds', in which both had a turn."
    yield "To repeat it:"
    yield ""
    yield f"    {about.command}"
    yield ""
    yield ", ".join(f"{who} {number}" for who, number in about.versions.items()) + "."
    yield ""
    yield f"![wall time by work]({name}.svg)"
    yield ""
    yield "| figure | value | baseline | ratio | goal | reached |"
    yield "|---|---:|---:|---:|---:|---|"
    for one in goals(found):
        cells = (one.name, f"{_short(one.value)} {one.unit}", _short(one.baseline))
        yield f"| {' | '.join(cells)} | {_short(one.ratio)} | {_short(one.goal)} | {one.reached} |"
    yield ""
    yield "`CPU` and `largest process` are the source's, of what was waited for; `processes`, `zfs`"
    yield "and `connections` were counted on both sides in a run of their own."
    yield "`sequence` is the bare commands in a row, `pipe` the bare `zfs send | ssh zfs receive`,"
    yield "`pipe-marked` that with a property on each snapshot, as the agent sets; `ours-changed`"
    yield "is the agent with `skip_unchanged` and `send_changed`."
    for work, results in found.items():
        yield from _section(found, work, results)


def _section(found: Found, work: str, results: Results) -> Iterator[str]:
    keys = ("processes", "zfs", "connections")
    yield ""
    yield f"## {work}"
    yield ""
    yield "| | wall | to sequence | n | CPU | largest process | processes | zfs | connections |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    base = walls(found, work, "sequence")
    for who, result in results.items():
        if result.failed:
            words = result.failed.replace("|", "\\|").replace("`", "'")
            yield f"| {who} | failed: `{words}` | | | | | | | |"
            continue
        time = middle(result, "wall")
        times = walls(found, work, who)
        ratio = beside(who, times, base, None).ratio if times and base else None
        row = [f"{_short(time)} s" if time else "", _short(ratio), str(len(result.runs))]
        row += [f"{_short(middle(result, 'cpu'))} s", f"{_short(middle(result, 'memory'))} MB"]
        row = ["" if cell.startswith(" ") else cell for cell in row]
        row += [str(result.counts.get(key, "")) for key in keys]
        yield f"| {who} | {' | '.join(row)} |"
    for who, result in results.items():
        if result.uncounted:
            yield ""
            yield f"{who} was not counted: `{result.uncounted.replace('`', chr(39))}`"
        if result.parts:
            yield ""
            parts = ", ".join(f"{name} {_short(one)}" for name, one in result.parts.items())
            yield f"{who}, seconds of one more run: {parts}."


def _short(number: float | None) -> str:
    return "" if number is None else f"{number:.3g}" if abs(number) < 100 else f"{number:.0f}"


def picture(about: About, found: Found) -> str:
    """Return bars of each work's times, as multiples of the bare sequence's, else the pipe's."""
    width, bar, left = 760, 14, 170
    lines: list[str] = []
    y = 40
    for work in found:
        to = next((who for who in ("sequence", "pipe") if walls(found, work, who)), None)
        if to is None:
            continue
        base = walls(found, work, to)
        times = {who: walls(found, work, who) for who in found[work] if who != "ssh"}
        bars = {who: beside(who, one, base, None) for who, one in times.items() if one}
        lines.append(f'<text x="8" y="{y}" font-weight="bold">{work}, to {to}</text>')
        most = max(one.ratio or 0 for one in bars.values())
        y += 6
        for who in times:
            one = bars.get(who)
            ratio = one.ratio or 0 if one else 0
            label = f"{ratio:.2f} ({one.value:.2f} s)" if one else "failed"
            length = ratio / most * (width - left - 110)
            color = "#2b6cb0" if who in AGENTS else "#a0aec0"
            lines.append(f'<text x="{left - 6}" y="{y + 11}" text-anchor="end">{who}</text>')
            lines.append(
                f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{bar - 3}" fill="{color}"/>'
            )
            lines.append(f'<text x="{left + length + 4:.1f}" y="{y + 11}">{label}</text>')
            y += bar
        y += 24
    title = f"Wall time to that of the bare commands, {about.zfs}, {about.date}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}"'
    style = (
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
    )
    text = f'<text x="8" y="18" font-size="13">{title}</text>'
    return "\n".join((f"{head} {style}", text, *lines, "</svg>")) + "\n"
