"""A published model behind vLLM's own server, asked as users ask it."""

from __future__ import annotations

import io
from pathlib import Path

import httpx
import pytest

from benchmarks.published_models import by_chat, by_completions, by_generate, served
from orchestrator import chat
from orchestrator.checkpoints import model_folder
from workers.models.published_files import complete
from workers.pocket.model import create_model
from workers.pocket.source import PocketSource
from workers.records.generation import Sampling


@pytest.mark.slow
def test_every_way_of_asking_makes_the_tokens_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = PocketSource(0, 0.5, 0.25)

    def save(path: str) -> None:
        create_model(
            path, hidden_size=64, layers=1, heads=2, kv_heads=2, intermediate_size=64,
            max_position_embeddings=64, tie_word_embeddings=True, seed=0,
        )  # fmt: skip
        complete(Path(path), source.tokenizer, Sampling(1.0, 7))

    folder = model_folder.publish(tmp_path / "served", save, {})
    prompts = source.prompts("heldout", 0, 8)
    trained = [list(prompt.tokens) for prompt in prompts]
    assert by_generate(folder, prompts, source).prompts == trained
    with served(folder) as url:
        completions = by_completions(url, prompts, source)
        chats = by_chat(url, prompts, source)
        assert completions.prompts == chats.prompts == trained
        assert max(len(text.split()) for text in chats.texts) <= 7
        monkeypatch.setattr("sys.stdin", io.StringIO("where does the bear live ?\n\nwhy ?\n"))
        capsys.readouterr()
        assert chat.main(["--url", url, "--seed", "1"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 2
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, trust_env=False)
