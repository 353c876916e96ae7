"""How fast do the engines of a run generate on a given model, next to raw vLLM?

Ours is what a run does: prompts from the driver through the Ray actors of the role `rollout`, in
engines with versions, seeds and log-probabilities, back as records in the object store. Raw vLLM is
`LLM.generate` in processes beside them with the same engine arguments, prompts, sampling parameters
and seeds. All sides take turns (A B B A ...), so that noise of the machine meets all of them; the
first turn of each is not counted. Every concurrency has engines of its own, as a run with
`rollout.max_concurrent_sequences` would have them.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import first_line, machine, print_table, write_result
from benchmarks.rollout_throughput.figures import Turn, point
from benchmarks.rollout_throughput.settings import Settings, check, model_of, read, roles_of
from orchestrator.process.command_exit import exit_code, tell
from orchestrator.process.stop_signals import StopRequest, exit_process, stop_on_signals
from workers.errors import DataError

if TYPE_CHECKING:  # imported late, so that a mistyped key is reported at once
    from benchmarks.rollout_throughput.sides import Ours, Side
    from orchestrator.cluster.ray_cluster import Cluster
    from workers.data.source import DataSource
    from workers.records.generation import GenerationRequest
    from workers.records.specs import RolloutSpec

_SYNCS = 3  # counted, after one that is not


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line says; returns the exit code."""
    return exit_code(lambda: _measure(sys.argv[1:] if arguments is None else list(arguments)))


def _measure(arguments: list[str]) -> None:
    # As in orchestrator.run: Ray ends a process whose raylet seems dead to it.
    os.environ["RAY_RAYLET_PID"] = str(os.getpid())
    settings = read(arguments)
    with stop_on_signals() as stop, model_folder(settings) as folder:
        notes = check(settings, folder)
        bench = Bench(settings, folder, stop)
        tell("".join(f"note: {note}\n" for note in (*notes, *bench.notes)))
        points: list[dict[str, Any]] = []
        sync: dict[str, Any] | None = None
        with bench.cluster() as cluster:
            for concurrency in settings.concurrency:
                tell(f"{concurrency} sequences at once ...\n")
                points.append(bench.at(concurrency, cluster))
                bench.write(arguments, points, None)
            if settings.sync:
                tell("weight syncs ...\n")
                sync = bench.sync(cluster)
        _show(settings, points, sync, bench.write(arguments, points, sync))


@contextmanager
def model_folder(settings: Settings) -> Iterator[Path]:
    """The given model, or one with random weights in the shape of model.pocket."""
    given = model_of(settings.config)
    if given is not None:
        yield given
        return
    from workers.pocket.model import create_model

    with tempfile.TemporaryDirectory() as folder:
        pocket = settings.config.model.pocket
        create_model(folder, **asdict(pocket), seed=settings.config.seed)
        yield Path(folder)


