"""Checks of whole runs on this machine: doctor, recipe, precisions, and memory in turns."""

from __future__ import annotations

import json
import math
from pathlib import Path

from benchmarks.gpu.checks import Bench, CannotRunError, Check, Figures, require
from benchmarks.gpu.product.runs import Finished, MemoryWatch, command, place, run

# Gold scores of `+experiment=pocket` on CPUs, seeds and processors of README.md and of
# benchmarks/README.md: the least and the most.
CPU_GOLD = {"sft": (1.61, 1.74), "ppo": (2.26, 2.41)}
_GOLD_SLACK = 0.25  # GPUs sum in another order, which changes samples as another seed does
_FP32 = [
    "trainer=zero1", "rollout.precision=fp32", "rollout.parity_tolerance=0.001",
    "algorithm.evaluate_every=0",
]  # fmt: skip
_EXACT, _CLOSE = 1e-3, 0.3  # nats between engine and trainer in fp32 and in bf16
_BUDGET = 150.0  # seconds of a run of a few iterations
MODELS = ("base", "sft", "reward_model")


def check_doctor(bench: Bench) -> Figures:
    """No check of the doctor fails, the engine's included."""
    words = ["+experiment=pocket", *place(bench), *([] if bench.quick else ["--engine"]), "--json"]
    found = json.loads(command("orchestrator.doctor", words, 90.0, codes=(0, 2)))
    failed = [f"{c['name']}: {c['what']}" for c in found["checks"] if c["state"] == "fail"]
    require(not failed, "; ".join(failed))
    return {"checks": len(found["checks"]), "warnings": _states(found, "warn")}


def _states(found: dict, state: str) -> str:
    return ", ".join(c["name"] for c in found["checks"] if c["state"] == state)


def check_recipe(bench: Bench) -> Figures:
    """The whole recipe in fp32 has the parity and the gold scores of a CPU."""
    finished = run(
        bench,
        "recipe",
        ["stages=[pretrain,sft,reward_model,ppo,evaluate]", "rollout.enforce_eager=true", *_FP32],
        240.0,
    )
    found = _sound(finished, _EXACT)
    models = finished.summary["evaluation"]["models"]
    gold = {name: models[name]["gold_mean"] for name in CPU_GOLD}
    for name, (least, most) in CPU_GOLD.items() if not bench.quick else ():
        near = least - _GOLD_SLACK <= gold[name] <= most + _GOLD_SLACK
        require(near, f"{name} has gold score {gold[name]:.2f}; CPUs {least} to {most}")
    return found | {f"gold_{name}": score for name, score in gold.items()}


def _sound(finished: Finished, nats: float) -> Figures:
    """What holds for every run: all sequences accounted for, engines like trainers."""
    ledger, parity = finished.summary["ledger"], finished.parity
    require(ledger["generated"] == ledger["trained"] + ledger["dropped"], f"the ledger: {ledger}")
    require(parity <= nats, f"engine and trainer are {parity:.2g} nats apart, allowed {nats:g}")
    require(finished.summary["restarts"] == 0, "workers were restarted")
    return {
        "parity_nats": parity,
        "syncs": finished.summary["weight_sync"]["count"],
        "sync_seconds": finished.summary["weight_sync"]["seconds_median"],
        "seconds": finished.summary["timing"]["total_seconds"],
    }


def _models(bench: Bench) -> list[str]:
    """PPO's models, which the recipe made."""
    folder = bench.folder / "recipe" / "checkpoints"
    missing = [name for name in MODELS if not (folder / name / "config.json").exists()]
    if missing:
        raise CannotRunError(f"the recipe made no {missing[0]}")
    return ["stages=[ppo]", *(f"model.checkpoints.{n}={folder / n}" for n in MODELS)]


def _ppo(bench: Bench, name: str, iterations: int, keys: list[str]) -> Finished:
    """A few iterations of PPO on the recipe's models."""
    words = [*_models(bench), f"algorithm.iterations={iterations}", *keys]
    return run(bench, name, words, _BUDGET)


