"""What the error codes of neuronx-cc mean, and what helps: AWS's pages of them (aws-neuron-sdk 81ce03ae, error-codes).

EVRF014, EVRF023, EVRF024, EVRF029 and EXTP003 have no page; they are told by compilers' logs. Codes whose letter is I are
faults of the compiler itself. Modules of edgec's have none of the calls and operators that most of the others are about.
"""

from __future__ import annotations

import re

_SMALLER = "Build it for a shorter context or text, or share a language model among more cores (+tpN)."
_NO_FLOAT8 = "a float of 8 bits does not exist on this device."
_MX_QUANTIZE = "a call that quantizes blocks of floats is not of the form that this compiler takes."
_MX_PRODUCT = "a call that multiplies blocks of floats is not of the form that this compiler takes."
_INEXACT = "integers would be computed in float32, which holds them up to 2^24."
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
    "ESPP047": _NO_FLOAT8,
    "EUOC002": "an operator is not supported by this version. Take a newer Neuron SDK.",
    "EVRF001": "an operator is not supported by this version. Take a newer Neuron SDK.",
    "EVRF004": "a complex number goes into an operator that takes none.",
    "EVRF005": _NO_FLOAT8,
    "EVRF006": "random numbers are asked for by an algorithm that it does not have.",
    "EVRF007": f"the graph becomes too many instructions. {_SMALLER}",
    "EVRF009": f"what goes into the graph and out of it does not fit the memory of a core. {_SMALLER}",
    "EVRF010": "a convolution has both its input and its kernel dilated.",
    "EVRF011": "a convolution with a stride has its input dilated.",
    "EVRF013": "the largest of integers are asked for, which it finds of floats alone.",
    "EVRF014": "the largest values of more than 16384 are asked for.",
    "EVRF015": "the graph calls something that this compiler does not know. Another version may.",
    "EVRF016": "integers or truth values are added up while they are scattered.",
    "EVRF017": "a window has its input dilated.",
    "EVRF018": "a window is dilated.",
    "EVRF019": "a window is of more than one tensor.",
    "EVRF022": "a number of other than 32 bits is shifted to the right.",
    "EVRF023": f"one tensor is larger than 4 GiB. {_SMALLER}",
    "EVRF024": f"one result is larger than 4 GiB. {_SMALLER}",
    "EVRF029": "this device does not sort.",
    "EVRF031": "something is written beyond the end of a tensor. Build for a shorter context.",
    "EVRF035": "a product of integers of 32 or 64 bits is asked for.",
    **dict.fromkeys(("EVRF036", "EVRF037", "EVRF038", "EVRF039", "EVRF040", "EVRF041", "EVRF042"), _MX_QUANTIZE),
    **dict.fromkeys(("EVRF057", "EVRF058"), _MX_QUANTIZE),
    **dict.fromkeys(("EVRF043", "EVRF044", "EVRF045", "EVRF046", "EVRF047", "EVRF048", "EVRF049"), _MX_PRODUCT),
    **dict.fromkeys(("EVRF050", "EVRF053", "EVRF054", "EVRF055"), _MX_PRODUCT),
    "EVRF051": _NO_FLOAT8,
    "EVRF052": _NO_FLOAT8,
    "EVRF056": "more positions are looked up than the table has. Build for a shorter context.",
    "EVRF059": "the file of a kernel that the graph calls is not on this machine.",
    "EVRF060": f"integers are scattered: {_INEXACT}",
    "EVRF061": f"integers are added up over cores: {_INEXACT}",
    "EVRF062": "a power of integers of 64 bits is asked for.",
    "EVRF063": f"integers are added up over cores: {_INEXACT}",
    "EVRF064": "the graph's shapes contradict each other.",
    "EVRF065": "a kernel that the graph calls was written for another version of NKI.",
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
