"""The weights of SFT that are compared, and which of them is published.

InstructGPT (arXiv 2203.02155, section 3.5) trains for 16 passes and takes the weights that the
reward model scores highest on held-out prompts, although the held-out loss is lowest after one.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.checkpoints.model_folder import CARD, MANIFEST
from orchestrator.config.run import StageName
from orchestrator.config.training import SFTBest
from orchestrator.planning.worker_specs import reward_spec
from orchestrator.session.session import Session
from orchestrator.stages import supervised
from orchestrator.stages.constitution.demonstrations import Demonstrated
from orchestrator.stages.judging import all_scored
from orchestrator.stages.shown import show_answers
from workers.data.records import Prompt
from workers.data.source import DataSource
from workers.errors import NonFiniteError
from workers.records.generation import Finish

LOSS, SCORE = "sft/validation_loss", "sft/heldout_score_mean"


class Candidates:
    """Publishes the weights at some steps, measures them, and in the end chooses one."""

    def __init__(
        self, session: Session, source: Demonstrated, base: str, steps: Sequence[int]
    ) -> None:
        """Prepare to compare.

        Args:
            session: The run.
            source: The demonstrations of the stage.
            base: Folder of the model that is fine-tuned.
            steps: Numbers of optimizer steps after which weights are candidates; the last one is
                the end of the stage.
        """
        self._session, self._base, self._steps = session, base, frozenset(steps)
        self._source = source
        self._stage = session.name_of(StageName.sft)
        self._by_score = session.config.sft.keep_best is SFTBest.reward_model
        self._found: dict[int, float] = {}  # step -> what is compared; the lowest is the best

    def start(self) -> None:
        """Start the engines, where they must start before a trainer loads its model."""
        if self._by_score and self._session.engines_first:
            rollout, _ = self._session.engines_on(self._base)
            rollout.sleep().result()

    def due(self, step: int) -> bool:
        """Whether the weights after `step` steps are a candidate."""
        return step in self._steps

    def measure(self, step: int) -> None:
        """Publish and measure the current weights, and record the figures.

        Raises:
            RewardError: the reward model gave an answer no score.
        """
        session = self._session
        settings, policy = session.config.sft, session.fleet.policy
        folder = session.publish(
            self._name(step), lambda path: policy.save(path, self._base).result(), self._stage
        )
        heldout = self._source.demonstrations("heldout", 0, settings.validation_demonstrations)
        values = {LOSS: supervised.mean_loss(session, heldout)}
        if self._by_score:
            values |= self._scored(step, str(folder))
        session.telemetry.record(self._stage, step, values)
        worth = -values[SCORE] if self._by_score else values[LOSS]
        self._found[step] = worth if math.isfinite(worth) else math.inf
        if self._best() == step:
            show_answers(session, self._source, session.product_of(StageName.sft))
        shown = ", ".join(f"{name.partition('/')[2]} {value:.4g}" for name, value in values.items())
        session.live.note(f"after step {step}: {shown}")

    def state(self) -> dict[str, Any]:
        """State as plain values."""
        return {"found": {str(step): worth for step, worth in self._found.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a saved `state`."""
        self._found = {int(step): worth for step, worth in state.get("found", {}).items()}

    def publish(self, made: str) -> None:
        """Publish the best candidate, the first among equals, as the stage's model `made`.

        Raises:
            NonFiniteError: no candidate has a finite loss.
        """
        session = self._session
        step = self._best()
        if not math.isfinite(self._found[step]):
            raise NonFiniteError(
                "no weights of this stage have a finite held-out loss",
                where="sft",
                fix="lower sft.optimizer.learning_rate",
            )
        folder = Path(session.need(self._name(step)))
        session.publish(made, lambda path: _copy(folder, Path(path)), self._stage, best_step=step)
        by = "score of the reward model" if self._by_score else "held-out loss"
        session.live.note(f"published as {made}: the weights after step {step}, by the {by}")

    def _best(self) -> int:
        """The step of the best weights so far, the first among equals."""
        return min(sorted(self._found), key=self._found.__getitem__)

    def _name(self, step: int) -> str:
        return f"{self._stage}_step_{step}"

    def _scored(self, step: int, folder: str) -> dict[str, float]:
        """Scores of one sampled answer per held-out prompt."""
        session = self._session
        rollout, version = session.engines_on(folder)
        count = session.config.sft.validation_demonstrations
        prompts = demonstration_prompts(session.source, count, self._source)
        _, batch = session.sample_texts(rollout, version, prompts, self._stage, "heldout", step)
        rollout.sleep().result()
        spec = reward_spec(session.config, session.need("reward_model"), folder)
        fix = "correct the reward model, or set sft.keep_best=loss"
        scores = all_scored(session, spec, prompts, batch, ("answers", "sft", fix))
        return {
            SCORE: float(scores.mean(dtype=np.float64)),
            "sft/heldout_eos_rate": float((batch.finish == Finish.STOP).mean()),
            "sft/heldout_response_tokens_mean": float(batch.response_lengths.mean()),
        }


def demonstration_prompts(
    source: DataSource, count: int, demonstrated: Demonstrated | None = None
) -> list[Prompt]:
    """The prompts of held-out demonstrations: what is before the first trained token."""
    rows = (demonstrated or source).demonstrations("heldout", 0, count).split()
    return [
        Prompt(number, tuple(asked), source.detokenize(asked), number)
        for number, (asked, _) in enumerate(rows)
    ]


def _copy(folder: Path, path: Path) -> None:
    """Copy a published folder; its manifest and card are written again."""
    shutil.copytree(folder, path, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST, CARD))
