"""The agent: the program that opens a package on the device, runs it and observes itself and its machine.

`python -P -m benchmarks.agent.main PACKAGE WORKLOAD` is driven by lines on standard input and answers each with one JSON line
on what was its standard output when it started; runtimes that print do so to standard error. It needs numpy, psutil and the
runtime's own library; nothing of torch or transformers is imported.

    facts {"threads": 2, "distributions": [...]}    the machine
    load                                            open the package: seconds, memory before, and the workload as it will run
    warmup                                          run untimed; the largest memory since before it was loaded
    round                                           one timed round, and what else the machine did meanwhile
    outputs                                         what comes of the timed input: shape and base64 of float32 values, by name
    end                                             the largest resident set; the agent ends
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
import traceback
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.agent.conditions import Conditions, watch_conditions
from benchmarks.agent.observe import Observation, Resident, peak_rss_bytes, resident_bytes, watch_memory
from benchmarks.agent.watch import Watch


class _Opened:
    """A package in this process."""

    def __init__(self, folder: str, workload: str, watch: Watch[Resident], board: Watch[Conditions]) -> None:
        from compiler.package import read_package
        from runtimes.registry import import_runtime
        from runtimes.workload import Workload

        self._watch, self._board = watch, board
        self._package, self._workload = read_package(Path(folder)), Workload(**json.loads(workload))
        import_runtime(self._package)
        self._prepared: Any = None

    def facts(self, asked: str) -> dict[str, Any]:
        from benchmarks.agent.environment import read_environment

        return {"environment": asdict(read_environment(**json.loads(asked)))}

    def load(self, asked: str) -> dict[str, Any]:
        from runtimes.kinds import kind_of_task
        from runtimes.registry import open_session, require_measurable

        require_measurable(self._package)
        before = resident_bytes(os.getpid())
        self._watch.begin()
        started = time.perf_counter()
        work = self._workload
        tokens = (work.prompt_tokens or 0) + (work.generated_tokens or 0)
        session = open_session(self._package, work.thread_count, work.context_length, tokens)
        prepare = kind_of_task(self._package.model.task).prepare
        self._prepared = prepare(session, self._package, self._workload)
        seconds = time.perf_counter() - started
        return {"load_s": seconds, "imports": before, "workload": asdict(self._prepared.workload)}

    def warmup(self, asked: str) -> dict[str, Any]:
        self._prepared.warm()
        return {"peak": asdict(self._watch.end())}

    def round(self, asked: str) -> dict[str, Any]:
        self._board.begin()
        observation = Observation(os.getpid())
        samples = self._prepared.timed()
        observed = observation.end()
        return {"round": samples, "observed": asdict(replace(observed, conditions=self._board.end()))}

    def outputs(self, asked: str) -> dict[str, Any]:
        return {"outputs": {name: _as_json(values) for name, values in self._prepared.outputs().items()}}

    def end(self, asked: str) -> dict[str, Any]:
        return {"peak_rss_bytes": peak_rss_bytes(os.getpid())}


def _as_json(values: Any) -> dict[str, Any]:
    data = base64.b64encode(values.astype("<f4").tobytes()).decode("ascii")
    return {"shape": list(values.shape), "data": data}


def main(folder: str, workload: str) -> None:
    """Serve the lines of standard input until `end`."""
    # Before anything large is imported: a watch is a copy of this process.
    watch, board = watch_memory(os.getpid()), watch_conditions()
    from compiler.errors import EdgecError
    from compiler.stages.worker import die_with_parent

    die_with_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    opened: _Opened | None = None
    for line in sys.stdin:
        command, _, rest = line.strip().partition(" ")
        try:
            opened = opened or _Opened(folder, workload, watch, board)
            commands = {name: getattr(opened, name) for name in ("facts", "load", "warmup", "round", "outputs", "end")}
            answer = commands[command](rest)
        except EdgecError as error:
            answer = {"error": str(error)}
        except Exception as error:
            traceback.print_exc()
            answer = {
                "error": f"the runtime failed at '{command}' ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
            }
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if command == "end":
            break
    watch.close()
    board.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
