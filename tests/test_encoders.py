"""Every encoder family and task becomes an ONNX package with fused attention; text encoders go to the other targets too."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import tiny
import torch
import transformers
from conftest import Run, assert_refused, figures_of, misses_of

from compiler.package import read_package
from runtimes.kinds.encoding.use import classify


@pytest.fixture(scope="module")
def made(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("encoders")
    for kind in tiny.ENCODERS:
        tiny.save_encoder(kind, minilm_folder, root / kind / "model")
    return root


@pytest.mark.parametrize("kind", tiny.ENCODERS)
def test_a_family_is_packaged_and_still_computes_the_same(kind: str, made: Path, edgec: Run, edgec_here: Run) -> None:
    out = made / kind / "out"
    run = edgec if kind in ("bert-classify", "vit") else edgec_here
    done = run("build", made / kind / "model", "-r", "onnx:fp32", "-r", "onnx:int8", "-o", out, "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    exact, rounded = (figures_of(out / f"onnx-{scheme}") for scheme in ("fp32", "int8"))
    assert exact["max_abs_difference"] < 1e-5
    assert rounded["mean_cosine"] > 0.99
    operators = Counter(node.op_type for node in onnx.load(str(out / "onnx-fp32" / "model.onnx")).graph.node)
    assert operators["Attention"] + operators["MultiHeadAttention"] == 2
    assert operators["Softmax"] == 0


def test_onnx_runtime_loads_the_package_without_edgec_and_padding_changes_nothing(made: Path) -> None:
    import onnxruntime

    folder = made / "bert-classify"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "model").eval()
    ids = np.asarray([[101, 2023, 2003, 102, 0, 0, 0], [101, 2023, 2003, 1037, 3231, 6251, 102]])
    mask = (ids != 0).astype(np.int64)
    with torch.inference_mode():
        expected = model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits.numpy()
    session = onnxruntime.InferenceSession(str(folder / "out" / "onnx-fp32" / "model.onnx"))
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    np.testing.assert_allclose(session.run(None, feed)[0], expected, atol=1e-5)
    short = {name: value[:1, :4] for name, value in feed.items()}
    np.testing.assert_allclose(session.run(None, short)[0], expected[:1], atol=1e-5)


def test_nothing_of_this_machine_is_written_into_a_graph(made: Path) -> None:
    content = (made / "bert" / "out" / "onnx-fp32" / "model.onnx").read_bytes()
    assert b"site-packages" not in content
    assert str(Path.home()).encode() + b"/" not in content


def test_a_text_encoder_goes_to_litert_and_tvm(made: Path, edgec_here: Run) -> None:
    out, file = made / "distilbert" / "static", made / "distilbert" / "recipes.toml"
    file.write_text(
        '[[recipe]]\nrecipe = "tflite:fp32"\nsequence_length = 64\nbatch = 2\n'
        '[[recipe]]\nrecipe = "neo:fp32@local"\nsequence_length = 64\n'
    )
    done = edgec_here("build", made / "distilbert" / "model", "-f", file, "-o", out, "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    for name, batch in (("tflite-fp32", 2), ("neo-fp32-local", 1)):
        package = read_package(out / name)
        assert figures_of(package.folder)["max_abs_difference"] < 1e-4
        assert package.lowered.main.inputs[0].shape == (batch, 64)
    ran = edgec_here("run", out / "tflite-fp32", "-p", "one", "-p", "one", "-p", "two", "--json")
    first, same, other = json.loads(ran.stdout)
    assert np.dot(first, same) == pytest.approx(1, abs=1e-5)
    assert np.dot(first, other) < 0.99999


def test_llama_cpp_embeds_as_torch_does_and_its_own_tokenizer_is_held_to_hugging_faces(
    made: Path, edgec_here: Run
) -> None:
    """llama.cpp does not take accents off Hangul and Devanagari as BERT's tokenizer does: the gate must say so."""
    out = made / "bert" / "llama"
    done = edgec_here("build", made / "bert" / "model", "-r", "gguf:F32", "-o", out)
    assert done.returncode == 0, done.stderr
    assert_refused(edgec_here("verify", out / "gguf-F32"), 1, "tokenizer", "한국어")
    assert edgec_here("verify", out / "gguf-F32", *misses_of(out / "gguf-F32")).returncode == 0
    assert figures_of(out / "gguf-F32")["min_cosine"] > 0.9999
    # The model ends at 256 tokens: a longer text is cut.
    ran = edgec_here("run", out / "gguf-F32", "-p", "word " * 600, "-p", "word " * 254, "--json")
    assert ran.returncode == 0, ran.stderr
    first, second = json.loads(ran.stdout)
    assert np.dot(first, second) == pytest.approx(1, abs=1e-4)


