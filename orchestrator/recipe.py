"""A whole run: set up the session, run the stages, write the results."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.checkpoints import given_inputs
from orchestrator.checkpoints.best import scores_of
from orchestrator.checkpoints.config_changes import plain_config
from orchestrator.checkpoints.saved_runs import SavedRuns
from orchestrator.cluster.fork_servers import Apart, ForkServers, here
from orchestrator.cluster.ray_cluster import Cluster, start_cluster
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.mirror.opening import mirrored
from orchestrator.planning.plan import Plan
from orchestrator.planning.runs.expand import expand, models_read
from orchestrator.planning.runs.labels import round_names
from orchestrator.planning.runs.stage_run import StageRun, whole
from orchestrator.preflight.dry_run import Inputs, look
from orchestrator.process.age import process_seconds
from orchestrator.process.command_exit import say, tell
from orchestrator.process.printing import rendered
from orchestrator.process.stop_signals import StopRequest
from orchestrator.report.build import write_report
from orchestrator.report.tables import next_steps, places, render_result
from orchestrator.results.rounds import rounds_of
from orchestrator.results.summary import Summary, Timing, WeightSyncTotals, write_summary
from orchestrator.roles.fleet import Fleet, rules_of
from orchestrator.run_files.folder import RunFolder
from orchestrator.session.driver_state import apply
from orchestrator.session.recovery import run_supervised
from orchestrator.session.resume import Start, package_versions
from orchestrator.session.saves import Saves
from orchestrator.session.session import Session
from orchestrator.session.sources import accounts
from orchestrator.stages.constitution.stage import constitution
from orchestrator.stages.dpo import dpo
from orchestrator.stages.evaluate import evaluate
from orchestrator.stages.labels.collect import collect
from orchestrator.stages.labels.label import label
from orchestrator.stages.online_dpo import online_dpo
from orchestrator.stages.ppo.loop import ppo, ppo_ptx
from orchestrator.stages.pretrain import pretrain, pretrain_large
from orchestrator.stages.reward_model import reward_model
from orchestrator.stages.selection.overoptimization import overoptimization
from orchestrator.stages.selection.rejection_sampling import rejection_sampling
from orchestrator.stages.sft import sft
from orchestrator.supervision.lost_workers import Losses
from orchestrator.supervision.pending import Position
from orchestrator.supervision.server_guard import Guard
from orchestrator.telemetry.exported import Present
from orchestrator.telemetry.live import LiveView
from orchestrator.telemetry.prometheus import require_port
from orchestrator.telemetry.recorder import Telemetry
from workers.process.caught_errors import Caught

STAGES: dict[StageName, Callable[[Session], None]] = {
    StageName.pretrain: pretrain,
    StageName.constitution: constitution,
    StageName.sft: sft,
    StageName.label: label,
    StageName.reward_model: reward_model,
    StageName.ppo: ppo,
    StageName.ppo_ptx: ppo_ptx,
    StageName.dpo: dpo,
    StageName.online_dpo: online_dpo,
    StageName.rejection_sampling: rejection_sampling,
    StageName.pretrain_large: pretrain_large,
    StageName.collect: collect,
    StageName.evaluate: evaluate,
    StageName.overoptimization: overoptimization,
}


def run_recipe(
    config: Config,
    plan: Plan,
    folder: Path,
    start: Start,
    stop: StopRequest,
    forks: ForkServers | None = None,
) -> Summary:
    """Run the stages of `config` and return the contents of summary.json.

    Stages that are finished in `start.saved` are skipped.

    If a stage fails, summary, report and every finished checkpoint are on disk. They are written
    before Ray is shut down, which may hang.
    """
    started = start.began
    if started is None:
        started = time.monotonic() - process_seconds()
    imported = time.monotonic()
    run_folder = RunFolder(folder)
    if config.logger.prometheus:
        require_port(config.logger)
    apart = forks.call if forks is not None and forks.serves_models else None
    looked = look(config, apart)
    read = time.monotonic()
    position = Position()
    resolved = plain_config(config)
    saved = start.saved
    saves = _saves(config, run_folder, start, stop, resolved)
    runs = [run for run in expand(config) if run.name not in saves.finished]
    names = [str(run.name) for run in runs]
    run_id = saved.progress["telemetry"]["run_id"] if saved else ""
    mirror = start.mirror
    if mirror is not None:
        mirror.begin()
        saves.go_on_copying(start.saved)
    with (
        mirrored(mirror, config.run.mirror_end_seconds, stop) as left,
        Telemetry(
            run_folder, config.logger, resolved, run_id=run_id, stages=config.stages
        ) as telemetry,
        LiveView(config.experiment, names, enabled=config.logger.live, log=run_folder.log) as live,
        start_cluster(
            config.cluster,
            plan.layout,
            config.run.role_start_seconds,
            error_logs=folder / "logs",
            rules=rules_of(config),
            resort=stop.resort,
            note=live.note,
            forks=forks,
        ) as cluster,
    ):
        looked.settle()
        if mirror is not None:
            mirror.tell = live.note
        cluster.guard.fix = lambda: going_on(run_folder)
        session = _session(
            config, run_folder, looked, telemetry, live, cluster, position, saves, started, apart
        )
        session.findings.start |= {"imports": imported - started, "data": read - imported}
        session.reached("ray")
        if saved is not None:
            apply(session, saved.progress)
            live.note(f"going on after {saved}")
        _tell_all(live, start.notes, looked.notes, telemetry.notes)
        kept = _keeping(session)
        stop.resort.steps += [live.close, *reversed(kept)]
        _run_stages(session, runs, cluster.guard, kept)
        if mirror is not None:
            mirror.finish(left)
        summary = summarise(session)
        write_summary(run_folder, summary)
        report = write_report(run_folder)
    end = places(run_folder) + next_steps(run_folder, summary)
    tell(rendered(render_result(summary, report.comparisons)) + end)
    say("".join(f"damaged: {note}\n" for note in report.damage))
    return summary


def _session(
    config: Config,
    folder: RunFolder,
    looked: Inputs,
    telemetry: Telemetry,
    live: LiveView,
    cluster: Cluster,
    position: Position,
    saves: Saves,
    started: float,
    apart: Apart | None,
) -> Session:
    """The session of a run whose cluster is up; its figures can be scraped from now on."""
    losses = Losses(folder, position, live.note)
    session = Session(
        config=config,
        folder=folder,
        source=looked.source,
        telemetry=telemetry,
        live=live,
        fleet=Fleet(config, cluster, position, telemetry.account, losses, cluster.guard),
        position=position,
        started=started,
        checkpoints=looked.checkpoints,
        saves=saves,
        losses=losses,
        apart=apart or here,
    )
    telemetry.present = partial(_present, session)
    return session


def _tell_all(live: LiveView, *notes: Sequence[str]) -> None:
    for note in itertools.chain(*notes):
        live.note(note)


def _saves(
    config: Config, folder: RunFolder, start: Start, stop: StopRequest, resolved: dict[str, Any]
) -> Saves:
    # fingerprints of the inputs may take many minutes
    inputs = given_inputs.take(config) if start.taken is None else start.taken
    runs, scores = expand(config), scores_of(config)
    scores.delays = {str(run.name): scores_of(run.config).delay for run in runs if run.variant}
    return Saves(
        folder,
        config.run.checkpoint,
        stop,
        {"config": resolved, "versions": package_versions(), "inputs": inputs},
        start.saved,
        scores,
        partial(models_read, config),
        start.mirror,
        {str(run.name): run.stage.value for run in runs},
    )


def _present(session: Session) -> Present:
    workers, unfinished = session.fleet.census()
    return Present(session.position.stage, workers, session.losses.by_role.copy(), unfinished)


def _run_stages(
    session: Session, runs: Sequence[StageRun], guard: Guard, kept: list[Callable[[], object]]
) -> None:
    """Run the stages; if they end early for any reason, `kept` writes the results so far."""
    try:
        with guard.explaining():
            for run in runs:
                _run_stage(session, run, last=run is runs[-1])
    except BaseException as error:
        guard.stand_down()
        # After a signal there may be no time for the report's plots.
        _keep(session, kept[:1] if isinstance(error, KeyboardInterrupt) else kept)
        raise
    guard.stand_down()


def _keeping(session: Session) -> list[Callable[[], object]]:
    """Functions that write the results so far of a run that ends early."""
    folder = session.folder
    return [lambda: write_summary(folder, summarise(session)), lambda: write_report(folder)]


def _keep(session: Session, steps: Sequence[Callable[[], object]]) -> None:
    """Run `steps`; their errors become notes, so that they do not hide what ended the run."""
    for step in steps:
        caught = Caught(Exception)  # includes errors of plotting libraries
        with caught:
            step()
        if caught.error is not None:
            session.live.note(str(getattr(caught.error, "what", caught.error)))


def going_on(folder: RunFolder) -> str:
    """How the user can resume a run that cannot continue by itself."""
    saved = SavedRuns(folder).whole()
    if not saved:
        return "it has no checkpoint yet: start the same command again"
    return f"resume it with resume={folder.path}, whose last checkpoint is {saved[-1].name}"


def _run_stage(session: Session, run: StageRun, *, last: bool) -> None:
    name = str(run.name)
    session.enter(run)
    session.position.stage, session.position.step = name, 0
    with session.telemetry.stage_span(name):
        run_supervised(session, STAGES[run.stage])
    session.finish(name, last=last)
    session.live.finish_stage()


def summarise(session: Session) -> Summary:
    """Summary of the results so far."""
    findings, telemetry = session.findings, session.telemetry
    seconds = findings.sync_seconds
    return Summary(
        reward_model=findings.reward_model,
        reward_models=findings.reward_models,
        labels=findings.labels,
        constitutions=findings.constitutions,
        rounds=rounds_of(round_names(expand(whole(session.config))), findings),
        models=findings.models,
        preferred=tuple(findings.preferred),
        judging=findings.judging,
        environment_gains=findings.environment_gains,
        overoptimization=findings.overoptimization,
        ledger=findings.ledger,
        drops=findings.drops,
        weight_sync=WeightSyncTotals(
            count=max(findings.syncs, len(seconds)),
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
        memory=telemetry.stage_memory(),
        restarts=session.losses.count,
        discarded_replies=session.losses.discarded,
        given_up=tuple(session.losses.given_up),
        mirror=session.saves.mirrored,
        roles=tuple(session.fleet.infos()),
        data=accounts(session.source),
    )
