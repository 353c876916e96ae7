"""However sequences are laid and logits are cut, the numbers are those of single rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_models import FAMILIES, build_family
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from workers.errors import ConfigError
from workers.model_folders.shape import may_pack
from workers.models.forward import ModelPasses
from workers.models.load import load_causal_lm, load_scalar
from workers.models.lora import add_adapters
from workers.models.packed_attention import NAME as PACKED_NAME
from workers.models.packed_attention import packed_attention
from workers.models.padding import last_cells, response_cells
from workers.records.arrays import Ragged
from workers.records.specs import LoraSpec

# A window; tied and transposed; biases; experts; a cap on logits. The others: `pytest -m slow`.
DEFAULT = ("llama", "mistral", "gpt2", "gpt_neox", "mixtral", "gemma2")
PACKED = [name for name in FAMILIES if name not in ("bloom", "falcon", "opt", "gemma2")]
EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe")  # torch multiplies theirs in fp32 at most
PROMPTS = np.array([2, 1, 3, 1, 4])
# Lengths that share a group and one that does not; three are longer than the window of Mistral.
LENGTHS = [11, 9, 30, 2, 10]
CHUNK = 7  # tokens


@pytest.fixture(scope="module")
def sequences() -> Ragged:
    rng = np.random.default_rng(0)
    return Ragged.from_rows([rng.integers(3, 90, n) for n in LENGTHS], np.int32)


Folders = Callable[[str], Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    root = tmp_path_factory.mktemp("families")
    return cache(lambda name: build_family(name, root / name))


def some(names: Iterable[str]) -> list[Any]:
    """The families; only a few of them by default."""
    return [
        pytest.param(name, marks=[] if name in DEFAULT else [pytest.mark.slow]) for name in names
    ]


def oracle(folder: Path, name: str, sequences: Ragged, weights: torch.Tensor):
    """In double precision, every sequence in a pass of its own, transformers' own attention.

    Log-probabilities at temperature .7, entropies, and the gradient of a weighted sum.
    """
    attention = FAMILIES[name].attention
    dtype = "float32" if name in EXPERTS else "float64"
    model = load_causal_lm(str(folder), dtype=dtype, attention=attention)
    found, entropies = [], []
    for prompt, row in zip(PROMPTS, sequences.rows(), strict=True):
        ids = torch.tensor(row.astype(np.int64))
        logp = (model(input_ids=ids[None]).logits[0].double() / 0.7).log_softmax(-1)
        found.append(logp[prompt - 1 : -1].gather(1, ids[prompt:, None])[:, 0])
        entropies.append(-(logp.exp() * logp).sum(-1)[prompt - 1 : -1].detach())
    logprobs = torch.cat(found)
    (logprobs * weights).sum().backward()
    return logprobs.detach(), torch.cat(entropies), gradient(model)


def gradient(model: torch.nn.Module) -> torch.Tensor:
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return torch.cat([g.flatten().double() for g in grads])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", some(FAMILIES))
def test_logprobs_entropies_and_gradients_of_a_family(
    folders: Folders, sequences: Ragged, name: str, packed: bool
) -> None:
    attention = FAMILIES[name].attention
    assert may_pack(folders(name), attention) == (name in PACKED)
    if packed and name not in PACKED:
        return
    weights = torch.linspace(-1.0, 2.0, sum(LENGTHS) - int(PROMPTS.sum()), dtype=torch.float64)
    wanted = oracle(folders(name), name, sequences, weights)
    model = load_causal_lm(str(folders(name)), dtype="float32", attention=attention, packed=packed)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    passes = ModelPasses(model, packed=packed, logits_bytes=4 * vocabulary * CHUNK)
    assert passes.route == ("selected" if name == "gemma2" else "chunked")
    rows = passes.lay(sequences, "cpu")
    cells = response_cells(rows, PROMPTS)
    logprobs, entropies = passes.logprobs(rows, cells, 0.7, with_entropy=True)
    torch.testing.assert_close(logprobs.double(), wanted[0], rtol=0, atol=3e-5)
    torch.testing.assert_close(entropies.double(), wanted[1], rtol=0, atol=3e-5)
    (logprobs * weights).sum().backward()
    largest = float(wanted[2].abs().max())
    torch.testing.assert_close(gradient(model), wanted[2], rtol=0, atol=2e-5 * largest)


@pytest.mark.parametrize("name", some(PACKED))
def test_values_and_scores_of_a_family(folders: Folders, sequences: Ragged, name: str) -> None:
    model = load_scalar(str(folders(name)), dtype="float32", packed=True, head="random", seed=1)
    passes = ModelPasses(model, packed=True)
    rows = passes.lay(sequences, "cpu")
    values = passes.values(rows, response_cells(rows, PROMPTS)).detach()
    scores = passes.values(rows, last_cells(rows)).detach()
    dtype = "float32" if name in EXPERTS else "float64"
    plain = load_scalar(str(folders(name)), dtype=dtype, head="random", seed=1)
    alone = [
        plain(input_ids=torch.tensor(r).long()[None]).logits[0, :, 0] for r in sequences.rows()
    ]
    wanted = torch.cat([v[p - 1 : -1] for v, p in zip(alone, PROMPTS, strict=True)])
    torch.testing.assert_close(values.double(), wanted.detach().double(), rtol=0, atol=2e-5)
    last = torch.stack([v[-1] for v in alone]).detach().double()
    torch.testing.assert_close(scores.double(), last, rtol=0, atol=2e-5)


@pytest.mark.parametrize("stays", [0.0, 0.7])
def test_a_model_that_lets_sequences_see_each_other_is_refused(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, stays: float
) -> None:
    """As one would whose attention never heard of packing."""

    def blind(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        return sdpa_attention_forward(module, query, key, value, None, **options)

    def leaky(*arguments: Any, **options: Any) -> Any:
        seeing, apart = blind(*arguments, **options)[0], packed_attention(*arguments, **options)[0]
        return stays * apart + (1 - stays) * seeing, None

    monkeypatch.setitem(AttentionInterface._global_mapping, PACKED_NAME, leaky)
    with pytest.raises(ConfigError, match=r"trainer\.packing=off"):
        load_causal_lm(str(folders("llama")), dtype="float32", packed=True)


def test_sequences_without_tokens_and_batches_without_sequences(folders: Folders) -> None:
    model = load_causal_lm(str(folders("llama")), dtype="float32", packed=True)
    passes = ModelPasses(model, packed=True)
    nothing = Ragged.from_rows([], np.int32)
    rows = passes.lay(nothing, "cpu")
    logprobs, _ = passes.logprobs(rows, response_cells(rows, np.zeros(0, np.int64)))
    assert logprobs.shape == (0,)
    logprobs.sum().backward()  # tied to the graph: a peer waits in ZeRO's collectives
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    alone, beside = (
        passes.lay(Ragged.from_rows(rows, np.int32), "cpu") for rows in ([[5, 9]], [[5, 9], []])
    )
    cells = torch.tensor([0])
    assert passes.logprobs(alone, cells)[0] == passes.logprobs(beside, cells)[0]


def test_an_adapter_on_the_output_layer_is_not_passed_over(folders: Folders) -> None:
    model = load_causal_lm(str(folders("llama")), dtype="float32")
    add_adapters(model, LoraSpec(2, 8.0, 0.0, ("lm_head",)))
    passes = ModelPasses(model)
    assert passes.route == "selected"
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.3)
    ids = torch.tensor([[5, 9, 11]])
    rows = passes.lay(Ragged.from_rows(ids.tolist(), np.int32), "cpu")
    found, _ = passes.logprobs(rows, torch.tensor([0, 1]))
    wanted = model(input_ids=ids).logits[0].log_softmax(-1)
    torch.testing.assert_close(found, wanted[[0, 1], [9, 11]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "gemma2"])
def test_ids_beyond_the_tokenizer_are_no_candidates_of_what_was_sampled(
    folders: Folders, sequences: Ragged, name: str
) -> None:
    """Of text they are: it teaches that the surplus rows of the embedding never come."""
    ids = 92  # every token of the sequences is below 90, the embedding has 100 rows
    model = load_causal_lm(str(folders(name)), dtype="float32", attention=FAMILIES[name].attention)
    rows_of_head = model.get_output_embeddings().weight.shape[0]
    assert rows_of_head > ids
    passes = ModelPasses(model, logits_bytes=4 * rows_of_head * CHUNK, vocabulary=ids)
    rows = passes.lay(sequences, "cpu")
    cells = response_cells(rows, PROMPTS)
    logits = passes.numbers(rows, cells).detach().double() / 0.7
    labels = rows.labels(cells)[:, None]
    for sampled, width in ((True, ids), (False, rows_of_head)):
        logp = logits[:, :width].log_softmax(-1)
        found, entropies = passes.logprobs(rows, cells, 0.7, with_entropy=True, sampled=sampled)
        wanted = logp.gather(1, labels)[:, 0]
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=3e-5)
        assert entropies is not None
        wanted = -(logp.exp() * logp).sum(-1)
        torch.testing.assert_close(entropies.double(), wanted, rtol=0, atol=3e-5)
    if name == "llama":  # untied: the gradient of the output layer alone
        passes.logprobs(rows, cells, 0.7, sampled=True)[0].sum().backward()
        gradient_of_head = model.get_output_embeddings().weight.grad
        assert (gradient_of_head[ids:] == 0).all()
        assert (gradient_of_head[:ids] != 0).any(dim=1).all()
