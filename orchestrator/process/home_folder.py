"""Redirect caches and settings of libraries if the home directory cannot be written."""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.process.temporary_folders import home
from workers.errors import UnsupportedPlatformError

# Read by: matplotlib, vLLM, torch, transformers, datasets and wandb (the first three), Triton and
# DeepSpeed, CUDA, FlashInfer.
_FOLDERS = {
    "XDG_CACHE_HOME": "cache",
    "XDG_CONFIG_HOME": "config",
    "XDG_DATA_HOME": "data",
    "TRITON_HOME": "triton",
    "CUDA_CACHE_PATH": "cuda",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
}


def leave_home_alone() -> None:
    """Send what libraries write to a temporary folder if there is no home that can be written.

    Sets environment variables, which processes started later inherit; those that are set already
    stay. Models that lie in the home's Hugging Face cache are still found. To be called before
    libraries are imported. Never raises: without a temporary directory nothing is changed.
    """
    user = Path(os.path.expanduser("~"))  # noqa: PTH111  Path's own raises for an unknown user
    if user.is_dir() and os.access(user, os.W_OK | os.X_OK):
        return
    try:
        folders = {name: home() / "home" / folder for name, folder in _FOLDERS.items()}
        for name, folder in folders.items():
            if name not in os.environ:
                folder.mkdir(parents=True, exist_ok=True)
                os.environ[name] = str(folder)
        if str(user) == "~":  # a user id without a name: containers have such
            os.environ["HOME"] = str(home() / "home")
            os.environ.setdefault("LOGNAME", f"user-{os.getuid()}")
    except (OSError, UnsupportedPlatformError):  # a run says so when it needs the folder
        return
    models = user / ".cache" / "huggingface"
    if models.is_dir():
        os.environ.setdefault("HF_HOME", str(models))
