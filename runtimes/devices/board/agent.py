"""An agent on another machine, which outlives a cut of the way there: its answers are lines of a file, read by their number.

Over there a keeper starts the agent with a pipe for its input and a file for its output. It ends the agent when no sign of
life came for long, so that a board is not left busy. A request has a number, so that one that is sent twice is done once.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from compiler.errors import UnusableInput
from runtimes.devices.board.copying import ask
from runtimes.devices.board.shell import ConnectionLostError, Shell

# How long the way may be cut before edgec gives up.
PATIENCE_S = 120.0
_PAUSE_S = 2.0
# Minutes without a sign of life after which a keeper ends its agent.
_LEFT_ALONE_MIN = 10
_KILLED = 137

_KEEPER = """
exec 9<>in
{words} <&9 >out 2>err &
agent=$!
echo $agent > pid
( while sleep 20 && kill -0 $agent; do
    if [ -n "$(find {sign} -mmin +{minutes})" ] || [ ! -e {sign} ]; then kill -9 $agent; fi
done ) 2>/dev/null &
watch=$!
wait $agent
echo $? > end
kill $watch
"""


class RemoteAgent:
    """An agent in a folder of its own there; `sign` is the file there that is touched as long as somebody is here."""

    def __init__(
        self,
        shell: Shell,
        folder: str,
        sign: str,
        words: Sequence[str],
        is_restarted: Callable[[], bool],
        on_close: Callable[[RemoteAgent], None],
    ) -> None:
        self._shell, self._is_restarted, self._on_close = shell, is_restarted, on_close
        self._place = shlex.quote(folder)
        self._asked, self._closed = 0, False
        self._answers: subprocess.Popen[bytes] | None = None
        keeper = _KEEPER.format(words=shlex.join(words), sign=shlex.quote(sign), minutes=_LEFT_ALONE_MIN)
        self._pid = ask(
            shell,
            f"umask 077; mkdir -p {self._place} && cd {self._place} && if mkdir started 2>/dev/null; then mkfifo in && "
            f": > out && : > err && (setsid nohup sh -c {shlex.quote(keeper)} </dev/null >/dev/null 2>&1 &); fi; "
            "for i in 1 2 3 4 5 6 7 8 9 10; do [ -s pid ] && break; sleep 0.5; done; cat pid",
        )

    def ask(self, line: str) -> dict[str, Any]:
        self._asked += 1
        send = (
            f'cd {self._place} && if [ "$(cat asked 2>/dev/null)" != {self._asked} ]; then '
            f'printf "%s\\n" {shlex.quote(line)} > in && echo {self._asked} > asked; fi'
        )
        self._patiently(lambda: self._shell.run(send))
        while (said := self._next_line()) is None:
            if self._patiently(self._is_gone):
                raise UnusableInput(self._last_words())
            time.sleep(_PAUSE_S)
        answer: dict[str, Any] = json.loads(said)
        if "error" in answer:
            raise UnusableInput(answer["error"])
        return answer

    def pause(self) -> None:
        self._signal("STOP")

    def resume(self) -> None:
        self._signal("CONT")

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._stop_reading()
        with suppress(ConnectionLostError, UnusableInput):
            self._shell.run(f"kill -9 {self._pid} 2>/dev/null; sleep 0.1; rm -rf {self._place}")
        self._on_close(self)

    def _patiently(self, step: Callable[[], Any]) -> Any:
        """A step, tried until the way is there again."""
        ended = time.monotonic() + PATIENCE_S
        while True:
            try:
                return step()
            except ConnectionLostError:
                if time.monotonic() > ended:
                    raise UnusableInput(
                        f"the way to {self._shell.title} was cut for {PATIENCE_S:.0f} s. See that it is on, and try again."
                    ) from None
                time.sleep(_PAUSE_S)

    def _next_line(self) -> bytes | None:
        """The answer to the last request; None when the way was cut, or the agent has ended."""
        if self._answers is None:
            # It wakes when the file grows, and each second to see whether the agent is there: no load on the machine.
            follow = f"cd {self._place} && exec tail -n +{self._asked} -f --pid={self._pid} out"
            self._answers = self._shell.follow(follow)
        assert self._answers.stdout is not None
        said = self._answers.stdout.readline()
        if said.endswith(b"\n"):
            return said
        self._stop_reading()
        return None

    def _stop_reading(self) -> None:
        if self._answers is not None:
            self._answers.kill()
            self._answers.communicate()
            self._answers = None

    def _is_gone(self) -> bool:
        code, _, _ = self._shell.run(f"kill -0 {self._pid} 2>/dev/null && [ -d {self._place} ]")
        return code != 0

    def _last_words(self) -> str:
        """Why an agent is gone."""
        if self._is_restarted():
            return f"{self._shell.title} was restarted meanwhile, and what ran there is gone."
        waited = f"cd {self._place} && for i in 1 2 3 4 5; do [ -s end ] && break; sleep 1; done"
        code, *lines = [*ask(self._shell, f"{waited}; cat end; tail -n 3 err; true").splitlines(), ""]
        if code == str(_KILLED):
            return f"its process was killed on {self._shell.title}, most likely for want of memory."
        said = [line for line in lines if line.strip()]
        return f"its process ended. {f'It said last: {said[-1][:300]}' if said else 'It said nothing.'}"

    def _signal(self, name: str) -> None:
        self._patiently(lambda: self._shell.run(f"kill -{name} {self._pid} 2>/dev/null; true"))
