"""Workload: what is asked of a package while it is measured."""

from __future__ import annotations

from dataclasses import dataclass, fields

from compiler.errors import UnusableInput


@dataclass(frozen=True)
class Workload:
    """Fixed lengths, so that runs compare. In a Measurement it is what ran: what a kind does not ask for is None there.

    Attributes:
        prompt_tokens: tokens that a language model takes at once.
        generated_tokens: tokens that it then generates one by one; an end of text does not stop it.
        sequence_length: tokens of one encoder input.
        rounds: timed rounds; packages take turns within each.
        repetitions: runs in one round, where a round is made of runs.
        warmup_repetitions: untimed runs before the first round, memory is observed in them.
        threads: threads that the runtime may use; a server's are its own.
        context_length: tokens that a language model's cache holds.
        requests: to a server.
        concurrency: requests to a server at the same time.
    """

    prompt_tokens: int | None = 128
    generated_tokens: int | None = 64
    sequence_length: int | None = 128
    rounds: int = 5
    repetitions: int | None = 20
    warmup_repetitions: int | None = 2
    threads: int | None = 2
    context_length: int | None = None
    requests: int | None = None
    concurrency: int | None = None

    def __post_init__(self) -> None:
        """Raise UnusableInput for what cannot be run."""
        fewest = {"generated_tokens": 2}
        for field in fields(self):
            value, least = getattr(self, field.name), fewest.get(field.name, 1)
            if value is not None and value < least:
                raise UnusableInput(f"A workload's {field.name} is at least {least}, not {value}.")

    @property
    def thread_count(self) -> int:
        """The threads of what runs a package.

        Raises:
            UnusableInput: it is a server's workload, which says none.
        """
        if self.threads is None:
            raise UnusableInput("A package is measured with a number of threads.")
        return self.threads
