"""Decides how an answer of the check reads elsewhere than in Nagios: for checkmk, and as JSON.

It never judges, and never prints; what it is given has no control characters any more.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

STATES = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
UNKNOWN = 3
CHECKMK_SERVICE = "ZFS sync"

# checkmk's own parser takes no quotes in a name, its Nagios none of the rest.
_NOT_IN_A_NAME = re.compile(r"[^\w .:/#+@-]")


class Item(NamedTuple):
    """What is said of one replica; `target` is empty where something kept it from being judged.

    `state` is Nagios's number. `metrics` has value, warning and critical by name; an empty
    threshold is none. `details` is for JSON only.
    """

    state: int
    service: str
    rid: str
    target: str
    text: str
    metrics: Mapping[str, tuple[int, str, str]]
    details: Mapping[str, object]


class Answer(NamedTuple):
    """The whole of it: the state and first line that Nagios would get, and an item for each."""

    state: int
    text: str
    items: Sequence[Item]


def failure(text: str) -> Answer:
    """Returns the answer where nothing was judged at all."""
    return Answer(UNKNOWN, text, ())


def format_checkmk(answer: Answer) -> str:
    r"""Returns the lines of a local check: a service for each replica, and one for the rest.

    That one is there when all is well, too: checkmk alerts of no service that it has not discovered
    before. docs.checkmk.com, Local checks.

    >>> format_checkmk(failure("timed out after 10s"))
    '3 "ZFS sync" - timed out after 10s\n'
    """
    replicas = [item for item in answer.items if item.target]
    others = [item.text for item in answer.items if not item.target]
    if others or not replicas:
        lines = [_local(UNKNOWN, CHECKMK_SERVICE, "-", "; ".join(others) or answer.text)]
    else:
        lines = [_local(0, CHECKMK_SERVICE, "-", f"replicas judged: {len(replicas)}")]
    for item in replicas:
        name = f"{CHECKMK_SERVICE} {item.service}/{item.rid} to {item.target}"
        figures = "|".join(
            f"{metric}={value};{warning};{critical};0"
            for metric, (value, warning, critical) in item.metrics.items()
        )
        lines.append(_local(item.state, name, figures or "-", item.text))
    return "".join(lines)


def _local(state: int, name: str, figures: str, text: str) -> str:
    # checkmk makes a line of its own of what stands behind a backslash and an n.
    text = text.replace("\\", "/")
    return f'{state} "{_NOT_IN_A_NAME.sub("_", name)}" {figures} {text}\n'


def format_json(answer: Answer) -> str:
    """Returns one JSON object, ASCII only: state and text as for Nagios, replicas, unjudged."""
    replicas = [_object(item, target=item.target) for item in answer.items if item.target]
    unjudged = [_object(item) for item in answer.items if not item.target]
    document = {
        "state": STATES[answer.state],
        "text": answer.text,
        "replicas": replicas,
        "unjudged": unjudged,
    }
    return json.dumps(document, indent=2) + "\n"


def _object(item: Item, **more: str) -> dict[str, object]:
    named = {"service": item.service, "rid": item.rid, **more}
    return {**named, "state": STATES[item.state], "text": item.text, **item.details}
