"""RLHF by PPO in one file: InstructGPT's recipe without Ray, vLLM, DeepSpeed or configuration.

    python examples/ppo_in_one_file.py

A small language model of the pocket world is pretrained, fine-tuned on demonstrations, and improved
by PPO against a reward model that learns from ranked answers. Each role is an object of this one
process; the formulas are those of the distributed system (`workers/ops`). Change it, then
scale it with `python -m orchestrator.run`. Letters at the end of a name are its axes: B sequences
(b of them in a minibatch), P prompt tokens, R response tokens, T both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Adam
from transformers import LlamaConfig, LlamaForCausalLM

from workers.ops.advantages import gae, kl_shaped_rewards
from workers.ops.logprobs import token_logprobs
from workers.ops.losses import ppo_policy_loss, rankings_loss, value_loss
from workers.ops.masks import masked_mean, masked_sum, whiten
from workers.pocket.labeler import Labeler, judge
from workers.pocket.questions import Question, Split
from workers.pocket.tokenizer import build_tokenizer
from workers.pocket.words import EOS, VOCABULARY
from workers.pocket.world import World

WORLD, TOKENIZER = World(seed=0), build_tokenizer()
LABELER = Labeler(noise=0.5, tie_width=0.25, seed=0)
SEQUENCES, MINIBATCH, ANSWERS = 128, 32, 4  # per iteration; per step of PPO; per ranked prompt


@dataclass
class Rollout:
    """Answers: prompts padded on the left, responses on the right. Masks: True = counts."""

    tokens_BT: Tensor
    mask_BT: Tensor
    response_BR: Tensor
    mask_BR: Tensor

    def __getitem__(self, rows: Tensor) -> Rollout:
        return Rollout(*(part[rows] for part in vars(self).values()))

    def texts(self) -> list[str]:
        return TOKENIZER.batch_decode(self.response_BR, skip_special_tokens=True)

    def logprobs(self, model: LlamaForCausalLM) -> Tensor:
        """(B, R) nats of the response tokens."""
        return logprobs(model, self.tokens_BT, self.mask_BT)[:, -self.response_BR.shape[1] :]

    def values(self, critic: ScalarModel) -> Tensor:
        """(B, R) of the state before each response token."""
        return critic(self.tokens_BT, self.mask_BT)[:, -self.response_BR.shape[1] - 1 : -1]

    def scores(self, reward_model: ScalarModel) -> Tensor:
        """(B,) reward of whole sequences: the number at the last token."""
        last_B1 = (self.mask_BT * torch.arange(self.mask_BT.shape[1])).argmax(1, keepdim=True)
        return reward_model(self.tokens_BT, self.mask_BT).gather(1, last_B1).squeeze(1)


class ScalarModel(nn.Module):
    """A number per token, from the body of a language model: the reward model and the critic."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = copy.deepcopy(body), nn.Linear(body.config.hidden_size, 1)

    def forward(self, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
        return self.head(self.body(tokens_BT, mask_BT).last_hidden_state).squeeze(-1)


def language_model() -> LlamaForCausalLM:
    shape = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3}
    start = {"intermediate_size": 256, "initializer_range": 0.1, "tie_word_embeddings": True}
    ends = {f"{e}_token_id": getattr(TOKENIZER, f"{e}_token_id") for e in ("pad", "bos", "eos")}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(VOCABULARY), **shape, **start, **ends))


def encode(texts: list[str]) -> tuple[Tensor, Tensor]:
    batch = TOKENIZER(texts, padding=True, return_tensors="pt")  # on the left
    return batch["input_ids"], batch["attention_mask"].bool()


