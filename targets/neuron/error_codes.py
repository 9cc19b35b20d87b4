"""What the error codes of neuronx-cc mean, and what helps: AWS's pages of them (compiler/error-codes, 2026-07-14), in short.

Codes whose letter is I are faults of the compiler itself.
"""

from __future__ import annotations

import re

_SMALLER = "Build it for a shorter context or text, or share a language model among more cores (+tpN)."
MEANINGS: dict[str, str] = {
    "EARG001": "the number of logical cores suits another device. Leave --lnc out.",
    "EBIR023": f"a layer between two others is wider than the 4096 that its kernel takes. {_SMALLER}",
    "EBVF030": f"the graph becomes too many instructions. {_SMALLER}",
    "EHCA005": "the graph calls something that this compiler does not know. Another version may.",
    "EMOD025": "a size is not fixed.",
    "EOOM001": f"the graph's tensors do not fit the memory of a core. {_SMALLER}",
    "EOOM002": f"the graph's tensors do not fit the memory of a core. {_SMALLER}",
    "ESFH002": "a constant does not fit 32 bits.",
    "ESPP004": "an element type does not exist on this device.",
    "ESPP047": "a float of 8 bits does not exist on this device.",
    "EUOC002": "an operator is not supported by this version. Take a newer Neuron SDK.",
    "EVRF001": "an operator is not supported by this version. Take a newer Neuron SDK.",
    "EVRF004": "complex numbers do not exist on this device.",
    "EVRF005": "a float of 8 bits does not exist on this device.",
    "EVRF007": f"the graph becomes too many instructions. {_SMALLER}",
    "EVRF009": f"what goes into the graph and out of it does not fit the memory of a core. {_SMALLER}",
    "EVRF014": "the largest values of more than 16384 are asked for.",
    "EVRF015": "the graph calls something that this compiler does not know. Another version may.",
    "EVRF023": f"one tensor is larger than 4 GiB. {_SMALLER}",
    "EVRF024": f"one result is larger than 4 GiB. {_SMALLER}",
    "EVRF029": "this device does not sort.",
    "EVRF035": "a product of integers of 64 bits is asked for.",
    "EVRF051": "a float of 8 bits does not exist on this device.",
    "EVRF056": "more positions are looked up than the table has. Build for a shorter context.",
    "EVRF064": "the graph's shapes contradict each other.",
    "EXSP001": f"what is computed between the layers does not fit the memory of a core. {_SMALLER}",
    "EXTP003": f"one operator becomes too many instructions. {_SMALLER}",
    "EXTP004": f"the graph becomes too many instructions. {_SMALLER}",
    "F137": "the system ended the compiler, most often because this machine has too little memory. Take a larger one.",
}
# `[ERROR] [NCC_EOOM001] ...`, and `[F137] ...` of a process that was ended.
_CODE = re.compile(r"\[(NCC_[EI][A-Z]{3}\d{3}|F1\d\d)\]")


def explain(log: str) -> tuple[str, str]:
    """The last error code in what the compiler printed, and a sentence on it; empty where it has none."""
    found = _CODE.findall(log)
    if not found:
        return "", "it gave no error code."
    code = found[-1].removeprefix("NCC_")
    if code.startswith("I"):
        return found[-1], "that is a fault of the compiler itself. Take another Neuron SDK."
    return found[-1], MEANINGS.get(code, "AWS's pages of error codes tell more.")
