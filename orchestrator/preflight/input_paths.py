"""First check of input paths: data sets, chat template and given models exist.

It takes milliseconds, and comes before functions are imported, models hashed or tokenizers loaded;
`dry_run.look` reads the content.
"""

from __future__ import annotations

from orchestrator.checkpoints import model_folder
from orchestrator.config.data import DataSourceKind, all_sets
from orchestrator.config.schema import Config
from workers.data.formats.readers import require_readable
from workers.data.tokenize.data_sets import naming_key
from workers.data.tokenize.templates import template_file


def check_paths(config: Config) -> None:
    """Check that every file and folder that the configuration names can be opened.

    Names of the model hub must have been resolved; those of data sets are not looked up.

    Raises:
        DataError: a data set or the chat template cannot be opened.
        MissingCheckpointError: there is no folder of a given model.
    """
    for name, folder in config.model.checkpoints.given().items():
        model_folder.require_folder(folder, name)
    if judge := config.evaluate.judging_model:
        model_folder.require_folder(judge, "judge", "evaluate.judge_checkpoint")
    if config.data.source is not DataSourceKind.files:
        return
    template_file(config.data.chat_template)
    for each in all_sets(config.data):
        with naming_key(each):
            require_readable(each.path, format=each.format)
