"""Check of all inputs before anything starts, in every run and with `run.plan_only=true`.

Every input of the user (checkpoint, file, function, endpoint) that the run would refuse later is
refused here. `orchestrator.planning.plan` checks the configuration itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.batching.batch_sizes import ONLINE_STAGES, PPO_STAGES, SAMPLING_STAGES
from orchestrator.checkpoints import model_folder
from orchestrator.cluster.fork_servers import Apart
from orchestrator.config.reward import TextBridge
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.config.training import Margin
from orchestrator.planning.runs.expand import any_rewarded, expand, judges_training, stages_of
from orchestrator.planning.stage_graph import chooses_by_reward
from orchestrator.preflight.answer_length import check_answer_length
from orchestrator.process.secrets import secret
from orchestrator.stages.lm_eval import check_harness_ready
from orchestrator.telemetry.sinks import require_packages
from workers.errors import BatchArithmeticError, DataError, TokenizerMismatchError
from workers.scorers.source import MODEL, WHERE

if TYPE_CHECKING:  # takes seconds to import, and is only a type here
    from transformers import PreTrainedTokenizerBase

    from workers.data.source import DataSource


@dataclass(frozen=True, slots=True)
class Given:
    """The given models, for `given_models.check_given`."""

    config: Config
    folders: dict[str, str]  # by key of the configuration
    saved: tuple[str, ...]  # folders whose files are copied into those of trained models
    tokenizer: PreTrainedTokenizerBase | None  # goes into these folders, too; None: none is saved


@dataclass(frozen=True, slots=True)
class Inputs:
    """The checked inputs of a run."""

    checkpoints: dict[str, str]  # name -> folder of each given checkpoint
    source: DataSource
    notes: tuple[str, ...]  # sentences for the user
    # Waits for the checks of models that run in another process; raises what they found.
    settle: Callable[[], object]


_BRIDGED_PROMPTS = 256  # number of prompts checked with the text bridge
_ANSWERS = 1024  # number of prompts per split whose answers are checked

_SAVING = "saving"

Check = Callable[[Config, "DataSource"], Iterable[str]]


def look(config: Config, apart: Apart | None = None) -> Inputs:
    """Import the functions, read every checkpoint and file, and run every check of `CHECKS`.

    Args:
        config: the run.
        apart: calls a function of another process; then checks that need torch and transformers,
            which take seconds to import, run there, until `Inputs.settle`. None: they run here.

    Raises:
        RehearsalError: an input cannot be used. The order is packages of loggers, functions,
            checkpoints, data, then that of `CHECKS`.
    """
    from orchestrator.preflight.user_functions import check_functions
    from orchestrator.preflight.weight_transport import check_transport
    from orchestrator.session.sources import left_out, make_source

    require_packages(config.logger)
    check_functions(config)  # first: it takes a second, files may take an hour
    check_transport(config)
    checkpoints = _given_checkpoints(config)
    folders = _models(config, checkpoints)
    if apart is None and folders:
        from orchestrator.preflight.given_models import check_models  # seconds to import

        check_models(config, folders)
    source = make_source(config, checkpoints)
    notes = left_out(source)
    settle: Callable[[], object] = lambda: None  # noqa: E731
    if apart is not None:
        saved = tuple(_saved(config))
        given = Given(config, folders, saved, source.tokenizer if _saves(config) else None)
        seconds = config.run.role_start_seconds
        settle = apart("orchestrator.preflight.given_models:check_given", given, seconds=seconds)
    for name, check in CHECKS.items():
        if apart is None or name != _SAVING:
            notes += check(config, source)
    return Inputs(checkpoints, source, tuple(notes), settle)


def _given_checkpoints(config: Config) -> dict[str, str]:
    given = config.model.checkpoints.given()
    return {n: str(model_folder.require(path, n).resolve()) for n, path in given.items()}


def _models(config: Config, checkpoints: dict[str, str]) -> dict[str, str]:
    """The folders of given models, by key of the configuration."""
    folders = {f"model.checkpoints.{name}": folder for name, folder in checkpoints.items()}
    if judge := config.evaluate.judging_model:
        key = "evaluate.judge_checkpoint"
        folders[key] = str(model_folder.require(judge, "judge", key))
    return folders


def _saves(config: Config) -> bool:
    """Whether any stage publishes a model."""
    return bool(stages_of(config) - {*SAMPLING_STAGES})


def _saved(config: Config) -> list[str]:
    """Given folders whose files are copied into those of trained models."""
    given = config.model.checkpoints.given().values()
    return list(dict.fromkeys(given)) if _saves(config) else []


def _check_judge(config: Config, source: DataSource) -> Iterable[str]:
    judged = StageName.evaluate in stages_of(config)
    if judged or judges_training(config):
        from orchestrator.stages.judging import check_judge_ready

        check_judge_ready(config, source.tokenizer)
    return ()


def _check_reward(config: Config, _source: DataSource) -> Iterable[str]:
    """Check that the environment has the secrets that the reward's source needs."""
    if any_rewarded(config) or {*SAMPLING_STAGES} & stages_of(config):
        for name in config.reward.needs.secrets:
            secret(name, WHERE)
    return ()