class Bench:
    """One benchmark: its data and its roles."""

    def __init__(self, settings: Settings, folder: Path, stop: StopRequest) -> None:
        """Read the prompts and place the roles; nothing is started.

        Raises:
            DataError: there are too few prompts, or one is too long.
            ResourceError: the sides do not fit on the cluster.
        """
        from orchestrator.session.sources import left_out, make_source

        self._settings, self._folder, self._stop = settings, folder, stop
        self._cluster, self._layout = roles_of(settings)
        supervision = replace(settings.config.run.supervision, max_restarts=0)
        run = replace(settings.config.run, dir=str(settings.out), supervision=supervision)
        self._settings = replace(settings, config=replace(settings.config, run=run))
        self._source: DataSource = make_source(settings.config, {"measured": str(folder)})
        self.notes = left_out(self._source)
        self._requests = {c: self._turns(c) for c in settings.concurrency}

    def _turns(self, concurrency: int) -> list[list[GenerationRequest]]:
        """The requests of each turn: warm-up, counted, timed sequence by sequence."""
        from benchmarks.rollout_throughput.sides import requests_of

        settings = self._settings
        count = settings.turn_sequences(concurrency) // settings.samples
        limit = settings.config.rollout.max_prompt_tokens
        turns: list[list[GenerationRequest]] = []
        for turn in range(1 + settings.repetitions + timed_turns(settings.repetitions)):
            prompts = self._source.prompts("ppo", turn * count, count)
            for prompt in prompts:
                if not 0 < len(prompt.tokens) <= limit:
                    raise DataError(
                        f"a prompt has {len(prompt.tokens)} tokens, engines accept 1 to {limit}",
                        where=f"prompt {prompt.id}",
                        fix="raise rollout.max_prompt_tokens, or lower data.files."
                        "max_prompt_tokens, which leaves it out",
                    )
            turns.append(requests_of(prompts, settings.samples, settings.config.seed, turn))
        return turns

    @contextmanager
    def cluster(self) -> Iterator[Cluster]:
        """Ray with room for all sides."""
        from orchestrator.cluster.ray_cluster import start_cluster
        from orchestrator.roles.fleet import rules_of

        run = self._settings.config.run
        with (
            start_cluster(
                self._cluster, self._layout, run.role_start_seconds,
                error_logs=self._settings.out / "logs",
                rules=rules_of(self._settings.config), resort=self._stop.resort,
            ) as cluster,
            cluster.guard.explaining(),
        ):  # fmt: skip
            yield cluster

    def _spec(self, concurrency: int) -> RolloutSpec:
        from benchmarks.rollout_throughput.sides import spec_of
        from workers.data.tokenize.tokenizers import token_ids

        settings, tokenizer = self._settings, self._source.tokenizer
        eos = tokenizer.eos_token_id
        assert isinstance(eos, int), "a data source refuses a tokenizer without an end token"
        return spec_of(
            settings.at(concurrency), self._folder, eos, token_ids(tokenizer), fixed=settings.fixed
        )

    def at(self, concurrency: int, cluster: Cluster) -> dict[str, Any]:
        """Measure all sides at one concurrency."""
        from benchmarks.rollout_throughput.sides import Other, Ours

        config, spec = self._settings.at(concurrency), self._spec(concurrency)
        with ExitStack() as open_sides:
            sides: dict[str, Side] = {"ours": Ours(config, cluster, spec)}
            open_sides.callback(sides["ours"].close)
            for place, name in enumerate(self._settings.others, start=1):
                sides[name] = Other(name, place, config, cluster, spec)
                open_sides.callback(sides[name].close)
            requests = self._requests[concurrency]
            turns = in_turns(sides, requests[: 1 + self._settings.repetitions])
            latencies = {
                name: [
                    seconds
                    for each in requests[1 + self._settings.repetitions :]
                    for seconds in side.latencies(each)
                ]
                for name, side in sides.items()
            }
        return point(concurrency, turns, latencies)

    def sync(self, cluster: Cluster) -> dict[str, Any]:
        """Weight syncs from the policy's trainers to the engines, at the last concurrency."""
        from benchmarks.rollout_throughput.sides import Ours

        concurrency = self._settings.concurrency[-1]
        spec = self._spec(concurrency)
        ours = Ours(self._settings.at(concurrency), cluster, spec)
        try:
            return self._syncs(ours, spec.vocabulary)
        finally:
            ours.close()

    def _syncs(self, ours: Ours, vocabulary: int) -> dict[str, Any]:
        from orchestrator.config.cluster import RoleName
        from orchestrator.planning.worker_specs import train_spec
        from orchestrator.roles.weight_sync import WeightSync

        config = self._settings.config
        optimizer = config.algorithm.policy_optimizer
        spec = train_spec(config, str(self._folder), optimizer, 1, threads=1, vocabulary=vocabulary)
        ours.fleet.policy.load(spec).result()
        prompts = self._source.prompts("heldout", 0, config.rollout.parity_prompts)
        tokens, budget = [p.tokens for p in prompts], config.trainer.micro_batch_tokens
        moving = WeightSync(ours.fleet.policy, ours.rollout, config.rollout, tokens, budget)
        reports = [moving.run(2 + n) for n in range(1 + _SYNCS)][1:]
        ours.fleet.release(RoleName.policy)
        return {
            "transport": config.rollout.transport,
            "bytes": reports[0].nbytes,
            "seconds": [r.seconds for r in reports],
            "transfer_seconds": [r.transfer_seconds for r in reports],
            "parity_max_nats": max(r.parity.max_difference for r in reports),
        }

    def write(
        self, arguments: list[str], points: list[dict[str, Any]], sync: dict[str, Any] | None
    ) -> Path:
        """Write all points so far: a long list of them may be cut short."""
        from benchmarks.rollout_throughput.shown import draw
        from orchestrator.checkpoints.config_changes import plain_config
        from orchestrator.planning.model_sizes import checkpoint_size
        from orchestrator.session.resume import package_versions

        settings = self._settings
        config, size = settings.config, checkpoint_size(self._folder)
        assert size is not None, "the engines have loaded it"
        facts = {
            "question": first_line(__doc__),
            "machine": machine(),
            "versions": package_versions(),
            "command": arguments,
            "settings": {
                "model": str(self._folder), "parameters": size.parameters, "seed": config.seed,
                "samples_per_prompt": settings.samples, "fixed_length": settings.fixed,
                "sequences": settings.sequences, "repetitions": settings.repetitions,
                **{name: plain_config(config)[name] for name in ("rollout", "cluster")},
            },
            "points": points,
            "weight_sync": sync,
        }  # fmt: skip
        path = write_result(settings.out, "rollout_throughput", facts)
        title = (
            f"{size.parameters / 1e6:,.1f} M parameters, {settings.engines} engine(s), "
            f"K = {settings.samples}, {config.rollout.precision.value}, "
            f"{config.cluster.accelerator.value}; numbers: ours / raw"
        )
        draw(points, title, path.with_suffix(".png"))
        return path


def timed_turns(repetitions: int) -> int:
    """Turns in which sequences are timed one by one: half of the counted ones."""
    return max(1, repetitions // 2)


def in_turns(
    sides: dict[str, Side], requests: list[list[GenerationRequest]]
) -> dict[str, list[Turn]]:
    """The counted turns of each side; who begins changes from turn to turn."""
    turns: dict[str, list[Turn]] = {name: [] for name in sides}
    for n, each in enumerate(requests):
        for name in list(sides) if n % 2 else list(reversed(sides)):
            found = sides[name].turn(each)
            if n:  # the first warms up
                turns[name].append(found)
    return turns


def _show(
    settings: Settings, points: list[dict[str, Any]], sync: dict[str, Any] | None, path: Path
) -> None:
    from benchmarks.rollout_throughput.shown import HEADS, rows

    length = settings.config.rollout.max_response_tokens
    ends = f"{length} tokens each" if settings.fixed else f"at most {length} tokens"
    print(f"\nresponses of {ends}, K = {settings.samples}, medians of {settings.repetitions} turns")
    print_table(HEADS, rows(points))
    if sync is not None:
        print(
            f"weight sync of {sync['bytes'] / 1e6:,.1f} MB by {sync['transport']}: "
            f"{statistics.median(sync['seconds']):.3f} s, of them until the engines hold the "
            f"weights {statistics.median(sync['transfer_seconds']):.3f} s"
        )
    print(f"written to {path} and {path.with_suffix('.png').name}")


if __name__ == "__main__":
    exit_process(main())
