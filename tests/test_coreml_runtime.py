"""The runtime of Core ML on macOS, with a stand-in for the calls that it makes; and what it says elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
from lowering import decoder_session, lower

from compiler.model import Model
from runtimes.coreml.calls import DecoderCalls
from runtimes.coreml.evaluator import Evaluator
from runtimes.coreml.macos import CoreMlCaller


@pytest.fixture(scope="module")
def llama(smollm2: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_decoder("llama", smollm2.folder, tmp_path_factory.mktemp("runtime") / "llama")


class _FakeModel:
    """The calls that runtimes/coreml/macos.py makes of an MLModel, answered by the evaluator."""

    made: int = 0

    def __init__(self, path: str, compute_units: str, function_name: str | None = None) -> None:
        assert compute_units == "all"
        self._path, self._function = Path(path), function_name

    def get_spec(self) -> Any:
        from coremltools.models.utils import load_spec

        return load_spec(str(self._path))

    def make_state(self) -> Evaluator:
        _FakeModel.made += 1
        return Evaluator(self._path)

    def predict(self, inputs: Mapping[str, Any], state: Evaluator | None = None) -> dict[str, Any]:
        for value in inputs.values():
            assert value.dtype in (np.int32, np.float16, np.float32)
        return (state or Evaluator(self._path)).run(inputs, self._function)


def test_the_runtime_on_macos_makes_the_calls_that_core_ml_wants(llama: Path, tmp_path: Path) -> None:
    import coremltools

    library = SimpleNamespace(
        ComputeUnit=SimpleNamespace(ALL="all"),
        models=SimpleNamespace(MLModel=_FakeModel, utils=coremltools.models.utils),
    )
    package = lower(llama, tmp_path / "out")
    real = DecoderCalls(package, [CoreMlCaller(tmp_path / "out" / "model.mlpackage", library)])
    evaluated = decoder_session(package)
    ids = [int(token) for token in np.random.default_rng(0).integers(5, 5000, 40)]
    for session in (real, evaluated):
        session.reset()
        session.extend(ids[:39])
    np.testing.assert_allclose(real.extend([ids[39]]), evaluated.extend([ids[39]]), atol=1e-3)
    assert _FakeModel.made == 1  # prefill and decode share it
    real.reset()
    real.extend(ids)
    assert _FakeModel.made == 2


def test_elsewhere_than_on_macos_core_ml_says_what_it_needs() -> None:
    from compiler.errors import UnusableInput
    from runtimes.coreml.macos import open_session

    package: Any = SimpleNamespace(title="coreml:fp16")
    with pytest.raises(UnusableInput, match="needs macOS"):
        open_session(package, 2)