def _check_answers(config: Config, source: DataSource) -> Iterable[str]:
    """Check on the first prompts of each split that the reward's sources can score responses."""
    scores = {*ONLINE_STAGES, *SAMPLING_STAGES} & stages_of(config)
    if not scores or all(term.weight and term.kind == MODEL for term in config.reward.each):
        return
    for split in ("ppo", "heldout"):
        if split == "ppo" and not {*ONLINE_STAGES} & scores:
            continue
        prompts = source.prompts(split, 0, _ANSWERS)
        for term in config.reward.each:
            reasons = term.refused([each.asked for each in prompts])
            refused = [n for n, reason in enumerate(reasons) if reason]
            if not refused:
                continue
            first = prompts[refused[0]]
            what = (
                f"{len(refused):,} of the first {len(prompts):,} prompts ({split}): "
                f"{reasons[refused[0]]}, such as that of {first.text.strip()[:60]!r}"
            )
            if len(refused) == len(prompts):
                raise DataError(
                    f"{term.words} can score no response to {what}",
                    where=f"{term.where}",
                    fix="correct the column of the prompt files, or the term's settings",
                )
            yield f"{term.words} cannot score {what}; responses to them are dropped"


def _check_harness(config: Config, _source: DataSource) -> Iterable[str]:
    if StageName.evaluate in stages_of(config):
        check_harness_ready(config)
    return ()


def _check_saving(config: Config, source: DataSource) -> Iterable[str]:
    """Check that the tokenizer, and files copied from given checkpoints, can be saved."""
    from workers.models.published_files import require_saveable, require_tokenizer_saveable

    for path in _saved(config):
        require_saveable(Path(path))
    if _saves(config):
        require_tokenizer_saveable(source.tokenizer)
    return ()


def _check_bridge(config: Config, source: DataSource) -> Iterable[str]:
    """Check that reward models that read text can render a dialogue and the run's prompts."""
    scores = {*ONLINE_STAGES, *SAMPLING_STAGES} & stages_of(config)
    runs = expand(config)
    chooses = any(r.stage is StageName.sft and chooses_by_reward(r.config) for r in runs)
    if not (scores or chooses) or config.reward.bridge is not TextBridge.text:
        return ()
    judging = config.evaluate.judging_model
    rewarding = config.model.checkpoints.reward_model if config.reward.needs.model else ""
    from orchestrator.stages.selection.sft_candidates import demonstration_prompts
    from workers.data.tokenize.tokenizers import load_tokenizer
    from workers.scorers.text_bridge import TextBridge as Bridge
    from workers.scorers.text_bridge import require_prompts

    notes: list[str] = []
    for folder in filter(None, (rewarding, judging)):
        bridge = Bridge(load_tokenizer(folder))
        split = "heldout" if scores == {StageName.evaluate} else "ppo"
        given = (
            source.prompts(split, 0, _BRIDGED_PROMPTS)
            if scores
            else demonstration_prompts(source, _BRIDGED_PROMPTS)
        )
        prompts = {each.key: each.asked for each in given}
        notes += require_prompts(bridge, list(prompts.values()), folder)
    return notes


