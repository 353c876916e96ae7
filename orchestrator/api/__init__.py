"""Rehearsal from Python: compose, plan and run a recipe; read a run; ask its models.

For example::

    from orchestrator import api

    print(api.plan("+experiment=pocket_tiny"))
    run = api.run("+experiment=pocket_tiny", "run.dir=outputs/tiny")
    run.evaluation()
    api.generate(run.models["ppo_ptx"], ["user : where does the fox live ? reply :"])

Arguments are those of `rehearsal run`, one text each. Nothing here imports torch, Ray or pandas
before a function needs it.
"""

from orchestrator.api.composing import Planned, compose, plan
from orchestrator.api.generating import generate
from orchestrator.api.loading import Run, find, load
from orchestrator.api.running import RunFailedError, run

__all__ = ["Planned", "Run", "RunFailedError", "compose", "find", "generate", "load", "plan", "run"]
