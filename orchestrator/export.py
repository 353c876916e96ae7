"""A checkpoint of a run as a model: `python -m orchestrator.export CHECKPOINT FOLDER`.

Writes the Hugging Face folder that the trainers would have saved after that step: averaged weights
where the run averages, adapters merged. One process on the CPU, without Ray; the run need not have
been on as many ranks, or on a CPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from orchestrator.checkpoints import model_folder
from orchestrator.checkpoints.contents import FIX, MANIFEST
from orchestrator.checkpoints.saved_runs import SavedRun, SavedRuns
from orchestrator.config.run import StageName
from orchestrator.config.variants import stage_of
from orchestrator.process.command_exit import exit_code
from orchestrator.process.program import program
from orchestrator.run_files.dataclass_json import from_plain
from orchestrator.run_files.folder import RunFolder
from orchestrator.session import model_card
from workers.errors import ConfigError, MissingCheckpointError
from workers.process.library_errors import reading
from workers.records.generation import Sampling
from workers.records.processes import RankAddress
from workers.records.specs import Dtype, GroupSpec, TrainModelSpec

if TYPE_CHECKING:  # seconds to import, and only a type here
    from transformers import PreTrainedTokenizerBase

Role = Literal["policy", "critic"]
_BUCKET_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class _Told:
    """A trainer's record of its model."""

    model: TrainModelSpec
    dtype: Dtype


@dataclass(frozen=True, slots=True)
class _Pocket:
    """See `config.data.PocketWorldConfig`."""

    arithmetic: bool = False


@dataclass(frozen=True, slots=True)
class _Data:
    """See `config.data.DataConfig`."""

    source: str
    chat_template: str = "auto"
    add_bos_token: Literal["auto", "always", "never"] = "auto"
    pocket: _Pocket = _Pocket()


@dataclass(frozen=True, slots=True)
class _Rollout:
    """See `config.engines.RolloutConfig`."""

    temperature: float
    max_response_tokens: int


@dataclass(frozen=True, slots=True)
class _Config:
    """The part of a run's configuration that an export reads."""

    seed: int
    data: _Data
    rollout: _Rollout
    experiment: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    return exit_code(lambda: _export(options))


def _export(options: argparse.Namespace) -> None:
    saved = find(Path(options.checkpoint), options.role)
    export(saved, options.role, Path(options.folder), options.threads)
    sys.stdout.write(f"{options.folder}: the {options.role} after {saved}\n")
    if _is_reward_model(saved, options.role):
        sys.stdout.write("its scores are not centred: a run does that at the end of the stage\n")


def find(path: Path, role: Role) -> SavedRun:
    """A checkpoint, or the newest checkpoint of a run that holds the model of `role` in training.

    Args:
        path: `RUN/state/NUMBER-STAGE-STEP`, or `RUN`.
        role: Whose model is wanted.

    Raises:
        MissingCheckpointError: there is none.
        BrokenCheckpointError: it is not whole.
    """
    path = path.resolve()  # also one that was moved aside: RUN/state/NUMBER-STAGE-STEP.superseded
    chosen = [path] if (path / MANIFEST).is_file() else SavedRuns(RunFolder(path)).whole()
    holding = [each for each in chosen if any(each.glob(f"{role}.*.safetensors"))]
    if not holding:
        raise MissingCheckpointError(
            f"no checkpoint with a {role} that was in training",
            where=str(path),
            fix="give a run folder or one of the folders in its state/; the models of finished "
            "stages are in its checkpoints/",
        )
    return SavedRuns(RunFolder(holding[-1].parent.parent)).read(holding[-1], alone=True)


