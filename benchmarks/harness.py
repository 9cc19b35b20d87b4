"""The harness: every package in an agent of its own, taking turns round by round, held still while another is timed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import reduce
from typing import Any, TypeVar

from benchmarks.agent.conditions import Conditions, join
from benchmarks.agent.environment import Environment
from benchmarks.agent.observe import Observed, Resident
from benchmarks.measurement import Measurement
from benchmarks.validity import Disturbance, judge
from compiler import __version__
from compiler.errors import UnusableInput
from compiler.package import Package
from compiler.package_use import require_finished, require_usable
from compiler.records import from_json
from runtimes.devices.device import Agent, Device
from runtimes.devices.registry import is_emulated, open_device
from runtimes.kinds import kind_of_task
from runtimes.kinds.kind import Figures
from runtimes.registry import require_measurable, runtime_distributions
from runtimes.verify.verification import Verification, read_verification
from runtimes.workload import Workload

AGENT = "benchmarks.agent.main"
_MEMORY_FACTOR = 1.5  # what a runtime needs for a package, at least, of the package's own bytes

Progress = Callable[[int, int], None]


T = TypeVar("T")


@dataclass(frozen=True)
class _Facts:
    environment: Environment


@dataclass(frozen=True)
class _Loaded:
    load_s: float
    imports: int | None
    workload: Workload


@dataclass(frozen=True)
class _Warm:
    peak: Resident


@dataclass(frozen=True)
class Round:
    """Seconds of one round by what was timed, and what else happened meanwhile."""

    round: dict[str, tuple[float, ...]]
    observed: Observed


@dataclass(frozen=True)
class _End:
    peak_rss_bytes: int | None


@dataclass
class Runner:
    """A package's agent and what it has given so far."""

    package: Package
    agent: Agent
    load_s: float = 0.0
    workload: Workload = field(default_factory=Workload)
    imports_bytes: int | None = None
    peak: Resident = field(default_factory=lambda: Resident(None, None, None))
    peak_rss_bytes: int | None = None
    rounds: list[dict[str, tuple[float, ...]]] = field(default_factory=list)
    observed: list[Observed] = field(default_factory=list)

    def ask(self, line: str) -> dict[str, Any]:
        try:
            return self.agent.ask(line)
        except UnusableInput as error:
            raise UnusableInput(f"{self.package.title} could not be measured: {error}") from error

    def round(self) -> Round:
        """One timed round."""
        return self.told(Round, "round")

    def told(self, kind: type[T], line: str) -> T:
        """An answer of a form that is known."""
        try:
            return from_json(kind, self.ask(line))
        except ValueError as error:
            raise UnusableInput(
                f"{self.package.title} could not be measured: the agent answers nonsense ({error}). Another release of edgec "
                "may run there."
            ) from error


def bench(
    packages: Sequence[Package],
    workload: Workload,
    *,
    device: str = "local",
    on_progress: Progress = lambda done, total: None,
) -> list[Measurement]:
    """Measure packages on a device.

    Every agent loads and warms up alone, then is held still. In each round every package runs once, the order turned by one
    from round to round; what else the machine did meanwhile is counted by the agent.

    Raises:
        UnusableInput: a package cannot be run, or memory does not suffice to hold all of them.
    """
    require_ready(packages, device)
    found = [read_verification(package) for package in packages]
    steps = len(packages) * (workload.rounds + 1)
    opened = open_device(device)
    with ExitStack() as stack:
        runners: list[Runner] = []
        environment = _look_around(opened, packages, workload)
        for package in packages:
            runner = start_runner(opened, package, workload, stack)
            warm_up(runner)
            runner.agent.pause()
            runners.append(runner)
            on_progress(len(runners), steps)
        began = datetime.now(UTC)
        for number in range(workload.rounds):
            turn = number % len(runners)
            for place, runner in enumerate(runners[turn:] + runners[:turn]):
                runner.agent.resume()
                answer = runner.round()
                runner.agent.pause()
                runner.rounds.append(answer.round)
                runner.observed.append(answer.observed)
                on_progress(len(runners) * (number + 1) + place + 1, steps)
        for runner in runners:
            runner.agent.resume()
            runner.peak_rss_bytes = runner.told(_End, "end").peak_rss_bytes
    pairs = zip(runners, found, strict=True)
    return [_measurement(runner, opened.name, environment, quality, began) for runner, quality in pairs]


def require_ready(packages: Sequence[Package], device: str) -> None:
    """Raise UnusableInput where there is nothing to measure, or a package cannot be run."""
    if not packages:
        raise UnusableInput("There is no package to measure.")
    for package in packages:
        require_finished(package)
        if device == "local":
            require_usable(package)
            require_measurable(package)


def start_runner(device: Device, package: Package, workload: Workload, stack: ExitStack) -> Runner:
    """An agent on the device for the package, which ends with the stack."""
    arguments = [device.put(package), json.dumps(asdict(workload))]
    agent = device.start(AGENT, arguments, workload.thread_count)
    stack.callback(agent.close)
    return Runner(package, agent)


