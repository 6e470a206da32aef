"""The workloads, one line each; no other file names them."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.conformance.workload import Conformance
from benchmarks.distill.workload import Distill
from benchmarks.many import Many
from benchmarks.many_train.workload import ManyTrain
from benchmarks.mixed.workload import Mixed
from benchmarks.quality.workload import Quality
from benchmarks.report import WorkloadReport
from benchmarks.search.workload import Search
from benchmarks.serve import Serve
from benchmarks.step import Step
from benchmarks.train.workload import Train
from benchmarks.ttft import Ttft

CLASSES: tuple[type[WorkloadReport], ...] = (
    *(Ttft, Mixed, Many, Step, Serve),
    *(Train, ManyTrain, Search, Quality, Distill, Conformance),
)
WORKLOADS: Mapping[str, WorkloadReport] = {workload.name: workload() for workload in CLASSES}
