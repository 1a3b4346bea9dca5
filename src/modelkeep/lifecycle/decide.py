"""What to do next, as a pure function of policy and facts. No clock, no database, no side effects.

The same facts always give the same decisions, so every decision in the history can be replayed and every rule
can be tested by simulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from modelkeep.spec.declaration import Declaration
from modelkeep.spec.expressions import (
    Cron,
    Drift,
    NewRows,
    PerformanceDrop,
    RolloutStep,
    Trigger,
    parse_rollout,
    parse_trigger,
)
from modelkeep.spec.units import seconds


@dataclass(frozen=True, slots=True)
class Policy:
    """What the declaration says about change.

    Attributes:
        triggers: When to renew.
        cooldown: Shortest time between two attempts to renew, in seconds.
        steps: The rollout, in order; empty promotes at once.
    """

    triggers: tuple[Trigger, ...]
    cooldown: float
    steps: tuple[RolloutStep, ...]


def policy(declaration: Declaration) -> Policy:
    """The policy a declaration states."""
    return Policy(
        triggers=tuple(parse_trigger(text) for text in declaration.update.when),
        cooldown=seconds(declaration.update.cooldown),
        steps=tuple(parse_rollout(text) for text in declaration.deploy.rollout),
    )


@dataclass(frozen=True, slots=True)
class Evidence:
    """A finding about the champion that no attempt to renew has answered yet."""

    kind: Literal["drift", "performance_drop"]
    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Underway:
    """A rollout as it stands.

    Attributes:
        version: The version being rolled out.
        step: Index into the policy's steps.
        since: When this step began.
        violations: Abort conditions the evidence supports, as sentences.
        requests: Predictions the version made in this step.
        around: Predictions of the whole endpoint in this step.
    """

    version: int
    step: int
    since: float
    violations: tuple[str, ...] = ()
    requests: int = 0
    around: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything a decision may depend on.

    Attributes:
        now: Seconds since 1970 UTC.
        champion: The champion's number; None before the first.
        rollout: The rollout under way, if any.
        evidence: Unanswered findings about the champion.
        new_rows: Rows in the source that the champion has not seen.
        last_attempt: When the last attempt to renew began; None before the first.
        renewing: Whether a renewal runs or waits in the queue.
    """

    now: float
    champion: int | None = None
    rollout: Underway | None = None
    evidence: tuple[Evidence, ...] = ()
    new_rows: int = 0
    last_attempt: float | None = None
    renewing: bool = False


@dataclass(frozen=True, slots=True)
class Renew:
    """Train a challenger."""

    because: str


@dataclass(frozen=True, slots=True)
class Advance:
    """Move the rollout to its next step."""

    version: int
    step: int
    because: str


@dataclass(frozen=True, slots=True)
class Promote:
    """Make the version the champion and give it all traffic."""

    version: int
    because: str


@dataclass(frozen=True, slots=True)
class Abort:
    """End the rollout; the champion keeps all traffic."""

    version: int
    because: str


@dataclass(frozen=True, slots=True)
class Wait:
    """A trigger holds, but something else must happen first."""

    because: str


Decision = Renew | Advance | Promote | Abort | Wait


def decide(rules: Policy, facts: Facts) -> list[Decision]:
    """What to do now.

    Rules, in this order of strength:
        1. a rollout with a supported abort condition ends, whatever else holds;
        2. a rollout whose step has lasted its time advances, after its last step it is promoted; but a step in
           which the endpoint had traffic and the version none of it has shown nothing, and goes on;
        3. while a rollout or a renewal is under way nothing is renewed;
        4. a trigger renews when there is something new to learn from and the cooldown is over.

    Returns:
        At most one decision about the rollout and at most one about renewal, never both.
    """
    if facts.rollout is not None:
        return _about_rollout(rules.steps, facts.rollout, facts.now)
    if facts.renewing or facts.champion is None:
        return []
    reasons = _reasons(rules.triggers, facts)
    if not reasons:
        return []
    because = "; ".join(reasons)
    if facts.last_attempt is not None and facts.now - facts.last_attempt < rules.cooldown:
        return [Wait(f"{because}; cooling down since the last renewal")]
    if facts.new_rows <= 0:
        return [Wait(f"{because}; no rows the champion has not seen")]
    return [Renew(because)]


def _about_rollout(steps: Sequence[RolloutStep], rollout: Underway, now: float) -> list[Decision]:
    if rollout.violations:
        return [Abort(rollout.version, "; ".join(rollout.violations))]
    if rollout.step >= len(steps):
        return [Promote(rollout.version, "no step is left")]
    step = steps[rollout.step]
    if now - rollout.since < step.seconds:
        return []
    if rollout.requests == 0 and rollout.around > 0:
        return [Wait(f"{step.text}: none of {rollout.around} predictions came to version {rollout.version} yet")]
    because = f"{step.text} passed: {rollout.requests} predictions, no abort condition supported"
    if rollout.step + 1 < len(steps):
        return [Advance(rollout.version, rollout.step + 1, because)]
    return [Promote(rollout.version, because)]


def _reasons(triggers: Sequence[Trigger], facts: Facts) -> list[str]:
    reasons = []
    for trigger in triggers:
        match trigger:
            case Drift():
                reasons += _latest(facts.evidence, "drift")
            case PerformanceDrop():
                reasons += _latest(facts.evidence, "performance_drop")
            case NewRows(count=count):
                if facts.new_rows >= count:
                    reasons.append(f"{facts.new_rows} new rows (asked for {count})")
            case Cron():
                if trigger.due(facts.last_attempt or 0.0, facts.now):
                    reasons.append("the schedule is due")
    return reasons


def _latest(evidence: Sequence[Evidence], kind: str) -> list[str]:
    found = [item for item in evidence if item.kind == kind]
    return [max(found, key=lambda item: item.at).text] if found else []
