"""The reference and the reward, against plain forward passes of single rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from family_models import build_family

from workers.data.rows.asked import Asked
from workers.data.tokenize.tokenizers import detokenize
from workers.errors import ConfigError, LedgerError, RoleError, TokenizerMismatchError
from workers.models.load import load_causal_lm, load_scalar
from workers.pocket.model import create_model
from workers.pocket.tokenizer import build_tokenizer
from workers.records.arrays import Ragged
from workers.records.generation import Finish, RolloutBatch
from workers.records.specs import FrozenModelSpec, RewardSpec, TermSpec
from workers.records.training import TokenBatch, Work
from workers.roles.reference import ReferenceWorker
from workers.roles.reward import RewardWorker


def spec(path: Path, budget: int = 24) -> FrozenModelSpec:
    return FrozenModelSpec(str(path), "float32", "cpu", 1, budget)


def by_model(reward: Path, policy: Path, bridge: str = "tokens") -> RewardSpec:
    return RewardSpec((TermSpec("model", {"bridge": bridge}),), "", str(policy), spec(reward))


def by_function(path: str, policy: Path) -> RewardSpec:
    settings = {"function": path, "function_seconds": 0.0, "function_retries": 0}
    return RewardSpec((TermSpec("function", settings),), "", str(policy))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("frozen")
    paths = {name: root / name for name in ("base", "reward", "shuffled")}
    create_model(
        paths["base"], hidden_size=16, layers=2, heads=2, kv_heads=1, intermediate_size=24,
        max_position_embeddings=64, tie_word_embeddings=True, seed=0,
    )  # fmt: skip
    for name in ("reward", "shuffled"):
        model = load_scalar(str(paths["base"]), dtype="float32", head="random", seed=3)
        model.save_pretrained(paths[name])
    build_tokenizer().save_pretrained(paths["reward"])
    _swap_two_words(paths["shuffled"])
    return paths


def _swap_two_words(folder: Path) -> None:
    """The same words under other ids: text survives the way through it, token ids do not."""
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder)
    first, second = (tokenizer.convert_ids_to_tokens(i) for i in (10, 11))
    text = (folder / "tokenizer.json").read_text()
    for word, number, other in ((first, 10, 11), (second, 11, 10)):
        assert f'"{word}": {number}' in text
        text = text.replace(f'"{word}": {number}', f'"{word}": {other}')
    (folder / "tokenizer.json").write_text(text)


def _rollouts(seed: int = 0, count: int = 6) -> RolloutBatch:
    rng = np.random.default_rng(seed)
    prompts, responses = rng.integers(2, 6, count), rng.integers(1, 8, count)
    rows = [rng.integers(5, 40, p + r) for p, r in zip(prompts, responses, strict=True)]
    finish = np.full(count, Finish.STOP)
    finish[-1] = Finish.LENGTH
    for row, why in zip(rows, finish, strict=True):
        row[0] = 1
        row[-1] = 2 if why == Finish.STOP else row[-1]
    return RolloutBatch(
        np.arange(50, 50 + count), np.arange(count), Ragged.from_rows(rows, np.int32), prompts,
        Ragged.from_rows([np.zeros(n) for n in responses], np.float32), finish,
        np.zeros((count, 2), np.int64),
    )  # fmt: skip


def _shards() -> list[RolloutBatch]:
    batch = _rollouts()
    return [batch.select([4, 0, 2]), batch.select([5, 1, 3])]


def _asked(batch: RolloutBatch) -> list[Asked]:
    tokenizer = build_tokenizer()
    texts = [detokenize(tokenizer, batch.prompt(row)) for row in range(len(batch))]
    return [Asked(number, text, text) for number, text in zip(batch.prompt_ids, texts, strict=True)]


def _row_logits(model: torch.nn.Module, tokens: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor(tokens).long()[None]).logits[0]


@pytest.mark.parametrize("vocabulary", [0, 41])  # ids in _rollouts are below 40
def test_reference_logprobs_are_those_of_single_rows(folders, vocabulary: int) -> None:
    worker = ReferenceWorker(0)
    loaded = worker.load(replace(spec(folders["base"]), vocabulary=vocabulary))
    assert loaded.role == "reference"
    work = Work((np.array([51, 53]), np.zeros(0, np.int64), np.array([50, 55, 52])))
    field = worker.logprobs(work, _shards(), 0.5)
    assert field.ids.tolist() == [51, 53, 50, 55, 52]
    model, batch = load_causal_lm(str(folders["base"]), dtype="float32"), _rollouts()
    for name, row in zip(field.ids - 50, field.values.rows(), strict=True):
        tokens, start = batch.tokens.row(name), batch.prompt_lengths[name]
        logits = _row_logits(model, tokens)
        assert logits.shape[1] > 50
        logp = (logits[:, : vocabulary or None] / 0.5).log_softmax(-1)
        wanted = [float(logp[t - 1, tokens[t]]) for t in range(start, len(tokens))]
        np.testing.assert_allclose(row, wanted, atol=1e-5)


@pytest.mark.parametrize("budget", [1, 24, 4096])
def test_text_loss_does_not_depend_on_the_batches(folders, budget: int) -> None:
    worker = ReferenceWorker(0)
    worker.load(spec(folders["base"], budget))
    tokens = _rollouts(7, 9).tokens
    targets = Ragged(np.random.default_rng(1).random(len(tokens.values)) < 0.6, tokens.offsets)
    got = worker.row_losses(TokenBatch(tokens, targets))
    model = load_causal_lm(str(folders["base"]), dtype="float32")
    for loss, row, counts in zip(got, tokens.rows(), targets.rows(), strict=True):
        logp = _row_logits(model, row).log_softmax(-1)
        wanted = -sum(float(logp[t - 1, row[t]]) for t in range(1, len(row)) if counts[t])
        assert loss == pytest.approx(wanted, rel=1e-5)


def test_a_role_without_a_model_says_so() -> None:
    with pytest.raises(RoleError):
        ReferenceWorker(0).row_losses(TokenBatch(_rollouts().tokens, _rollouts().tokens))
    with pytest.raises(RoleError):
        RewardWorker(0).score(np.array([50]), _shards())


def _reward(folders: dict[str, Path], name: str, bridge: str) -> RewardWorker:
    worker = RewardWorker(0)
    worker.load(by_model(folders[name], folders["base"], bridge))
    return worker


def test_reward_is_the_number_at_the_last_token(folders) -> None:
    ids = np.array([53, 50, 55])
    scores = _reward(folders, "reward", "tokens").score(ids, _shards())
    assert scores.ids.tolist() == ids.tolist()
    assert scores.failures == ("", "", "")
    model, batch = load_scalar(str(folders["reward"]), dtype="float32"), _rollouts()
    wanted = [float(_row_logits(model, batch.tokens.row(i - 50))[-1, 0]) for i in ids]
    np.testing.assert_allclose(scores.values, wanted, atol=1e-5)


def test_an_unknown_sequence_is_an_error(folders) -> None:
    with pytest.raises(LedgerError):
        _reward(folders, "reward", "tokens").score(np.array([99]), _shards())


def test_other_token_ids_need_the_text_bridge(folders) -> None:
    with pytest.raises(TokenizerMismatchError):
        _reward(folders, "shuffled", "tokens")
    batch = _rollouts()
    got = _reward(folders, "shuffled", "text").score(batch.ids, _shards(), _asked(batch))
    swap = np.arange(100)
    swap[[10, 11]] = [11, 10]
    model = load_scalar(str(folders["shuffled"]), dtype="float32")
    wanted = [float(_row_logits(model, swap[row])[-1, 0]) for row in batch.tokens.rows()]
    np.testing.assert_allclose(got.values, wanted, atol=1e-5)


def test_a_reward_that_is_not_finite_is_a_failure(folders, tmp_path) -> None:
    model = load_scalar(str(folders["reward"]), dtype="float32")
    with torch.no_grad():
        model.model.embed_tokens.weight[30] = float("nan")
    model.save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    batch = _rollouts(3, 12)
    spoilt = np.array([30 in row for row in batch.tokens.rows()])
    assert 0 < spoilt.sum() < 12
    worker = RewardWorker(0)
    worker.load(by_model(tmp_path, folders["base"]))
    scores = worker.score(batch.ids, [batch])
    assert np.isnan(scores.values).tolist() == spoilt.tolist()
    assert [bool(reason) for reason in scores.failures] == spoilt.tolist()


def count_words(prompts: list[str], responses: list[str]) -> list[float]:
    return [
        float(len(r.split()) + 100 * len(p.split()))
        for p, r in zip(prompts, responses, strict=True)
    ]


def test_a_function_reads_texts(folders) -> None:
    worker = RewardWorker(0)
    info = worker.load(by_function("test_frozen_roles:count_words", folders["base"]))
    assert info.device == "cpu"
    batch = _rollouts()
    stopped = batch.finish == Finish.STOP
    wanted = batch.response_lengths - stopped + 100 * (batch.prompt_lengths - 1)
    scores = worker.score(batch.ids, _shards(), _asked(batch))
    assert scores.values.tolist() == wanted.tolist()
    with pytest.raises(LedgerError, match="no text was given for prompt 1"):
        worker.score(batch.ids, _shards(), _asked(batch)[:1])


def test_a_function_must_exist(folders) -> None:
    with pytest.raises(ConfigError):
        RewardWorker(0).load(by_function("nowhere:f", folders["base"]))


def test_a_row_that_does_not_fit_the_reward_model_is_a_failure(tmp_path) -> None:
    base = build_family("gpt2", tmp_path / "base", n_positions=8)
    model = load_scalar(str(base), dtype="float32", head="random")
    model.save_pretrained(tmp_path / "reward")
    build_tokenizer().save_pretrained(tmp_path / "reward")
    batch = _rollouts(3, 12)
    fits = batch.tokens.lengths <= 8
    assert 0 < fits.sum() < 12
    worker = RewardWorker(0)
    worker.load(by_model(tmp_path / "reward", base, "text"))
    scores = worker.score(batch.ids, [batch], _asked(batch))
    assert {reason for reason, fit in zip(scores.failures, fits, strict=True) if not fit} == {
        "reward model: more than its 8 tokens"
    }
    assert np.isfinite(scores.values).tolist() == fits.tolist()
    wanted = [
        float(_row_logits(model, row)[-1, 0])
        for row, fit in zip(batch.tokens.rows(), fits, strict=True)
        if fit
    ]
    np.testing.assert_allclose(scores.values[fits], wanted, atol=1e-5)
