"""The workloads, one line each; no other file names them."""

from __future__ import annotations

from foreword.bench.conformance.workload import Conformance
from foreword.bench.distill.workload import Distill
from foreword.bench.many.workload import Many
from foreword.bench.many_train.workload import ManyTrain
from foreword.bench.mixed.workload import Mixed
from foreword.bench.quality.workload import Quality
from foreword.bench.search.workload import Search
from foreword.bench.serve.workload import Serve
from foreword.bench.step.workload import Step
from foreword.bench.train.workload import Train
from foreword.bench.ttft.workload import Ttft
from foreword.bench.workload import Workload

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Ttft(),
        Mixed(),
        Many(),
        Step(),
        Serve(),
        Train(),
        ManyTrain(),
        Search(),
        Quality(),
        Distill(),
        Conformance(),
    )
}
