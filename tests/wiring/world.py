"""A run of every stage over fake roles, and what of its configuration arrived where."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from composing import composed
from fakes.hub import Hub
from fakes.session import Run
from fakes.toy import ToyPolicy

from orchestrator.checkpoints.best import scores_of
from orchestrator.cluster.ray_cluster import Cluster
from orchestrator.config.cluster import RoleName
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.planning.placement import place_roles
from orchestrator.planning.threads import threads_of
from orchestrator.planning.worker_specs import (
    endpoint_spec,
    environment_spec,
    frozen_spec,
    group_spec,
    judge_spec,
    reward_spec,
    rollout_spec,
    train_spec,
)
from orchestrator.roles.fleet import Fleet
from orchestrator.run_files.folder import RunFolder
from orchestrator.run_files.samples import read_comparisons, read_rollouts
from orchestrator.session import sources
from orchestrator.stages.dpo import dpo
from orchestrator.stages.evaluate import evaluate
from orchestrator.stages.lm_eval import harness_scores
from orchestrator.stages.ppo import setup as ppo_stage
from orchestrator.stages.ppo.ledger import Ledger
from orchestrator.stages.ppo.loop import ppo, ppo_ptx
from orchestrator.stages.ppo.scores import Scoring
from orchestrator.stages.pretrain import pretrain, pretrain_large
from orchestrator.stages.reward_model import reward_model
from orchestrator.stages.selection.rejection_sampling import rejection_sampling
from orchestrator.stages.sft import sft
from orchestrator.supervision.pending import Position
from orchestrator.telemetry.role_time import Account
from orchestrator.telemetry.sinks import configured_sinks
from workers.pocket.model import create_model

STAGES = {
    "pretrain": pretrain, "pretrain_large": pretrain_large, "sft": sft,
    "reward_model": reward_model, "ppo": ppo, "ppo_ptx": ppo_ptx, "dpo": dpo, "evaluate": evaluate,
    "rejection_sampling": rejection_sampling,
}  # fmt: skip


class World:
    """One configuration, and what its stages asked of the roles.

    Attributes:
        config: as the command line composes it.
        run: the session over fakes, after all of `names`.
        made: sizes of the models that were made from scratch.
        calls: by stage, the facts of each "role.verb" that was called.
    """

    def __init__(
        self,
        path: Path,
        monkeypatch: Any,
        overrides: list[str],
        names: list[str],
        config: Config | None = None,
    ) -> None:
        self.config = config or composed(*overrides)
        self.path = path
        self.made: list[dict[str, Any]] = []
        self.pruned: list[tuple[int, int]] = []
        self.calls: dict[str, SimpleNamespace] = {}
        self.asked: dict[str, int] = {}  # documents asked for before each stage
        self.run = Run(path, self.config) if names else None
        if self.run is None:
            return

        def make(folder: str, **size: Any) -> None:
            self.made.append(size)
            ToyPolicy.create(len(self.run.source.tokenizer), 4).save(folder)

        monkeypatch.setattr("workers.pocket.model.create_model", make)
        monkeypatch.setattr(
            "orchestrator.checkpoints.saved_runs.SavedRuns.prune",
            lambda _, last, every, kept=(): self.pruned.append((last, every)),
        )
        for name in names:
            self.asked[name] = len(self.run.source.documents)
            self.run.hub.position.stage = name
            before = len(self.run.hub.events)
            STAGES[name](self.run.session)
            self.run.session.finish(name, last=name == names[-1])
            self.calls[name] = _calls(self.run.hub, before)

    def lengths(self, name: str, verb: str = "policy.train_supervised") -> list[int]:
        """Rows of each supervised step of a stage."""
        found = [f["steps"] for f in self.facts(name, verb)]
        return [sum(len(b) for s in steps for b in s.micro_batches) for steps in found]

    def facts(self, stage: str, verb: str) -> list[dict[str, Any]]:
        """The facts of every call of a verb in a stage."""
        return getattr(self.calls[stage], verb.replace(".", "_"), [])

    def spec(self, stage: str, role: str) -> Any:
        """What a role was loaded with in a stage."""
        return self.facts(stage, f"{role}.load")[0]["spec"]

    def shaping(self) -> Any:
        return self.facts("ppo_ptx", "policy.build_experience")[0]["shaping"]

    def loss(self) -> Any:
        return self.facts("ppo_ptx", "policy.update")[0]["loss"]

    def update(self, role: str) -> list[Any]:
        """Optimizer steps of rank 0 in the first update of a PPO stage."""
        return self.facts("ppo_ptx", f"{role}.update")[0]["steps"][0]

    def generated(self, stage: str = "ppo_ptx") -> list[dict[str, Any]]:
        """Calls that ask for training sequences."""
        size = self.config.algorithm.samples_per_prompt
        calls = self.facts(stage, "rollout.generate")
        return [f for f in calls if len(f["requests"][0].ids) == size]

    def heldout(self, stage: str = "ppo_ptx") -> list[dict[str, Any]]:
        """Calls that ask for one answer a held-out prompt."""
        return [f for f in self.facts(stage, "rollout.generate") if f not in self.generated(stage)]

    def metric(self, name: str) -> list[float]:
        assert self.run is not None
        return self.run.series(name)

    @property
    def sft_from(self) -> int:
        return self.asked["sft"]

    @property
    def ptx_from(self) -> int:
        return self.asked["ppo_ptx"]

    @cached_property
    def engine(self) -> Any:
        return rollout_spec(self.config, "CHECKPOINT", 2)

    def group(self, role: str = "policy") -> Any:
        return group_spec(self.config, getattr(self.config.cluster.roles, role))

    @property
    def trained(self) -> Any:
        threads = threads_of(self.config, StageName.sft, RoleName.policy)
        return train_spec(
            self.config, str(self.path), self.config.sft.optimizer, 100, threads=threads
        )

    def frozen(self, role: str = "reference") -> Any:
        return frozen_spec(self.config, str(self.path), StageName.ppo, RoleName(role))

    @property
    def reward(self) -> Any:
        return reward_spec(self.config, str(self.path), str(self.path))

    @property
    def environment(self) -> Any:
        return environment_spec(self.config, self.config.environment, str(self.path))

    @property
    def function(self) -> Any:
        """Settings of a reward function."""
        reward = replace(self.config.reward, kind="function")
        reward.function = reward.function or "a:b"
        return (
            reward_spec(replace(self.config, reward=reward), "", str(self.path)).terms[0].settings
        )

    @property
    def judge(self) -> Any:
        return judge_spec(self.config, str(self.path), str(self.path))

    @property
    def endpoint(self) -> Any:
        return endpoint_spec(self.config, "KEY")

    @cached_property
    def _read(self) -> tuple[Any, Any, Any]:
        """Sets, rendering and feeding that the files of this configuration are read with."""
        asked: list[Any] = []
        sizes = {"hidden_size": 8, "layers": 1, "heads": 1, "kv_heads": 1, "intermediate_size": 8}
        if not (self.path / "reader").exists():
            create_model(self.path / "reader", **sizes, max_position_embeddings=32,
                         tie_word_embeddings=True, seed=0)  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sources, "FileSource", lambda *given: asked.append(given))
            sources.make_source(self.config, {"sft": str(self.path / "reader")})
        return asked[0]

    @property
    def feeding(self) -> Any:
        return self._read[2]

    @property
    def rendering(self) -> Any:
        return self._read[1]

    @property
    def sets(self) -> dict[str, str]:
        return {each.name: each.path for each in self._read[0]}

    @property
    def keeping(self) -> list[Any]:
        """The sets whose prompts keep columns."""
        return [each for each in self._read[0] if each.keep]

    @property
    def layout(self) -> Any:
        return place_roles(self.config.cluster, list(RoleName))

    @cached_property
    def fleet(self) -> Any:
        return Fleet(self.config, self.cluster, Position(), Account())

    @cached_property
    def cluster(self) -> Cluster:
        return Cluster(self.config.cluster, self.layout, None, None, None, None)  # type: ignore[arg-type]

    def launch(self, role: str) -> Any:
        return self.fleet._launch(RoleName(role))

    def penalty(self, kind: str, deviation: float) -> float:
        """What a cut response loses where scores spread by so much."""
        config = replace(self.config, reward=replace(self.config.reward, kind=kind, function="a:b"))
        return Scoring(config, Ledger(), deviation).penalty()

    def resources(self, role: RoleName) -> dict[str, Any]:
        """What Ray is asked for one worker."""
        return self.cluster.bundle(role, 0)

    def world_seed(self) -> int:
        return rollout_spec(composed(), "CHECKPOINT", 2).seed

    def controller(self) -> Any:
        assert self.run is not None
        return ppo_stage.controller(self.run.session)

    def stall_seconds(self) -> float:
        return self.fleet.watch._stall_seconds

    @property
    def scores(self) -> Any:
        return scores_of(self.config)

    @property
    def source(self) -> Any:
        return sources.make_source(self.config, {})

    def sinks(self) -> list[Any]:
        return configured_sinks(RunFolder(self.path), self.config.logger, {}, "id")

    def harness(self) -> Any:
        """The request that the evaluation harness is handed."""
        asked: list[Any] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("orchestrator.stages.lm_eval.write_request", lambda _, r: asked.append(r))
            patch.setattr("orchestrator.stages.lm_eval._run", lambda *_: None)
            patch.setattr("orchestrator.stages.lm_eval.read_result", lambda _: {})
            harness_scores(self.config, {"sft": "FOLDER"}, self.path / "logs" / "log")
        return asked[0]

    def ranked(self) -> tuple[int, int]:
        """Prompts whose rankings may train, and all that were sampled."""
        asked = self.facts("reward_model", "rollout.generate")[0]["requests"]
        return max(self._trained_rankings()) + 1, len(asked)

    def _trained_rankings(self) -> set[int]:
        return {
            r.prompt_id
            for f in self.facts("reward_model", "critic.train_rankings")
            for s in f["steps"]
            for b in s.micro_batches
            for r in b
        }

    def first_ranked(self) -> int:
        """The first prompt whose ranking trains."""
        return min(self._trained_rankings())

    def completions(self) -> list[int]:
        sft, base = self.facts("reward_model", "rollout.generate")
        return [
            len(a.ids) + len(b.ids) for a, b in zip(sft["requests"], base["requests"], strict=True)
        ]

    def of_base(self) -> set[int]:
        requests = self.facts("reward_model", "rollout.generate")[1]["requests"]
        return {len(r.ids) for r in requests}

    def temperatures(self) -> set[float]:
        """Of sampling, of every pass and of the loss in PPO."""
        found = [f["sampling"].temperature for f in self.facts("ppo_ptx", "rollout.generate")]
        for verb in ("rollout.probe", "policy.logprobs", "reference.logprobs"):
            found += [f["temperature"] for f in self.facts("ppo_ptx", verb)]
        return {*found, self.loss().temperature}

    def kept(self) -> dict[int, int]:
        assert self.run is not None
        return dict(Counter(s.step for s in read_rollouts(self.run.folder)))

    def shown(self) -> int:
        assert self.run is not None
        return len(read_comparisons(self.run.folder))

    def cloze_tasks(self) -> int:
        """Tasks whose candidates the reference was asked about."""
        assert self.run is not None
        rows = len(self.facts("evaluate", "reference.row_losses")[1]["batches"][0])
        tasks = self.run.source.cloze("heldout", 0, 20) or []
        sizes = [len(task.candidates) for task in tasks]
        return next(n for n in range(21) if sum(sizes[:n]) == rows)

    def widest(self) -> int:
        """Most tokens of a padded micro-batch of the reference."""
        most = 0
        for facts in self.facts("ppo_ptx", "policy.update"):
            lengths = {
                i: len(row)
                for shard in facts["experience"].shards
                for i, row in zip(shard.ids.tolist(), shard.tokens.rows(), strict=True)
            }
            for step in facts["steps"][0]:
                for ids in step.ppo.work.micro_batches:
                    own = [lengths[int(i)] for i in ids]
                    most = max(most, len(own) * max(own, default=0))
        return most

    def row_lengths(self, stage: str) -> set[int]:
        return {
            len(row)
            for f in self.facts(stage, "policy.train_supervised")
            for s in f["steps"]
            for b in s.micro_batches
            for row in b.tokens.rows()
        }


def _calls(hub: Hub, start: int) -> SimpleNamespace:
    found: dict[str, list[dict[str, Any]]] = {}
    for event in hub.events[start:]:
        if event.kind == "start":
            found.setdefault(event.name.replace(".", "_"), []).append(event.facts)
    return SimpleNamespace(**found)


def tokens_of(steps: list[Any]) -> int:
    """Tokens of the pretraining text in a policy's optimizer step."""
    return sum(len(b.tokens.values) for b in steps[0].ptx.micro_batches)
