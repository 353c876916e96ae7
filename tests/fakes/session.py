"""A session over fakes: the real stages, data, telemetry and records, without a single process."""

from __future__ import annotations

import time
from pathlib import Path

from fakes.hub import Hub
from fakes.roles import FakeRoles
from fakes.toy import ToyPolicy, ToyScalar
from orchestrator.checkpoints.best import scores_of
from orchestrator.checkpoints.config_changes import plain_config
from orchestrator.checkpoints.saved_runs import SavedRun, SavedRuns
from orchestrator.config.engines import OptimizerConfig, Packing, RolloutConfig, TrainerConfig
from orchestrator.config.evaluation import EvaluateConfig
from orchestrator.config.schema import Config
from orchestrator.config.training import AlgorithmConfig, OldLogprobs, RewardModelConfig
from orchestrator.process.stop_signals import StopRequest
from orchestrator.run_files.folder import RunFolder
from orchestrator.session.driver_state import apply
from orchestrator.session.resume import package_versions
from orchestrator.session.saves import Saves
from orchestrator.session.session import Session
from orchestrator.supervision.lost_workers import Losses
from orchestrator.telemetry.live import LiveView
from orchestrator.telemetry.metrics import MetricRecord, comparable, read_metrics
from orchestrator.telemetry.recorder import Telemetry
from workers.data.source import Split
from workers.pocket.source import PocketSource
from workers.records.training import TokenBatch


class RecordingSource(PocketSource):
    """The pocket world, and which documents were asked of it."""

    def __init__(self) -> None:
        super().__init__(0, 0.5, 0.25)
        self.documents: list[tuple[str, int, int]] = []  # split, start, count

    def pretraining(self, split: Split, start: int, count: int) -> TokenBatch:
        self.documents.append((split, start, count))
        return super().pretraining(split, start, count)


def small_config() -> Config:
    """Sixteen sequences per iteration, two optimizer steps of eight.

    The trainer computes the old log-probabilities: faults of the fakes lie in that pass.
    """
    return Config(
        algorithm=AlgorithmConfig(
            iterations=2,
            prompts_per_iteration=8,
            samples_per_prompt=2,
            sequences_per_minibatch=8,
            evaluate_every=1,
            evaluation_prompts=8,
            old_logprobs=OldLogprobs.trainer,
        ),
        trainer=TrainerConfig(packing=Packing.off),
        rollout=RolloutConfig(parity_prompts=2, parity_tokens=4, max_response_tokens=12),
        reward_model=RewardModelConfig(
            prompts=24,
            heldout_prompts=12,
            prompts_per_step=8,
            bias_demonstrations=32,
            optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1),
        ),
        evaluate=EvaluateConfig(prompts=32, web_documents=16, cloze_tasks=8),
    )


class Run:
    """One session, and the handles that a test turns; `resumed` makes it go on in its folder."""

    def __init__(
        self,
        path: Path,
        config: Config | None = None,
        resumed: SavedRun | None = None,
        **sizes: int,
    ) -> None:
        self.config = config or small_config()
        self.hub = Hub()
        self.roles = FakeRoles(self.hub, self.config, **sizes)
        self.source = RecordingSource()
        self.folder = RunFolder(path / "run")
        if resumed is None:
            self.folder.create(overwrite=True)
        else:
            SavedRuns(self.folder).continue_from(resumed)
            self.folder.reopen(resumed.progress["appended"])
        self.stop = StopRequest()
        self.telemetry = Telemetry(
            self.folder, self.config.logger, {}, sinks=[], stages=self.config.stages
        )
        self.session = Session(
            config=self.config,
            folder=self.folder,
            source=self.source,
            telemetry=self.telemetry,
            live=LiveView("test", [], enabled=False),
            fleet=self.roles,
            position=self.hub.position,
            started=time.monotonic(),
            checkpoints=self._checkpoints(path),
            saves=Saves(
                self.folder,
                self.config.run.checkpoint,
                self.stop,
                {"config": plain_config(self.config), "versions": package_versions()},
                resumed,
                scores_of(self.config),
            ),
            losses=Losses(self.folder, self.hub.position),
        )
        if resumed is not None:
            apply(self.session, resumed.progress)

    def _checkpoints(self, path: Path) -> dict[str, str]:
        vocabulary = len(self.source.tokenizer)
        ToyPolicy.create(vocabulary, 1).save(path / "base")
        ToyPolicy.create(vocabulary, 2).save(path / "sft")
        ToyScalar.create(vocabulary, 3).save(path / "reward_model")
        return {name: str(path / name) for name in ("base", "sft", "reward_model")}

    def metrics(self) -> list[MetricRecord]:
        return read_metrics(self.folder.metrics)

    def series(self, name: str) -> list[float]:
        """The values of one metric, in the order of recording."""
        return [record.value for record in self.metrics() if record.name == name]

    def repeatable(self) -> list[object]:
        return list(comparable(self.metrics()))
