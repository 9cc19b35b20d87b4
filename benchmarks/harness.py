"""The harness: every package in a process of its own, taking turns round by round, stopped while another is timed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

from benchmarks.agent.environment import Environment, read_environment
from benchmarks.agent.observe import MachineTimes, PeakWatch, Resident, machine_times, process_cpu_s
from benchmarks.measurement import Measurement
from benchmarks.statistics import percentile
from benchmarks.validity import Disturbance, judge
from benchmarks.workload import Workload
from compiler.errors import UnusableInput
from compiler.package import Package
from runtimes.registry import only_evaluated, runtime_distributions

_MEMORY_FACTOR = 1.5  # what a runtime needs for a package, at least, of the package's own bytes

Progress = Callable[[int, int], None]


@dataclass
class _Runner:
    """A package's child process and what it has given so far."""

    package: Package
    process: subprocess.Popen[str]
    log: Any
    load_s: float = 0.0
    imports_bytes: int | None = None
    peak: Resident = field(default_factory=lambda: Resident(None, None, None))
    peak_rss_bytes: int | None = None
    rounds: list[dict[str, list[float]]] = field(default_factory=list)
    other_s: float | None = 0.0
    stolen_s: float | None = 0.0
    wall_s: float = 0.0
    swapped_pages: int | None = 0
    throttled: int | None = 0

    def ask(self, command: str) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise UnusableInput(f"{self.package.name} could not be measured: its process ended. {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise UnusableInput(f"{self.package.name} could not be measured: {answer['error']}.")
        return answer

    def _last_words(self) -> str:
        self.log.seek(0)
        lines = [line for line in self.log.read().splitlines() if line.strip()]
        return f"It said last: {lines[-1][:300]}" if lines else "It said nothing."


def bench(packages: Sequence[Package], workload: Workload, on_progress: Progress | None = None) -> list[Measurement]:
    """Measure packages on this machine.

    Every child loads and warms up alone, then waits stopped (SIGSTOP). In each round every package runs once, the order
    turned by one from round to round; what else the machine did meanwhile is counted.

    Raises:
        UnusableInput: a package cannot be run, or memory does not suffice to hold all of them.
    """
    for package in packages:
        if only_evaluated(package):
            raise UnusableInput(
                f"{package.name} is only evaluated on this machine, which says nothing of its speed on a device. Leave it "
                "out, or measure it on macOS."
            )
    needed = int(sum(package.nbytes for package in packages) * _MEMORY_FACTOR)
    if needed > psutil.virtual_memory().available:
        raise UnusableInput(
            f"The packages need about {needed / 1e9:.1f} GB of memory together, and "
            f"{psutil.virtual_memory().available / 1e9:.1f} GB are free. Measure fewer at once."
        )
    distributions = [name for package in packages for name in runtime_distributions(package.lowered.runtime)]
    environment = read_environment(workload.threads, distributions)
    steps = len(packages) * (workload.rounds + 1)
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done, steps)

    with ExitStack() as stack:
        runners = []
        for package in packages:
            runner = _start(package, workload, stack)
            _warm_up(runner)
            _signal(runner, signal.SIGSTOP)
            runners.append(runner)
            advance()
        for number in range(workload.rounds):
            turn = number % len(runners)
            for runner in runners[turn:] + runners[:turn]:
                _signal(runner, signal.SIGCONT)
                _timed_round(runner)
                _signal(runner, signal.SIGSTOP)
                advance()
        for runner in runners:
            _signal(runner, signal.SIGCONT)
            runner.peak_rss_bytes = runner.ask("end")["peak_rss_bytes"]
    return [_measurement(runner, workload, environment) for runner in runners]


def _start(package: Package, workload: Workload, stack: ExitStack) -> _Runner:
    log = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace"))  # noqa: SIM115
    arguments = [str(package.folder.resolve()), json.dumps(asdict(workload))]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "benchmarks.agent.child", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(workload.threads)},
    )
    stack.callback(_end, process)
    return _Runner(package, process, log)


