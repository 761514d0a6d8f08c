"""Decides how the text of a service file falls into sections and settings, each with its line.

It is pure, and knows no key and no node. It is loaded only where there is a file to be read: a node
that holds replicas may have none, and configparser is a part of the check's start.
"""

import configparser
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_TOP = "\0"


class Setting(NamedTuple):
    """One option as it is written, and the line on which it starts."""

    name: str
    value: str
    line: int


class Section(NamedTuple):
    """One header without its brackets; of two with the same one both have the settings of both."""

    header: str
    line: int
    settings: tuple[Setting, ...]


class Content(NamedTuple):
    """A file's sections in order; the lines that are none of key = value, or in no section."""

    sections: tuple[Section, ...]
    broken: tuple[int, ...]
    outside: tuple[int, ...]


class _Parser(configparser.RawConfigParser):
    """configparser, keeping the line of every option and of every section header.

    configparser asks `optionxform` for the name under which an option is kept, while it reads that
    line. The line number becomes part of the name, so that a second setting of an option stays
    beside the first instead of replacing it.
    """

    SECTCRE = re.compile(r"\[(?P<header>[^][]+)\]$")

    def __init__(self) -> None:
        super().__init__(
            delimiters=("=",),
            inline_comment_prefixes=(";",),
            strict=False,
            empty_lines_in_values=False,
            default_section="",  # [DEFAULT] is a section like others
        )
        self.line = 0
        self.headers: list[tuple[int, str]] = []

    def numbered(self, text: str) -> Iterator[str]:
        """The lines of `text`, below a section of ours that takes what stands before the first."""
        yield f"[{_TOP}]"
        for self.line, line in enumerate(text.split("\n"), 1):
            if header := self.SECTCRE.match(re.split(r"\s;", line, maxsplit=1)[0].strip()):
                self.headers.append((self.line, header["header"]))
            yield line

    def optionxform(self, optionstr: str) -> str:
        return f"{optionstr}\n{self.line}"


def read(text: str) -> Content:
    """Returns what the text has; a broken line costs itself and nothing else."""
    parser = _Parser()
    broken: list[int] = []
    try:
        parser.read_file(parser.numbered(text))
    except configparser.ParsingError as error:  # raised after the last line: the rest is read
        # One less: our own line stands before the first.
        broken += [line - 1 for line, _ in error.errors]
    sections = tuple(
        Section(
            header,
            line,
            _settings(parser.items(header)) if parser.has_section(header) else (),
        )
        for line, header in parser.headers
    )
    outside = tuple(setting.line for setting in _settings(parser.items(_TOP)))
    return Content(sections, tuple(broken), outside)


def _settings(items: Iterable[tuple[str, str]]) -> tuple[Setting, ...]:
    found = []
    for numbered, value in items:
        name, _, line = numbered.rpartition("\n")
        found.append(Setting(name, value, int(line)))
    return tuple(found)
