"""Checks of the given models, without loading weights.

Names and shapes of all weights are compared with those of the transformers class, instantiated
without memory (meta device). Tokenizers are loaded; their ids must all be in the model's embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from orchestrator.config.model import Attention
from orchestrator.config.schema import Config
from orchestrator.planning.backbones import has_head
from orchestrator.preflight.dry_run import Given
from workers.data.tokenize.tokenizers import load_tokenizer
from workers.errors import RehearsalError, TokenizerMismatchError
from workers.model_folders.files import broken
from workers.model_folders.shape import read_shape
from workers.model_folders.weight_files import SafetensorsFolder
from workers.models.load import check_causal_lm, check_scalar
from workers.models.published_files import require_saveable, require_tokenizer_saveable
from workers.process.library_errors import reading

_SCORING = ("reward_model", "judge", "gold")  # others are language models; a critic may be either
_TRIAL = 'The 3 owls said: "Ça va?"\n'


def check_given(given: Given) -> None:
    """`check_models`, and whether tokenizer and copied files can be saved again.

    Raises:
        RehearsalError: As `check_models`, `require_saveable` and `require_tokenizer_saveable` do.
    """
    check_models(given.config, given.folders)
    for path in given.saved:
        require_saveable(Path(path))
    if given.tokenizer is not None:
        require_tokenizer_saveable(given.tokenizer)


def check_models(config: Config, folders: Mapping[str, str]) -> None:
    """Check every given model.

    Args:
        config: The run.
        folders: Folder by key of the configuration, e.g. `model.checkpoints.sft`.

    Raises:
        BrokenCheckpointError: Weights are missing, unexpected or of another shape; a reward model
            is given instead of a language model or the reverse; a tokenizer cannot be read.
        ConfigError: transformers has no such attention or head for the model family.
        TokenizerMismatchError: A tokenizer has ids beyond its model's embedding.
        DataError: A tokenizer has no end token.
    """
    for key, folder in folders.items():
        try:
            _check(config, key.rpartition(".")[2].removesuffix("_checkpoint"), folder)
        except RehearsalError as error:
            if key not in error.where:
                error.where = f"{key}: {error.where}" if error.where else key
            raise


def _check(config: Config, name: str, folder: str) -> None:
    # A machine that only plans may lack the GPU kernels.
    chosen = config.model.attention
    attention = chosen.value if chosen in (Attention.sdpa, Attention.eager) else "eager"
    _check_layers(Path(folder))
    if name in _SCORING or (name == "critic" and has_head(Path(folder))):
        check_scalar(folder, attention, "keep")
    else:
        check_causal_lm(folder, attention)
    _check_vocabulary(folder)


def _check_layers(folder: Path) -> None:
    """Refuse more layers than tensors (every layer has one) before building such a deep model."""
    layers = read_shape(folder).layers
    tensors = len(SafetensorsFolder(str(folder)).metas)  # also refuses tensors that are no floats
    if layers > tensors:
        raise broken(
            folder,
            f"config.json says {layers:,} layers, and the weights are {tensors:,} tensors",
            "give config.json and weights of one model",
        )


def _check_vocabulary(folder: str) -> None:
    rows, tokenizer = read_shape(Path(folder)).vocabulary, load_tokenizer(folder)
    with reading(folder, "the tokenizer does not work", "give the tokenizer of the model"):
        written = tokenizer(_TRIAL).input_ids
        tokenizer.decode(written)
        tokenizer.decode([])
        words = dict.fromkeys(written, "") | {n: w for w, n in tokenizer.get_vocab().items()}
    beyond = {n: word for n, word in words.items() if n >= rows}
    if beyond:
        number, word = min(beyond.items())
        raise TokenizerMismatchError(
            f"the tokenizer writes ids that the model does not know: {len(beyond)} from {number} "
            f"({word!r}) on, where the embedding has {rows} rows",
            where=folder,
            fix="give the tokenizer that the model was trained with, or enlarge the embedding "
            "(resize_token_embeddings(len(tokenizer)))",
        )
