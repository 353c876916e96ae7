"""PPO on real prompts: a Qwen3 policy, and a GPT-2 reward model that reads another tokenizer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from family_models import build_family
from real_data import real_data
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from orchestrator.telemetry.metrics import MetricRecord, read_metrics, series
from workers.models.load import load_scalar

ROOT = Path(__file__).resolve().parents[2]
ITERATIONS, EPISODES = 3, 16


def small_bpe(text: Path, words: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of its own, trained on the first 200,000 characters of a text."""
    core = ByteLevelBPETokenizer()
    core.train_from_iterator(
        [text.read_text(encoding="utf-8")[:200_000]],
        vocab_size=words,
        special_tokens=["<pad>", "<s>", "</s>"],
        show_progress=False,
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core._tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's folder; beside it the models, and the first turns of MT-Bench as prompts."""
    root = tmp_path_factory.mktemp("families")
    questions = real_data("mt_bench_questions.jsonl").read_text().splitlines()
    prompts = [{"prompt": json.loads(line)["turns"][0]} for line in questions]
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    policy = small_bpe(real_data("tinyshakespeare.txt"), 512)
    judge = small_bpe(real_data("wikitext2_valid.txt"), 384)
    assert policy.get_vocab() != judge.get_vocab()
    build_family("qwen3", root / "sft", policy, max_position_embeddings=128)
    # So few positions that some answers do not fit once they are written in its own tokens.
    build_family("gpt2", root / "body", judge, n_positions=96)
    load_scalar(str(root / "body"), dtype="float32", head="random").save_pretrained(root / "judge")
    judge.save_pretrained(root / "judge")
    command = [
        sys.executable, "-m", "orchestrator.run", "+experiment=ppo", f"run.dir={root / 'run'}",
        f"model.checkpoints.sft={root / 'sft'}", f"model.checkpoints.reward_model={root / 'judge'}",
        f"data.files.prompts={root / 'prompts.jsonl'}", "reward.bridge=text",
        "data.files.max_prompt_tokens=80", "rollout.max_prompt_tokens=80",
        "rollout.max_response_tokens=24", "rollout.parity_tokens=24",
        "rollout.parity_tolerance=1e-3", "rollout.kv_cache_mib=16",
        "trainer.micro_batch_tokens=2048", f"algorithm.iterations={ITERATIONS}",
        f"algorithm.prompts_per_iteration={EPISODES}", "algorithm.sequences_per_minibatch=8",
        "algorithm.evaluate_every=0", "algorithm.policy_optimizer.learning_rate=3e-3",
        "algorithm.policy_optimizer.warmup_steps=0", "algorithm.critic_optimizer.warmup_steps=0",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"COLUMNS": "120"}, capture_output=True, text=True,
        timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (root / "run" / "printed.txt").write_text(done.stdout + done.stderr)
    return root / "run"


@pytest.fixture(scope="module")
def records(run: Path) -> list[MetricRecord]:
    return read_metrics(run / "metrics.jsonl")


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_the_ledger_is_exact(run: Path, records: list[MetricRecord]) -> None:
    counts = {
        what: dict(series(records, "ppo", f"ppo/{what}"))
        for what in ("generated", "trained", "dropped")
    }
    steps = range(1, ITERATIONS + 1)
    assert counts["generated"] == dict.fromkeys(steps, EPISODES)
    assert all(counts["generated"][s] == counts["trained"][s] + counts["dropped"][s] for s in steps)
    totals = json.loads((run / "summary.json").read_text())["ledger"]
    assert totals["generated"] == ITERATIONS * EPISODES == totals["trained"] + totals["dropped"]
    assert 0 < totals["dropped"] < totals["generated"]  # longer than the judge's positions


@pytest.mark.slow
def test_every_sync_agrees(run: Path, records: list[MetricRecord]) -> None:
    parity = series(records, "ppo", "ppo/parity_max")
    assert [step for step, _ in parity] == list(range(ITERATIONS + 1))
    assert max(value for _, value in parity) < 1e-3
    summary = json.loads((run / "summary.json").read_text())
    assert summary["weight_sync"]["parity_max_abs_logprob_diff"] < 1e-3


@pytest.mark.slow
def test_the_critic_starts_from_the_policy(run: Path) -> None:
    assert "the critic starts from the SFT model with a head of zero" in (
        (run / "printed.txt").read_text()
    )


@pytest.mark.slow
def test_the_aligned_policy_is_an_ordinary_folder(run: Path) -> None:
    folder = run / "checkpoints" / "ppo"
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert len(AutoTokenizer.from_pretrained(folder)) == 512
