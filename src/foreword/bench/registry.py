"""The workloads, one line each; no other file names them."""

from __future__ import annotations

from foreword.bench.quality.workload import Quality
from foreword.bench.train.workload import Train
from foreword.bench.workload import Workload

WORKLOADS: dict[str, Workload] = {workload.name: workload for workload in (Train(), Quality())}
