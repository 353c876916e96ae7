"""Evaluation of all models on the same held-out prompts: preferences and the alignment tax.

`orchestrator.stages.judging` measures which model is preferred. Perplexity of pretraining-style
text, cloze accuracy and the tasks of the evaluation harness measure the alignment tax (InstructGPT,
section 4.2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from orchestrator.batching import training_batches
from orchestrator.batching.batch_sizes import PPO_STAGES
from orchestrator.config.cluster import RoleName
from orchestrator.config.data import DataSourceKind, kinds
from orchestrator.config.evaluation import JudgeKind
from orchestrator.config.run import StageName
from orchestrator.planning.model_sizes import checkpoint_size
from orchestrator.planning.runs.expand import base_models, compared, environment_of, made_by
from orchestrator.planning.worker_specs import frozen_spec
from orchestrator.results.environment_gains import Gain, gain
from orchestrator.results.few_shot import prompted_name
from orchestrator.results.summary import MODEL_ORDER, EvaluationRow
from orchestrator.roles.weight_sync import measure_parity, require_parity
from orchestrator.run_files.samples import Comparison, write_answers, write_comparisons
from orchestrator.session import model_card
from orchestrator.session.conversations import sampled_answers, talk_with
from orchestrator.session.session import Session
from orchestrator.stages.earlier_answers import earlier_answers
from orchestrator.stages.judging import Answers, preferences, scores
from orchestrator.stages.lm_eval import harness_scores
from orchestrator.stages.selection.best_of import MODEL, BestOf, best_of_n
from workers.data.records import Gold, Prompt
from workers.data.tokenize.data_sets import SetKind
from workers.errors import ConfigError
from workers.model_folders.shape import read_shape
from workers.records.arrays import FloatArray, Ragged
from workers.records.training import TokenBatch

_MOST_NATS = 700.0  # exp(709.8) is the largest float


def evaluate(session: Session) -> None:
    """Compare all models of the run."""
    names = [name for name in _order(session) if session.checkpoints.get(name)]
    session.live.stage("evaluate", len(names))
    if not names:
        raise ConfigError(
            "there is no model to evaluate",
            where="evaluate",
            fix="give model.checkpoints.NAME=PATH or add training stages",
        )
    prompts = session.source.prompts("heldout", 0, session.config.evaluate.prompts)
    earlier = session.config.evaluate.answers
    given = earlier_answers(earlier, names, prompts) if earlier else {}
    answers: dict[str, Answers] = {}
    prompted = _prompted(session, names)
    for number, name in enumerate(_by_architecture(session, names)):
        session.position.step = number
        session.stop_if_asked()
        answers[name] = (
            _answered(session, name, prompts, given[name])
            if given
            else _answer(session, name, prompts)
        )
        if name in prompted:
            answers[prompted[name]] = _answer_prompted(session, name, prompts)
        session.live.advance(number + 1)
    order = [each for name in names for each in (name, prompted.get(name, ""))]
    answers = {name: answers[name] for name in order if name}
    session.findings.models = {name: a.row for name, a in answers.items()}
    session.findings.environment_gains = _gains(session, answers)
    best = _best_of(session, prompts, answers)
    # Written before judging, as an endpoint can fail; a rerun requests only missing verdicts.
    _keep_comparisons(session, prompts, answers)
    session.findings.preferred, session.findings.judging = preferences(session, prompts, answers)
    session.findings.preferred += best.preferred
    _run_harness(session, names)
    model_card.add_evaluation(session)


def _gains(session: Session, answers: Mapping[str, Answers]) -> tuple[Gain, ...]:
    """Right answers of each policy that learned with an environment over each without."""
    learned = [name for name in made_by(session.config, *PPO_STAGES) if name in answers]
    right = {
        name: [gold.correct for gold in golds]
        for name in learned
        if (golds := answers[name].golds) is not None
    }
    talks = {name: environment_of(session.config, name).on for name in right}
    return tuple(
        gain(name, over, right[name], right[over])
        for name in right
        for over in right
        if talks[name] and not talks[over]
    )


def _order(session: Session) -> list[str]:
    """All models in order, also those of an earlier part of the run that had other stages."""
    names = compared(session.config)
    return [*names, *(name for name in MODEL_ORDER if name not in names)]


def _prompted(session: Session, names: Sequence[str]) -> dict[str, str]:
    """Base models that answer after demonstrations, too -> the names of these answers."""
    shots = session.config.evaluate.few_shot
    if not shots:
        return {}
    bases = base_models(session.config)
    return {name: prompted_name(name, shots) for name in names if name in bases}


def _best_of(session: Session, prompts: Sequence[Prompt], answers: dict[str, Answers]) -> BestOf:
    """The best of n answers of the SFT model, as further models; nothing if that is off."""
    if not session.config.evaluate.best_of:
        return BestOf({}, ())
    own = answers[MODEL]
    found = best_of_n(session, prompts, own.scores, gold=own.golds is not None)
    session.findings.models |= found.rows
    return found


def _by_architecture(session: Session, names: list[str]) -> list[str]:
    """The models grouped by architecture, because each change of it restarts the engines."""
    shapes = {name: read_shape(Path(session.need(name))).key for name in names}
    order = list(shapes.values())
    return sorted(names, key=lambda name: order.index(shapes[name]))


def _run_harness(session: Session, names: Sequence[str]) -> None:
    """Run the configured tasks of the evaluation harness, if any."""
    tasks = session.config.evaluate.lm_eval.tasks
    if not tasks:
        return
    session.live.note(f"lm-evaluation-harness runs {', '.join(tasks)} on {len(names)} models")
    models = {name: str(Path(session.need(name)).resolve()) for name in names}
    log = session.folder.path / "logs" / "lm_eval.log"
    for name, found in harness_scores(session.config, models, log).items():
        row = session.findings.models[name]
        session.findings.models[name] = replace(row, lm_eval=found)


def _answer(session: Session, name: str, prompts: Sequence[Prompt]) -> Answers:
    path = session.need(name)
    config, role = session.config, RoleName.reference
    spec = frozen_spec(config, path, StageName.evaluate, role, session.vocabulary)
    measuring = None if session.engines_first else session.fleet.reference.load(spec)
    rollout, version = session.engines_on(path)
    measuring = measuring or session.fleet.reference.load(spec)
    environment = environment_of(config, name)
    if environment.on:
        talk_with(session, environment, path)
    texts, batch = sampled_answers(session, environment, version, prompts, "evaluate", name)
    measuring.result()
    _check_engines(session, name, version)
    rollout.sleep().result()
    golds = session.source.gold(prompts, texts)
    judged = scores(session, path, prompts, batch, golds)
    length = float(batch.response_lengths.mean())
    row = replace(_row(session, length, golds), parameters=_parameters(path))
    return Answers(texts, golds, judged, row)


def _answer_prompted(session: Session, name: str, prompts: Sequence[Prompt]) -> Answers:
    """Answers of a base model after demonstrations, cut where it goes on with another question."""
    shots = session.config.evaluate.few_shot
    asked = session.source.prompted(prompts, shots)
    assert asked is not None, "the plan refuses a source without demonstrations to show"
    path = session.need(name)
    rollout, version = session.engines_on(path)
    texts, _ = session.sample_texts(rollout, version, asked, "evaluate", name, shots)
    rollout.sleep().result()
    texts = [_first_reply(text) for text in texts]
    golds = session.source.gold(prompts, texts)
    assert golds is not None, "the pocket world, which has demonstrations to show, has a labeler"
    by_gold = session.config.evaluate.judge is JudgeKind.auto
    row = replace(_gold_row(golds), parameters=_parameters(path))
    return Answers(texts, golds, [gold.score for gold in golds] if by_gold else None, row)


def _first_reply(text: str) -> str:
    """What stands before the next question of a thread."""
    return text.partition("user :")[0].strip()


def _parameters(path: str) -> int | None:
    size = checkpoint_size(Path(path))
    return size.parameters if size else None


def _answered(session: Session, name: str, prompts: Sequence[Prompt], texts: list[str]) -> Answers:
    """A model's answers of an earlier evaluation: no engine runs, and tokens are not counted."""
    role = RoleName.reference
    path, config = session.need(name), session.config
    spec = frozen_spec(config, path, StageName.evaluate, role, session.vocabulary)
    session.fleet.reference.load(spec).result()
    golds = session.source.gold(prompts, texts)
    return Answers(texts, golds, None, _row(session, None, golds))


