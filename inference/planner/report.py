"""The report of a plan.

lines(planned)      the lines that `python -m launch plan` prints
planned.document()  the same as JSON, for `--json`
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from inference.engine.memory import MemoryEstimate
from inference.planner.machines import GIB, Machine
from inference.planner.prices import Prices
from inference.planner.seconds import PlannedTime
from inference.planner.sizes import PlannedFiles

HOOK_POINTS_SHOWN = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """A checked plan.

    Attributes:
        machine: slice of the plan; None: this machine.
        samples: number of samples of the run.
        skipped: number of samples that cannot run.
        prompt_tokens: tokens of the prompts that run.
        computed_tokens: tokens of those prompts with padding.
        units: number of units, including committed ones and those of skipped samples.
        committed: number of units that are committed already.
        files: files of all units.
        programs: buckets that a program is compiled for.
        mesh: data and model axis of all devices.
        processes: number of processes that run units.
        memory: estimated memory of a device with the bucket that needs most.
        compiled_memory: the same in bytes from the TPU compiler; None: it was not asked.
        fullest_bucket: the bucket that needs most memory.
        device_memory: bytes of a device.
        time: planned time; None: not known.
        dollars: dollars by kind of price; empty: not known.
        prices: prices that the dollars come from.
        place: a line about the folder or bucket of the files.
    """

    machine: Machine | None
    samples: int
    skipped: int
    prompt_tokens: int
    computed_tokens: int
    units: int
    committed: int
    files: PlannedFiles
    programs: tuple[int, ...]
    mesh: tuple[int, int]
    processes: int
    memory: MemoryEstimate | None
    compiled_memory: int | None
    fullest_bucket: int
    device_memory: int
    time: PlannedTime | None
    dollars: Mapping[str, float]
    prices: Prices
    place: str

    def document(self) -> dict[str, Any]:
        """Return the plan as a JSON object."""
        files, memory, time = self.files, self.memory, self.time
        return {
            "machine": self.machine.name if self.machine else None,
            "samples": self.samples,
            "skipped": self.skipped,
            "prompt_tokens": self.prompt_tokens,
            "computed_tokens": self.computed_tokens,
            "units": self.units,
            "committed_units": self.committed,
            "rows": files.rows,
            "sequences": files.sequences,
            "bytes": dict(files.bytes),
            "activation_bytes": files.activation_bytes,
            "activation_files": files.activation_files,
            "exact": files.exact,
            "output_bytes": files.output_bytes,
            "outputs_exact": files.outputs_exact,
            "programs": list(self.programs),
            "mesh": list(self.mesh),
            "processes": self.processes,
            "memory": dataclasses.asdict(memory) if memory else None,
            "compiled_memory": self.compiled_memory,
            "device_memory": self.device_memory,
            "seconds": dataclasses.asdict(time) | {"total": time.total} if time else None,
            "dollars": dict(self.dollars),
            "prices_of": self.prices.date,
        }


def lines(planned: Planned) -> list[str]:
    """Return the lines of the plan, one fact each."""
    files = planned.files
    most = "" if files.exact else "at most "
    done = f"; {planned.committed} units are there already" if planned.committed else ""
    shown = [
        f"samples      {planned.samples}, of which {planned.skipped} skipped",
        f"tokens       {planned.prompt_tokens} of prompts, {planned.computed_tokens} computed"
        " with padding",
        f"rows         {most}{files.rows} of {files.sequences} samples for each of"
        f" {len(files.bytes)} hook points",
        f"activations  {most}{_bytes(files.activation_bytes)} in {files.activation_files} files",
        *_hook_points(files, most),
        f"outputs      {'' if files.outputs_exact else 'at least '}{_bytes(files.output_bytes)}",
        f"batches      {planned.units} units, a commit record and a part of the outputs for each"
        f"{done}",
        f"programs     {_programs(planned.programs)}",
        f"mesh         {planned.mesh[0]},{planned.mesh[1]} on {_machine(planned.machine)},"
        f" {planned.processes} processes run units",
    ]
    if planned.memory is not None:
        needed, source = planned.memory.params + planned.memory.batch, "the engine's estimate"
        if planned.compiled_memory is not None:
            source = f"the TPU compiler's figure; the engine's estimate is {_gib(needed)}"
            needed = planned.compiled_memory
        shown.append(
            f"memory       {_gib(needed)} of {_gib(planned.device_memory)} GiB on each device at"
            f" prompts of {planned.fullest_bucket} tokens, {_gib(planned.memory.params)} of it"
            f" parameters ({source})"
        )
    shown += [*_time(planned), f"goes to      {planned.place}"]
    return shown


def _hook_points(files: PlannedFiles, most: str) -> list[str]:
    if len(files.bytes) > HOOK_POINTS_SHOWN:
        least, largest = min(files.bytes.values()), max(files.bytes.values())
        return [f"             {most}{_bytes(least)} to {_bytes(largest)} of a hook point"]
    return [
        f"             {most}{_bytes(size)} of {hook}, {files.widths[hook]} wide"
        for hook, size in files.bytes.items()
    ]


def _programs(buckets: tuple[int, ...]) -> str:
    if not buckets:
        return "none"
    return f"{len(buckets)} to compile, for prompts of up to {', '.join(map(str, buckets))} tokens"


def _machine(machine: Machine | None) -> str:
    if machine is None:
        return "this machine"
    return f"{machine.name} ({machine.chips} chips, {machine.hosts} hosts)"


def _time(planned: Planned) -> list[str]:
    time = planned.time
    if time is None:
        return ["time         not known; --calibrate 3 measures it here, --machine assumes it"]
    parts = {
        "loading": time.load,
        "compiling": time.compile,
        "batches": time.batches,
        "self-check": time.check,
    }
    told = ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts.items())
    shown = [
        f"time         {time.total / 3600:.2f} h, {time.total:.1f} s: {told}",
        f"             {time.source}",
    ]
    if time.batches:
        rate = planned.prompt_tokens / time.batches
        shown.append(f"             {rate:.0f} prompt tokens/s when all is compiled")
    if planned.dollars:
        told = ", ".join(f"{value:.2f} {kind}" for kind, value in planned.dollars.items())
        shown += [
            f"dollars      {told.replace('_', ' ')}, for the chips alone",
            f"             prices of {planned.prices.date}: {planned.prices.source}",
        ]
    return shown


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"


def _bytes(size: int) -> str:
    if size < 10_000:
        return f"{size} bytes"
    for unit, worth in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= worth:
            return f"{size} bytes ({size / worth:.1f} {unit})"
    return f"{size} bytes ({size / 1e3:.1f} kB)"