def test_a_question_is_answered_from_the_passage(made: Path, edgec_here: Run) -> None:
    folder, question = made / "bert-answers", "Who kept the lamp?"
    passage = "The lighthouse keeper kept the lamp for forty years, and café owners remembered him."
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    encoded = tokenizer(question, passage, return_tensors="pt", return_offsets_mapping=True)
    offsets, sequence = encoded.pop("offset_mapping")[0].tolist(), encoded.sequence_ids()
    with torch.inference_mode():
        told = transformers.AutoModelForQuestionAnswering.from_pretrained(folder / "model").eval()(**encoded)
    spans = [
        (told.start_logits[0, i] + told.end_logits[0, j], offsets[i][0], offsets[j][1])
        for i in range(len(offsets))
        for j in range(i, min(i + 30, len(offsets)))
        if sequence[i] == sequence[j] == 1
    ]
    _, start, end = max(spans)
    package = folder / "out" / "onnx-fp32"
    ran = edgec_here("run", package, "-p", question, "--passage", passage, "--json")
    assert ran.returncode == 0, ran.stderr
    (found,) = json.loads(ran.stdout)
    assert found["answer"] == passage[start:end]
    assert 0 < float(found["probability"]) <= 1
    # The model ends at 256 tokens: a longer passage is cut, a question that fills them is refused.
    assert edgec_here("run", package, "-p", question, "--passage", passage * 20).returncode == 0
    assert_refused(edgec_here("run", package, "-p", "why " * 300, "--passage", passage), 2, "question has")
    assert_refused(edgec_here("run", package, "-p", question), 2, "--passage")


@pytest.mark.parametrize(
    ("kind", "recipe", "words"),
    [
        ("vit", "gguf:F16", ("image-classification", "edgec inspect")),
        ("bert", "onnx:int3-rtn-g32", ("no scheme int3-rtn-g32", "onnx:int4-rtn-g64")),
        ("bert", "neo:int8", ("no scheme int8", "neo:fp16")),
        ("bert", "neo:fp32@mars", ("@mars", "@local")),
        ("bert", "onnx:int8+fast", ("+fast",)),
    ],
)
def test_what_a_target_does_not_take_is_refused_before_work(
    kind: str, recipe: str, words: tuple[str, ...], made: Path, edgec_here: Run
) -> None:
    assert_refused(edgec_here("build", made / kind / "model", "-r", recipe, "-o", made / "never"), 2, *words)
    assert not (made / "never").exists()


def test_a_task_whose_head_the_model_lacks_is_refused(made: Path, edgec: Run) -> None:
    done = edgec(
        "build", made / "bert" / "model", "--task", "text-classification", "-r", "onnx:fp32", "-o", made / "never"
    )
    assert_refused(done, 2, "classifier", "--task")
    assert not (made / "never").exists()


def test_classification_names_the_labels(made: Path, edgec: Run) -> None:
    ran = edgec("run", made / "bert-classify" / "out" / "onnx-int8", "-p", "some text " * 300, "--json")
    assert ran.returncode == 0, ran.stderr
    answers = json.loads(ran.stdout)
    assert {answer["label"] for answer in answers} == {"LABEL_0", "LABEL_1", "LABEL_2"}
    assert sum(float(answer["probability"]) for answer in answers) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("problem_type", "logits", "expected"),
    [
        (None, [0.0, 0.0], [0.5, 0.5]),
        (None, [0.0], [0.5]),
        ("multi_label_classification", [0.0, 0.0], [0.5, 0.5]),
        ("multi_label_classification", [-30.0, 30.0], [1.0, 0.0]),
        ("regression", [-2.5], [-2.5]),
    ],
)
def test_labels_have_the_probabilities_that_their_kind_of_problem_asks_for(
    problem_type: str | None, logits: list[float], expected: list[float], made: Path, tmp_path: Path
) -> None:
    class Says:
        def run(self, inputs: object) -> dict[str, np.ndarray]:
            return {"logits": np.asarray([logits], np.float32)}

    (tmp_path / "config.json").write_text(json.dumps({"problem_type": problem_type}))
    package = replace(read_package(made / "bert-classify" / "out" / "onnx-int8"), folder=tmp_path)
    found = classify(package, cast(Any, Says()), {})
    assert [value for _, value in found] == pytest.approx(expected, abs=1e-6)
