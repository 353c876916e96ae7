"""Forward passes that compute logprobs, entropies and values only at the positions needed.

For a language model, the output layer's forward is replaced: it processes only the needed
positions, in chunks whose logits stay within a memory limit, and returns log-probabilities in place
of logits.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from workers.models.padding import TokenRows, pack_rows, pad_rows
from workers.ops import entropy, linear_logprobs, token_logprobs
from workers.process.heartbeat import beat
from workers.records.arrays import Ragged

_FLOAT = 4  # bytes of an fp32 logit
_log = logging.getLogger(__name__)

# chunked: the output layer returns log-probabilities. selected: it returns logits of the needed
# positions, which the model then changes further (caps, scales). whole: logits of all positions.
Route = Literal["chunked", "selected", "whole"]


@dataclass(slots=True)
class _Wanted:
    """The numbers that the output layer must return in this pass."""

    route: Route
    cells: Tensor  # (N,)
    labels: Tensor  # (N,)
    temperature: float
    with_entropy: bool
    ids: int | None  # only tokens below this are candidates; None = all
    entropies: Tensor | None = None  # (N,) result, in addition to the log-probabilities


class ModelPasses:
    """A model with its input layout and the way its outputs are computed.

    Attributes:
        through: module that is called in place of the model, such as the engine that wraps it.
        packed: sequences are packed end to end; the model must be loaded with `packed`.
        route: how log-probabilities are computed; "whole" for a model with a scalar head.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        packed: bool = False,
        logits_bytes: int = 256 << 20,
        vocabulary: int = 0,
    ) -> None:
        self.through: nn.Module = model
        self.packed = packed
        self._logits_bytes = logits_bytes
        self._vocabulary = vocabulary or None
        self._wanted: _Wanted | None = None
        self._head: Any = model.get_output_embeddings()
        self.route: Route = "whole"
        if self._head is not None:
            self._plain = self._head.forward
            self._head.forward = self._answer
            self.route = self._choose(model)
            if self.route != "chunked":
                _log.warning(
                    "%s changes what its output layer says: log-probabilities come from the %s "
                    "logits and need that memory",
                    type(model).__name__,
                    "counted tokens'" if self.route == "selected" else "whole",
                )

    def lay(
        self, rows: Ragged, device: torch.device | str, positions: Ragged | None = None
    ) -> TokenRows:
        """Sequences in this model's input layout; pass `positions` if documents share rows."""
        return (pack_rows if self.packed else pad_rows)(rows, device, positions)

    def logprobs(
        self,
        rows: TokenRows,
        cells: Tensor,
        temperature: float = 1.0,
        *,
        with_entropy: bool = False,
        sampled: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probability of the token after each cell and, if wanted, entropy: (N,), nats, fp32.

        Args:
            rows: result of `lay`.
            cells: (N,) cells where the model predicts the counted tokens.
            temperature: divides the logits.
            with_entropy: also return the entropy of each prediction, without a gradient.
            sampled: True for tokens that an engine sampled: normalize only over the ids that it
                could draw. Other text is normalized over the whole embedding, so that training
                lowers the probability of the rows that are no tokens.
        """
        ids = self._vocabulary if sampled else None
        wanted = _Wanted(self.route, cells, rows.labels(cells), temperature, with_entropy, ids)
        if self.route == "chunked":
            return self._asked(rows, wanted)[:, 0], wanted.entropies
        if self.route == "selected":
            logits = self._asked(rows, wanted)
        else:
            logits = self.numbers(rows, cells)
        logits = logits[:, :ids]
        logprobs = token_logprobs(logits, wanted.labels, temperature)
        return logprobs, entropy(logits.detach(), temperature) if with_entropy else None

    def values(self, rows: TokenRows, cells: Tensor) -> Tensor:
        """Output of the scalar head in each cell: (N,), fp32."""
        return self.numbers(rows, cells)[:, 0]

    def numbers(self, rows: TokenRows, cells: Tensor) -> Tensor:
        """The full output of the model in each cell: (N, V) or (N, 1), fp32."""
        # Select before the cast: other cells are not copied.
        return self._logits(rows).flatten(0, 1).index_select(0, cells).float()

    def _logits(self, rows: TokenRows) -> Tensor:
        beat()
        return self.through(
            input_ids=rows.input_ids,
            attention_mask=rows.attention_mask,
            position_ids=rows.position_ids,
            use_cache=False,
        ).logits

    def _asked(self, rows: TokenRows, wanted: _Wanted) -> Tensor:
        """The model's output from the output layer's `_answer`: (N, 1) or (N, V)."""
        self._wanted = wanted
        try:
            return self._logits(rows)[0].float()
        finally:
            self._wanted = None

    def _answer(self, hidden: Tensor) -> Tensor:
        """The output layer's new forward: (R, C, D) to (1, N, 1) or (1, N, V), or the plain one."""
        wanted = self._wanted
        if wanted is None:
            return self._plain(hidden)
        chosen = hidden.flatten(0, -2).index_select(0, wanted.cells)
        if wanted.route == "selected":
            return self._plain(chosen)[None]
        weight: Tensor = self._head.weight  # at ZeRO 3 it is gathered only inside this call
        bias: Tensor | None = self._head.bias
        logprobs, wanted.entropies = linear_logprobs(
            chosen,
            weight[: wanted.ids],
            None if bias is None else bias[: wanted.ids],
            wanted.labels,
            chunk_tokens=max(1, self._logits_bytes // (_FLOAT * weight.shape[0])),
            temperature=wanted.temperature,
            with_entropy=wanted.with_entropy,
        )
        return logprobs[None, :, None]

    @torch.no_grad()
    def _choose(self, model: PreTrainedModel) -> Route:
        """The route with the least memory whose results equal those of the plain forward."""
        rows = pad_rows(_PROBE, next(model.parameters()).device)
        cells = torch.tensor([0, 1, 2, 4, 5], device=rows.input_ids.device)
        own = token_logprobs(self.numbers(rows, cells), rows.labels(cells), 1.0)
        # bf16 has 8 bits, and matrix products of another shape round differently.
        close = 1e-4 if own.dtype == next(model.parameters()).dtype else 0.1
        routes: tuple[Route, ...] = ("chunked", "selected")
        for self.route in routes:
            if self.route == "chunked" and not self._hands_on(rows):
                continue
            found, _ = self.logprobs(rows, cells)
            if bool(((found - own).abs() <= close * own.abs().clamp(min=1.0)).all()):
                return self.route
        return "whole"

    def _hands_on(self, rows: TokenRows) -> bool:
        """Whether the model returns its output layer's result unchanged, bit for bit.

        False unless the layer is a plain nn.Linear: with an adapter, its weight is not all of it.
        """
        if self._head.__class__ is not nn.Linear:
            return False
        sent = torch.tensor([[[-300.0], [-1.0], [0.5], [50.0]]], dtype=self._head.weight.dtype)
        sent = sent.to(rows.input_ids.device)
        self._head.forward = lambda _: sent
        try:
            got = self._logits(rows)
        finally:
            self._head.forward = self._answer
        return got.shape == sent.shape and bool((got == sent).all())


_PROBE = Ragged.from_rows([[1, 2, 3, 1], [3, 2, 1]], "int32")
