"""The session: what all stages of one run share."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.batching import training_batches
from orchestrator.batching.text_rows import TextRows
from orchestrator.checkpoints import model_folder
from orchestrator.cluster.fork_servers import Apart, here
from orchestrator.config.cluster import RoleName
from orchestrator.config.reward import TextBridge
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.config.seeds import derive
from orchestrator.planning.runs.expand import stage_of
from orchestrator.planning.runs.stage_run import StageRun, whole
from orchestrator.planning.stage_graph import REFERENCE, product, reference_of
from orchestrator.planning.worker_specs import rollout_spec
from orchestrator.results.findings import Findings
from orchestrator.roles.interfaces import Rollouts, Saver
from orchestrator.roles.roles import Roles
from orchestrator.roles.rollout_group import RolloutGroup
from orchestrator.run_files.folder import RunFolder
from orchestrator.session import driver_state, model_card
from orchestrator.session.corrections import Corrections
from orchestrator.session.saves import Saves
from orchestrator.supervision.lost_workers import Losses
from orchestrator.supervision.pending import Position
from orchestrator.telemetry.live import LiveView
from orchestrator.telemetry.recorder import Telemetry
from workers.data.records import Prompt
from workers.data.rows.asked import Asked
from workers.data.source import DataSource
from workers.data.tokenize.tokenizers import token_ids
from workers.model_folders.shape import read_shape
from workers.records.generation import GenerationRequest, RolloutBatch, Sampling
from workers.records.specs import RolloutSpec
from workers.records.training import TokenBatch


@dataclass(frozen=True, slots=True)
class Outlived:
    """Finished sequences of an iteration that lost a worker before it trained on them."""

    parts: Sequence[Rollouts]
    losses: int  # count so far; another loss may have taken the sequences, too


@dataclass(frozen=True, slots=True)
class Fit:
    """What engines are set up for that serve a judge or critic, by its own tokenizer."""

    eos: int
    vocabulary: int  # ids of this value and above are not tokens
    prompt: int  # most tokens of a prompt
    response: int


@dataclass(slots=True)
class Session:
    """The configuration, the roles, the data and the records of one run."""

    config: Config  # of the current stage run, after `enter`
    folder: RunFolder
    source: DataSource
    telemetry: Telemetry
    live: LiveView
    fleet: Roles
    position: Position
    started: float  # time.monotonic() at the start of the process, minus earlier processes' seconds
    checkpoints: dict[str, str]  # name of a model, e.g. sft -> folder
    saves: Saves
    losses: Losses
    apart: Apart = here  # calls functions that need libraries which the driver does without
    corrections: Corrections = field(default_factory=Corrections)
    parts: Sequence[Rollouts] = ()  # of the iteration in progress, once all have arrived
    outlived: Outlived | None = None
    findings: Findings = field(default_factory=Findings)
    run: StageRun | None = None  # the current one; None: stages have their own names and products
    _next_id: int = 0
    _next_version: int = 0
    _engine_shape: str = ""  # architecture that the engines hold; "" = not started

    def enter(self, run: StageRun) -> None:
        """Begin a stage run: its configuration, name, inputs and product count from now on."""
        self.run, self.config = run, run.config

    def name_of(self, stage: StageName) -> str:
        """The name of the stage run that runs this stage: of its metrics, checkpoints and seeds."""
        return str(self.run.name) if self.run and self.run.stage is stage else stage.value

    def product_of(self, stage: StageName) -> str:
        """The name of the model that this stage makes in the current stage run."""
        return self.run.product if self.run and self.run.stage is stage else product(stage)

    def has_run(self, *stages: StageName) -> bool:
        """Whether a finished stage run ran one of these stages."""
        run = whole(self.config)
        return any(stage_of(run, name) in stages for name in self.saves.finished)

    def called(self) -> dict[str, str]:
        """The folders of all checkpoints, by the names that the current stage has for them."""
        bound = self.run.inputs if self.run else {}
        return self.checkpoints | {
            name: self.checkpoints[read] for name, read in bound.items() if read in self.checkpoints
        }

    def need(self, name: str) -> str:
        """Path of a checkpoint, after a check.

        Args:
            name: of the checkpoint as the stage calls it; a variant may read another in its place.

        Raises:
            CheckpointError: it is missing or broken.
        """
        name = self.run.inputs.get(name, name) if self.run else name
        path = self.checkpoints.get(name, "")
        return str(model_folder.require(path, name, meanwhile=self.fleet.look_after))

    def reference(self, stage: StageName) -> str:
        """Path of the model that a stage compares the policy with, after a check.

        Raises:
            CheckpointError: it is missing or broken.
        """
        other = self.run is not None and REFERENCE in self.run.inputs
        return self.need(REFERENCE if other else reference_of(self.config, stage))

    def publish(self, name: str, save: model_folder.Save, stage: str, **more: float) -> Path:
        """Save a stage's model into the run folder and register it for the later stages.

        The data's tokenizer, chat template included, goes into the folder, so that later stages,
        vLLM and users tokenize a text or a dialogue as training did.

        Args:
            name: of the model.
            save: writes it.
            stage: that trained it.
            more: further facts for its manifest.
        """

        def whole(path: str) -> None:
            save(path)
            files = (Path(path), self.source.tokenizer, self.sampling())
            self.away("workers.models.published_files:complete", *files)
            model_card.write(Path(path), model_card.of_session(self, name, stage))

        facts = {"stage": stage, "seed": self.config.seed, "experiment": self.config.experiment}
        facts |= more
        made, meanwhile = self.folder.checkpoints / name, self.fleet.look_after
        folder = model_folder.publish(made, whole, facts, meanwhile)
        self.checkpoints[name] = str(folder)
        return folder

    def away(self, function: str, *arguments: Any, **named: Any) -> Any:
        """Call `module:name` in a process that has imported the libraries of models."""
        return self.apart(function, *arguments, seconds=self.config.run.call_seconds, **named)()

    def boundary(
        self,
        stage: str,
        step: int,
        total: int,
        own: Mapping[str, Any],
        *savers: Saver,
        always: bool = False,
    ) -> None:
        """Call between two steps of a stage: saves the run if that is due or a stop was requested.

        Args:
            stage: the stage.
            step: steps done; all their metrics are recorded, and no call to `savers` is open.
            total: steps of the whole stage; `finish` saves its end, with its model.
            own: the stage's own state beside that of the savers, JSON-ready.
            savers: roles whose state is saved.
            always: save even if the configuration's interval is not reached.

        Raises:
            CheckpointError: the disk is full or read-only.
            StoppedError: a signal requested the stop, and everything is saved.
        """
        self.saves.settle()
        values = self.telemetry.values(stage, step)
        self.findings.stepped(stage, values)
        best = self.saves.scores.measured(stage, step, values)
        if step >= total or not (always or best or self.saves.due(stage, step)):
            return
        state = driver_state.capture(self, stage, step, own)
        self.saves.start(state, savers, driver_state.products(self, stage))
        self.stop_if_asked()

    def finish(self, stage: str, *, last: bool) -> None:
        """Save that a stage is finished; later processes use its model."""
        self.saves.settle()
        self.saves.finished.append(stage)
        state = driver_state.capture(self, stage, self.position.step + 1, {})
        self.saves.start(state, [], driver_state.products(self, ""))
        self.saves.settle()
        if best := self.saves.best_of(stage):
            self.live.note(best)
        if last:
            self.saves.done()
        else:
            self.stop_if_asked()

    def stop_if_asked(self) -> None:
        """End the run here if a signal requested it, after finishing a checkpoint being written."""
        if self.saves.stopping:
            self.saves.settle()
        self.saves.stop_if_asked()

    def counters(self) -> dict[str, int]:
        """The counters that keep ids and versions unique in a run."""
        return {"next_id": self._next_id, "next_version": self._next_version}

    def restore_counters(self, counters: Mapping[str, int]) -> None:
        """Continue from saved counters."""
        self._next_id, self._next_version = counters["next_id"], counters["next_version"]

    def seed(self, *path: str | int) -> int:
        """The seed of one random choice of this run.

        Args:
            path: the purpose; if it begins with the name of the stage or stage run, that name
                becomes the one that the stage run has in its seeds.
        """
        if self.run and path and path[0] in (self.run.stage, self.run.name):
            path = (str(self.run.seed_as), *path[1:])
        return derive(self.config.seed, *path)

    def next_version(self) -> int:
        """A new number for weights that an engine is about to serve; never reused in a run."""
        self._next_version += 1
        return self._next_version

    def engines_on(self, path: str, fit: Fit | None = None) -> tuple[RolloutGroup, int]:
        """The rollout engines serving the checkpoint at `path`, and its version.

        Engines that hold a model of another architecture, by config.json, are restarted.

        Args:
            path: Hugging Face folder.
            fit: Tokens and lengths of a model that is no policy of the run; None = those of the
                run.
        """
        version = self.next_version()
        shape = read_shape(Path(path)).key + (f" {fit}" if fit else "")
        rollout = self.fleet.rollout
        self.trainers_rest()  # engines that start measure what is free on their GPUs
        if self._engine_shape == shape:
            rollout.load_checkpoint(path, version).result()
        elif self._engine_shape:
            rollout.restart(self._rollout_spec(path, fit), version).result()
        else:
            rollout.start(self._rollout_spec(path, fit), version).result()
        self._engine_shape = shape
        return rollout, version

    @property
    def engines_first(self) -> bool:
        """Whether engines must have started before another role loads or frees a model.

        True where they share their GPUs: vLLM measures the free memory of its GPU at its start,
        counts what other processes allocate meanwhile as used by itself, and fails if they free
        any.
        """
        config = self.config
        return config.rollout.sleep or 0 < config.cluster.roles.rollout.gpus < 1

    def trainers_rest(self) -> None:
        """Have running trainers free GPU memory for the engines, if configured."""
        fleet = self.fleet
        resting = [fleet.policy.rest()] if fleet.holds(RoleName.policy) else []
        resting += [fleet.critic.rest()] if fleet.holds(RoleName.critic) else []
        for pending in resting:
            pending.result()

    def forget_engines(self) -> None:
        """Call when the engines are gone: the next `engines_on` starts new ones."""
        self._engine_shape = ""

    def _rollout_spec(self, path: str, fit: Fit | None) -> RolloutSpec:
        if fit is not None:
            spec = rollout_spec(self.config, path, fit.eos, fit.vocabulary)
            return replace(spec, max_prompt_tokens=fit.prompt, max_response_tokens=fit.response)
        eos = self.source.tokenizer.eos_token_id
        assert isinstance(eos, int), "a data source refuses a tokenizer without an end token"
        return rollout_spec(self.config, path, eos, self.vocabulary)

    @property
    def vocabulary(self) -> int:
        """Number of token ids; embeddings often have more rows, which have no meaning."""
        return token_ids(self.source.tokenizer)

    def rows_are_shared(self) -> bool:
        """Whether documents can share rows under the loaded policy; adds a note if they cannot.

        Call once per stage. In a model family where documents that share a row attend to each
        other, each document gets its own row before micro-batches are planned, so that none exceeds
        its token budget.
        """
        shared = self.fleet.policy.shares_rows().result()
        if not shared:
            self.live.note(
                "one document per row: in this model family, documents that share a row attend to "
                "each other"
            )
        return shared

    def pretraining_rows(self, start: int, count: int, *, shared: bool) -> TokenBatch:
        """Training documents `start` to `start + count`; they share rows if `shared`."""
        documents = self.source.pretraining("train", start, count)
        if not shared:
            return documents
        return training_batches.pack_documents(documents, self.config.pretrain.row_tokens)

    def text_rows(self, *, shared: bool) -> TextRows:
        """Training text in full rows; unless `shared`, documents in a row attend to each other."""
        documents = partial(self.source.pretraining, "train")
        return TextRows(documents, self.config.pretrain.row_tokens, shared)

    def requests(
        self, prompts: Sequence[Prompt], samples: int | Sequence[int], *path: str | int
    ) -> list[GenerationRequest]:
        """Generation requests with new sequence ids and one seed per sample.

        If a small data set repeats a prompt, its sample numbers continue, so that no seed repeats.

        Args:
            prompts: the prompts to sample from.
            samples: K for all prompts, or one K per prompt.
            path: names the seeds, e.g. ("ppo", iteration).
        """
        counts = [samples] * len(prompts) if isinstance(samples, int) else list(samples)
        requests: list[GenerationRequest] = []
        sampled: Counter[int] = Counter()  # samples of each prompt so far
        for prompt, count in zip(prompts, counts, strict=True):
            ids = tuple(range(self._next_id, self._next_id + count))
            self._next_id += count
            first = sampled[prompt.id]
            sampled[prompt.id] += count
            seeds = tuple(self.seed(*path, prompt.id, k) for k in range(first, first + count))
            requests.append(GenerationRequest(prompt.id, prompt.tokens, ids, seeds))
        return requests

    @property
    def words_are_read(self) -> bool:
        """Whether the reward (or a judging reward model) reads text instead of token ids."""
        reward = self.config.reward
        return reward.needs.text or reward.bridge is TextBridge.text

    def asked(self, prompts: Sequence[Prompt]) -> list[Asked]:
        """Prompts as text, if the reward reads text; else none."""
        return [prompt.asked for prompt in prompts] if self.words_are_read else []

    def sampling(self) -> Sampling:
        """Sampling settings of the policy, the same everywhere in the run."""
        rollout = self.config.rollout
        return Sampling(rollout.temperature, rollout.max_response_tokens)

    def sample_texts(
        self, rollout: RolloutGroup, version: int, prompts: Sequence[Prompt], *path: str | int
    ) -> tuple[list[str], RolloutBatch]:
        """One sampled text per prompt, in the order of the prompts, and their sequences."""
        requests = self.requests(prompts, 1, *path)
        rollouts = rollout.generate(requests, self.sampling(), version).result()
        batch = rollout.fetch(rollouts).result()
        row = {int(i): n for n, i in enumerate(batch.ids)}
        batch = batch.select(np.array([row[r.ids[0]] for r in requests]))
        return [self.source.detokenize(batch.response(i)) for i in range(len(batch))], batch

    def note_first_step(self) -> None:
        """Record when the first optimizer step of the run was done, in any stage."""
        if self.findings.first_step_seconds is None:
            self.findings.first_step_seconds = time.monotonic() - self.started

    def reached(self, part: str) -> None:
        """Record the seconds of one part of the run's start, until the first PPO iteration ends."""
        found = self.findings
        if "first_iteration" not in found.start:
            found.start[part] = time.monotonic() - self.started - sum(found.start.values())
