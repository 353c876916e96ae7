"""A whole run: bring the pieces together, walk through the stages, write down what came out."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import psutil
from rich.console import Console

from orchestrator import checkpoint
from orchestrator.arithmetic import sft_rows
from orchestrator.best import scores_of
from orchestrator.cluster import start_cluster
from orchestrator.config import (
    Config,
    DataSourceKind,
    OnBadLine,
    PersonalData,
    RowOrder,
    StageName,
    TrainOn,
)
from orchestrator.data_sets import all_sets
from orchestrator.fleet import Fleet
from orchestrator.harness import check_harness_ready
from orchestrator.live import LiveView
from orchestrator.losses import Losses
from orchestrator.plan import Plan
from orchestrator.progress import apply
from orchestrator.recovery import run_supervised
from orchestrator.report import write_report
from orchestrator.resume import Start, package_versions, plain_config
from orchestrator.run_folder import RunFolder
from orchestrator.samples import read_comparisons
from orchestrator.saves import Saves
from orchestrator.session import Session
from orchestrator.stages.evaluate import evaluate
from orchestrator.stages.judging import check_judge_ready
from orchestrator.stages.ppo import ppo, ppo_ptx
from orchestrator.stages.pretrain import pretrain, pretrain_large
from orchestrator.stages.reward_model import reward_model
from orchestrator.stages.sft import sft
from orchestrator.stopping import StopRequest
from orchestrator.summary import Summary, Timing, WeightSyncTotals, write_summary
from orchestrator.tables import render_result
from orchestrator.telemetry import Telemetry
from orchestrator.waiting import Position
from workers.data.accounts import SetAccount
from workers.data.files import FileSource
from workers.data.pocket import PocketSource
from workers.data.sets import Feeding, Rendering, SetKind
from workers.data.source import DataSource
from workers.data.tokenizers import load_tokenizer
from workers.errors import RehearsalError, TokenizerMismatchError

STAGES: dict[StageName, Callable[[Session], None]] = {
    StageName.pretrain: pretrain,
    StageName.sft: sft,
    StageName.reward_model: reward_model,
    StageName.ppo: ppo,
    StageName.ppo_ptx: ppo_ptx,
    StageName.pretrain_large: pretrain_large,
    StageName.evaluate: evaluate,
}


def run_recipe(
    config: Config, plan: Plan, folder: Path, start: Start, stop: StopRequest
) -> Summary:
    """Run the stages of `config` and return what summary.json holds.

    Stages that were finished before `start.saved` was made are not run again.

    The summary and every finished checkpoint are on disk when a later stage fails;
    `python -m orchestrator.report` makes the report of what there is.
    """
    started = time.monotonic() - (time.time() - psutil.Process().create_time())
    imported = time.monotonic()
    run_folder = RunFolder(folder)
    given = _given_checkpoints(config)
    source = make_source(config, given)
    if StageName.evaluate in config.stages:
        check_judge_ready(config, source.tokenizer)
        check_harness_ready(config)
    read = time.monotonic()
    position = Position()
    resolved = plain_config(config)
    saved = start.saved
    saves = Saves(
        run_folder,
        config.run.checkpoint,
        stop,
        {"config": resolved, "versions": package_versions()},
        saved,
        scores_of(config),
    )
    names = [stage.value for stage in config.stages if stage.value not in saves.finished]
    run_id = saved.progress["telemetry"]["run_id"] if saved else ""
    with (
        Telemetry(run_folder, config.logger, resolved, run_id=run_id) as telemetry,
        LiveView(config.experiment, names, enabled=config.logger.live) as live,
        start_cluster(
            config.cluster,
            plan.layout,
            config.run.role_start_seconds,
            error_logs=folder / "logs",
        ) as cluster,
    ):
        losses = Losses(run_folder, position)
        session = Session(
            config=config,
            folder=run_folder,
            source=source,
            telemetry=telemetry,
            live=live,
            fleet=Fleet(config, cluster, position, telemetry.account, losses),
            position=position,
            started=started,
            checkpoints=given,
            saves=saves,
            losses=losses,
        )
        session.findings.start |= {"imports": imported - started, "data": read - imported}
        session.reached("ray")
        if saved is not None:
            apply(session, saved.progress)
            live.note(f"going on after {saved}")
        for note in (*start.notes, *left_out(source)):
            live.note(note)
        try:
            for name in names:
                _run_stage(session, StageName(name), last=name == names[-1])
        except BaseException:
            _keep_summary(session)
            raise
        summary = summarise(session)
        write_summary(run_folder, summary)
    write_report(run_folder)
    Console().print(render_result(run_folder, summary, read_comparisons(run_folder)))
    return summary


def _keep_summary(session: Session) -> None:
    """Write what there is; what ended the run is not hidden by a second error."""
    try:
        write_summary(session.folder, summarise(session))
    except RehearsalError as error:
        session.live.note(error.what)


def _run_stage(session: Session, stage: StageName, *, last: bool) -> None:
    session.position.stage, session.position.step = stage.value, 0
    with session.telemetry.stage_span(stage.value):
        run_supervised(session, STAGES[stage])
    session.finish(stage.value, last=last)
    session.live.finish_stage()


def _given_checkpoints(config: Config) -> dict[str, str]:
    """The checkpoints that the user gave, each checked before anything starts."""
    given: dict[str, str] = {}
    for field in fields(config.model.checkpoints):
        path = getattr(config.model.checkpoints, field.name)
        if path:
            given[field.name] = str(checkpoint.require(path, field.name).resolve())
    return given


def make_source(config: Config, checkpoints: dict[str, str]) -> DataSource:
    """The data of the run."""
    if config.data.source is DataSourceKind.pocket:
        pocket = config.data.pocket
        return PocketSource(pocket.seed, pocket.label_noise, pocket.tie_width)
    return FileSource(
        all_sets(config.data), _rendering(config, _tokenizer_folder(checkpoints)), _feeding(config)
    )


def _rendering(config: Config, tokenizer: str) -> Rendering:
    data = config.data
    return Rendering(
        checkpoint=tokenizer,
        max_prompt_tokens=data.files.max_prompt_tokens,
        max_completion_tokens=data.files.max_completion_tokens,
        chat_template=data.chat_template,
        train_on="all" if data.train_on is TrainOn.all else "last",
        prefix_characters=data.dedup_prefix_characters,
        find_pii=data.pii is PersonalData.drop,
    )


def _feeding(config: Config) -> Feeding:
    data = config.data
    return Feeding(
        seed=config.seed,
        on_bad_line="drop" if data.on_bad_line is OnBadLine.drop else "fail",
        heldout_fraction=data.heldout_fraction,
        heldout_fold=data.heldout_fold,
        max_rows_per_user=data.max_rows_per_user,
        drop_pii=data.pii is PersonalData.drop,
        length_grouped=data.order is RowOrder.length_grouped,
        length_group_batches=data.length_group_batches,
        batch_rows={SetKind.demonstrations: sft_rows(config)[0]},
        workers=data.workers,
        call_seconds=config.run.call_seconds,
    )


def _tokenizer_folder(checkpoints: dict[str, str]) -> str:
    """The given language model whose tokenizer reads the files.

    Raises:
        TokenizerMismatchError: an id or the end token means another thing to another one of them.
    """
    # A reward model may have a tokenizer of its own (reward.bridge=text).
    models = {name: path for name, path in checkpoints.items() if name != "reward_model"}
    first, *others = models
    reader = load_tokenizer(models[first])
    words = {number: word for word, number in reader.get_vocab().items()}
    for name in others:
        tokenizer = load_tokenizer(models[name])  # may have words that the reader never writes
        same = all(words.get(n, word) == word for word, n in tokenizer.get_vocab().items())
        if not same or tokenizer.eos_token_id != reader.eos_token_id:
            raise TokenizerMismatchError(
                f"the checkpoints {first} and {name} do not share a tokenizer",
                where=f"{models[first]} and {models[name]}",
                mend="compare models that were tuned from the same base model",
            )
    return models[first]


def left_out(source: DataSource) -> list[str]:
    """What a file source read, kept and did not take as it stands: a sentence a set and reason."""
    notes: list[str] = []
    for each in accounts(source):
        notes.append(
            f"{each.name}: {each.read:,} rows, {each.train:,} to train on, {each.heldout:,} held "
            f"out, {each.tokens:,} tokens"
        )
        notes += [f"left out {n:,} rows of {each.name}: {why}" for why, n in each.dropped.items()]
        if each.cut:
            notes.append(f"cut {each.cut:,} completions of {each.name}")
        if each.train_pairs or each.heldout_pairs:
            notes.append(
                f"{each.name}: {each.train_pairs:,} pairs to train on, {each.heldout_pairs:,} held "
                f"out, {each.tied_pairs:,} tied"
            )
    return notes


def accounts(source: DataSource) -> tuple[SetAccount, ...]:
    """What became of the rows of each data set; () in the pocket world."""
    return tuple(source.accounts) if isinstance(source, FileSource) else ()


def summarise(session: Session) -> Summary:
    """What the run has found so far."""
    findings, telemetry = session.findings, session.telemetry
    seconds = findings.sync_seconds
    return Summary(
        reward_model=findings.reward_model,
        models=findings.models,
        preferred=tuple(findings.preferred),
        judging=findings.judging,
        ledger=findings.ledger,
        weight_sync=WeightSyncTotals(
            count=len(seconds),
            seconds_median=statistics.median(seconds) if seconds else None,
            parity_max_abs_logprob_diff=findings.parity_max,
        ),
        timing=Timing(
            total_seconds=time.monotonic() - session.started,
            first_optimizer_step_seconds=findings.first_step_seconds,
            start=findings.start,
            stages=telemetry.stage_seconds(),
            ppo_phases=telemetry.phase_seconds(),
        ),
        restarts=session.losses.count,
        discarded_replies=session.losses.discarded,
        roles=tuple(session.fleet.infos()),
        data=accounts(session.source),
    )
