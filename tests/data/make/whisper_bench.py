#!/usr/bin/env python3
"""Makes models of Whisper's shapes with random weights, to measure with: they never end a text by themselves, so that
every system decodes the same number of tokens.

    python tests/data/make/whisper_bench.py tiny|base|small FOLDER

FOLDER gets `onnx-model/` (config, tokenizer, onnx/ in fp32 and as `_quantized`), `hf/` for transformers, and `ct2/` for
faster-whisper: the same weights in each. Needs what scripts/bench-asr installs.
"""
import json
import pathlib
import shutil
import sys

import ctranslate2
import onnx
import torch
import transformers
from onnxruntime.quantization import QuantType, quantize_dynamic
from optimum.exporters.onnx import onnx_export_from_model
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
    WhisperTokenizerFast,
)
from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode
from transformers.models.whisper.tokenization_whisper import LANGUAGES

SHAPES = {"tiny": (384, 4, 6), "base": (512, 6, 8), "small": (768, 12, 12)}
END, START, VOCABULARY = 50257, 50258, 51865
CODES = list(LANGUAGES)[:99]
TASKS = START + 1 + len(CODES)
SPECIAL = (
    ["<|endoftext|>", "<|startoftranscript|>"] + [f"<|{code}|>" for code in CODES]
    + ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
)


def tokenizer(folder):
    """With the published ids and nobody's words: each token that is no byte reads as its number."""
    letters = list(bytes_to_unicode().values())
    words = letters + [f"{i:x}·" for i in range(END - len(letters))]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    slow = WhisperTokenizer(f"{folder}/vocab.json", f"{folder}/merges.txt")
    slow.add_tokens(SPECIAL, special_tokens=True)
    slow.add_tokens([f"<|{i * 0.02:.2f}|>" for i in range(1501)], special_tokens=False)
    slow.add_special_tokens({"additional_special_tokens": SPECIAL})
    slow.save_pretrained(folder)
    WhisperTokenizerFast.from_pretrained(folder).save_pretrained(folder)


def model(shape):
    width, layers, heads = SHAPES[shape]
    config = WhisperConfig(
        vocab_size=VOCABULARY, num_mel_bins=80, d_model=width, encoder_layers=layers, decoder_layers=layers,
        encoder_attention_heads=heads, decoder_attention_heads=heads, encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width, pad_token_id=END, bos_token_id=END, eos_token_id=END, decoder_start_token_id=START,
        suppress_tokens=None, begin_suppress_tokens=None, dropout=0.0, init_std=0.04,
    )
    torch.manual_seed(1)
    whisper = WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        # What ends a text or is no text gets a logit of 0, below the greatest of fifty thousand random ones.
        whisper.model.decoder.embed_tokens.weight[END:] = 0
    whisper.generation_config = GenerationConfig(
        bos_token_id=END, decoder_start_token_id=START, eos_token_id=END, pad_token_id=END, is_multilingual=True,
        lang_to_id={f"<|{code}|>": START + 1 + i for i, code in enumerate(CODES)}, max_length=448,
        max_initial_timestamp_index=50, no_timestamps_token_id=TASKS + 5, prev_sot_token_id=TASKS + 3,
        task_to_id={"transcribe": TASKS + 1, "translate": TASKS}, suppress_tokens=[], begin_suppress_tokens=[],
        alignment_heads=[[layers - 1, 0]],
    )
    return whisper


def quantize(path):
    graph = onnx.load(path, load_external_data=False)
    convolves = any(node.op_type == "Conv" for node in graph.graph.node)
    quantize_dynamic(path, path.with_name(f"{path.stem}_quantized.onnx"),
                     weight_type=QuantType.QUInt8 if convolves else QuantType.QInt8,
                     extra_options={"EnableSubgraph": True, "MatMulConstBOnly": True})


def main():
    shape, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    transformers.logging.set_verbosity_error()
    shutil.rmtree(folder, ignore_errors=True)
    hf, ours, exported = folder / "hf", folder / "onnx-model", folder / "exported"
    for it in (hf, ours / "onnx"):
        it.mkdir(parents=True)
    tokenizer(hf)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(hf)
    whisper = model(shape)
    whisper.save_pretrained(hf)
    onnx_export_from_model(whisper, exported, task="automatic-speech-recognition-with-past", do_validation=False)
    for name in ["encoder_model", "decoder_model_merged"]:
        shutil.move(exported / f"{name}.onnx", ours / "onnx")
        quantize(ours / "onnx" / f"{name}.onnx")
    shutil.rmtree(exported)
    for name in ["config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json"]:
        shutil.copy(hf / name, ours)
    converter = ctranslate2.converters.TransformersConverter(str(hf), copy_files=["tokenizer.json", "preprocessor_config.json"])
    converter.convert(str(folder / "ct2"))
    (folder / "done").touch()


if __name__ == "__main__":
    main()
