"""The model proof is proven: it fails on every seeded defect of the agent, and says by which law.

Each defect is shown in the smallest case that catches it, with the same checks as the proof itself.
With PROOF_ALL=1 each goes through all cases, in order, until one does.
"""

import os
from collections.abc import Callable

import pytest

from .defects import DEFECTS, Defect
from .proof import CASES, violations

SOUND = "the agent as it is"


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda one: one.name)
def test_the_proof_fails_on_a_defect(
    defect: Defect, record_property: Callable[[str, object], None]
) -> None:
    cases = [case for case in CASES if (str(case[0]), case[1]) == defect.case]
    assert violations(lambda _patch: None, cases) is None, SOUND
    found = violations(defect.apply, CASES if os.environ.get("PROOF_ALL") else cases)
    assert found is not None
    violation, (situation, fault) = found
    record_property("defect", [defect.name, violation.law, f"{situation}, {fault}"])
    assert violation.law == defect.law or os.environ.get("PROOF_ALL"), violation


def test_every_law_is_broken_by_some_defect() -> None:
    assert {one.law for one in DEFECTS} == {*(f"I{number}" for number in range(1, 8)), "why"}