def _check_engines(session: Session, name: str, version: int) -> None:
    """Check that the engines compute the model in its folder.

    Call after sampling, because the probe leaves prefixes in the engines' cache. A checksum covers
    the bytes of a loaded folder; only log-probabilities show whether an engine computes the same
    model from them.

    Raises:
        ParityError: the reference, which loads the folder by other code, disagrees.
    """
    config = session.config
    prompts = session.source.prompts("heldout", 0, config.rollout.parity_prompts)
    parity = measure_parity(
        session.fleet.rollout,
        session.fleet.reference,
        config.rollout,
        [prompt.tokens for prompt in prompts],
        version,
        config.trainer.micro_batch_tokens,
    )
    tolerance = config.rollout.parity_tolerance
    require_parity(parity, tolerance, f"model {name}: engine and reference", "evaluate")


def _row(session: Session, length: float | None, golds: list[Gold] | None) -> EvaluationRow:
    return replace(
        _gold_row(golds) if golds else EvaluationRow(),
        web_perplexity=_web_perplexity(session),
        length_mean=length,
        cloze_accuracy=_cloze_accuracy(session),
    )


def _gold_row(golds: Sequence[Gold]) -> EvaluationRow:
    return EvaluationRow(
        gold_mean=_mean([g.score for g in golds]),
        truthful_rate=_mean([g.truthful for g in golds]),
        rude_rate=_mean([g.rude for g in golds]),
        correct_rate=_mean([g.correct for g in golds]),
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values, dtype=np.float64))


