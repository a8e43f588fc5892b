"""Plans: any JSON makes a plan that is written and read again, or a PlanMismatch."""

import json

from hypothesis import given
from hypothesis import strategies as st

from builders.fuzz import damaged, mutated, tried
from builders.models import make_structure
from vitrim.errors import PlanMismatch
from vitrim.plan import KeptBlock, PruningPlan

STRUCTURE = make_structure([(3, 8), (3, 8), (3, 8)])
PLAN = PruningPlan(
    model="made up",
    blocks=(
        KeptBlock.of(0, {"heads": [0, 2], "neurons": range(5), "heads.1": [1]}, {"heads": 3}),
        KeptBlock.of(2, {"heads": [1], "neurons": [0, 7]}),
    ),
)


def assert_valid_or_refused(text: str) -> None:
    try:
        plan = PruningPlan.from_json(text)
    except PlanMismatch as problem:
        assert str(problem).isprintable() and len(str(problem)) < 3500
        return
    assert PruningPlan.from_json(plan.to_json()) == plan
    assert PruningPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    for change in (lambda: plan.check(STRUCTURE), lambda: PLAN.then(plan), lambda: plan.then(PLAN)):
        try:
            change()
        except PlanMismatch as problem:
            assert str(problem).isprintable()


@tried(60)
@given(document=mutated(PLAN.to_dict()))
def test_any_json_makes_a_plan_or_is_refused(document: object) -> None:
    try:
        text = json.dumps(document)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return
    assert_valid_or_refused(text)


@tried(60)
@given(text=st.one_of(damaged(PLAN.to_json()), st.text()))
def test_any_text_makes_a_plan_or_is_refused(text: str) -> None:
    assert_valid_or_refused(text)