def _look_around(device: Device, packages: Sequence[Package], workload: Workload) -> Environment:
    """The machine, by an agent that does nothing else; it must have the memory for all packages at once."""
    distributions = sorted({name for each in packages for name in runtime_distributions(each.lowered.runtime)})
    asked = json.dumps({"threads": workload.threads, "distributions": distributions})
    with ExitStack() as stack:
        runner = start_runner(device, packages[0], workload, stack)
        environment = runner.told(_Facts, f"facts {asked}").environment
    needed, free = sum(each.nbytes for each in packages) * _MEMORY_FACTOR, environment.memory_available_bytes
    if needed > free:
        raise UnusableInput(
            f"The packages need about {needed / 1e9:.1f} GB of memory together, and {free / 1e9:.1f} GB are free. Measure "
            "fewer at once."
        )
    return environment


def warm_up(runner: Runner) -> None:
    """Load and run untimed; memory is watched here, where that disturbs no sample."""
    loaded = runner.told(_Loaded, "load")
    runner.load_s, runner.imports_bytes, runner.workload = loaded.load_s, loaded.imports, loaded.workload
    runner.peak = runner.told(_Warm, "warmup").peak


def _disturbance(observed: Sequence[Observed], cores: int) -> Disturbance:
    """What happened in all rounds together, as shares of what the machine has in that time."""
    capacity_s = sum(each.wall_s for each in observed) * cores

    def total(name: str) -> float | None:
        values = [getattr(each, name) for each in observed]
        return None if None in values else sum(values)

    other, stolen, swapped, throttled = map(total, ("other_s", "stolen_s", "swapped_pages", "throttled"))
    return Disturbance(
        None if other is None else other / capacity_s,
        None if stolen is None else stolen / capacity_s,
        None if swapped is None else int(swapped),
        None if throttled is None else int(throttled),
        _joined([each.conditions for each in observed if each.conditions is not None]),
    )


def _joined(seen: Sequence[Conditions]) -> Conditions | None:
    return reduce(join, seen) if seen else None


_ABSENT = {
    "peak_anon_bytes": "the system does not split resident memory",
    "file_mapped_bytes": "the system does not split resident memory",
    "peak_rss_bytes": "the system does not keep a peak",
    **dict.fromkeys(("latency_ms_p90", "tpot_ms_p90"), "it takes 10 samples"),
    **dict.fromkeys(("latency_ms_p99", "tpot_ms_p99"), "it takes 100 samples"),
    "import_rss_bytes": "the system does not tell resident memory",
    "power_w": "no sensor tells it, or several do and none says that it is the whole",
    "decode_bandwidth_fraction": "the bytes that a token reads, or the memory's bandwidth, are not known",
}


def _energy(conditions: Conditions | None, speed: Figures) -> Figures:
    """What the board took, and for each token, where it has a sensor of power."""
    power, tokens = conditions.power_w if conditions is not None else None, speed.get("decode_tok_per_s")
    found: Figures = {"power_w": power}
    if power is not None and isinstance(tokens, int | float):
        found["joules_per_token"] = power / tokens
    return found


def _measurement(
    runner: Runner, device: str, environment: Environment, quality: Verification | None, began: datetime
) -> Measurement:
    package, kind = runner.package, kind_of_task(runner.package.model.task)
    samples = {name: tuple(tuple(part[name]) for part in runner.rounds) for name in runner.rounds[0]}
    disturbance = _disturbance(runner.observed, max(1, environment.logical_cores or 1))
    speed = kind.summarize(samples, runner.workload, package, environment.memory_read_bytes_per_s)
    summary: dict[str, Any] = speed | {
        "load_s": runner.load_s,
        "package_bytes": package.nbytes,
        "effective_bits_per_weight": package.lowered.weights.effective_bits_per_weight,
        "peak_rss_bytes": runner.peak_rss_bytes,
        "peak_anon_bytes": runner.peak.anon_bytes,
        "file_mapped_bytes": runner.peak.file_bytes,
        "import_rss_bytes": runner.imports_bytes,
        **_energy(disturbance.conditions, speed),
    }
    return Measurement(
        package=package.name,
        digest=package.digest,
        recipe=package.recipe,
        model=package.model.name,
        task=package.model.task,
        device=device,
        workload=runner.workload,
        samples={**samples, "load_s": ((runner.load_s,),)},
        summary=summary,
        quality=quality,
        environment=environment,
        verdict=judge(
            samples[kind.timed[0][1]],
            disturbance,
            runner.workload.thread_count,
            environment.allowed_cores,
            emulated=is_emulated(device),
        ),
        disturbance=disturbance,
        absent={name: _ABSENT.get(name, "not measured") for name, value in summary.items() if value is None},
        measured=f"{began:%Y-%m-%d %H:%M}",
        edgec=__version__,
    )
