"""Weights through the network, from host memory to host memory."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import torch.distributed as dist

from workers.weights.process_group import GroupReceiver, GroupSender, ProcessGroup
from workers.weights.transport import Transport


def _group(store: dist.Store, rank: int, size: int, timeout: timedelta) -> ProcessGroup:
    return dist.ProcessGroupGloo(store, rank, size, timeout)


TRANSPORT = Transport(partial(GroupSender, _group, False), partial(GroupReceiver, _group, False))
