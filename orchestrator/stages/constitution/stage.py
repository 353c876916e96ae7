"""Answers are criticised and revised by principles; SFT runs after it train on the revisions.

The supervised half of Constitutional AI (Bai et al., arXiv 2212.08073, section 3). The answers are
saved, and so is each round of revisions.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from orchestrator.config.constitution import Critic
from orchestrator.config.run import StageName
from orchestrator.results.constitution_figures import ConstitutionFigures, Share
from orchestrator.results.intervals import clustered_rate
from orchestrator.session.session import Session
from orchestrator.stages.constitution.critics import revise
from orchestrator.stages.constitution.demonstrations import Demonstrations
from orchestrator.stages.constitution.drafts import Draft, read_drafts, write_drafts
from orchestrator.stages.labels.completions import sample_completions
from orchestrator.stages.labels.constitution_files import principles_of
from orchestrator.stages.labels.tasks import EMPTY, different
from workers.data.records import Prompt
from workers.errors import EmptyDatasetError, LedgerError
from workers.judging.principles import Principle


def constitution(session: Session) -> None:
    """Sample answers, have them revised, and keep the revisions under the stage run's name."""
    stage, settings = session.name_of(StageName.constitution), session.config.constitution
    total = 1 + settings.revisions
    session.live.stage(stage, total)
    saved = session.saves.within(stage)
    prompts = _prompts(session, stage)
    uses = ("revision",) if settings.critic is Critic.function else ("critique", "revision")
    principles = principles_of(settings.principles, uses, "constitution.principles")
    if saved is None:
        drafts = _answers(session, stage, prompts)
        write_drafts(session.folder.revisions_of(stage, 0), drafts)
        session.boundary(stage, 1, total + 1, {}, always=True)
    begun = saved.step if saved else 1
    drafts = read_drafts(session.folder.revisions_of(stage, begun - 1), prompts)
    for number in range(begun, total):
        session.live.advance(number)
        session.position.step = number
        drafts = _round(session, stage, number, drafts, principles)
        write_drafts(session.folder.revisions_of(stage, number), drafts)
        session.boundary(stage, number + 1, total + 1, {}, always=True)
    session.position.step = total
    _record(session, stage, drafts, prompts)


def _prompts(session: Session, stage: str) -> list[Prompt]:
    settings, first = session.config.constitution, session.run.first_prompt if session.run else 0
    count = settings.prompts + settings.heldout_prompts
    asked = different(session.source.prompts("reward_model", first, count))
    if len(asked) <= settings.heldout_prompts:
        raise EmptyDatasetError(
            f"there are {len(asked):,} prompts, and {settings.heldout_prompts:,} are held out",
            where=stage,
            fix="give more prompts, or lower constitution.heldout_prompts",
        )
    return asked


def _answers(session: Session, stage: str, prompts: Sequence[Prompt]) -> list[Draft]:
    settings = session.config.constitution
    counts = [1] * len(prompts)
    found = sample_completions(
        session, settings.model, prompts, counts, stage, settings.temperature
    )
    session.fleet.rollout.sleep().result()
    texts = [session.source.detokenize(tokens).strip() for (tokens,) in found.tokens]
    return [
        Draft(prompt, text, failed="" if text else EMPTY)
        for prompt, text in zip(prompts, texts, strict=True)
    ]


def _round(
    session: Session,
    stage: str,
    number: int,
    drafts: Sequence[Draft],
    principles: Sequence[Principle],
) -> list[Draft]:
    """The drafts with one more revision of each that has not failed."""
    asked = [draft for draft in drafts if not draft.failed]
    drawn = [
        random.Random(session.seed(stage, "principle", number, d.prompt.id)).choice(principles)
        for d in asked
    ]
    made = iter(revise(session, stage, number, asked, drawn) if asked else [])
    session.fleet.rollout.sleep().result()
    return [draft if draft.failed else draft.revised(next(made)) for draft in drafts]


def _record(
    session: Session, stage: str, drafts: Sequence[Draft], prompts: Sequence[Prompt]
) -> None:
    """Record the figures; every answer is revised or left out."""
    found = Demonstrations.of(session, [stage])
    left_out = Counter(found.left_out)
    answers, revised = len(prompts), len(found.prompts)
    if answers != revised + left_out.total():
        raise LedgerError(
            f"{answers:,} answers were sampled, {revised:,} revised and {left_out.total():,} left "
            "out",
            where=stage,
            fix="report this: an answer was lost or counted twice",
        )
    for reason, count in left_out.items():
        session.live.note(f"left out: {count:,} answers: {reason}")
    used = [draft for draft in drafts if draft.prompt.id in found.prompts]
    figures = ConstitutionFigures(
        critic=session.config.constitution.critic.value,
        answers=answers,
        revised=revised,
        left_out=dict(left_out),
        demonstrations=found.count("train"),
        heldout=found.count("heldout"),
        changed=sum(draft.text != draft.answer for draft in used),
        rude_before=_rude(session, used, [draft.answer for draft in used]),
        rude_after=_rude(session, used, [draft.text for draft in used]),
    )
    session.findings.constitutions[stage] = figures
    _tell(session, stage, figures)


def _rude(session: Session, drafts: Sequence[Draft], texts: Sequence[str]) -> Share | None:
    """The share of rude texts, where the data source can tell."""
    prompts = [draft.prompt for draft in drafts]
    golds = session.source.gold(prompts, texts)
    if golds is None or len(prompts) < 2:
        return None
    rate = clustered_rate([gold.rude for gold in golds], [prompt.id for prompt in prompts])
    return Share(rate.rate, rate.low, rate.high, rate.trials)


def _tell(session: Session, stage: str, found: ConstitutionFigures) -> None:
    values: dict[str, float] = {
        "constitution/answers": found.answers,
        "constitution/revised": found.revised,
        "constitution/left_out": sum(found.left_out.values()),
        "constitution/demonstrations": found.demonstrations,
        "constitution/heldout_demonstrations": found.heldout,
        "constitution/changed": found.changed,
    }
    for name, share in (("before", found.rude_before), ("after", found.rude_after)):
        if share is not None:
            values[f"constitution/rude_{name}"] = share.rate
            values[f"constitution/rude_{name}_low"] = share.low
            values[f"constitution/rude_{name}_high"] = share.high
            session.live.note(
                f"rude {name} revision: {100 * share.rate:.1f} % [{100 * share.low:.1f}, "
                f"{100 * share.high:.1f}] of {share.n:,} answers"
            )
    session.telemetry.record(stage, 0, values)
    session.live.note(
        f"{found.demonstrations:,} demonstrations to train on, {found.heldout:,} held out; "
        f"{found.changed:,} of {found.revised:,} answers were changed"
    )
