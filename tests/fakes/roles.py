"""The fleet of a run whose workers are toys in this process; all else is the real one."""

from __future__ import annotations

from functools import partial
from typing import Any

from fakes.backend import LocalBackend
from fakes.engines import Ring
from fakes.hub import Hub, recorded
from fakes.workers import FAKES
from orchestrator.config.cluster import RoleName
from orchestrator.config.schema import Config
from orchestrator.roles.fleet import GROUPS, Fleet
from orchestrator.roles.group import Launch
from orchestrator.telemetry.role_time import Account


class FakeRoles(Fleet):
    """All groups of one run, with as many workers as `sizes` says, one by default.

    Nobody watches the workers: a role that has lost one is known from `hub.faults.gone`.
    """

    def __init__(self, hub: Hub, config: Config, **sizes: int) -> None:
        nowhere: Any = None
        super().__init__(config, nowhere, hub.position, Account())
        self.hub = hub
        self._sizes = sizes
        self.brought_up: list[tuple[RoleName, ...]] = []
        self.released: list[RoleName] = []

    def bring_up(self, *names: RoleName) -> None:
        self.brought_up.append(names)
        super().bring_up(*names)

    def release(self, *names: RoleName) -> None:
        self.released += names
        super().release(*names)

    def replace_lost(self) -> list[str]:
        gone, self.hub.faults.gone = sorted(self.hub.faults.gone), set()
        for role in gone:
            self._groups.pop(RoleName(role)).kill()
        self._interrupt()
        return [f"{role} rank 0" for role in gone]

    def _make(self, name: RoleName) -> Any:
        return recorded(GROUPS[name], self.hub)(self._launch(name))

    def _launch(self, name: RoleName) -> Launch:
        size = self._sizes.get(name.value, 1)
        ring = Ring(size)
        return Launch(
            backend=LocalBackend(
                lambda worker, rank: FAKES[worker.load()](rank, self.hub, ring),
                partial(self.hub.fault, name.value),
                threads=size > 1 and name in (RoleName.policy, RoleName.critic),
            ),
            options=lambda _: {},
            workers=size,
            start_seconds=self._config.run.role_start_seconds,
            call_seconds=self._config.run.call_seconds,
            position=self.hub.position,
        )
