"""Which of a model's numbers are computed at all: those that count, where its output layer allows.

A toy in place of a model: it notes the logits that it makes and how it was called.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from workers.models import forward as passes
from workers.models.forward import ModelPasses
from workers.models.padding import response_cells
from workers.records.arrays import Ragged

VOCABULARY, WIDTH = 11, 5
ROWS = Ragged.from_rows([[1, 4, 2, 5, 6], [3, 10, 1]], "int32")
COUNTED = 4  # response tokens after prompts of 3 and of 1


class Toy(nn.Module):
    """An embedding and an output layer, and what a family does with the logits afterwards."""

    def __init__(self, family: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.family = family
        self.embedding = nn.Parameter(torch.randn(VOCABULARY, WIDTH, generator=generator))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = nn.Parameter(torch.randn(VOCABULARY, WIDTH, generator=generator))
        if family in ("far", "clamped"):
            self.head.weight.data *= 1e-3
        self.shapes: list[tuple[int, ...]] = []
        self.calls: list[dict[str, Any]] = []

    def get_output_embeddings(self) -> nn.Module | None:
        return None if self.family == "scalar" else self.head

    def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
        self.calls.append(options)
        logits = self.head(self.embedding[input_ids])
        if self.family == "capped":
            logits = 3.0 * torch.tanh(logits / 3.0)
        if self.family == "far":  # a cap that small logits do not feel
            logits = 30.0 * torch.tanh(logits / 30.0)
        if self.family == "clamped":
            logits = logits.clamp(-20.0, 20.0)
        if self.family == "first":  # what a token is given depends on its place
            logits = torch.cat([2.0 * logits[:, :1], logits[:, 1:]], 1)
        if self.family == "favours":  # the tokens of the trial are likelier than they look
            logits = logits + 5.0 * (torch.arange(VOCABULARY) < 4)
        if self.family == "scaled":
            logits = logits * 1.005
        if self.family == "centred":  # what a token is given depends on all the others
            logits = logits - logits.mean((0, 1))
        self.shapes.append(tuple(logits.shape))
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize(
    ("family", "route", "shape"),
    [
        ("plain", "chunked", (1, COUNTED, 1)),
        ("capped", "selected", (1, COUNTED, VOCABULARY)),
        ("centred", "whole", (2, 5, VOCABULARY)),
    ],
)
def test_no_logits_are_made_that_nobody_needs(
    family: str, route: str, shape: tuple[int, ...]
) -> None:
    toy = Toy(family)
    model = ModelPasses(toy)  # type: ignore[arg-type]
    assert model.route == route
    rows = model.lay(ROWS, "cpu")
    cells = response_cells(rows, torch.tensor([3, 1]).numpy())
    toy.shapes.clear()
    found, entropies = model.logprobs(rows, cells, 0.5, with_entropy=True)
    assert toy.shapes == [shape]
    logits = toy(rows.input_ids).logits if family == "centred" else None
    if logits is None:
        logits = toy.embedding[rows.input_ids] @ toy.head.weight.T
        logits = 3.0 * torch.tanh(logits / 3.0) if family == "capped" else logits
    logp = (logits / 0.5).log_softmax(-1)
    wanted = torch.stack([logp[0, 2, 5], logp[0, 3, 6], logp[1, 0, 10], logp[1, 1, 1]])
    torch.testing.assert_close(found, wanted)
    at = [(0, 2), (0, 3), (1, 0), (1, 1)]
    spread = torch.stack([-(logp[i].exp() * logp[i]).sum() for i in at])
    assert entropies is not None
    torch.testing.assert_close(entropies, spread)
    assert not entropies.requires_grad
    assert model.logprobs(rows, cells)[1] is None


@pytest.mark.parametrize(
    ("dtype", "own", "off", "close"),
    [
        (torch.float32, -1e-6, 0.9e-4, True), (torch.float32, -1e-6, 1.1e-4, False),
        (torch.float32, -1e-6, -1.1e-4, False), (torch.float32, -50.0, 4.5e-3, True),
        (torch.float32, -50.0, -5.5e-3, False), (torch.bfloat16, -1e-6, 0.09, True),
        (torch.bfloat16, -1e-6, 0.11, False), (torch.bfloat16, -50.0, -4.5, True),
    ],
)  # fmt: skip
def test_numbers_are_the_same_but_for_rounding(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, own: float, off: float, close: bool
) -> None:
    """To a ten-thousandth in single precision and a tenth in half, of a nat or of the number."""
    found = torch.tensor([own] * 4 + [own + off])  # one token that differs is enough
    monkeypatch.setattr(passes, "token_logprobs", lambda *_: torch.full((5,), own))
    monkeypatch.setattr(passes, "linear_logprobs", lambda *_, **__: (found, None))
    model = ModelPasses(Toy("plain").to(dtype))  # type: ignore[arg-type]
    assert model.route == ("chunked" if close else "selected")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rounding_hides_no_route_and_half_a_percent_is_no_rounding(dtype: torch.dtype) -> None:
    assert ModelPasses(Toy("plain").to(dtype)).route == "chunked"  # type: ignore[arg-type]
    if dtype != torch.bfloat16:
        assert ModelPasses(Toy("scaled").to(dtype)).route == "selected"  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["far", "clamped", "favours"])
def test_what_a_model_does_to_its_logits_is_found_whichever_way_it_moves_them(family: str) -> None:
    assert ModelPasses(Toy(family)).route == "selected"  # type: ignore[arg-type]


def test_one_token_that_differs_is_enough_for_whole_logits() -> None:
    assert ModelPasses(Toy("first")).route == "whole"  # type: ignore[arg-type]


def test_every_pass_is_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelPasses(Toy("plain"))  # type: ignore[arg-type]
    beats: list[int] = []
    monkeypatch.setattr(passes, "beat", lambda: beats.append(1))
    model.numbers(model.lay(ROWS, "cpu"), torch.tensor([0]))
    assert beats == [1]


def test_a_route_that_costs_memory_is_said(caplog: pytest.LogCaptureFixture) -> None:
    for family, said in (
        ("plain", []), ("capped", ["counted tokens' logits"]), ("centred", ["the whole logits"]),
    ):  # fmt: skip
        caplog.clear()
        ModelPasses(Toy(family))  # type: ignore[arg-type]
        assert len(caplog.messages) == len(said)
        assert all(text in line for text, line in zip(said, caplog.messages, strict=True))


def test_a_model_is_called_with_all_of_its_rows_and_keeps_no_cache() -> None:
    toy = Toy("plain")
    model = ModelPasses(toy)  # type: ignore[arg-type]
    rows = model.lay(ROWS, "cpu")
    toy.calls.clear()
    model.numbers(rows, torch.tensor([0]))
    (call,) = toy.calls
    assert call["use_cache"] is False
    assert call["attention_mask"] is rows.attention_mask
    assert call["position_ids"] is rows.position_ids


def test_outside_of_a_pass_the_output_layer_answers_as_ever() -> None:
    toy = Toy("plain")
    hidden = torch.rand(2, 3, WIDTH)
    wanted = hidden @ toy.head.weight.T
    model = ModelPasses(toy)  # type: ignore[arg-type]
    torch.testing.assert_close(toy.head(hidden), wanted)
    rows = model.lay(ROWS, "cpu")
    with pytest.raises(IndexError):
        model.logprobs(rows, torch.tensor([99]))
    torch.testing.assert_close(toy.head(hidden), wanted)


@pytest.mark.parametrize(("limit", "tokens"), [(3 * 4 * VOCABULARY, 3), (1, 1)])
def test_so_many_logits_exist_at_once_as_the_limit_allows(
    monkeypatch: pytest.MonkeyPatch, limit: int, tokens: int
) -> None:
    sizes: list[int] = []
    real = passes.linear_logprobs

    def noted(*given: Any, chunk_tokens: int, **options: Any) -> Any:
        sizes.append(chunk_tokens)
        return real(*given, chunk_tokens=chunk_tokens, **options)

    monkeypatch.setattr(passes, "linear_logprobs", noted)
    model = ModelPasses(Toy("plain"), logits_bytes=limit)  # type: ignore[arg-type]
    rows = model.lay(ROWS, "cpu")
    model.logprobs(rows, torch.tensor([0, 1, 2, 3]))
    assert set(sizes) == {tokens}


def test_a_model_without_an_output_layer_is_read_whole() -> None:
    model = ModelPasses(Toy("scalar"))  # type: ignore[arg-type]
    assert model.route == "whole"
    rows = model.lay(ROWS, "cpu")
    cells = torch.tensor([1, 4])
    torch.testing.assert_close(model.values(rows, cells), model.numbers(rows, cells)[:, 0])
    toy = model.through
    torch.testing.assert_close(
        model.numbers(rows, cells), toy.embedding[[4, 6]] @ toy.head.weight.T
    )
