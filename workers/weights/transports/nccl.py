"""Weights from GPU to GPU, on one node or several."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import torch.distributed as dist

from workers.weights.process_group import GroupReceiver, GroupSender, ProcessGroup
from workers.weights.transport import Transport


def _group(store: dist.Store, rank: int, size: int, timeout: timedelta) -> ProcessGroup:
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timeout
    return dist.ProcessGroupNCCL(store, rank, size, options)


TRANSPORT = Transport(
    partial(GroupSender, _group, True), partial(GroupReceiver, _group, True), needs_gpu=True
)
