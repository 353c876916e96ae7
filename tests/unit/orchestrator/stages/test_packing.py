"""Documents that share rows have the losses of documents in rows of their own."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fakes.session import Run, small_config

from orchestrator.batching.training_batches import pack_documents
from orchestrator.config.training import SFTConfig
from orchestrator.stages.sft import sft
from workers.models.forward import ModelPasses
from workers.models.load import load_causal_lm
from workers.pocket.model import create_model
from workers.pocket.source import PocketSource
from workers.roles.scoring import text_nll

SHAPE = {
    "hidden_size": 32, "layers": 2, "heads": 2, "kv_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 128, "tie_word_embeddings": True, "seed": 0,
}  # fmt: skip


@pytest.mark.parametrize("row_tokens", [40, 128])
@pytest.mark.parametrize("kind", ["pretraining", "demonstrations"])
def test_packed_losses_and_gradients_equal_those_of_separate_rows(
    tmp_path: Path, kind: str, row_tokens: int
) -> None:
    create_model(str(tmp_path), **SHAPE)
    documents = getattr(PocketSource(0, 0.5, 0.25), kind)("train", 0, 12)
    packed = pack_documents(documents, row_tokens)
    assert len(packed) < len(documents)
    assert packed.target_count == documents.target_count
    losses, gradients = [], []
    for batch, end_to_end in ((documents, False), (packed, False), (packed, True)):
        model = load_causal_lm(str(tmp_path), dtype="float32", packed=end_to_end)
        passes = ModelPasses(model, packed=end_to_end)
        nll, _ = text_nll(passes, batch, "cpu")
        nll.sum().backward()
        losses.append(np.sort(nll.detach().numpy()))
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    for other in (1, 2):
        np.testing.assert_allclose(losses[0], losses[other], atol=2e-5)
        torch.testing.assert_close(gradients[0], gradients[other], atol=2e-4, rtol=1e-4)


def test_packing_demonstrations_changes_no_loss_of_the_stage(tmp_path: Path) -> None:
    losses = []
    for pack_tokens in (0, 64):
        config = small_config()
        config.sft = SFTConfig(
            steps=3, demonstrations_per_step=8, validation_demonstrations=8, pack_tokens=pack_tokens
        )
        config.sft.optimizer.warmup_steps = 0
        run = Run(tmp_path / str(pack_tokens), config)
        sft(run.session)
        losses.append(run.series("sft/loss") + run.series("sft/validation_loss"))
    assert len(losses[0]) == 4
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