def logprobs(model: LlamaForCausalLM, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """(B, T - 1) nats: what the model says of token t + 1 when it has seen tokens 0 to t."""
    return token_logprobs(model(tokens_BT, mask_BT).logits[:, :-1], tokens_BT[:, 1:])


def step(model: nn.Module, optimizer: Adam, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def supervised(
    model: LlamaForCausalLM, example: Callable[[int], tuple[str, str]], steps: int
) -> LlamaForCausalLM:
    """Next-token prediction; example n is a context, which may be empty, and a text that counts."""
    optimizer = Adam(model.parameters(), 2e-3)
    for n in range(steps):
        pairs = [example(n * SEQUENCES + i) for i in range(SEQUENCES)]
        tokens_BT, mask_BT = encode([f"{context} {text} {EOS}" for context, text in pairs])
        learned_B = torch.tensor([len(text.split()) + 1 for _, text in pairs])
        counts = torch.arange(tokens_BT.shape[1] - 1, 0, -1) <= learned_B.unsqueeze(1)
        step(model, optimizer, -masked_mean(logprobs(model, tokens_BT, mask_BT), counts))
    return model


def web_document(number: int) -> tuple[str, str]:
    return "", WORLD.web_document("train", number)


def demonstration(number: int) -> tuple[str, str]:
    question, reply = WORLD.demonstration("train", number)
    return WORLD.prompt(question), reply


def questions(stream: str, start: int, count: int, split: Split = "train") -> list[Question]:
    return [WORLD.question(split, n, stream) for n in range(start, start + count)]


@torch.no_grad()
def sample(model: LlamaForCausalLM, asked: list[Question]) -> Rollout:
    """The rollout engine: one answer to each question, whose end token counts."""
    prompt_BP, prompt_mask_BP = encode([WORLD.prompt(q) for q in asked])
    tokens_BT = model.generate(prompt_BP, attention_mask=prompt_mask_BP, do_sample=True, top_k=0,
                               max_new_tokens=24)  # fmt: skip
    response_BR = tokens_BT[:, prompt_BP.shape[1] :]
    ends_BR = response_BR == TOKENIZER.eos_token_id
    mask_BR = ends_BR.cumsum(1) - ends_BR.long() == 0
    return Rollout(tokens_BT, torch.cat([prompt_mask_BP, mask_BR], 1), response_BR, mask_BR)


def train_reward_model(sft: LlamaForCausalLM, prompts: int) -> ScalarModel:
    """Every pair of the ranked answers to a prompt is learned (paper, equation 1)."""
    model = ScalarModel(sft.model)
    optimizer = Adam(model.parameters(), 5e-4)
    for n in range(0, prompts, MINIBATCH):
        asked = questions("reward_model", n, MINIBATCH)
        rollout = sample(sft, [q for q in asked for _ in range(ANSWERS)])
        texts, ranks = rollout.texts(), list[Tensor]()
        for i, question in enumerate(asked):
            answers = texts[i * ANSWERS : (i + 1) * ANSWERS]
            ranks.append(torch.tensor(LABELER.rank(question, answers, key=n + i)))
        step(model, optimizer, rankings_loss(rollout.scores(model).split(ANSWERS), ranks))
    return model


def ppo(sft: LlamaForCausalLM, reward_model: ScalarModel, iterations: int) -> LlamaForCausalLM:
    """Reward minus a penalty per token for the distance from the SFT model (paper, equation 2)."""
    policy, reference, critic = copy.deepcopy(sft), sft, copy.deepcopy(reward_model)
    policy_adam, critic_adam = Adam(policy.parameters(), 3e-4), Adam(critic.parameters(), 1e-3)
    for iteration in range(iterations):
        batch = sample(policy, questions("ppo", iteration * SEQUENCES, SEQUENCES))
        with torch.no_grad():
            scores_B, values_BR = batch.scores(reward_model), batch.values(critic)
            old_BR, reference_BR = batch.logprobs(policy), batch.logprobs(reference)
        mask_BR = batch.mask_BR
        rewards_BR = kl_shaped_rewards(scores_B, old_BR, reference_BR, mask_BR, beta=0.05)
        gains_BR, returns_BR = gae(rewards_BR, values_BR, mask_BR, gamma=1.0, lam=0.95)
        gains_BR = whiten(gains_BR, mask_BR)
        for _ in range(2):  # passes over the batch
            for b in torch.randperm(SEQUENCES).split(MINIBATCH):
                part, mask_bR = batch[b], mask_BR[b]
                loss = ppo_policy_loss(part.logprobs(policy), old_BR[b], gains_BR[b], mask_bR, 0.2)
                step(policy, policy_adam, loss)
                loss = value_loss(part.values(critic), values_BR[b], returns_BR[b], mask_bR, 0.2)
                step(critic, critic_adam, loss)
        kl = masked_sum(old_BR - reference_BR, mask_BR) / SEQUENCES
        print(f"iteration {iteration + 1:2}: reward {scores_B.mean():5.2f}, KL {kl:5.2f} nats")
    return policy


def gold(model: LlamaForCausalLM) -> float:
    asked = questions("gold", 0, 512, "heldout")  # nothing is trained on their hidden scores
    replies = sample(model, asked).texts()
    return sum(judge(q, text).score for q, text in zip(asked, replies, strict=True)) / len(asked)


def main(
    pretrain_steps: int = 300, sft_steps: int = 60, ranked_prompts: int = 768, iterations: int = 12
) -> dict[str, float]:
    torch.manual_seed(0)
    base = supervised(language_model(), web_document, pretrain_steps)
    sft = supervised(copy.deepcopy(base), demonstration, sft_steps)
    policy = ppo(sft, train_reward_model(sft, ranked_prompts), iterations)
    scores = {"base": gold(base), "SFT": gold(sft), "PPO": gold(policy)}
    print("gold score on held-out questions:", ", ".join(f"{n} {g:.2f}" for n, g in scores.items()))
    return scores


if __name__ == "__main__":
    main()