def check_bf16(bench: Bench) -> Figures:
    """PPO in bf16, CUDA graphs included, learns."""
    precision = [
        "trainer.precision=bf16",
        "rollout.precision=bf16",
        f"rollout.parity_tolerance={_CLOSE}",
    ]
    every = ["algorithm.evaluate_every=4"]
    finished = _ppo(bench, "bf16", 2 if bench.quick else 8, [*precision, *every])
    gold = finished.series("ppo/gold_mean")
    found = _sound(finished, _CLOSE) | {"gold_before": gold[0], "gold_after": gold[-1]}
    require(bench.quick or gold[-1] > gold[0], f"gold went from {gold[0]:.2f} to {gold[-1]:.2f}")
    losses = finished.series("ppo/policy_loss")
    require(all(map(math.isfinite, losses)), f"losses {losses}")
    return found


def check_graphs(bench: Bench) -> Figures:
    """Engines with captured CUDA graphs compute with the weights that they receive."""
    keys = ["rollout.enforce_eager=false", *_FP32]
    if not bench.cuda:
        keys = keys[1:]  # vLLM captures nothing on a CPU
    finished = _ppo(bench, "graphs", 2, keys)
    syncs = finished.series("ppo/parity_max")
    require(len(syncs) >= 2, f"{len(syncs)} syncs")
    return _sound(finished, _EXACT)


def check_turns(bench: Bench) -> Figures:
    """Engines and trainers that take turns with the memory train alike, in less of it."""
    if not bench.cuda:
        raise CannotRunError("on a CPU engines and trainers give no memory away")
    shared = [
        "trainer=zero2",
        "rollout.enforce_eager=true",
        "rollout.precision=fp32",
        "rollout.parity_tolerance=0.001",
    ]
    peaks: dict[str, int] = {}
    scores: dict[str, float] = {}
    for name, keys in (
        ("kept", []), ("turns", ["rollout.sleep=true", "trainer.rest_on_host=true"])
    ):  # fmt: skip
        with MemoryWatch() as watch:
            finished = _ppo(bench, name, 3, [*shared, *keys, "algorithm.evaluate_every=0"])
        _sound(finished, _EXACT)
        require(bool(watch.used), "nvidia-smi does not say how much memory is in use")
        peaks |= {f"{name}_most_mib": max(watch.used), f"{name}_least_mib": min(watch.used)}
        scores[name] = finished.series("ppo/score_mean")[0]
    apart = abs(scores["turns"] - scores["kept"])
    require(apart <= 0.05, f"the first scores are {apart:.2g} apart")
    return peaks | {"score_difference": apart}


def check_throughput(bench: Bench) -> Figures:
    """Engines of a run next to raw vLLM on the same prompts."""
    out = bench.folder / "throughput"
    levels = "4,8" if bench.quick else "64,256"
    tokens = "6" if bench.quick else "64"
    experiment = "pocket_tiny" if bench.quick else "pocket"
    command(
        "benchmarks.rollout_throughput",
        [f"+experiment={experiment}", *place(bench), "algorithm.samples_per_prompt=4",
         "--concurrency", levels, "--output-tokens", tokens, "--repetitions", "2",
         "--out", str(out)],
        150.0,
    )  # fmt: skip
    (path,) = Path(out).glob("*.json")
    found: Figures = {}
    for point in json.loads(path.read_text())["points"]:
        at, sides = point["concurrency"], point["sides"]
        found[f"ratio_at_{at}"] = point["ours_over"]["raw"]["median"]
        found[f"tokens_per_second_at_{at}"] = sides["ours"]["tokens_per_second"]
        require(found[f"ratio_at_{at}"] >= 0.5, f"half as fast as raw vLLM at {at}: {found}")
    return found


CHECKS = [
    Check("doctor", check_doctor, 120.0, ("vllm",)),
    Check("recipe in fp32", check_recipe, 270.0, ("vllm", "ray", "deepspeed")),
    Check("PPO in bf16", check_bf16, 180.0, ("vllm", "ray", "deepspeed")),
    Check("new weights in CUDA graphs", check_graphs, 180.0, ("vllm", "ray", "deepspeed")),
    Check("memory in turns", check_turns, 330.0, ("vllm", "ray", "deepspeed")),
    Check("rollouts next to raw vLLM", check_throughput, 180.0, ("vllm", "ray", "deepspeed")),
]
