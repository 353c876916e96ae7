"""PPO of TRL at a shape; runs in an environment of TRL's. Models and batch are those of all sides.

Its PPO trainer computes in one process: generation by transformers, one AdamW over policy and
value model. Old log-probabilities are those of generation.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}

import torch
from datasets import Dataset
from marks import Marks, job
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import (  # pyright: ignore[reportMissingImports]
    PPOConfig,
    PPOTrainer,
    ppo_trainer,
)


class Count:
    """Shapes of the newest generation, and optimizer steps."""

    queries = sequences = torch.empty(0, 0)
    steps = 0


class EndOfStep(TrainerCallback):
    """Marks each PPO step's end."""

    def __init__(self, marks: Marks, count: Count) -> None:
        self._marks, self._count = marks, count

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        count = self._count
        prompt = count.queries.shape[1]
        rows, tokens = count.sequences.shape
        self._marks.add(rows, prompt, tokens - prompt, count.steps)
        count.steps = 0


def main() -> None:
    told = job()
    torch.set_num_threads(told["threads"])
    if not told["collect"]:
        ppo_trainer.gc.collect = lambda: 0  # two full collections per step otherwise
    trainer = _trainer(told)
    count = Count()
    _count_work(trainer, count)
    trainer.add_callback(EndOfStep(Marks(told["marks"]), count))
    trainer.train()


def _trainer(told: dict) -> PPOTrainer:
    inputs = Path(told["inputs"])
    dtype = torch.bfloat16 if told["precision"] == "bf16" else torch.float32
    causal = lambda: AutoModelForCausalLM.from_pretrained(inputs / "sft", dtype=dtype)  # noqa: E731
    scalar = lambda: AutoModelForSequenceClassification.from_pretrained(  # noqa: E731
        inputs / "reward_model", num_labels=1, dtype=dtype
    )
    tokenizer = AutoTokenizer.from_pretrained(inputs / "sft", padding_side="left")
    lines = (inputs / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{"input_ids": tokenizer(json.loads(line)["prompt"])["input_ids"]} for line in lines]
    settings = PPOConfig(
        output_dir=told["scratch"], use_cpu=True, report_to=[], save_strategy="no",
        num_sample_generations=0, disable_tqdm=True, bf16=False, gradient_checkpointing=False,
        learning_rate=told["learning_rate"], lr_scheduler_type="constant",
        per_device_train_batch_size=told["sequences"], gradient_accumulation_steps=1,
        local_rollout_forward_batch_size=told["sequences"],
        num_mini_batches=told["sequences"] // told["minibatch"], num_ppo_epochs=told["epochs"],
        total_episodes=told["steps"] * told["sequences"],
        response_length=told["response_tokens"], temperature=1.0, stop_token=None,
    )  # fmt: skip
    dataset = Dataset.from_list(rows)
    return PPOTrainer(
        args=settings, processing_class=tokenizer, model=causal(), ref_model=causal(),
        reward_model=scalar(), value_model=scalar(), train_dataset=dataset,
        eval_dataset=dataset.select(range(told["sequences"])),
    )  # fmt: skip


def _count_work(trainer: PPOTrainer, count: Count) -> None:
    generate, step = ppo_trainer.batch_generation, trainer.optimizer.step

    def counted_generation(model: object, queries: torch.Tensor, *rest: object) -> object:
        made = generate(model, queries, *rest)
        count.queries, count.sequences = queries, made[0]
        return made

    def counted_step(*args: object, **kwargs: object) -> object:
        count.steps += 1
        return step(*args, **kwargs)

    ppo_trainer.batch_generation = counted_generation
    trainer.optimizer.step = counted_step


if __name__ == "__main__":
    main()
