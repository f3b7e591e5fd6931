"""The time that a plan takes: the number of batches of each bucket, and the cost of each.

`Rates` are measured by `calibration`, or assumed from a chip's peak rates. `planned_time` turns
them into the seconds of the slowest process, which is when a run ends.

Assumptions about a TPU, none of them measured on one yet: prompts run at 40 % of the peak FLOP/s
(the scaling book's assumption for serving on v5e, https://jax-ml.github.io/scaling-book), decode
steps read parameters and cache at half of the memory's bandwidth, and a program takes a minute to
compile (benchmarks/results/tpu_compile.txt has 16 to 86 s on v5e).
"""

import dataclasses
from collections import Counter
from collections.abc import Container, Mapping, Sequence

from inference.engine.job import Job
from inference.engine.plan import Batch, own_units, pack_batches
from inference.engine.self_check import plan_check
from inference.planner.machines import Machine
from qwen_hooks.config import QwenConfig
from qwen_hooks.sharding import params_bytes

PEAK_SHARE, BANDWIDTH_SHARE = 0.4, 0.5
COMPILE_SECONDS = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """Costs of the parts of a run.

    Attributes:
        source: origin of the numbers, in words.
        load: seconds until the parameters are on the devices.
        compile: seconds to compile each bucket's program.
        batch: seconds to run a batch of each bucket.
        check: seconds to compile the self-check, and seconds to check a sample.
        unit: seconds to commit a unit, while the devices go on computing.
    """

    source: str
    load: float
    compile: Mapping[int, float]
    batch: Mapping[int, float]
    check: tuple[float, float]
    unit: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedTime:
    """Planned seconds of the slowest process.

    Attributes:
        source: see `Rates`.
        load: seconds to load the parameters.
        compile: seconds to compile all programs, if none is in the compilation cache.
        batches: seconds of the devices.
        check: seconds of the self-check.
        commits: seconds to commit; only the part beyond `batches` adds to the total.
    """

    source: str
    load: float
    compile: float
    batches: float
    check: float
    commits: float

    @property
    def total(self) -> float:
        """Seconds until the last file is committed, without uploads after that."""
        return self.load + self.compile + self.check + max(self.batches, self.commits)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """The work of one process.

    Attributes:
        units: number of units that it commits.
        batches: number of batches of each bucket.
        checked: number of samples that the self-check computes again.
    """

    units: int
    batches: Mapping[int, int]
    checked: int


def batches_of(job: Job, number: int, committed: Container[int]) -> list[Batch]:
    """Return the batches of a worker."""
    own = own_units(job.units, number, job.workers.count, committed)
    return list(pack_batches(own, job.plan, job.workers.layout.mesh.shape["data"]))


def work_of(job: Job, committed: Container[int]) -> list[Work]:
    """Return the work of each worker."""
    found = []
    for number in range(job.workers.count):
        batches = batches_of(job, number, committed)
        planned = plan_check(batches, job.settings.self_check_rows, job.settings.max_new_tokens)
        units = own_units(job.units, number, job.workers.count, committed)
        work = Work(
            units=sum(1 for _ in units),
            batches=Counter(batch.bucket for batch in batches),
            checked=len(planned.samples),
        )
        found.append(work)
    return found


def planned_time(work: Sequence[Work], rates: Rates) -> PlannedTime:
    """Return the planned time of the slowest process."""

    def of(one: Work) -> PlannedTime:
        runs = bool(one.batches)
        compiling, each = rates.check
        return PlannedTime(
            source=rates.source,
            load=rates.load if runs else 0.0,
            compile=sum((rates.compile[bucket] for bucket in one.batches), 0.0),
            batches=sum(
                (count * rates.batch[bucket] for bucket, count in one.batches.items()), 0.0
            ),
            check=compiling + each * one.checked if one.checked else 0.0,
            commits=one.units * rates.unit,
        )

    return max(map(of, work), key=lambda time: time.total)


def assumed_rates(job: Job, machine: Machine) -> Rates:
    """Return rates assumed from the peak rates of a slice's chips; see the module's docstring."""
    buckets = sorted({unit.bucket for unit in job.units if unit.bucket})
    return Rates(
        source=f"assumed, not measured: prompts at {PEAK_SHARE:.0%} of {machine.generation}'s"
        f" peak, decoding at {BANDWIDTH_SHARE:.0%} of its bandwidth, {COMPILE_SECONDS:.0f} s to"
        " compile a program; reading weights and writing files not counted",
        load=0.0,
        compile=dict.fromkeys(buckets, COMPILE_SECONDS),
        batch={bucket: _assumed_seconds(job, machine, bucket) for bucket in buckets},
        check=(COMPILE_SECONDS, 0.0),
        unit=0.0,
    )


def _assumed_seconds(job: Job, machine: Machine, bucket: int) -> float:
    config, new_tokens = job.prepared.pretrained.checkpoint.config, job.settings.max_new_tokens
    model = job.workers.layout.mesh.shape["model"]
    rows = job.plan.batch_size(bucket)
    blocks = config.num_hidden_layers if new_tokens else job.prepared.pretrained.model.blocks_needed
    flops = prompt_flops(config, rows, bucket, blocks) / model
    seconds = flops / (PEAK_SHARE * machine.peak_flops)
    if new_tokens > 1:
        itemsize = job.prepared.pretrained.dtype.itemsize
        keys = config.num_key_value_heads * job.workers.layout.kv_repeats * config.head_dim
        cache = 2 * config.num_hidden_layers * rows * (bucket + new_tokens - 1) * keys * itemsize
        read = (params_bytes(config, itemsize) + cache) / model
        seconds += (new_tokens - 1) * read / (BANDWIDTH_SHARE * machine.hbm_bandwidth)
    return seconds


def prompt_flops(config: QwenConfig, rows: int, slots: int, blocks: int) -> float:
    """Return the FLOPs of prompts in some blocks.

    Two for each parameter and token, and four for each pair of query and visible key (on average
    half of the slots) and dimension of the heads.
    """
    D, F = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    params = 2 * D * queries + 2 * D * keys + 3 * D * F
    return blocks * rows * slots * (2.0 * params + 2.0 * queries * slots)
