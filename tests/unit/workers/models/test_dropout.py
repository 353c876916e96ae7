from pathlib import Path

import pytest
import torch
from family_models import build_family
from transformers import (
    FalconConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    OPTConfig,
)

from workers.errors import ConfigError
from workers.models.dropout import set_dropout
from workers.models.load import keep_checkpointing, load_causal_lm


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


@pytest.mark.parametrize(("rate", "noisy"), [(None, False), (0.5, True), (0.0, False)])
def test_layers_that_look_their_rate_up_in_every_pass_drop_out(
    tmp_path: Path, rate: float | None, noisy: bool
) -> None:
    own = 0.0 if rate is None else 0.25
    folder = build_family("falcon", tmp_path / "base", hidden_dropout=own)
    model = load_causal_lm(str(folder), dtype="float32", dropout=rate)
    ids = torch.tensor([[3, 5, 6, 7]])
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits) != noisy
        model.eval()
        keep_checkpointing(model)
        assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    model.save_pretrained(tmp_path / "trained")
    assert FalconConfig.from_pretrained(tmp_path / "trained").hidden_dropout == own


def test_the_rate_is_the_share_that_is_dropped(tmp_path: Path) -> None:
    folder = build_family("falcon", tmp_path, hidden_dropout=0.1)
    model = load_causal_lm(str(folder), dtype="float32", dropout=0.5).train()
    seen: list[torch.Tensor] = []
    layer = model.transformer.h[0]
    layer.mlp.register_forward_hook(lambda _, __, out: torch.ones_like(out))
    layer.self_attention.register_forward_hook(lambda _, __, out: (torch.zeros_like(out[0]), None))
    layer.register_forward_hook(lambda _, given, out: seen.append(out[0] - given[0]))
    model(input_ids=torch.arange(3, 43)[None])
    # ones are dropped, or doubled: mean 1, half of them 0
    share = float((seen[0].abs() < 1e-5).float().mean())
    assert share == pytest.approx(0.5, abs=0.04)  # of 2,560: four standard deviations
