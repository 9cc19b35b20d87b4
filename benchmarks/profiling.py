"""The profile of a machine that is there: looked at by an agent on it."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.agent.environment import Environment
from compiler.errors import UnusableInput
from compiler.records import from_json
from runtimes.devices.device import Agent
from runtimes.devices.profile import DeviceProfile, find_profile, profile_of_machine, require_new, write_profile
from runtimes.devices.registry import is_emulated, open_device

LOCAL = "local"
# Those whose runtimes exist for computers and boards with Linux.
_TARGETS = ("gguf", "onnx", "tflite")
_THREADS = 2
_PROBE, _FOR_INT8 = "benchmarks.agent.probe", ("onnxruntime",)


def profile_for(device: str) -> DeviceProfile:
    """The profile of that name, or for `local` that of this machine, whose memory is read for about a second.

    Raises:
        UnusableInput: there is none.
    """
    # In an agent, so that memory and products are measured with the threads that packages get.
    return measure_profile(LOCAL, LOCAL, _THREADS) if device == LOCAL else find_profile(device)


def keep_profile(name: str, device: str, threads: int) -> DeviceProfile:
    """Measure a device and keep its profile under a name."""
    require_new(name)
    if is_emulated(device):
        raise UnusableInput(f"{device} is emulated: what it can do tells nothing of a board. Measure a real one.")
    profile = measure_profile(name, device, threads, _FOR_INT8)
    write_profile(profile)
    return profile


def measure_profile(name: str, device: str, threads: int, distributions: Sequence[str] = ()) -> DeviceProfile:
    """Measure a device under a name; products of integers too where what computes them is among the distributions.

    Raises:
        UnusableInput: it cannot be reached, or cannot run the agent.
    """
    opened, arguments = open_device(device), (_PROBE, [str(threads)], threads)
    try:
        agent = opened.start(*arguments, distributions)
    except UnusableInput:
        # Not every board can have them, and all else can be measured without.
        agent, distributions = opened.start(*arguments), ()
    try:
        found = from_json(Environment, agent.ask("look")["environment"])
        int8 = _int8(agent) if distributions else None
    finally:
        agent.close()
    return profile_of(name, found, int8)


def _int8(agent: Agent) -> float | None:
    """Products of integers; None where they cannot be had there."""
    try:
        found = agent.ask("int8").get("int8_ops_per_s")
    except UnusableInput:
        return None
    return found if isinstance(found, float) else None


def profile_of(name: str, here: Environment, int8: float | None = None) -> DeviceProfile:
    """The profile of a machine that an agent looked at."""
    rates = here.memory_read_bytes_per_s, here.fp32_ops_per_s, int8
    return profile_of_machine(name, here.cpu, here.machine, _TARGETS, here.logical_cores, here.memory_bytes, *rates)
