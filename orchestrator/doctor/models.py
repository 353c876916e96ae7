"""Check of the models that a run takes from the Hugging Face hub's local cache."""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.doctor.findings import Finding, failure, good, of_error, warning
from orchestrator.doctor.machine import existing
from orchestrator.doctor.subject import Subject


def check_hub_cache(subject: Subject) -> Finding:
    """Whether the models of the hub that the run names are in the cache, which can be written."""
    # Imported here, because it takes a moment that other checks can use.
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    if subject.missing is not None:
        if constants.HF_HUB_OFFLINE:
            return of_error(subject.missing)
        return warning(
            f"{subject.missing.what} ({subject.missing.where})",
            f"a run downloads it if this machine is online; else {subject.missing.fix}",
        )
    above = existing(cache.absolute())
    if not os.access(above, os.R_OK | os.X_OK):
        return failure(f"this user cannot read {above}", "set HF_HOME to another folder")
    if not os.access(above, os.W_OK):
        return warning(
            f"this user cannot write in {above}: only models that are there can be used",
            "set HF_HOME to another folder",
        )
    return good(f"every named model is there; the cache is {cache}")
