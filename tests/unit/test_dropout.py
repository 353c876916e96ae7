from pathlib import Path

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    OPTConfig,
)

from workers.dropout import set_dropout
from workers.errors import ConfigError
from workers.models import load_causal_lm


@pytest.mark.parametrize(
    ("config", "residual"),
    [
        (GPT2Config(), "resid_pdrop"),
        (GPTNeoXConfig(), "hidden_dropout"),
        (OPTConfig(), "dropout"),
        (LlamaConfig(), "attention_dropout"),  # it knows no other
    ],
)
def test_the_rate_goes_to_the_residual_stream(config, residual: str) -> None:
    before = config.to_dict()
    assert set_dropout(config, 0.25) == {residual: before[residual]}
    assert getattr(config, residual) == 0.25
    assert {k for k, v in config.to_dict().items() if v != before[k]} == {residual}


def test_zero_turns_every_dropout_off() -> None:
    config = GPT2Config()  # .1 everywhere
    set_dropout(config, 0.0)
    assert config.resid_pdrop == config.attn_pdrop == config.embd_pdrop == 0.0


def test_an_architecture_without_dropout_is_refused() -> None:
    with pytest.raises(ConfigError, match="mamba has no dropout"):
        set_dropout(MambaConfig(), 0.2)
    assert set_dropout(MambaConfig(), 0.0) == {}


@pytest.mark.parametrize(("rate", "noisy"), [(None, True), (0.5, True), (0.0, False)])
def test_a_model_drops_out_in_training_and_saves_its_own_rate(
    tmp_path: Path, rate: float | None, noisy: bool
) -> None:
    config = GPT2Config(
        vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=16,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    model = load_causal_lm(str(tmp_path / "base"), dtype="float32", dropout=rate)
    ids = torch.tensor([[3, 5, 6, 7]])
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    model.train()
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits) != noisy
    model.save_pretrained(tmp_path / "trained")
    again = GPT2Config.from_pretrained(tmp_path / "trained")
    assert (again.resid_pdrop, again.attn_pdrop, again.embd_pdrop) == (0.1, 0.1, 0.1)
