"""Mutants that a person would make: faults that RLHF code has had, each as one changed line."""

from __future__ import annotations

from pathlib import Path

from mutants.operators import Mutant, replaced

_OPS = "workers/ops"

# (name, file, old text, new text); the old text occurs once in the file
MUTANTS: tuple[tuple[str, str, str, str], ...] = (
    # advantages and returns
    ("gae: lambda left out", f"{_OPS}/advantages.py", "gamma * lam * next_advantage", "gamma * next_advantage"),
    ("gae: gamma left out", f"{_OPS}/advantages.py", "gamma * lam * next_advantage", "lam * next_advantage"),
    ("gae: no bootstrap", f"{_OPS}/advantages.py", "gamma * next_value - values[:, t]", "next_value - values[:, t]"),
    ("gae: forward in time", f"{_OPS}/advantages.py", "reversed(range(mask.shape[1]))", "range(mask.shape[1])"),
    ("gae: masked tokens reset the chain", f"{_OPS}/advantages.py", "torch.where(counts, advantage, next_advantage)", "torch.where(counts, advantage, 0.0 * advantage)"),
    ("returns: rewards in place of values", f"{_OPS}/advantages.py", "advantages + values,", "advantages + rewards,"),
    ("kl reward: sign", f"{_OPS}/advantages.py", "rewards = -beta *", "rewards = beta *"),
    ("kl reward: k2 for k1", f"{_OPS}/advantages.py", '"k1")', '"k2")'),
    ("score on the first token", f"{_OPS}/advantages.py", "mask.flip(1).cumsum(1).flip(1)", "mask.cumsum(1)"),
    ("score on every token", f"{_OPS}/advantages.py", "torch.where(last, rewards + scores", "torch.where(mask, rewards + scores"),
    # divergence
    ("k1: sign", f"{_OPS}/kl.py", "d = logprobs - ref_logprobs\n    if", "d = ref_logprobs - logprobs\n    if"),
    ("k2: without the half", f"{_OPS}/kl.py", "d.square() / 2", "d.square()"),
    ("k3: sign of d", f"{_OPS}/kl.py", "bounded_log_ratio(-d)) + d", "bounded_log_ratio(d)) + d"),
    ("adaptive kl: sign", f"{_OPS}/kl.py", "kl / self.target - 1.0", "1.0 - kl / self.target"),
    ("adaptive kl: clip of .3", f"{_OPS}/kl.py", "-0.2), 0.2)", "-0.3), 0.3)"),
    # losses
    ("policy loss: optimistic clip", f"{_OPS}/surrogates.py", "terms, clipped = torch.maximum(plain, bounded)", "terms, clipped = torch.minimum(plain, bounded)"),
    ("policy loss: sign", f"{_OPS}/surrogates.py", "plain = -advantages * ratio", "plain = advantages * ratio"),
    ("policy loss: ratio upside down", f"{_OPS}/kl.py", "logprobs - old_logprobs, torch.zeros_like(logprobs)", "old_logprobs - logprobs, torch.zeros_like(logprobs)"),
    ("policy loss: one-sided clip", f"{_OPS}/surrogates.py", "-advantages * ratio.clamp(1.0 - clip.low, 1.0 + clip.high)", "-advantages * ratio.clamp(max=1.0 + clip.high)"),
    ("policy loss: bounds swapped", f"{_OPS}/surrogates.py", "-advantages * ratio.clamp(1.0 - clip.low, 1.0 + clip.high)", "-advantages * ratio.clamp(1.0 - clip.high, 1.0 + clip.low)"),
    ("gspo: sum for mean", f"{_OPS}/surrogates.py", "sums / tokens.lengths.clamp(min=1)", "sums"),
    ("cispo: gradient of the ratio", f"{_OPS}/surrogates.py", "_log_ratio(tokens).detach().exp()", "_log_ratio(tokens).exp()"),
    ("aggregate: mean of a constant length", "workers/training/policy_loss.py", "step.sequences * loss.max_response_tokens", "step.tokens * loss.max_response_tokens"),
    ("grpo: biased deviation", f"{_OPS}/groups.py", "squares / (counts - 1)", "squares / counts"),
    ("rloo: own value in the baseline", f"{_OPS}/groups.py", "(sums[group] - values) / (counts[group] - 1)", "sums[group] / counts[group]"),
    ("importance: not truncated", f"{_OPS}/losses.py", "ratio.clamp(min=floor, max=cap)", "ratio"),
    ("importance: not detached", f"{_OPS}/losses.py", "rollout_logprobs, zero).detach()", "rollout_logprobs, zero)"),
    ("importance: upside down", f"{_OPS}/losses.py", "old_logprobs - rollout_logprobs, zero", "rollout_logprobs - old_logprobs, zero"),
    ("value loss: smaller of the two", f"{_OPS}/losses.py", "masked_sum(torch.maximum(plain, clipped), mask) / 2", "masked_sum(torch.minimum(plain, clipped), mask) / 2"),
    ("value loss: without the half", f"{_OPS}/losses.py", "clipped), mask) / 2", "clipped), mask)"),
    ("value clip: around the return", f"{_OPS}/losses.py", "near = old_values +", "near = returns +"),
    ("ranking loss: sign", f"{_OPS}/losses.py", "softplus(scores[worse] - scores[better] + margins)", "softplus(scores[better] - scores[worse] + margins)"),
    ("ranking loss: ties count", f"{_OPS}/losses.py", "(ranks.unsqueeze(1) < ranks.unsqueeze(0))", "(ranks.unsqueeze(1) <= ranks.unsqueeze(0))"),
    ("ranking loss: sum of pairs", f"{_OPS}/losses.py", "losses.sum() / max(len(better), 1)", "losses.sum()"),
    ("rankings: tied prompts count", f"{_OPS}/losses.py", "sum(bool((r != r[0]).any()) for r in ranks)", "len(ranks)"),
    ("pair accuracy: equal scores are right", f"{_OPS}/losses.py", "(scores[better] > scores[worse])", "(scores[better] >= scores[worse])"),
    # reductions
    ("mean over masked positions too", f"{_OPS}/masks.py", "count = mask.sum() if", "count = mask.numel() * mask.new_ones(()).long() if"),
    ("whiten: mean not put back", f"{_OPS}/masks.py", "scaled if shift_mean else scaled + mean", "scaled if shift_mean else scaled"),
    ("whiten: unbiased variance", "workers/training/whitening.py", "square = math.fsum(s.advantage_square_sum for s in summaries) / count", "square = math.fsum(s.advantage_square_sum for s in summaries) / (count - 1)"),
    ("whitening: variance for deviation", "workers/training/whitening.py", "math.sqrt(max(square - mean * mean, 0.0) + eps)", "max(square - mean * mean, 0.0) + eps"),
    ("temperature multiplies", f"{_OPS}/logprobs.py", "wide / temperature", "wide * temperature"),
    ("entropy: sign", f"{_OPS}/logprobs.py", "return -(p * logp", "return (p * logp"),
    # experience and trainers
    ("estimator: KL added to the return", "workers/training/estimator.py", "self.scores - self.kl_coefficient", "self.scores + self.kl_coefficient"),
    ("estimator: a sample alone is its own baseline", "orchestrator/stages/ppo/advantages.py", "counts[group] >= needed", "counts[group] >= 1"),
    ("estimator: groups in the order of the engines", "orchestrator/stages/ppo/advantages.py", "return order[np.searchsorted(rollouts.summary.ids, ids, sorter=order)]", "return np.searchsorted(rollouts.summary.ids, ids, sorter=order)"),
    ("estimator: gamma and lambda swapped", "workers/training/estimators/gae.py", "tokens.gamma, tokens.lam)", "tokens.lam, tokens.gamma)"),
    ("experience: returns for advantages", "workers/training/experience.py", "advantages=padded.unpad(advantages)", "advantages=padded.unpad(returns)"),
    ("experience: policy and reference swapped", "workers/training/experience.py", "kl_shaped_rewards(score, logprobs, reference,", "kl_shaped_rewards(score, reference, logprobs,"),
    ("average: decay and 1 - decay swapped", "workers/training/weight_average.py", "1.0 - self._decay)", "self._decay)"),
    ("policy: whitening mean added", "workers/roles/policy.py", "moments = (loss.advantage_mean, loss.advantage_std)", "moments = (-loss.advantage_mean, loss.advantage_std)"),
    ("policy: temperature of 1", "workers/roles/policy.py", "rows, cells, loss.temperature, with_entropy=True", "rows, cells, 1.0, with_entropy=True"),
    ("policy: clipped tokens counted twice", "workers/roles/policy.py", "found.clipped.sum()", "found.clipped.sum() * 2"),
    ("policy: engine's log-probabilities as old", "workers/roles/policy.py", "old = torch.tensor(batch.old_logprobs.values", "old = torch.tensor(batch.rollout_logprobs.values"),
    ("policy: text coefficient left out", "workers/roles/policy.py", "total * (coefficient / step.tokens)", "total * (1.0 / step.tokens)"),
    ("critic: returns as old values", "workers/roles/critic.py", "old = torch.tensor(batch.values.values", "old = torch.tensor(batch.returns.values"),
    ("critic: bias with the wrong sign", "workers/roles/critic.py", '.bias", -mean)', '.bias", mean)'),
    ("values one token late", "workers/models/padding.py", "first = rows.starts + prompt_lengths - 1", "first = rows.starts + prompt_lengths"),
    # schedules
    ("warm-up from zero", "workers/training/schedule.py", "peak * (step + 1) / spec.warmup_steps", "peak * step / spec.warmup_steps"),
    ("cosine for linear", "workers/training/schedule.py", 'if spec.schedule == "cosine":', 'if spec.schedule != "cosine":'),
    ("floor of zero", "workers/training/schedule.py", "peak * (1.0 - (1.0 - floor) * progress)", "peak * (1.0 - progress)"),
    # from the configuration to the roles
    ("loop: value clip is the policy's", "orchestrator/stages/ppo/updates.py", "algorithm.value_clip)", "algorithm.clip)"),
    ("loop: no average", "orchestrator/stages/ppo/setup.py", "ema_decay=settings.ema_decay,", "ema_decay=0.0,"),
    ("loop: critic with the policy's optimizer", "orchestrator/stages/ppo/setup.py", "optimizer = config.algorithm.critic_optimizer", "optimizer = config.algorithm.policy_optimizer"),
    ("loop: policy with the critic's optimizer", "orchestrator/stages/ppo/setup.py", "else settings.policy_optimizer", "else settings.critic_optimizer"),
    ("loop: schedule over iterations", "orchestrator/stages/ppo/setup.py", "config.algorithm.iterations * _steps_per_iteration(session)", "config.algorithm.iterations"),
    ("session: engines last on a shared GPU", "orchestrator/session/session.py", "config.rollout.sleep or 0 < config.cluster.roles.rollout.gpus < 1", "config.rollout.sleep"),
    ("loop: temperature of 1 in the passes", "orchestrator/stages/ppo/passes.py", "temperature = session.config.rollout.temperature", "temperature = 1.0"),
    ("loop: one seed for all iterations", "orchestrator/stages/ppo/updates.py", '"minibatches", iteration)', '"minibatches", 0)'),
    ("loop: the same prompts in every iteration", "orchestrator/stages/ppo/sampling.py", '"ppo", iteration * count + run', '"ppo", run'),
    ("loop: the same samples in every iteration", "orchestrator/stages/ppo/sampling.py", "settings.samples_per_prompt, run.stage, iteration, *path)", "settings.samples_per_prompt, run.stage, 0, *path)"),
    ("loop: kl scale of a roll-back left out", "orchestrator/stages/ppo/state.py", "algorithm.kl.coefficient * scale", "algorithm.kl.coefficient"),
    ("loop: kl scale left out where adaptive", "orchestrator/stages/ppo/state.py", "self.adaptive_kl.value * scale", "self.adaptive_kl.value"),
    ("loop: adaptive kl by iterations", "orchestrator/stages/ppo/loop.py", "update(mean_kl(experience), len(kept))", "update(mean_kl(experience), 1)"),
    ("loop: one pass", "orchestrator/stages/ppo/updates.py", "        epochs=settings.epochs,", "        epochs=1,"),
    ("derive: betas swapped", "orchestrator/planning/worker_specs.py", "(optimizer.beta1, optimizer.beta2)", "(optimizer.beta2, optimizer.beta1)"),
    ("derive: the first of several sections", "orchestrator/config/by_name.py", "len(found) != 1", "not found"),
    ("source: an infinite score counts", "workers/scorers/source.py", "~np.isfinite(values)", "np.isnan(values)"),
    ("source: a source without text gets texts", "workers/scorers/model.py", 'text=settings.bridge == "text"', "text=True"),
    ("derive: engines and trainers share a seed", "orchestrator/planning/worker_specs.py", 'derive(config.seed, "trainer")', 'derive(config.seed, "engine")'),
    ("session: the same seed for all samples", "orchestrator/session/session.py", "prompt.id, k) for k in", "prompt.id, 0) for k in"),
    ("batching: epochs in one order", "orchestrator/batching/training_batches.py", "(*plan.seed, epoch)", "(*plan.seed, 0)"),
    ("batching: sequences for tokens", "orchestrator/batching/training_batches.py", "StepWork(work, tokens, len(step))", "StepWork(work, len(step), len(step))"),
)  # fmt: skip


def mutants_of(root: Path) -> list[Mutant]:
    """All of the list.

    Raises:
        ValueError: a mutant's text is not in its file any more: say there what it is now.
    """
    return [replaced(root, path, old, new, name) for name, path, old, new in MUTANTS]
