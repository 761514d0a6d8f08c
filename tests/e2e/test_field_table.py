"""The table of the field's failures is whole and true: field.py names no test that is not there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.e2e.field import FAILURES, lines, name_of, outcome

TESTS = Path(__file__).resolve().parent.parent


def all_tests() -> set[str]:
    """Return every test of the repository, as the table names them."""
    found = set()
    for file in TESTS.rglob("test_*.py"):
        place = file.relative_to(TESTS).with_suffix("").as_posix()
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found.add(f"{place}::{node.name}")
    return found


def test_every_failure_has_its_row() -> None:
    assert list(FAILURES) == list(range(1, 26))


def test_every_test_that_the_table_names_is_there() -> None:
    named = {test for failure in FAILURES.values() for test in failure.tests}
    assert named - all_tests() == set()


def test_every_failure_is_held_by_a_test_with_its_number() -> None:
    for number, failure in FAILURES.items():
        assert any(f"::test_b{number:02}_" in test for test in failure.tests), number


def test_every_test_with_a_number_is_in_the_row_of_that_number() -> None:
    for test in all_tests():
        if match := re.search(r"::test_b(\d\d)_", test):
            assert test in FAILURES[int(match[1])].tests


@pytest.mark.parametrize(
    ("outcomes", "word"),
    [
        ({}, "not run"),
        ({"a": {"passed"}}, "1 of 2 passed"),
        ({"a": {"passed"}, "b": {"passed"}}, "passed"),
        ({"a": {"passed"}, "b": {"passed", "failed"}}, "failed"),
        ({"a": {"passed"}, "b": {"passed", "skipped"}}, "failed"),
        ({"a": {"passed"}, "b": {"skipped"}}, "passed"),
        ({"a": {"skipped"}, "b": {"skipped"}}, "not run"),
    ],
)
def test_a_row_has_passed_when_all_of_its_tests_have(
    outcomes: dict[str, set[str]], word: str
) -> None:
    assert outcome(("a", "b"), outcomes) == word


def test_a_test_is_found_by_the_name_that_pytest_gives_it() -> None:
    given = "tests/e2e/test_first.py::test_b25_names_with_spaces_arrive[one-target]"
    assert name_of(given) in FAILURES[25].tests


def test_each_failure_is_printed() -> None:
    printed = [line.split()[0] for line in lines({}) if line.startswith("B")]
    assert printed == [f"B{number}" for number in FAILURES]
