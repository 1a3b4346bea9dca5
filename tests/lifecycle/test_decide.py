"""Properties of the decision: what must hold for every policy and every set of facts."""

from hypothesis import given
from hypothesis import strategies as st

from modelkeep.lifecycle.decide import (
    Abort,
    Advance,
    Evidence,
    Facts,
    Policy,
    Promote,
    Renew,
    Underway,
    Wait,
    decide,
)
from modelkeep.spec.expressions import parse_rollout, parse_trigger

STEPS = ("shadow 10m", "canary 5% 10m", "canary 50% 1h")
TRIGGERS = ("drift", "performance_drop", "new_rows >= 100", "cron 0 3 * * *")

times = st.floats(1.3e9, 1.4e9)
evidence = st.builds(
    Evidence, kind=st.sampled_from(["drift", "performance_drop"]), at=times, text=st.sampled_from(["a", "b"])
)
rollouts = st.builds(
    Underway,
    version=st.integers(1, 9),
    step=st.integers(0, 3),
    since=times,
    violations=st.lists(st.just("error_rate is 3 %"), max_size=1).map(tuple),
    requests=st.integers(0, 1000),
    around=st.integers(0, 1000),
)
policies = st.builds(
    Policy,
    triggers=st.lists(st.sampled_from(TRIGGERS).map(parse_trigger), unique_by=repr).map(tuple),
    cooldown=st.floats(0, 1e6),
    steps=st.integers(0, 3).map(lambda n: tuple(parse_rollout(text) for text in STEPS[:n])),
)
facts = st.builds(
    Facts,
    now=times,
    champion=st.none() | st.integers(1, 9),
    rollout=st.none() | rollouts,
    evidence=st.lists(evidence, max_size=3).map(tuple),
    new_rows=st.integers(0, 1000),
    last_attempt=st.none() | times,
    renewing=st.booleans(),
)


@given(policies, facts)
def test_never_two_things_at_once(rules, known):
    decisions = decide(rules, known)
    assert len(decisions) <= 1
    if known.rollout is not None:
        assert not any(isinstance(decision, Renew) for decision in decisions)


@given(policies, facts)
def test_a_supported_abort_condition_always_wins(rules, known):
    if known.rollout is not None and known.rollout.violations:
        assert decide(rules, known) == [Abort(known.rollout.version, "; ".join(known.rollout.violations))]


@given(policies, facts)
def test_nobody_is_promoted_before_every_step_has_lasted_its_time(rules, known):
    for decision in decide(rules, known):
        if isinstance(decision, Promote):
            assert known.rollout is not None
            assert known.rollout.step >= len(rules.steps) - 1
            if known.rollout.step < len(rules.steps):
                assert known.now - known.rollout.since >= rules.steps[known.rollout.step].seconds
        if isinstance(decision, Advance):
            assert decision.step == known.rollout.step + 1
            assert known.now - known.rollout.since >= rules.steps[known.rollout.step].seconds


@given(policies, facts)
def test_renewal_needs_a_reason_new_rows_and_patience(rules, known):
    for decision in decide(rules, known):
        if isinstance(decision, Renew):
            assert rules.triggers and known.new_rows > 0 and not known.renewing and known.champion is not None
            if known.last_attempt is not None:
                assert known.now - known.last_attempt >= rules.cooldown


@given(policies, facts)
def test_the_same_facts_give_the_same_decision(rules, known):
    assert decide(rules, known) == decide(rules, known)


def test_the_story_of_one_renewal():
    rules = Policy((parse_trigger("drift"),), 0.0, tuple(parse_rollout(text) for text in STEPS))
    drifted = (Evidence("drift", 100.0, "distance drifted"),)
    assert decide(rules, Facts(now=100.0, champion=1)) == []
    assert isinstance(decide(rules, Facts(now=100.0, champion=1, evidence=drifted))[0], Wait)
    assert decide(rules, Facts(now=100.0, champion=1, evidence=drifted, new_rows=5)) == [Renew("distance drifted")]
    assert decide(rules, Facts(now=101.0, champion=1, rollout=Underway(2, 0, 100.0))) == []
    assert isinstance(decide(rules, Facts(now=700.0, champion=1, rollout=Underway(2, 0, 100.0)))[0], Advance)
    assert isinstance(decide(rules, Facts(now=4300.0, champion=1, rollout=Underway(2, 2, 700.0)))[0], Promote)


@given(policies, facts)
def test_a_step_that_showed_nothing_is_not_passed(rules, known):
    rollout = known.rollout
    if rollout is None or rollout.requests or not rollout.around or rollout.step >= len(rules.steps):
        return
    assert not any(isinstance(decision, Promote | Advance) for decision in decide(rules, known))
