from __future__ import annotations

import pytest
import torch

from workers.errors import WeightSyncError
from workers.records.weights import TensorMeta
from workers.weights.packing import (
    Checksum,
    bucket_views,
    describe,
    fill_bucket,
    layer_of,
    plan_buckets,
    require_exhausted,
)

EMBED = TensorMeta("model.embed_tokens.weight", "float32", (10, 4))  # 160 bytes, 192 aligned
LAYER0 = [
    TensorMeta("model.layers.0.q.weight", "float32", (4, 4)),  # 64 bytes
    TensorMeta("model.layers.0.k.weight", "bfloat16", (3, 4)),  # 24 bytes, 64 aligned
]
LAYER1 = [TensorMeta("model.layers.1.q.weight", "float32", (4, 4))]
METAS = [EMBED, *LAYER0, *LAYER1]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.11.mlp.up_proj.weight", "model.layers.11"),
        ("transformer.h.0.mlp.experts.3.w1", "transformer.h.0"),
        ("lm_head.weight", "lm_head.weight"),
    ],
)
def test_layer_is_the_prefix_up_to_the_first_number(name: str, layer: str) -> None:
    assert layer_of(name) == layer


def test_plan_keeps_layers_whole_and_aligned() -> None:
    plan = plan_buckets(METAS, bucket_bytes=192)
    assert [[s.meta.name for s in b.slots] for b in plan] == [
        [EMBED.name],
        [m.name for m in [*LAYER0, *LAYER1]],
    ]
    assert [(b.start, b.nbytes) for b in plan] == [(0, 192), (192, 192)]
    assert [s.offset for s in plan[1].slots] == [0, 64, 128]


def test_layer_larger_than_a_bucket_is_a_bucket_of_its_own() -> None:
    assert [len(b.slots) for b in plan_buckets(METAS, bucket_bytes=1)] == [1, 2, 1]
    assert plan_buckets([], bucket_bytes=1) == []


def test_unknown_dtype_is_refused() -> None:
    with pytest.raises(WeightSyncError, match="float33"):
        plan_buckets([TensorMeta("w", "float33", (1,))])


def _tensors() -> list[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(m.name, torch.randn(m.shape, generator=generator)) for m in METAS]


def test_filled_views_are_the_tensors_in_the_offered_dtype() -> None:
    (bucket,) = plan_buckets(METAS)
    packed = torch.full((bucket.nbytes,), 255, dtype=torch.uint8)
    fill_bucket(packed, bucket, iter(_tensors()))
    for (name, view), (sent, tensor), meta in zip(
        bucket_views(packed, bucket), _tensors(), METAS, strict=True
    ):
        assert name == sent
        assert torch.equal(view, tensor.to(getattr(torch, meta.dtype)))
    assert int(packed[160:192].sum()) == 0  # padding is written: checksums must not see old bytes


def test_stream_in_another_order_short_or_long_is_refused() -> None:
    (bucket,) = plan_buckets(METAS)
    packed = torch.empty(bucket.nbytes, dtype=torch.uint8)
    with pytest.raises(WeightSyncError, match="order"):
        fill_bucket(packed, bucket, iter(_tensors()[::-1]))
    with pytest.raises(WeightSyncError, match="nothing"):
        fill_bucket(packed, bucket, iter(_tensors()[:-1]))
    with pytest.raises(WeightSyncError, match=r"model\.layers\.1"):
        require_exhausted(iter(_tensors()[3:]))


def _digest(words: torch.Tensor, metas: list[TensorMeta] = METAS) -> str:
    checksum = Checksum(metas)
    checksum.update(words.view(torch.uint8))
    return checksum.text


def test_checksum_sees_one_bit_any_swap_and_any_renaming() -> None:
    words = torch.arange(5 * 1024 + 7, dtype=torch.int64)
    digest = _digest(words)
    assert digest == _digest(words.clone())
    generator = torch.Generator().manual_seed(0)
    seen = {digest}
    for _ in range(50):
        i, j = torch.randperm(words.numel(), generator=generator)[:2].tolist()
        swapped, flipped = words.clone(), words.clone()
        swapped[i], swapped[j] = words[j], words[i]
        flipped[i] ^= 1 << (j % 64)
        seen |= {_digest(swapped), _digest(flipped)}
    assert len(seen) == 101
    renamed = describe([("other", torch.empty(10, 4))])
    assert _digest(words, renamed + METAS[1:]) != digest


def test_checksum_depends_on_the_order_of_buckets() -> None:
    first, second = Checksum(METAS), Checksum(METAS)
    a, b = torch.arange(8).view(torch.uint8), torch.arange(8, 16).view(torch.uint8)
    first.update(a)
    first.update(b)
    second.update(b)
    second.update(a)
    assert first.text != second.text
