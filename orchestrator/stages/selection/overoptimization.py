"""Over-optimisation: the best of n by each proxy reward model, against a gold score.

Gao, Schulman and Hilton, "Scaling laws for reward model overoptimization", arXiv 2210.10760. All
proxies choose among the same answers of the SFT model; policies that were trained against a proxy
are measured by what was recorded while they learned (`policy_curves.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from orchestrator.config.run import StageName
from orchestrator.planning.model_sizes import checkpoint_size
from orchestrator.planning.runs.expand import expand
from orchestrator.planning.runs.products import proxies_before
from orchestrator.planning.runs.stage_run import StageRun, whole
from orchestrator.planning.worker_specs import judge_spec, reward_spec
from orchestrator.results.best_of import kl_bound
from orchestrator.results.overoptimization import Overoptimization
from orchestrator.results.overoptimization_analysis import (
    ProxyCurves,
    analyse_policies,
    analyse_proxies,
)
from orchestrator.results.proxy_curves import Figures, best_of_kl, shared_weights
from orchestrator.session.session import Session
from orchestrator.stages.judging import all_scored
from orchestrator.stages.ppo.ledger import Ledger
from orchestrator.stages.ppo.scores import Scoring
from orchestrator.stages.selection.policy_curves import policy_curves
from workers.data.records import Prompt
from workers.records.generation import RolloutBatch
from workers.records.specs import RewardSpec
from workers.records.training import Scores

_STAGE = StageName.overoptimization.value
_LEAST_SEEN = 0.5  # with less of the probability seen, the exact KL would be far too small


@dataclass(frozen=True, slots=True)
class Answers:
    """N answers to each of P prompts, of which M are different."""

    batch: RolloutBatch  # (M,) the different ones, prompt by prompt
    asked: list[Prompt]  # (M,) their prompts
    logprobs: Figures  # (M,) nats, of the whole answer
    prompts: npt.NDArray[np.int64]  # (M,) which of the P prompts
    which: npt.NDArray[np.int64]  # (P, N) of the M

    @property
    def seen(self) -> Figures:
        """(P,) probability of the answers that were sampled."""
        count = len(self.which)
        return np.minimum(np.bincount(self.prompts, np.exp(self.logprobs), minlength=count), 1.0)


def overoptimization(session: Session) -> None:
    """Measure every proxy before this stage, and every policy that was trained against one."""
    settings = session.config.overoptimization
    runs = expand(whole(session.config))
    proxies = _proxies(session, runs)
    session.live.stage(_STAGE, len(proxies) + 1)
    answers = _sample(session)
    gold = _gold(session, answers)
    session.live.advance(1)
    seen = float(answers.seen.mean())
    exact = seen >= _LEAST_SEEN
    if not exact:
        session.live.note(
            f"the answers that were sampled have {seen:.0%} of the probability: their KL is the "
            "bound log n - (n - 1) / n"
        )
    curves: list[ProxyCurves] = []
    for number, (name, rankings) in enumerate(proxies.items()):
        session.position.step = number
        session.stop_if_asked()
        scores, deviation = _scored(session, name, answers)
        curves.append(
            _curves(
                name,
                rankings,
                _parameters(session, name),
                answers,
                gold,
                (scores - scores[answers.which].mean()) / (deviation or 1.0),
                settings.numbers,
                exact=exact,
            )
        )
        session.live.advance(number + 2)
    _record(session, runs, answers, gold, curves, exact=exact)


def _record(
    session: Session,
    runs: tuple[StageRun, ...],
    answers: Answers,
    gold: Figures,
    curves: list[ProxyCurves],
    *,
    exact: bool,
) -> None:
    settings, seed = session.config.overoptimization, session.seed(_STAGE, "bootstrap")
    oracle = _best(gold[answers.which], gold[answers.which], settings.numbers)
    proxies, trends = analyse_proxies(curves, oracle, settings.numbers, settings.resamples, seed)
    policies, together = analyse_policies(policy_curves(session, runs), settings.resamples, seed)
    session.findings.overoptimization = Overoptimization(
        gold=settings.gold.value,
        prompts=len(answers.which),
        samples=answers.which.shape[1],
        distinct=len(answers.asked) / len(answers.which),
        seen=float(answers.seen.mean()),
        exact=exact,
        numbers=settings.numbers,
        bound=tuple(map(kl_bound, settings.numbers)),
        oracle=tuple(oracle.mean(0).tolist()),
        proxies=proxies,
        policies=policies,
        together=together,
        trends=trends,
    )


def _proxies(session: Session, runs: tuple[StageRun, ...]) -> dict[str, int | None]:
    """The reward models to measure, in order, and the rankings that each was trained on."""
    found: dict[str, int | None] = {}
    if session.config.model.checkpoints.reward_model:
        found["reward_model"] = None
    for run in proxies_before(runs):
        settings = run.config.reward_model
        sampled = run.config.samples_rankings
        known = settings.prompts - settings.skip_rankings if sampled else None
        limits = [n for n in (settings.max_rankings, known) if n]
        found[run.product] = min(limits) if limits else None
    return found


def _parameters(session: Session, name: str) -> int | None:
    size = checkpoint_size(Path(session.need(name)))
    return size.parameters if size else None


def _sample(session: Session) -> Answers:
    """Sample the SFT model, and find the different answers to each prompt."""
    settings = session.config.overoptimization
    prompts = session.source.prompts("heldout", 0, settings.prompts)
    rollout, version = session.engines_on(session.need("sft"))
    total = len(prompts) * settings.samples
    session.live.note(f"sampling {total:,} answers of sft to {len(prompts):,} prompts")
    requests = session.requests(prompts, settings.samples, _STAGE)
    rollouts = rollout.generate(requests, session.sampling(), version).result()
    batch = rollout.fetch(rollouts).result()
    rollout.sleep().result()
    row = {int(i): n for n, i in enumerate(batch.ids)}
    firsts: list[int] = []  # rows of the different answers
    which = np.empty((len(prompts), settings.samples), np.int64)
    for p, request in enumerate(requests):
        known: dict[bytes, int] = {}
        for k, i in enumerate(request.ids):
            tokens = np.asarray(batch.tokens.row(row[i])[batch.prompt_lengths[row[i]] :])
            at = known.setdefault(tokens.tobytes(), len(firsts))
            if at == len(firsts):
                firsts.append(row[i])
            which[p, k] = at
    asked_by = which.max(1)
    prompt_of = np.searchsorted(asked_by, np.arange(len(firsts)))
    distinct = batch.select(firsts)
    logprobs = [float(row.sum(dtype=np.float64)) for row in distinct.logprobs.rows()]
    asked = [prompts[p] for p in prompt_of]
    return Answers(distinct, asked, np.array(logprobs), prompt_of, which)


def _gold(session: Session, answers: Answers) -> Figures:
    """(M,) gold scores."""
    if session.config.gold_model:
        spec = judge_spec(session.config, session.need("gold"), session.need("sft"))
        return _all_scored(session, spec, answers)
    texts = [
        session.source.detokenize(answers.batch.response(i)) for i in range(len(answers.asked))
    ]
    golds = session.source.gold(answers.asked, texts)
    assert golds is not None, "the plan refuses a source without a labeler"
    return np.array([gold.score for gold in golds], np.float64)


def _scored(session: Session, name: str, answers: Answers) -> tuple[Figures, float]:
    """(M,) scores by a proxy as PPO would get them, and their deviation over the samples.

    Answers that were cut lose what they lose in PPO, or the proxy would be blamed for a choice that
    no policy is rewarded for.
    """
    folder = session.need(name)
    spec = reward_spec(session.config, folder, session.need("sft"))
    raw = _all_scored(session, spec, answers).astype(np.float32)
    scoring = Scoring.of(session.config, Ledger(), folder)
    batch = answers.batch
    shaped = scoring.shape(
        Scores(batch.ids, raw, ("",) * len(raw)), batch.finish, batch.response_lengths
    ).values.astype(np.float64)
    return shaped, float(shaped[answers.which].std())


def _all_scored(session: Session, spec: RewardSpec, answers: Answers) -> Figures:
    words = ("answers", _STAGE, "give a reward model that scores every answer")
    found = all_scored(session, spec, answers.asked, answers.batch, words)
    return found.astype(np.float64)


def _curves(
    name: str,
    rankings: int | None,
    parameters: int | None,
    answers: Answers,
    gold: Figures,
    scores: Figures,
    numbers: tuple[int, ...],
    *,
    exact: bool,
) -> ProxyCurves:
    by_sample = scores[answers.which]
    kl = np.tile([kl_bound(n) for n in numbers], (len(by_sample), 1))
    if exact:
        ends = np.searchsorted(answers.prompts, np.arange(len(by_sample) + 1))
        for p, (start, end) in enumerate(pairwise(ends)):
            kl[p] = best_of_kl(scores[start:end], answers.logprobs[start:end], numbers)
    return ProxyCurves(
        name=name,
        rankings=rankings,
        parameters=parameters,
        gold=_best(by_sample, gold[answers.which], numbers),
        kl=kl,
        exact=exact,
        reward=_best(by_sample, by_sample, numbers),
    )


def _best(rewards: Figures, figures: Figures, numbers: tuple[int, ...]) -> Figures:
    """(P, T) expected figure of the best of n by the rewards, both (P, N)."""
    return np.array(
        [
            [float(shared_weights(r, n) @ f) for n in numbers]
            for r, f in zip(rewards, figures, strict=True)
        ]
    )
