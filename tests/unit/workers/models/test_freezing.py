import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from workers.errors import ConfigError
from workers.models.freezing import freeze


def model(*, tied: bool) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=tied,
        )
    )  # fmt: skip


def still_trained(patterns: list[str], *, tied: bool = False) -> set[str]:
    made = model(tied=tied)
    freeze(made, patterns)
    return {name for name, p in made.named_parameters() if p.requires_grad}


def test_nothing_is_frozen_without_a_pattern() -> None:
    assert len(still_trained([])) == 2 * 9 + 3


def test_patterns_add_up() -> None:
    left = still_trained(["embeddings", "model.layers.[0]*", "*norm*"])
    assert {n for n in left if "layers.1" not in n} == {"lm_head.weight"}
    assert len(left) == 7 + 1


@pytest.mark.parametrize("pattern", ["embeddings", "lm_head.weight", "model.embed_tokens.*"])
def test_tied_weights_are_frozen_under_every_name(pattern: str) -> None:
    left = still_trained([pattern], tied=True)
    assert "model.embed_tokens.weight" not in left
    assert len(left) == 2 * 9 + 1


def test_a_pattern_without_a_weight_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'transformer\.h\.\*' matches no weight"):
        still_trained(["embeddings", "transformer.h.*"])


def test_something_must_be_left_to_train() -> None:
    with pytest.raises(ConfigError, match="every weight is frozen"):
        still_trained(["model.*", "lm_head.*"])
