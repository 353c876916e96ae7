"""A run folder with a model and checkpoints, and a store in memory that fails when told."""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec.implementations.memory import MemoryFileSystem

from fakes.progress import progress
from fakes.toy import ToyPolicy
from orchestrator.checkpoints import model_folder
from orchestrator.checkpoints.saved_runs import SavedRuns
from orchestrator.mirror.background import Mirror
from orchestrator.mirror.claim import Claim, find_claim
from orchestrator.mirror.pruning import Keep
from orchestrator.mirror.store import Store
from orchestrator.run_files.folder import RunFolder
from workers.records.processes import FileRecord

ALL = Keep(100, 0, frozenset())
FACTS = {"config": {"seed": 0}, "versions": {"torch": "1"}}


@dataclass
class Faults:
    """What goes wrong with a store."""

    every: int = 0  # each of so many writes fails; 0 = none
    error: BaseException | None = None  # every call fails
    block: threading.Event | None = None  # calls wait for it
    on_write: Callable[[str], object] = lambda path: None
    writes: int = 0

    def call(self) -> None:
        if self.block is not None:
            self.block.wait(20)
        if self.error is not None:
            raise self.error

    def write(self, path: str) -> None:
        self.call()
        self.writes += 1
        self.on_write(path)
        if self.every and self.writes % self.every == 0:
            raise ConnectionError("the connection was reset")


class FaultyMemory(MemoryFileSystem):
    """fsspec's memory file system with faults."""

    cachable = False

    def __init__(self, faults: Faults) -> None:
        super().__init__()
        self.faults = faults

    def open(self, path: str, mode: str = "rb", **more: Any) -> Any:
        self.faults.write(path) if "r" not in mode else self.faults.call()
        return super().open(path, mode, **more)

    def info(self, path: str, **more: Any) -> Any:
        self.faults.call()
        return super().info(path, **more)


class World:
    """A run folder and its mirror in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.faults = Faults()
        self.system = FaultyMemory(Faults())  # looks without faults
        self.root = f"/{uuid.uuid4().hex}"
        self.store = self.another_store()
        self.folder = made_folder(path / "run")
        self.runs = SavedRuns(self.folder)
        self.said: list[str] = []

    def another_store(self, seconds: float = 10.0) -> Store:
        return Store(lambda: FaultyMemory(self.faults), self.root, "s3://bucket/run", seconds)

    def mirror(self, folder: RunFolder | None = None, resume: str = "auto") -> Mirror:
        """A mirror that has begun."""
        folder, store = folder or self.folder, self.another_store()
        found = Mirror(store, folder, self.claim(folder, resume), pause=0.001)
        found.tell = self.said.append
        found.begin()
        return found

    def claim(self, folder: RunFolder, resume: str = "auto") -> Claim:
        return find_claim(self.store, folder, resume)

    def save(self, step: int, data: bytes = b"state", stage: str = "ppo") -> Path:
        """Append a metric and publish a checkpoint of a policy's state."""
        with self.folder.metrics.open("a") as file:
            file.write(f'{{"step": {step}}}\n')
        return save(self.folder, step, data, stage)

    def objects(self) -> dict[str, bytes]:
        return {
            path.removeprefix(f"{self.root}/"): self.system.cat_file(path)
            for path in self.system.find(self.root)
        }

    def put(self, name: str, data: bytes) -> None:
        self.system.pipe_file(f"{self.root}/{name}", data)


def made_folder(path: Path) -> RunFolder:
    """A run folder with a published model, metrics and configuration."""
    folder = RunFolder(path).create()
    folder.config.write_text("seed: 0\n")
    folder.metrics.write_text('{"step": 0}\n')
    folder.rollouts.write_text('{"step": 0}\n')
    publish(folder, "sft", 1)
    return folder


def publish(folder: RunFolder, name: str, seed: int) -> None:
    model_folder.publish(
        folder.checkpoints / name, lambda to: ToyPolicy.create(40, seed).save(to), {"stage": name}
    )


def save(folder: RunFolder, step: int, data: bytes = b"state", stage: str = "ppo") -> Path:
    runs = SavedRuns(folder)
    partial = runs.begin(stage, step)
    (partial / "policy.0.safetensors").write_bytes(data)
    record = FileRecord("policy.0.safetensors", len(data), hashlib.sha256(data).hexdigest())
    models = {each.name: f"checkpoints/{each.name}" for each in folder.checkpoints.iterdir()}
    sizes = {
        "metrics.jsonl": folder.metrics.stat().st_size,
        "samples/rollouts.jsonl": folder.rollouts.stat().st_size,
    }
    known = progress(stage, step, **sizes) | {"checkpoints": models}
    products = [folder.path / each / model_folder.MANIFEST for each in models.values()]
    return runs.publish(partial, [record], known, FACTS, products)


def forever() -> float:
    """Seconds that `finish` may take."""
    return 30.0


def files_of(folder: RunFolder) -> dict[str, bytes]:
    """All files of a run folder that a resume reads."""
    own = (".lock", "mirror.json")
    return {
        str(path.relative_to(folder.path)): path.read_bytes()
        for path in sorted(folder.path.rglob("*"))
        if path.is_file() and path.name not in own
    }
