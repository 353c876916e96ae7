"""Redirect caches and settings of libraries out of the home directory.

Those that every run would leave there are always redirected; all of them if it cannot be written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
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
# Written by every run; a user's XDG folder stays in force.
_EVERY_RUN = {
    "MPLCONFIGDIR": ("XDG_CONFIG_HOME", "matplotlib"),
    "VLLM_CACHE_ROOT": ("XDG_CACHE_HOME", "vllm"),
    "VLLM_CONFIG_ROOT": ("XDG_CONFIG_HOME", "vllm"),
}


def leave_home_alone() -> None:
    """Send what libraries write at every run to a temporary folder, and all if there is no home.

    Sets environment variables, which processes started later inherit; those that are set already
    stay. Models that lie in the home's Hugging Face cache are still found. To be called before
    libraries are imported. Never raises: without a temporary directory nothing is changed.
    """
    user = Path(os.path.expanduser("~"))  # noqa: PTH111  Path's own raises for an unknown user
    try:
        _redirect({n: f for n, (xdg, f) in _EVERY_RUN.items() if xdg not in os.environ})
        if user.is_dir() and os.access(user, os.W_OK | os.X_OK):
            return
        _redirect(_FOLDERS)
        if str(user) == "~":  # a user id without a name: containers have such
            os.environ["HOME"] = str(home() / "home")
            os.environ.setdefault("LOGNAME", f"user-{os.getuid()}")
    except (OSError, UnsupportedPlatformError):  # a run says so when it needs the folder
        return
    models = user / ".cache" / "huggingface"
    if models.is_dir():
        os.environ.setdefault("HF_HOME", str(models))


def _redirect(folders: Mapping[str, str]) -> None:
    for name, folder in folders.items():
        if name not in os.environ:
            path = home() / "home" / folder
            path.mkdir(parents=True, exist_ok=True)
            os.environ[name] = str(path)