def export(saved: SavedRun, role: Role, folder: Path, threads: int = 1) -> None:
    """Write the model of a checkpoint.

    Args:
        saved: The checkpoint.
        role: The policy, or the critic: the reward model while that is trained, else the value
            function.
        folder: Where the Hugging Face folder is written; must not exist yet.
        threads: For the few sums that are taken.

    Raises:
        ConfigError: the folder is there.
        MissingCheckpointError: the model that the training started from has been moved.
        BrokenCheckpointError: files are missing, or do not say what they are of.
    """
    from workers.models.published_files import complete

    if folder.exists():
        raise ConfigError("the folder is there already", where=str(folder), fix="name a new one")
    spec, dtype = _facts(saved, role)
    with reading(saved.path, "its configuration cannot be used", FIX):
        config = from_plain(_Config, saved.config)
    origin = model_folder.require(_origin(saved, spec.checkpoint), "starting", key="")
    spec = replace(spec, checkpoint=str(origin))
    sampling = Sampling(config.rollout.temperature, config.rollout.max_response_tokens)
    tokenizer = _tokenizer(config, origin)
    card = _card(saved, role, origin, config)

    def save(path: str) -> None:
        _save(spec, dtype, saved.path, role, path, threads)
        complete(Path(path), tokenizer, sampling)
        model_card.write(Path(path), card)

    facts = {"stage": saved.stage, "step": saved.step, "seed": config.seed}
    model_folder.publish(folder.resolve(), save, facts)


def _tokenizer(config: _Config, origin: Path) -> PreTrainedTokenizerBase:
    """That of the run's data; `origin` is the folder that the training started from."""
    from workers.data.tokenize.tokenizers import load_speaker
    from workers.pocket.tokenizer import build_tokenizer

    if config.data.source == "pocket":
        return build_tokenizer(arithmetic=config.data.pocket.arithmetic)
    return load_speaker(origin, config.data.chat_template, config.data.add_bos_token)


def _card(saved: SavedRun, role: Role, origin: Path, config: _Config) -> model_card.Card:
    scores = _is_reward_model(saved, role)
    return model_card.Card(
        name="reward_model" if scores else "critic" if role == "critic" else saved.stage,
        stages=(*saved.progress.get("finished", ()), f"{saved.stage}, {saved.step} steps of it"),
        experiment=config.experiment,
        seed=config.seed,
        licence=model_card.licence_of(origin),
        base=origin.name,
        data=(),
        pocket=config.data.source == "pocket",
        temperature=config.rollout.temperature,
        max_tokens=config.rollout.max_response_tokens,
    )


def _is_reward_model(saved: SavedRun, role: Role) -> bool:
    stage = stage_of(saved.config.get("variants", {}), saved.stage)
    return role == "critic" and stage is StageName.reward_model


def _facts(saved: SavedRun, role: Role) -> tuple[TrainModelSpec, Dtype]:
    # Imported late, because torch takes seconds: mistakes on the command line are reported first.
    from workers.training.state_files import StateFiles

    with reading(
        saved.path,
        f"does not say which model its {role} is",
        "another version wrote it: export with that version, or resume the run for one step",
    ):
        told = from_plain(_Told, StateFiles(saved.path, role).facts)
    spec = told.model
    if spec.attention.startswith("flash"):  # GPU kernels are not needed: nothing is computed here
        spec = replace(spec, attention="sdpa")
    return replace(spec, packed=False), told.dtype


def _origin(saved: SavedRun, path: str) -> str:
    """The folder of the model that the training started from; a run folder may have been moved."""
    if not Path(path).exists():
        for relative in saved.progress.get("checkpoints", {}).values():
            here = saved.folder.path / relative
            if here.name == Path(path).name and here.is_dir():
                return str(here)
    return path


def _save(
    spec: TrainModelSpec, dtype: Dtype, state: Path, role: Role, path: str, threads: int
) -> None:
    from workers.roles.critic import CriticWorker
    from workers.roles.policy import PolicyWorker

    worker = PolicyWorker(0) if role == "policy" else CriticWorker(0)
    host, port = worker.address()
    group = GroupSpec(
        zero_stage=1,
        dtype=dtype,
        device="cpu",
        threads=threads,
        collective_seconds=60.0,
        weight_bucket_bytes=_BUCKET_BYTES,
        seed=0,
    )
    worker.join(RankAddress(0, 1, host, port), group)
    worker.load(replace(spec, threads=threads))
    worker.restore(str(state))
    worker.save(path, spec.checkpoint)
    worker.unload()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("orchestrator.export"), description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("checkpoint", help="RUN/state/NUMBER-STAGE-STEP, or RUN: its newest one")
    parser.add_argument("folder", help="the Hugging Face folder to write")
    parser.add_argument("--role", choices=("policy", "critic"), default="policy",
                        help="whose model (policy)")  # fmt: skip
    parser.add_argument("--threads", type=int, default=1, help="processor threads (1)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
