"""Keys that nothing in a run over fakes can show, each with the reason and what looks at it."""

from __future__ import annotations

UNSEEN = {
    "resume": "where a run goes on: test_resume_start.py",
    "rerun": "a run's configuration is read again: test_run.py",
    "run.overwrite": "an old folder is refused without it: test_run.py",
    "run.verify_inputs": "what a run was given is compared before it goes on: test_inputs.py",
    "run.plan_only": "ends before anything starts: test_run.py",
    "run.grace_seconds": "the time after a signal: test_processes.py, chaos tests",
    "cluster.auth": "what is sent to a cluster: test_tokens.py, test_authentication.py",
    "cluster.object_store_mib": "handed to ray.init: test_cluster_start.py",
    "cluster.cpus_per_node": "handed to ray.init: test_cluster_start.py",
    "cluster.gpu_memory_gib": "only the plan reads it: test_plan.py, test_recipes.py",
    "model.checkpoints.initial": "where a stage starts: test_plan.py, test_file_runs.py",
    "model.checkpoints.base": "where a stage starts: test_plan.py",
    "model.checkpoints.sft": "where a stage starts: test_plan.py",
    "model.checkpoints.reward_model": "where a stage starts: test_plan.py",
    "model.checkpoints.ppo": "what is evaluated: test_evaluate_stage.py",
    "model.checkpoints.ppo_ptx": "what is evaluated: test_evaluate_stage.py",
    "model.checkpoints.large": "what is evaluated: test_evaluate_stage.py",
    "model.checkpoints.critic": "where the value function starts: test_backbones.py",
    "rollout.parity_tolerance": "compared after each weight sync: test_weight_sync.py",
    "trainer.packing": "needs a real model folder: test_recipes.py, test_passes.py",
    "evaluate.judge_function": "fakes have no functions: test_judge_config.py",
    "evaluate.judge_checkpoint": "a model that judges: test_judge_config.py",
    "evaluate.endpoint.cache": "a folder of verdicts: test_judge_endpoint.py",
    "evaluate.lm_eval.deadline_seconds": "the end of a process: test_harness.py",
    "algorithm.kl.limit": "ends or turns a run: test_recovery.py",
    "algorithm.kl.on_limit": "ends or turns a run: test_recovery.py",
    "logger.live": "what a terminal shows: test_live.py",
    "logger.sink_seconds": "when a sink is dropped: test_telemetry.py",
}