def _end(process: subprocess.Popen[str]) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(BrokenPipeError):
                stream.close()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _signal(runner: _Runner, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        runner.process.send_signal(number)


def _warm_up(runner: _Runner) -> None:
    """Load and run untimed; memory is polled here, where polling disturbs no sample."""
    with PeakWatch(runner.process.pid) as watch:
        loaded = runner.ask("load")
        runner.ask("warmup")
    runner.load_s, runner.imports_bytes = loaded["load_s"], loaded["imports"]
    runner.peak = watch.peak


def _timed_round(runner: _Runner) -> None:
    before, own_before = machine_times(), process_cpu_s(runner.process.pid)
    runner.rounds.append(runner.ask("round")["round"])
    after, own_after = machine_times(), process_cpu_s(runner.process.pid)
    runner.wall_s += after.at_s - before.at_s
    busy = _difference(before.busy_s, after.busy_s)
    own = _difference(own_before, own_after)
    other = None if busy is None or own is None else max(0.0, busy - own)
    runner.other_s = _sum(runner.other_s, other)
    runner.stolen_s = _sum(runner.stolen_s, _difference(before.stolen_s, after.stolen_s))
    runner.swapped_pages = _count(runner.swapped_pages, before, after, "swapped_pages")
    runner.throttled = _count(runner.throttled, before, after, "throttled")


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def _sum(total: float | None, more: float | None) -> float | None:
    return None if total is None or more is None else total + more


def _count(total: int | None, before: MachineTimes, after: MachineTimes, name: str) -> int | None:
    first, last = getattr(before, name), getattr(after, name)
    return None if total is None or first is None or last is None else total + last - first


def _measurement(runner: _Runner, workload: Workload, environment: Environment) -> Measurement:
    package = runner.package
    samples = {name: [part[name] for part in runner.rounds] for name in runner.rounds[0]}
    cores = max(1, environment.logical_cores or 1)
    capacity_s = runner.wall_s * cores
    disturbance = Disturbance(
        None if runner.other_s is None else runner.other_s / capacity_s,
        None if runner.stolen_s is None else runner.stolen_s / capacity_s,
        runner.swapped_pages,
        runner.throttled,
    )
    judged = samples.get("tpot_s") or samples["latency_s"]
    verdict = judge(judged, disturbance)
    summary = _speed(samples, workload) | _memory(runner)
    summary["decode_bandwidth_fraction"] = _bandwidth_fraction(summary, package, environment)
    reasons = {
        "peak_anon_bytes": "the system does not split resident memory",
        "file_mapped_bytes": "the system does not split resident memory",
        "peak_rss_bytes": "the system does not keep a peak",
        "import_rss_bytes": "the system does not tell resident memory",
        "decode_bandwidth_fraction": "only decoders read their weights for each token",
    }
    return Measurement(
        package=package.name,
        recipe=package.recipe,
        model=package.model.name,
        task=package.model.task,
        device="local",
        workload=asdict(workload),
        samples={**samples, "load_s": [[runner.load_s]]},
        summary=summary,
        quality=package.quality,
        environment=asdict(environment),
        verdict={"word": verdict.word, "reasons": list(verdict.reasons), "disturbance": asdict(disturbance)},
        absent={name: reasons.get(name, "not measured") for name, value in summary.items() if value is None},
    )


def _speed(samples: dict[str, list[list[float]]], workload: Workload) -> dict[str, float | int | None]:
    flat = {name: [value for part in rounds for value in part] for name, rounds in samples.items()}
    if "tpot_s" in flat:
        ttft = percentile(flat["ttft_s"], 0.5)
        return {
            "ttft_s": ttft,
            "prefill_tok_per_s": workload.prompt_tokens / ttft,
            "tpot_ms_p50": 1e3 * percentile(flat["tpot_s"], 0.5),
            "tpot_ms_p90": 1e3 * percentile(flat["tpot_s"], 0.9),
            "tpot_ms_p99": 1e3 * percentile(flat["tpot_s"], 0.99),
            "decode_tok_per_s": percentile([len(part) / sum(part) for part in samples["tpot_s"]], 0.5),
        }
    return {
        "latency_ms_p50": 1e3 * percentile(flat["latency_s"], 0.5),
        "latency_ms_p90": 1e3 * percentile(flat["latency_s"], 0.9),
        "latency_ms_p99": 1e3 * percentile(flat["latency_s"], 0.99),
    }


def _memory(runner: _Runner) -> dict[str, float | int | None]:
    return {
        "load_s": runner.load_s,
        "package_bytes": runner.package.nbytes,
        "effective_bits_per_weight": runner.package.lowered.weights.effective_bits_per_weight,
        "peak_rss_bytes": runner.peak_rss_bytes,
        "peak_anon_bytes": runner.peak.anon_bytes,
        "file_mapped_bytes": runner.peak.file_bytes,
        "import_rss_bytes": runner.imports_bytes,
    }


def _bandwidth_fraction(
    summary: dict[str, float | int | None], package: Package, environment: Environment
) -> float | None:
    """Bytes of weights that decoding read per second over what this machine can read."""
    read, speed = package.lowered.weights.decode_read_bytes, summary.get("decode_tok_per_s")
    if read is None or speed is None or not environment.memory_read_bytes_per_s:
        return None
    return speed * read / environment.memory_read_bytes_per_s
