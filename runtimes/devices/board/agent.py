"""An agent on another machine, which outlives a cut of the way there: its answers are lines of a file, read by their number.

Over there a keeper starts the agent with a pipe for its input and a file for its output. It ends the agent when no sign of
life came for long, so that a board is not left busy. A request has a number, so that one that is sent twice is done once.
"""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from compiler.errors import UnusableInput
from compiler.formats.json_file import parse_json
from runtimes.devices.board.shell import (
    PAUSE_S,
    ConnectionLostError,
    Shell,
    ask,
    is_number,
    last_line,
    nonsense,
    patiently,
    printable,
)

# Minutes without a sign of life after which a keeper ends its agent.
_LEFT_ALONE_MIN = 10
_KILLED = "137"
_GONE, _TAKEN = 3, 4
_LONGEST_ANSWER = 64 << 20
# Ends of a follower in a row that brought no line although the agent is there.
_MOST_SILENT = 10

_KEEPER = """
exec 9<>in
{words} <&9 >out 2>err &
agent=$!
echo $agent > pid
( while sleep 20 && kill -0 $agent; do
    if [ -n "$(find {sign} -mmin +{minutes})" ] || [ ! -e {sign} ]; then : > left; kill -9 $agent; fi
done ) 2>/dev/null &
watch=$!
wait $agent
echo $? > end
kill $watch
"""


class RemoteAgent:
    """An agent in a folder of its own there.

    Args:
        shell: the way there.
        folder: its folder.
        sign: the file that is touched there as long as somebody is here.
        owned: a test of the shell there that fails when another run has taken the board.
        words: the command.
        is_restarted: whether the machine was, since the agent was started.
        on_close: is told when it is closed.
    """

    def __init__(
        self,
        shell: Shell,
        folder: str,
        sign: str,
        owned: str,
        words: Sequence[str],
        is_restarted: Callable[[], bool],
        on_close: Callable[[RemoteAgent], None],
    ) -> None:
        self._shell, self._owned, self._is_restarted, self._on_close = shell, owned, is_restarted, on_close
        self._place = shlex.quote(folder)
        self._asked, self._closed = 0, False
        self._answers: subprocess.Popen[bytes] | None = None
        keeper = _KEEPER.format(words=shlex.join(words), sign=shlex.quote(sign), minutes=_LEFT_ALONE_MIN)
        pid = ask(
            shell,
            f"umask 077; mkdir -p {self._place} && cd {self._place} && if mkdir started 2>/dev/null; then mkfifo in && "
            f": > out && : > err && (setsid nohup sh -c {shlex.quote(keeper)} </dev/null >/dev/null 2>&1 &); fi; "
            "for i in 1 2 3 4 5 6 7 8 9 10; do [ -s pid ] && break; sleep 0.5; done; cat pid",
            failed="the agent cannot be started",
        )
        if not is_number(pid):
            raise nonsense(shell.title)
        self._pid = pid
        # A number alone may be another process's, after a restart or when the agent has ended.
        self._there = f"[ /proc/{pid}/cwd -ef {self._place} ]"

    def ask(self, line: str) -> dict[str, Any]:
        self._asked += 1
        send = (
            f"{self._owned} || exit {_TAKEN}; cd {self._place} 2>/dev/null && [ ! -e end ] && {self._there} || exit {_GONE}; "
            f'if [ "$(cat asked 2>/dev/null || echo 0)" -lt {self._asked} ]; then '
            f'printf "%s\\n" {shlex.quote(line)} 1<>in && echo {self._asked} > asked; fi'
        )
        code, _, _ = patiently(self._shell, lambda: self._shell.run(send))
        if code == _TAKEN:
            raise UnusableInput(
                f"another run of edgec has taken {self._shell.title}, since this one left no sign of life for long. Try again."
            )
        if code:
            raise UnusableInput(self._last_words())
        silent = 0
        while (said := self._next_line()) is None:
            if patiently(self._shell, self._is_gone):
                raise UnusableInput(self._last_words())
            silent += 1
            if silent > _MOST_SILENT:
                raise UnusableInput(f"{self._shell.title} has no `tail` that follows a file. Install coreutils there.")
            time.sleep(PAUSE_S)
        answer = parse_json(said, f"What {self._shell.title} answers")
        if not isinstance(answer, dict):
            raise nonsense(self._shell.title)
        if "error" in answer:
            raise UnusableInput(printable(str(answer["error"])))
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
            self._shell.run(f"{self._there} && kill -9 {self._pid}; sleep 0.1; rm -rf {self._place}")
        self._on_close(self)

    def _next_line(self) -> bytes | None:
        """The answer to the last request; None when the way was cut, or the agent has ended."""
        if self._answers is None:
            # It wakes when the file grows, and each second to see whether the agent is there: no load on the machine.
            follow = f"cd {self._place} && exec tail -n +{self._asked} -f --pid={self._pid} out"
            self._answers = self._shell.follow(follow)
        assert self._answers.stdout is not None
        said = self._answers.stdout.readline(_LONGEST_ANSWER)
        if said.endswith(b"\n"):
            return said
        self._stop_reading()
        if len(said) == _LONGEST_ANSWER:
            raise nonsense(self._shell.title)
        return None

    def _stop_reading(self) -> None:
        if self._answers is not None:
            self._answers.kill()
            self._answers.wait()
            assert self._answers.stdout is not None
            self._answers.stdout.close()
            self._answers = None

    def _is_gone(self) -> bool:
        code, _, _ = self._shell.run(f"cd {self._place} 2>/dev/null && [ ! -e end ] && {self._there}")
        return code != 0

    def _last_words(self) -> str:
        """Why an agent is gone."""
        if self._is_restarted():
            return f"{self._shell.title} was restarted meanwhile, and what ran there is gone."
        waited = f"cd {self._place} && for i in 1 2 3 4 5; do [ -s end ] && break; sleep 1; done"
        told = ask(self._shell, f"{waited}; [ -e left ] && echo left || cat end; tail -n 3 err; true").splitlines()
        code, lines = (told[0], told[1:]) if told else ("", [])
        if code == "left":
            return f"it was ended on {self._shell.title}, since nobody had asked for it for {_LEFT_ALONE_MIN} minutes."
        if code == _KILLED:
            return f"its process was killed on {self._shell.title}, most likely for want of memory."
        said = last_line("\n".join(lines))
        return f"its process ended. {f'It said last: {said}' if said else 'It said nothing.'}"

    def _signal(self, name: str) -> None:
        patiently(self._shell, lambda: self._shell.run(f"{self._there} && kill -{name} {self._pid}; true"))