def _web_perplexity(session: Session) -> float | None:
    """exp(mean nats per token) of held-out pretraining text.

    None if there is no such text, or if the result overflows or is NaN: JSON has no infinity, and
    the model's other figures are worth keeping.
    """
    data = session.config.data
    if data.source is DataSourceKind.files and SetKind.pretraining not in kinds(data):
        return None
    documents = session.source.pretraining("heldout", 0, session.config.evaluate.web_documents)
    losses = _row_losses(session, documents)
    nats = float(losses.sum(dtype=np.float64)) / documents.target_count
    if not nats < _MOST_NATS:  # NaN too
        session.live.note(
            f"no perplexity: the mean loss of held-out text is {nats:g} nats per token"
        )
        return None
    return math.exp(nats)


def _cloze_accuracy(session: Session) -> float | None:
    """Share of cloze tasks whose correct candidate is the most likely one; None without tasks."""
    tasks = session.source.cloze("heldout", 0, session.config.evaluate.cloze_tasks)
    if not tasks:
        return None
    rows = [[*task.prefix, *candidate] for task in tasks for candidate in task.candidates]
    targets = [
        [False] * len(task.prefix) + [True] * len(candidate)
        for task in tasks
        for candidate in task.candidates
    ]
    batch = TokenBatch(Ragged.from_rows(rows, np.int32), Ragged.from_rows(targets, np.bool_))
    losses = _row_losses(session, batch)
    right, at = 0, 0
    for task in tasks:
        end = at + len(task.candidates)
        right += int(np.argmin(losses[at:end])) == task.answer
        at = end
    return right / len(tasks)


def _row_losses(session: Session, batch: TokenBatch) -> FloatArray:
    """Summed negative log-likelihood of each row's targets, (B,) nats."""
    reference = session.fleet.reference
    rows_of_all = np.arange(len(batch), dtype=np.int64)
    hands = training_batches.partition(rows_of_all, batch.tokens.lengths, reference.size)
    parts = reference.row_losses([batch.select(rows) for rows in hands]).result()
    losses = np.empty(len(batch), np.float32)
    for rows, part in zip(hands, parts, strict=True):
        losses[rows] = part
    return losses


def _keep_comparisons(
    session: Session, prompts: Sequence[Prompt], answers: dict[str, Answers]
) -> None:
    texts = {name: each.texts for name, each in answers.items()}
    write_answers(session.folder, [prompt.context for prompt in prompts], texts)
    kept = range(min(session.config.evaluate.samples_shown, len(prompts)))
    write_comparisons(
        session.folder,
        [
            Comparison(
                prompt=prompts[i].text,
                responses={name: a.texts[i] for name, a in answers.items()},
                gold={name: a.golds[i].score for name, a in answers.items() if a.golds},
            )
            for i in kept
        ],
    )
