from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from workers.errors import ConfigError
from workers.models.load import load_scalar
from workers.models.lora import add_adapters, head_names, save_adapter, sources
from workers.records.specs import LoraSpec

IDS = torch.tensor([[3, 5, 6, 7, 2]])


def llama(*, tied: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=tied,
        )
    ).eval()  # fmt: skip


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=16, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def lora(*target: str) -> LoraSpec:
    return LoraSpec(2, 6.0, 0.0, target or ("all-linear",))


def logits(model: nn.Module) -> torch.Tensor:
    return model(input_ids=IDS).logits.detach()


def train_a_little(model: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.2)


@pytest.mark.parametrize("make", [llama, gpt2])  # the second stores its weights as (in, out)
def test_merged_weights_and_the_saved_adapter_compute_the_same(make, tmp_path: Path) -> None:
    model, plain = make(), make()
    names = {name for name, _ in plain.named_parameters()}
    add_adapters(model, lora())
    torch.testing.assert_close(logits(model), logits(plain), rtol=0, atol=0)
    train_a_little(model)
    live = {name: p.detach() for name, p in model.named_parameters()}
    merged = {s.name: s.merge([live[part] for part in s.parts]) for s in sources(model)}
    assert merged.keys() == names
    wanted = logits(model)
    assert float((wanted - logits(plain)).abs().max()) > 1e-3
    save_adapter(tmp_path / "adapter", model, lora(), live, "the base")
    loaded = PeftModel.from_pretrained(make(), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(logits(loaded), wanted, rtol=0, atol=1e-6)
    plain.load_state_dict(merged, strict=False)
    torch.testing.assert_close(logits(plain), wanted, rtol=0, atol=1e-6)


def test_only_the_named_layers_are_adapted() -> None:
    model = llama()
    add_adapters(model, lora("q_proj", "v_proj"))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 4
    assert all(".q_proj.lora_" in name or ".v_proj.lora_" in name for name in trained)


def test_a_scalar_head_trains_whole_and_gets_no_adapter(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    model = load_scalar(str(tmp_path), dtype="float32", head="random")
    assert head_names(model) == ("score",)
    add_adapters(model, lora())
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name in trained if ".lora_" not in name} == {"score.weight", "score.bias"}
    assert len(trained) == 2 * 7 + 2


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("q_porj", "refuses the targets"),
        ("embed_tokens", "not a linear layer"),
        ("lm_head", "shared with another layer"),
    ],
)
def test_targets_that_cannot_be_merged_are_refused(target: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        add_adapters(llama(tied=True), lora(target))
    assert caught.value.where == "model.lora.target"


def test_an_output_layer_of_its_own_can_be_adapted() -> None:
    model = llama(tied=False)
    add_adapters(model, lora("lm_head"))
    assert {s.name for s in sources(model) if len(s.parts) == 3} == {"lm_head.weight"}
