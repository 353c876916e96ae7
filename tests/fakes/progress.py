"""What progress.json holds of a run that has just begun a stage."""

from typing import Any


def progress(stage: str, step: int, **appended: int) -> dict[str, Any]:
    """Progress as `driver_state.capture` writes it; sizes of files by their names."""
    return {
        "stage": stage,
        "step": step,
        "own": {},
        "finished": [],
        "counters": {"next_id": 0, "next_version": 0},
        "amends": {"excluded": [], "kl_scale": 1.0},
        "seconds": 1.0,
        "checkpoints": {},
        "findings": {},
        "telemetry": {"stages": {}, "phases": [], "run_id": "abc"},
        "appended": appended,
    }
