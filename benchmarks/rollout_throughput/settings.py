"""What is measured: a run's own keys and the flags of the benchmark, checked before a start."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from benchmarks.common import RESULTS, configuration
from orchestrator.checkpoints import model_folder
from orchestrator.config.cluster import Accelerator, ClusterConfig, RoleName
from orchestrator.config.data import DataSourceKind, kinds
from orchestrator.config.engines import RolloutEngine
from orchestrator.config.schema import Config
from orchestrator.planning.checks.devices import check_devices, check_head_sizes
from orchestrator.planning.checks.lengths import check_lengths
from orchestrator.planning.model_sizes import ModelSize, checkpoint_size, sequences_in_cache
from orchestrator.planning.placement import Layout, place_roles
from orchestrator.preflight import hub_models
from orchestrator.process.program import program
from workers.data.tokenize.data_sets import SetKind
from workers.errors import BatchArithmeticError, ConfigError, ResourceError

OTHERS = ("raw", "transformers")
_FIRST = ("sft", "ppo_ptx", "ppo", "base", "initial")  # the model that is measured
_MOST = 1_000_000


@dataclass(frozen=True, slots=True)
class Settings:
    """A checked benchmark."""

    config: Config
    concurrency: tuple[int, ...]  # sequences at once, over all engines
    sequences: int  # of a turn; 0 = as many as the concurrency
    fixed: bool  # every response has rollout.max_response_tokens
    others: tuple[str, ...]  # sides beside ours
    repetitions: int  # counted turns of each side
    sync: bool
    out: Path

    @property
    def engines(self) -> int:
        """Engines of each side."""
        return self.config.cluster.roles.rollout.workers

    @property
    def samples(self) -> int:
        """K of a prompt."""
        return self.config.algorithm.samples_per_prompt

    def turn_sequences(self, concurrency: int) -> int:
        """Sequences of a turn."""
        return self.sequences or concurrency

    def at(self, concurrency: int) -> Config:
        """The configuration of a run with this many sequences at once."""
        each = concurrency // self.engines
        rollout = replace(self.config.rollout, max_concurrent_sequences=each)
        return replace(self.config, rollout=rollout)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog=program("benchmarks.rollout_throughput"),
        description="How fast do the engines of a run generate on your model, prompts and "
        "cluster, next to raw vLLM? Keys are those of python -m orchestrator.run: model, rollout, "
        "cluster, data, algorithm.samples_per_prompt.",
        allow_abbrev=False,
    )
    made.add_argument("keys", nargs="*", metavar="KEY=VALUE",
                      help="as of a run, such as +experiment=pocket")  # fmt: skip
    made.add_argument("--concurrency", default="8,32,128", metavar="N,N,...",
                      help="sequences at once, over all engines")  # fmt: skip
    made.add_argument("--sequences", type=int, default=0, metavar="N",
                      help="sequences of a turn; 0: as many as at once")  # fmt: skip
    made.add_argument("--output-tokens", type=int, default=None, metavar="N",
                      help="tokens of every response; else they end by themselves")  # fmt: skip
    made.add_argument("--against", default="raw", metavar="SIDE,...",
                      help="raw (vllm.LLM), transformers (batched generate), or none")  # fmt: skip
    made.add_argument("--repetitions", type=int, default=5, help="counted turns of each side")
    made.add_argument("--sync", action="store_true",
                      help="also time weight syncs from the policy's trainers")  # fmt: skip
    made.add_argument("--out", type=Path, default=RESULTS, help="folder of results")
    return made


def read(arguments: Sequence[str]) -> Settings:
    """The settings of a command line.

    Raises:
        ConfigError: a flag or a key is wrong, or they do not fit together.
    """
    args = parser().parse_intermixed_args(arguments)
    keys = list(args.keys)
    fixed = args.output_tokens is not None
    if fixed:
        _within("--output-tokens", args.output_tokens, 1)
        keys.append(f"rollout.max_response_tokens={args.output_tokens}")
    _within("--repetitions", args.repetitions, 1)
    _within("--sequences", args.sequences, 0)
    if args.out.exists() and not args.out.is_dir():
        raise ConfigError(f"{args.out} is a file", where="--out", fix="name a folder")
    config = configuration(*keys)
    hub_models.resolve(config)
    config.rollout.parity_tokens = min(
        config.rollout.parity_tokens, config.rollout.max_response_tokens
    )
    return Settings(
        config=config,
        concurrency=_numbers(args.concurrency),
        sequences=args.sequences,
        fixed=fixed,
        others=_others(args.against),
        repetitions=args.repetitions,
        sync=args.sync,
        out=args.out,
    )


def _within(flag: str, value: int, least: int) -> None:
    if not least <= value <= _MOST:
        raise ConfigError(f"{flag}={value}", where=flag, fix=f"give {least} to {_MOST:,}")


def _numbers(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() and 0 < int(word) <= _MOST for word in words):
        raise ConfigError(
            f"{text!r} is no list of numbers above 0",
            where="--concurrency",
            fix="write --concurrency 8,32,128",
        )
    return tuple(sorted({int(word) for word in words}))


def _others(text: str) -> tuple[str, ...]:
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    if words == ("none",):
        return ()
    unknown = [word for word in words if word not in OTHERS]
    if unknown:
        raise ConfigError(
            f"there is no side {unknown[0]!r}",
            where="--against",
            fix=f"choose of {', '.join(OTHERS)}, or none",
        )
    return words


def model_of(config: Config) -> Path | None:
    """The folder of the model that is measured; None: a model of the pocket world, made for it.

    Raises:
        ConfigError: no model is given.
        CheckpointError: the folder is missing or broken.
    """
    for name in _FIRST:
        if path := getattr(config.model.checkpoints, name):
            folder = model_folder.require(path, name).resolve()
            _check_model(config, name, folder)
            return folder
    if config.data.source is DataSourceKind.pocket:
        return None
    raise ConfigError(
        "no model is given",
        where="model.checkpoints",
        fix=f"set model.checkpoints.sft=FOLDER (or one of {', '.join(_FIRST[1:])})",
    )


def _check_model(config: Config, name: str, folder: Path) -> None:
    from orchestrator.preflight.given_models import check_models  # seconds to import

    check_models(config, {f"model.checkpoints.{name}": str(folder)})


def roles_of(settings: Settings) -> tuple[ClusterConfig, Layout]:
    """The cluster with room for all sides, and the placement.

    Raises:
        ResourceError: they do not fit.
    """
    config, sides = settings.config, 1 + len(settings.others)
    roles = config.cluster.roles
    engines = replace(roles.rollout, workers=settings.engines * sides, max_workers=0)
    cluster = replace(config.cluster, roles=replace(roles, rollout=engines))
    wanted = [RoleName.rollout, *([RoleName.policy] if settings.sync else [])]
    try:
        layout = place_roles(cluster, wanted)
    except ResourceError as error:
        if settings.others:
            error.fix += f"; every side has engines of its own, so --against none takes {sides} "
            error.fix += "times less"
        raise
    check_devices(replace(config, cluster=cluster), layout)
    _check_shared_gpus(settings, sides)
    return cluster, layout


def _check_shared_gpus(settings: Settings, sides: int) -> None:
    config = settings.config
    gpus, part = config.cluster.roles.rollout.gpus, config.rollout.gpu_memory_fraction
    if config.cluster.accelerator is not Accelerator.cuda or not 0 < gpus < 1:
        return
    together = min(math.floor(1 / gpus + 1e-6), settings.engines * sides)
    if together * part > 1:
        raise ResourceError(
            f"{together} engines of {' and '.join(('ours', *settings.others))} share a GPU, and "
            f"each takes {part:.0%} of its memory",
            where="rollout.gpu_memory_fraction",
            fix=f"set at most {1 / together:.2f}, or use --against none",
        )


def check(settings: Settings, folder: Path) -> list[str]:
    """Check numbers and lengths against the model; returns notes.

    Raises:
        BatchArithmeticError: prompts and responses exceed the model's positions, or sequences do
            not divide among prompts and engines.
        ConfigError: the engine cannot do what is asked.
        ResourceError: an engine's KV cache holds no sequence.
    """
    config, size = settings.config, checkpoint_size(folder)
    _check_division(settings)
    check_lengths(config, size)
    check_head_sizes(config)
    if config.resume or config.rerun:
        key = "resume" if config.resume else "rerun"
        raise ConfigError(f"there is no run to {key}", where=key, fix="leave it out")
    if settings.fixed and config.rollout.engine is not RolloutEngine.vllm:
        raise ConfigError(
            "responses of a fixed length need vLLM",
            where="--output-tokens",
            fix="leave it out, or set rollout.engine=vllm",
        )
    files = config.data.source is DataSourceKind.files
    if files and SetKind.prompts not in kinds(config.data):
        raise ConfigError(
            "there are no prompts", where="data.files.prompts", fix="set data.files.prompts=FILE"
        )
    assert size is not None, "the lengths were checked against it"
    return _notes(settings, size)


def _check_division(settings: Settings) -> None:
    unit = settings.samples * settings.engines
    each = f"{settings.samples} samples per prompt on {settings.engines} engine(s)"
    for value, flag in (*((c, "--concurrency") for c in settings.concurrency),
                        (settings.sequences, "--sequences")):  # fmt: skip
        if value % unit:
            raise BatchArithmeticError(
                f"{value} sequences do not divide into {each}",
                where=flag,
                fix=f"use multiples of {unit}, such as {math.ceil(value / unit) * unit}",
            )
    if 0 < settings.sequences < max(settings.concurrency):
        raise BatchArithmeticError(
            f"{settings.sequences} sequences of a turn never are {max(settings.concurrency)} at "
            "once",
            where="--sequences",
            fix=f"use at least {max(settings.concurrency)}, or 0",
        )


def _notes(settings: Settings, size: ModelSize) -> list[str]:
    config, notes = settings.config, []
    room = sequences_in_cache(config, size) * settings.engines
    if room < max(settings.concurrency):
        key = "kv_cache_mib" if config.cluster.accelerator is Accelerator.cpu else (
            "gpu_memory_fraction")  # fmt: skip
        notes.append(
            f"the engines' KV cache holds {room} sequences of full length, fewer than "
            f"{max(settings.concurrency)} at once: long ones wait or start again "
            f"(rollout.{key})"
        )
    if config.cluster.roles.rollout.max_workers:
        notes.append("cluster.roles.rollout.max_workers is left out: no engine joins meanwhile")
    given = [f.name for f in fields(config.model.checkpoints)
             if getattr(config.model.checkpoints, f.name)]  # fmt: skip
    if len(given) > 1:
        measured = next(name for name in _FIRST if name in given)
        notes.append(f"of the given models {measured} is measured")
    return notes
