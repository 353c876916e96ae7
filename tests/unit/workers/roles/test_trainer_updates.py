"""What the trainers' updates accumulate and report, against plain loops over single tokens.

The engine is a stand-in: a table of logits by token in place of a model, and no process group.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from workers.errors import NonFiniteError, WeightSyncError
from workers.models.padding import pad_rows
from workers.ops import entropy, token_logprobs
from workers.records.arrays import Ragged
from workers.records.generation import Finish, RolloutBatch
from workers.records.specs import GroupSpec, PartSpec, PolicyLossSpec, ShapingSpec
from workers.records.training import (
    ExperienceBatch,
    PolicyStep,
    Ranking,
    RankingStep,
    Scores,
    StepWork,
    SupervisedStep,
    TextLoss,
    TokenBatch,
    TokenField,
    Work,
)
from workers.roles.critic import CriticWorker
from workers.roles.policy import PolicyWorker
from workers.roles.scoring import row_losses, text_loss
from workers.training.weight_average import WeightAverage

VOCABULARY = 7
IDS = np.array([11, 12, 13])
# prompt then response; the prompts have 2, 1 and 3 tokens
ROWS = [[1, 4, 2, 5, 6], [3, 3, 1], [2, 6, 5, 0]]
PROMPTS = np.array([2, 1, 3])
RESPONSES = [3, 2, 1]


class TablePasses:
    """Log-probabilities and values that depend on the token before alone."""

    packed = False

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        shape = (VOCABULARY, VOCABULARY)
        self.table = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        self.sampled: list[bool] = []  # of each call: whether engines have sampled the tokens
        self.heads = torch.randn(VOCABULARY, generator=generator).double().requires_grad_()

    def lay(self, rows: Ragged, device: Any, positions: Ragged | None = None) -> Any:
        return pad_rows(rows, device, positions)

    def logprobs(
        self, rows: Any, cells: Any, temperature: float = 1.0, *, with_entropy=False, sampled=False
    ):
        self.sampled.append(sampled)
        logits = self.table[rows.input_ids.flatten()[cells]]
        found = token_logprobs(logits, rows.labels(cells), temperature)
        return found, entropy(logits.detach(), temperature) if with_entropy else None

    def values(self, rows: Any, cells: Any) -> torch.Tensor:
        return self.heads[rows.input_ids.flatten()[cells]]


@dataclass
class Outcome:
    grad_norm: float = 2.5
    learning_rate: float = 0.125
    applied: bool = True


@dataclass
class StubEngine:
    passes: TablePasses = field(default_factory=TablePasses)
    device: str = "cpu"
    modes: list[bool] = field(default_factory=list)
    outcome: Outcome = field(default_factory=Outcome)
    steps: int = 0
    others: list[list[float]] = field(default_factory=list)  # rows of further ranks

    def mode(self, *, training: bool) -> None:
        self.modes.append(training)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self) -> Outcome:
        self.steps += 1
        return self.outcome

    def gather_rows(self, row: list[float]) -> torch.Tensor:
        return torch.tensor([row, *self.others], dtype=torch.float64)

    def gather_objects(self, value: object) -> list[object]:
        return [value]

    def close(self) -> None:
        pass


def ready(worker: Any, *, skip: bool = False) -> Any:
    worker._engine = StubEngine()
    worker._group = GroupSpec(1, "float32", "cpu", 3, 2.5, 64, 0, skip_non_finite=skip)
    return worker


def ragged(seed: int, low: float, high: float) -> Ragged:
    numbers = np.random.default_rng(seed).uniform(low, high, sum(RESPONSES)).astype(np.float32)
    return Ragged(numbers, np.cumsum([0, *RESPONSES]))


def experience() -> ExperienceBatch:
    return ExperienceBatch(
        ids=IDS,
        tokens=Ragged.from_rows(ROWS, np.int32),
        prompt_lengths=PROMPTS,
        rollout_logprobs=ragged(1, -3.0, -1.0),
        old_logprobs=ragged(2, -3.0, -1.0),
        advantages=ragged(3, -2.0, 2.0),
        returns=ragged(4, -2.0, 2.0),
        values=ragged(5, -2.0, 2.0),
    )


def work() -> StepWork:
    return StepWork(Work((np.array([13, 11]), np.zeros(0, np.int64), np.array([12]))), 9, 4)


def tokens_of(batch: ExperienceBatch) -> Iterator[tuple[int, int, int]]:
    """(token before, token, place in the ragged fields) of every response token."""
    at = 0
    for row, start in zip(ROWS, PROMPTS, strict=True):
        for place in range(start, len(row)):
            yield row[place - 1], row[place], at
            at += 1


def text() -> TokenBatch:
    rows = [[1, 2, 3, 4], [5, 6]]
    targets = [[True, True, False, True], [False, True]]
    return TokenBatch(Ragged.from_rows(rows, np.int32), Ragged.from_rows(targets, np.bool_))


TEXT_PAIRS = [(1, 2), (3, 4), (5, 6)]  # what counts: never a first token


def plain_nll(table: torch.Tensor) -> torch.Tensor:
    logps = table.log_softmax(-1)
    return -sum(logps[before, after] for before, after in TEXT_PAIRS)  # type: ignore[return-value]


@pytest.mark.parametrize("cap", [None, 1.1])
@pytest.mark.parametrize("ptx", [False, True])
def test_a_policy_step_is_the_sum_over_its_tokens(cap: float | None, ptx: bool) -> None:
    worker = ready(PolicyWorker(0))
    batch, table = experience(), worker.engine.passes.table
    spec = PolicyLossSpec(
        clip=0.15, temperature=0.7, advantage_mean=0.3, advantage_std=1.7,
        ptx_coefficient=0.4, importance_cap=cap,
    )  # fmt: skip
    mixed = SupervisedStep((text(),), 5) if ptx else None
    (stats,) = worker.update([PolicyStep(work(), mixed)], [batch], spec)
    found = table.grad.clone()

    logps = (table.detach() / 0.7).log_softmax(-1)
    again = table.detach().clone().requires_grad_()
    live = (again / 0.7).log_softmax(-1)
    loss, clipped, k3, ratios, entropies, weights = torch.zeros(()).double(), 0, 0.0, [], [], []
    for before, after, at in tokens_of(batch):
        old = float(batch.old_logprobs.values[at])
        advantage = (float(batch.advantages.values[at]) - 0.3) / 1.7
        weight = 1.0
        if cap is not None:
            weight = min(math.exp(old - float(batch.rollout_logprobs.values[at])), cap)
            weights.append(weight)
        ratio = (live[before, after] - old).exp()
        bounded = ratio.clamp(0.85, 1.15)
        clipped += bool(advantage * bounded < advantage * ratio)
        loss = loss - weight * torch.minimum(advantage * ratio, advantage * bounded) / 9
        ratios.append(ratio.item())
        k3 += ratio.item() - 1 - math.log(ratio.item())
        p = logps[before].exp()
        entropies.append(-float((p * logps[before]).sum()))
    whole = loss + 0.4 * plain_nll(again) / 5 if ptx else loss
    whole.backward()
    assert again.grad is not None
    torch.testing.assert_close(found, again.grad, rtol=1e-5, atol=1e-7)
    assert (stats.loss, stats.grad_norm, stats.learning_rate) == (
        pytest.approx(loss.item(), rel=1e-5), 2.5, 0.125,
    )  # fmt: skip
    expected = {
        "clip_fraction": clipped / 9,
        "approx_kl": k3 / 9,
        "ratio_mean": sum(ratios) / 9,
        "ratio_max": max(ratios),
        "entropy": sum(entropies) / 9,
    }
    if cap is not None:
        expected["importance_mean"] = sum(weights) / 9
        expected["importance_capped"] = sum(w == cap for w in weights) / 9
        assert 0 < expected["importance_capped"] < 6 / 9
    if ptx:
        expected["ptx_loss"] = float(plain_nll(table.detach())) / 5
    assert stats.extra == pytest.approx(expected, rel=1e-4)
    assert 0 < clipped < 6
    # three micro-batches of what engines have sampled, one of them empty, and text
    assert worker.engine.passes.sampled == [True] * 3 + [False] * ptx
    assert worker.engine.modes == [False]  # no dropout in PPO
    assert worker.engine.steps == 1


def test_a_value_step_is_the_sum_over_its_tokens() -> None:
    worker = ready(CriticWorker(0))
    batch, heads = experience(), worker.engine.passes.heads
    (stats,) = worker.update([work()], [batch], 0.3)
    again = heads.detach().clone().requires_grad_()
    loss, clipped, errors, targets = torch.zeros(()).double(), 0, [], []
    for before, _, at in tokens_of(batch):
        old, target = float(batch.values.values[at]), float(batch.returns.values[at])
        value = again[before]
        near = old + (value - old).clamp(-0.3, 0.3)
        plain, bounded = (value - target) ** 2, (near - target) ** 2
        clipped += bool(bounded > plain)
        loss = loss + torch.maximum(plain, bounded) / 2 / 9
        errors.append(target - value.item())
        targets.append(target)
    loss.backward()
    assert again.grad is not None
    torch.testing.assert_close(heads.grad, again.grad, rtol=1e-5, atol=1e-7)
    assert stats.loss == pytest.approx(float(loss), rel=1e-5)
    assert 0 < clipped < 6
    assert stats.extra == pytest.approx(
        {
            "value_clip_fraction": clipped / 9,
            "explained_variance": 1 - float(np.var(errors)) / float(np.var(targets)),
        },
        rel=1e-4,
    )
    assert worker.engine.modes == [False]


def rankings() -> tuple[Ranking, Ranking]:
    return (
        Ranking(70, Ragged.from_rows([[1, 2], [1, 5, 4], [1, 6]], np.int32), np.array([2, 1, 2])),
        Ranking(71, Ragged.from_rows([[3, 3, 0], [3, 1]], np.int32), np.array([1, 2])),
    )


def test_a_ranking_step_is_the_mean_over_prompts_of_the_mean_over_pairs() -> None:
    worker = ready(CriticWorker(0))
    heads = worker.engine.passes.heads
    first, second = rankings()
    stats = worker.train_rankings(RankingStep(((first,), (), (second,)), 3))
    again = heads.detach().clone().requires_grad_()
    pairs = [[(again[4], again[2]), (again[4], again[6])], [(again[0], again[1])]]
    losses = [torch.stack([-(a - b).sigmoid().log() for a, b in own]).mean() for own in pairs]
    loss = (losses[0] + losses[1]) / 3
    loss.backward()
    assert again.grad is not None
    torch.testing.assert_close(heads.grad, again.grad, rtol=1e-6, atol=1e-9)
    right = sum(bool(a > b) for own in pairs for a, b in own)
    assert 0 < right < 3
    assert stats.extra == {"pair_accuracy": right / 3}
    assert stats.loss == pytest.approx(float(loss))
    assert worker.engine.modes == [True]


def test_one_pair_is_all_of_the_pairs() -> None:
    worker = ready(CriticWorker(0))
    heads = worker.engine.passes.heads.detach()
    better, worse = (4, 2) if heads[4] > heads[2] else (2, 4)
    single = Ranking(1, Ragged.from_rows([[1, better], [1, worse]], np.int32), np.array([1, 2]))
    stats = worker.train_rankings(RankingStep(((single,),), 1))
    assert stats.extra == {"pair_accuracy": 1.0}


def test_held_out_rankings_are_counted_and_scored_without_an_update() -> None:
    worker = ready(CriticWorker(0))
    heads = worker.engine.passes.heads.detach()
    counts = worker.evaluate_rankings(RankingStep((rankings(), ()), 2))
    pairs = [(heads[4], heads[2]), (heads[4], heads[6]), (heads[0], heads[1])]
    each = [float(-(a - b).sigmoid().log()) for a, b in pairs]
    assert counts.loss_sum == pytest.approx((each[0] + each[1]) / 2 + each[2])
    assert (counts.correct, counts.pairs) == (sum(bool(a > b) for a, b in pairs), 3)
    assert counts.rankings == 2
    assert [s.tolist() for s in counts.scores] == [
        pytest.approx([float(heads[i]) for i in own]) for own in ([2, 4, 6], [0, 1])
    ]
    assert worker.engine.modes == [False]
    assert worker.engine.steps == 0


def test_a_supervised_step_is_the_mean_over_its_targets() -> None:
    worker = ready(PolicyWorker(0))
    table = worker.engine.passes.table
    stats = worker.train_supervised(SupervisedStep((text(),), 4))
    again = table.detach().clone().requires_grad_()
    loss = plain_nll(again) / 4
    loss.backward()
    torch.testing.assert_close(table.grad, again.grad)
    assert stats.loss == pytest.approx(float(loss))
    assert worker.engine.modes == [True]
    found = worker.evaluate_supervised(SupervisedStep((text(), text()), 6))
    assert (found.nll, found.tokens) == (pytest.approx(8 * float(loss)), 6)
    assert worker.engine.modes == [True, False]


def test_a_held_out_loss_is_that_of_all_ranks() -> None:
    worker = ready(PolicyWorker(0))
    worker.engine.others = [[10.5, 4.0]]  # nats and tokens of a second rank
    nll = float(plain_nll(worker.engine.passes.table.detach()))
    found = worker.evaluate_supervised(SupervisedStep((text(),), 7))
    assert (found.nll, found.tokens) == (pytest.approx(nll + 10.5), 7)


def test_summed_losses_keep_what_single_precision_would_lose() -> None:
    passes = TablePasses()
    large = torch.tensor([2.0**25, 1.0, 1.0])  # 2^25 + 1 is no number of fp32
    passes.logprobs = lambda *_, **__: (-large, None)  # type: ignore[method-assign]
    assert text_loss(passes, text(), "cpu") == TextLoss(2.0**25 + 2.0, 3)  # type: ignore[arg-type]


def test_losses_of_rows_are_summed_over_their_targets() -> None:
    passes = TablePasses()
    logps = passes.table.detach().log_softmax(-1)
    expected = [-float(logps[1, 2] + logps[3, 4]), -float(logps[5, 6])]
    assert row_losses(passes, text(), "cpu").tolist() == pytest.approx(expected)


def rollouts() -> RolloutBatch:
    return RolloutBatch(
        IDS, np.zeros(3, np.int64), Ragged.from_rows(ROWS, np.int32), PROMPTS,
        ragged(1, -3.0, -1.0), np.full(3, Finish.STOP), np.zeros((3, 2), np.int64),
    )  # fmt: skip


def test_log_probabilities_and_values_of_response_tokens() -> None:
    share = Work((np.array([12]), np.zeros(0, np.int64), np.array([13, 11])))
    policy, critic = ready(PolicyWorker(0)), ready(CriticWorker(0))
    logps = (policy.engine.passes.table.detach() / 0.5).log_softmax(-1)
    heads = critic.engine.passes.heads.detach()
    found = policy.logprobs(share, [rollouts()], 0.5)
    values = critic.values(share, [rollouts()])
    assert policy.engine.modes == critic.engine.modes == [False]
    assert found.ids.tolist() == values.ids.tolist() == [12, 13, 11]
    for name, row, own in zip(found.ids, found.values.rows(), values.values.rows(), strict=True):
        tokens, start = ROWS[name - 11], int(PROMPTS[name - 11])
        places = range(start, len(tokens))
        assert row.tolist() == pytest.approx(
            [float(logps[tokens[i - 1], tokens[i]]) for i in places], rel=1e-5
        )
        assert own.tolist() == pytest.approx([float(heads[tokens[i - 1]]) for i in places])


def test_a_number_of_a_token_that_is_not_finite_is_named_with_its_sequence() -> None:
    share = Work((np.array([12]), np.zeros(0, np.int64), np.array([13, 11])))
    for worker, weights, verb in (
        (ready(PolicyWorker(0)), "table", lambda w: w.logprobs(share, [rollouts()], 0.5)),
        (ready(CriticWorker(0)), "heads", lambda w: w.values(share, [rollouts()])),
    ):
        with torch.no_grad():
            getattr(worker.engine.passes, weights)[5] = math.nan  # read in 11 and in 13
        with pytest.raises(NonFiniteError, match="is not finite in sequences 11, 13") as caught:
            verb(worker)
        assert caught.value.ids == (11, 13)


def test_scores_are_those_of_the_last_tokens() -> None:
    worker = ready(CriticWorker(0))
    batch = TokenBatch(Ragged.from_rows(ROWS, np.int32), Ragged.from_rows(ROWS, np.bool_))
    heads = worker.engine.passes.heads.detach()
    assert worker.score(batch).tolist() == pytest.approx([float(heads[i]) for i in (6, 1, 0)])
    assert worker.engine.modes == [False]


@pytest.mark.parametrize("of_engine", [False, True])
def test_experience_takes_old_log_probabilities_of_the_trainer_or_else_of_the_engine(
    of_engine: bool,
) -> None:
    # One response token a sequence, gamma and lambda without effect: the return is the reward.
    tokens = Ragged.from_rows([[1, 2], [3, 4]], np.int32)
    ids = np.array([5, 6])
    batch = RolloutBatch(
        ids, ids, tokens, np.array([1, 1]), Ragged.from_rows([[-1.0], [-2.0]], np.float32),
        np.full(2, Finish.STOP), np.zeros((2, 2), np.int64),
    )  # fmt: skip

    def each(*numbers: float) -> list[TokenField]:
        return [TokenField(ids, Ragged.from_rows([[n] for n in numbers], np.float32))]

    old = [] if of_engine else each(-1.5, -2.25)
    scores = Scores(ids, np.array([3.0, 4.0], np.float32), ("", ""))
    share = Work((np.array([6, 5]),))
    made, summary = PolicyWorker(0).build_experience(
        share,
        [batch],
        old,
        each(-0.5, -0.75),
        each(0.25, 0.5),
        scores,
        ShapingSpec(0.1, 1.0, 0.9, PartSpec("gae")),
    )
    kl = [-1.25, -0.5] if of_engine else [-1.5, -1.0]  # of 6, then 5
    assert summary.kl.tolist() == pytest.approx(kl)
    sums = PolicyWorker(0).kl_sums(share, [batch], old, each(-0.5, -0.75))
    assert (sums.ids.tolist(), sums.values.tolist()) == ([6, 5], pytest.approx(kl))
    assert made.returns.values.tolist() == pytest.approx([4.0 - 0.1 * kl[0], 3.0 - 0.1 * kl[1]])
    assert made.rollout_logprobs.values.tolist() == [-2.0, -1.0]
    assert made.old_logprobs.values.tolist() == ([-2.0, -1.0] if of_engine else [-2.25, -1.5])
    assert made.values.values.tolist() == [0.5, 0.25]
    assert made.prompt_lengths.tolist() == [1, 1]
    assert made.tokens.values.tolist() == [3, 4, 1, 2]
    assert made.advantages.values.tolist() == pytest.approx(
        [4.0 - 0.1 * kl[0] - 0.5, 3.0 - 0.1 * kl[1] - 0.25]
    )


def test_the_average_keeps_nine_tenths_of_itself() -> None:
    average = WeightAverage(0.9)
    live = torch.tensor([1.0, 10.0])
    average.start([[("w", live)]], keep=True)
    live += 1.0
    average.update([[("w", live)]], keep=True)
    assert average.tensors["w"].tolist() == pytest.approx([0.9 * 1 + 0.1 * 2, 0.9 * 10 + 0.1 * 11])
    average.update([[("w", live)]], keep=False)  # a rank that keeps nothing
    assert average.tensors["w"].tolist() == pytest.approx([1.1, 10.1])
    half = average.cast_like({"w": live.bfloat16(), "other": live})
    assert (half["w"].dtype, half["other"] is live) == (torch.bfloat16, True)
    other = WeightAverage(0.9)
    other.start([[("w", live)]], keep=False)
    assert other.tensors == {}
    other.restore(average.tensors)
    assert other.tensors["w"].tolist() == pytest.approx([1.1, 10.1])
    assert average.tensors["w"].dtype == torch.float32


class Averaging:
    """Buckets and an average that notes when it is asked."""

    def __init__(self) -> None:
        self.updates: list[bool] = []

    def update(self, buckets: Any, *, keep: bool) -> None:
        self.updates.append(keep)


@pytest.mark.parametrize("applied", [True, False])
def test_the_average_takes_in_every_step_that_was_taken(applied: bool) -> None:
    worker = ready(PolicyWorker(0), skip=True)
    worker._average, worker._parts = Averaging(), lambda **_: []
    worker.engine.outcome.applied = applied
    spec = PolicyLossSpec(0.2, 1.0, 0.0, 1.0)
    stats = worker.update([PolicyStep(work())] * 2, [experience()], spec)
    assert [s.applied for s in stats] == [applied] * 2
    assert worker._average.updates == ([True] * 2 if applied else [])


def test_a_broken_loss_names_its_sequences_and_changes_nothing() -> None:
    batch = experience()
    batch.old_logprobs.values[3:5] = np.nan  # of sequence 12
    batch.old_logprobs.values[5] = np.inf  # of sequence 13: its ratio is 0, and the loss finite
    batch.advantages.values[0] = 0.0  # of sequence 11, whose terms are 0
    worker = ready(PolicyWorker(0))
    engine = worker.engine
    with pytest.raises(NonFiniteError, match="policy loss is not finite; rows 12") as caught:
        worker.update([PolicyStep(work())], [batch], PolicyLossSpec(0.2, 1.0, 0.0, 1.0))
    assert caught.value.ids == (12,)
    assert engine.steps == 0
    skipping = ready(PolicyWorker(0), skip=True)
    skipping.engine.outcome.applied = False
    (stats,) = skipping.update([PolicyStep(work())], [batch], PolicyLossSpec(0.2, 1.0, 0.0, 1.0))
    assert (stats.applied, stats.culprits) == (False, (12,))
    batch.returns.values[0] = np.inf  # of sequence 11
    with pytest.raises(NonFiniteError, match="value loss is not finite; rows 11"):
        ready(CriticWorker(0)).update([work()], [batch], 0.2)


def test_a_broken_supervised_loss_names_its_rows() -> None:
    worker = ready(PolicyWorker(0))
    with torch.no_grad():
        worker.engine.passes.table[5] = math.nan  # the second of two rows of each batch reads it
    with pytest.raises(NonFiniteError, match="next-token loss is not finite; rows 1, 3") as caught:
        worker.train_supervised(SupervisedStep((text(), text()), 6))
    assert caught.value.ids == (1, 3)


def test_only_the_first_rank_offers_and_sends_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered: list[int] = []

    def offers(rank: int, transport: str) -> Any:
        worker = ready(PolicyWorker(rank))
        monkeypatch.setattr(worker, "_sent_metas", lambda: ())
        monkeypatch.setattr(worker, "_weights", lambda: (gathered.append(rank) for _ in "a"))
        return worker, worker.publish_weights(4, transport)

    _, offer = offers(0, "gloo")
    assert (offer.version, offer.transport) == (4, "gloo")
    assert offers(1, "gloo")[1] is None
    assert gathered == []  # nothing moves before `send_weights`
    assert offers(1, "shm")[1] is None
    assert gathered == [1]
    other, _ = offers(2, "gloo")
    assert other.send_weights(offer) is None
    assert gathered == [1, 2]
    first, _ = offers(0, "gloo")
    with pytest.raises(WeightSyncError, match="no transfer group"):
        first.send_weights(offer)


def test_documents_share_no_row_before_a_model_is_loaded_that_keeps_them_apart() -> None:
    assert ready(PolicyWorker(0)).shares_rows() is False


def test_the_bias_falls_by_the_mean_score(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = ready(CriticWorker(0))
    moved: list[tuple[str, float]] = []
    worker.engine.module = None
    worker.engine.add_to_weight = lambda name, by: moved.append((name, by))
    monkeypatch.setattr("workers.models.load.scalar_head", lambda module: ("score", None))
    worker.shift_bias(1.75)
    assert moved == [("score.bias", -1.75)]