def _check_compared(config: Config, source: DataSource) -> Iterable[str]:
    """Check that a given teacher or reference reads token ids as the policy does."""
    runs = expand(config)
    compared, made = {run.compared_with for run in runs}, {run.product for run in runs}
    for name in sorted(compared - made - {""}):
        _check_same_tokens(config, source, name)
    return ()


def _check_same_tokens(config: Config, source: DataSource, name: str) -> None:
    from workers.data.tokenize.fingerprint import tokenizer_fingerprint
    from workers.data.tokenize.tokenizers import load_tokenizer

    other = load_tokenizer(getattr(config.model.checkpoints, name))
    mine, theirs = (tokenizer_fingerprint(each) for each in (source.tokenizer, other))
    if mine == theirs:
        return
    who = ("teacher", "student") if name == "teacher" else (f"reference {name}", "policy")
    raise TokenizerMismatchError(
        f"the {who[0]} and the {who[1]} do not share a tokenizer: their vocabularies or special "
        f"tokens have the fingerprints {theirs[:12]} and {mine[:12]}",
        where=f"model.checkpoints.{name}",
        fix=f"give a {who[0].split()[0]} with the {who[1]}'s tokenizer, for example a larger model "
        "of its family",
    )


def _check_margins(config: Config, source: DataSource) -> Iterable[str]:
    """Check that every ranking that trains the reward model has ratings if its margin is theirs."""
    for run in expand(config):
        margin = run.config.reward_model.margin
        if run.stage is StageName.reward_model and margin is Margin.likert:
            from orchestrator.batching.margins import with_margins

            with_margins(source.rankings("train") or [], margin)
    return ()


def _check_heldout(config: Config, source: DataSource) -> Iterable[str]:
    """Say if fewer prompts are held out than would be scored during training."""
    settings = config.algorithm
    if not settings.evaluate_every or not {*ONLINE_STAGES} & stages_of(config):
        return ()
    found = len(source.prompts("heldout", 0, settings.evaluation_prompts))
    if found == settings.evaluation_prompts:
        return ()
    return [
        f"only {found:,} prompts are held out: during training these are scored instead of "
        f"algorithm.evaluation_prompts={settings.evaluation_prompts:,}"
    ]


def _check_few_shot(config: Config, source: DataSource) -> Iterable[str]:
    """Check that prompts with demonstrations in front fit into the engines."""
    shots, most = config.evaluate.few_shot, config.rollout.max_prompt_tokens
    if not shots or StageName.evaluate not in stages_of(config):
        return ()
    prompts = source.prompted(source.prompts("heldout", 0, config.evaluate.prompts), shots) or []
    longest = max((len(prompt.tokens) for prompt in prompts), default=0)
    if longest > most:
        raise BatchArithmeticError(
            f"a prompt after {shots} demonstration(s) has {longest} tokens, engines take {most}",
            where="evaluate.few_shot",
            fix=f"lower it, or set rollout.max_prompt_tokens={longest}",
        )
    return ()


def _check_memory(config: Config, _source: DataSource) -> Iterable[str]:
    from orchestrator.planning.host_memory import check_host_memory

    return check_host_memory(config)


def _check_turns(config: Config, source: DataSource) -> Iterable[str]:
    """Check that observations can be written between the turns of the policy."""
    for run in expand(config):
        own = run.config.environment
        if own.on and run.stage in (*PPO_STAGES, StageName.evaluate):
            from workers.data.tokenize.turn_text import TurnText

            template = run.config.data.chat_template
            TurnText(source.tokenizer, template=template, role=own.role, text=own.turn_text)
    return ()


# Each check gets the configuration and the data, raises a RehearsalError if an input cannot be
# used, and returns sentences for the user (usually none).
CHECKS: dict[str, Check] = {
    "judge": _check_judge,
    "reward": _check_reward,
    "answers": _check_answers,
    "lm-eval": _check_harness,
    _SAVING: _check_saving,
    "text bridge": _check_bridge,
    "teacher": _check_compared,
    "held-out prompts": _check_heldout,
    "margins": _check_margins,
    "few-shot prompts": _check_few_shot,
    "turns": _check_turns,
    "answer length": check_answer_length,
    "memory": _check_memory,
}
