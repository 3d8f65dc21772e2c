#!/usr/bin/env python3
"""Makes tests/data/whisper-tiny: a Whisper with random weights in the layout of the published exports, and what
transformers makes of two sounds with it.

    python3 -m venv VENV && VENV/bin/pip install torch==2.8.0 transformers==4.57.6 optimum==2.1.0 optimum-onnx==0.1.0 \
        onnx==1.23.2 onnxruntime==1.31.1
    VENV/bin/python tests/data/make/whisper_tiny.py [--seeds 1,2,3]

With --seeds nothing is written: each seed's results are shown, to choose one whose texts end, differ between the
sounds and have no near ties (the margin). The shape is small, and its vocabulary is not the published one: ids,
mel bins, heads and layers must be read from the model's own files. Other versions of torch give other rounding.
"""
import argparse
import json
import math
import pathlib
import shutil
import tempfile
import wave

import numpy as np
import torch
import transformers
from optimum.exporters.onnx import onnx_export_from_model
from optimum.exporters.onnx.base import ConfigBehavior
from optimum.exporters.onnx.model_configs import WhisperOnnxConfig
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
    WhisperTokenizerFast,
)

OUT = pathlib.Path(__file__).parent.parent / "whisper-tiny"
SEED = 7
RATE = 16000
MELS = 128
WIDTH = 8
BASE_VOCABULARY = 384
LANGUAGES = ["en", "zh", "de", "es", "fr", "ja", "pt", "ca", "it", "yue"]
SPECIAL = (
    ["<|endoftext|>", "<|startoftranscript|>"]
    + [f"<|{code}|>" for code in LANGUAGES]
    + ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
)
TIMES = [f"<|{i * 0.02:.2f}|>" for i in range(1501)]
# Enough to give words of several tokens and tokens of several letters.
TEXT = (
    "Cuidado con el escalón de la derecha. ¿Qué hay delante de la puerta? Hay una silla y una mesa, y detrás la ventana. "
    "Mira a los dos lados antes de cruzar la calle. The train leaves from the second platform at nine. There is a step "
    "to the left, and the door is open. Mañana iremos a la playa si no llueve. ¡Ojo! Ten cuidado, que viene un coche. "
)
ID = {token: BASE_VOCABULARY + i for i, token in enumerate(SPECIAL + TIMES)}
# How loudly each kind of weight is drawn: so that outputs differ by input and position, times occur, texts end.
GAIN = {"embedding": 1.2, "end": 2.4, "time": 1.15, "attention": 2.0, "cross": 3.0, "mlp": 3.0, "encoder": 1.6}


def sounds():
    """Two short sounds in ±1 that need no recording: rising tones with pauses, and breathing noise."""
    t = np.arange(2 * RATE) / RATE
    steps = 0.5 * np.sin(2 * np.pi * (220 * 2 ** np.floor(t * 4) ** 0.5) * t) * (np.sin(2 * np.pi * 2 * t) > -0.5)
    rng = np.random.default_rng(3)
    n = RATE
    breath = np.cumsum(rng.standard_normal(n))
    breath = breath - np.convolve(breath, np.ones(64) / 64, "same")
    breath = 0.6 * breath / np.abs(breath).max() * np.clip(np.sin(2 * np.pi * 1.3 * np.arange(n) / RATE), 0.1, 1)
    return {"steps": np.round(steps * 32767).astype("<i2"), "breath": np.round(breath * 32767).astype("<i2")}


# What the long recording is made of: a sound, or seconds of silence.
LONG = ["steps", 1.25, "breath", "steps", "steps", 2.0, "breath", "breath", "steps", 6.5, "steps", "breath", "steps"] * 2


def long_recording(pieces):
    return np.concatenate([pieces[it] if isinstance(it, str) else np.zeros(int(it * RATE), "<i2") for it in LONG])


def tokenizer(folder):
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=BASE_VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator([TEXT], trainer)
    assert bpe.get_vocab_size() == BASE_VOCABULARY
    bpe.model.save(str(folder))
    slow = WhisperTokenizer(f"{folder}/vocab.json", f"{folder}/merges.txt")
    slow.add_tokens(SPECIAL, special_tokens=True)
    slow.add_tokens(TIMES, special_tokens=False)
    slow.add_special_tokens({"additional_special_tokens": SPECIAL})
    slow.save_pretrained(folder)
    fast = WhisperTokenizerFast.from_pretrained(folder)
    fast.save_pretrained(folder)
    assert all(fast.convert_tokens_to_ids(token) == i for token, i in ID.items())
    return fast


def model(fast, seed):
    end = ID["<|endoftext|>"]
    config = WhisperConfig(
        vocab_size=BASE_VOCABULARY + len(ID), num_mel_bins=MELS, d_model=WIDTH, encoder_layers=1, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
        max_source_positions=1500, max_target_positions=448, pad_token_id=end, bos_token_id=end, eos_token_id=end,
        decoder_start_token_id=ID["<|startoftranscript|>"], suppress_tokens=None, dropout=0.0, attention_dropout=0.0,
        activation_dropout=0.0, attn_implementation="eager",
    )
    whisper = WhisperForConditionalGeneration(config).eval()
    draw(whisper, seed)
    blank = fast.convert_tokens_to_ids("Ġ")
    symbols = sorted(fast.convert_tokens_to_ids(it) for it in '"#()*+/:;<=>@[\\]^_`{|}~')
    tasks = [ID[it] for it in SPECIAL[-6:-1]]
    whisper.generation_config = GenerationConfig(
        alignment_heads=[[0, 1], [1, 0]], begin_suppress_tokens=[blank, end], bos_token_id=end,
        decoder_start_token_id=ID["<|startoftranscript|>"], eos_token_id=end,
        forced_decoder_ids=[[1, None], [2, ID["<|transcribe|>"]]], is_multilingual=True,
        lang_to_id={f"<|{code}|>": ID[f"<|{code}|>"] for code in LANGUAGES}, max_initial_timestamp_index=50,
        max_length=448, no_timestamps_token_id=ID["<|notimestamps|>"], pad_token_id=end,
        prev_sot_token_id=ID["<|startofprev|>"], return_timestamps=False,
        suppress_tokens=symbols + [ID["<|startoftranscript|>"]] + tasks,
        task_to_id={"transcribe": ID["<|transcribe|>"], "translate": ID["<|translate|>"]},
    )
    return whisper


def draw(whisper, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(whisper.named_parameters()):
            r = torch.randn(p.shape, generator=generator)
            scale = 1 / p[0].numel() ** 0.5 if p.ndim > 1 else 0.1
            if name.endswith("decoder.embed_tokens.weight"):
                r = GAIN["embedding"] * WIDTH**0.5 * r / r.norm(dim=1, keepdim=True)
                r[ID["<|endoftext|>"]] *= GAIN["end"]
                r[ID["<|0.00|>"] :] *= GAIN["time"]
                p.copy_(r)
            elif "encoder.embed_positions" in name:
                p.copy_(torch.tensor(sinusoids(*p.shape)))
            elif "decoder.embed_positions" in name:
                p.copy_(r)
            elif "norm" in name and name.endswith("weight"):
                p.copy_(1 + 0.1 * r)
            elif p.ndim == 1:
                p.copy_(0.1 * r)
            elif "encoder_attn" in name:
                p.copy_(GAIN["cross"] * scale * r)
            elif "decoder" in name:
                p.copy_(GAIN["attention" if "self_attn" in name else "mlp"] * scale * r)
            else:
                p.copy_(GAIN["encoder"] * scale * r)


def sinusoids(length, width):
    rates = np.exp(-math.log(10000) / (width // 2 - 1) * np.arange(width // 2))
    angles = np.arange(length)[:, None] * rates[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32)


def calibrate(whisper, features, seed):
    """Scales the last norms by what passes through them, so that outputs differ between inputs and positions."""
    generator = torch.Generator().manual_seed(seed + 1000)
    seen = []

    def keep(_, arguments):
        seen.append(arguments[0].clone())

    def spread(norm):
        x = torch.cat([it.reshape(-1, WIDTH) for it in seen]).double()
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        mean, deviation = x.mean(0), x.std(0).clamp(min=0.05)
        norm.weight.copy_((1 / deviation).float())
        norm.bias.copy_((-mean / deviation).float())
        seen.clear()

    with torch.no_grad():
        hook = whisper.model.encoder.layer_norm.register_forward_pre_hook(keep)
        for it in features:
            whisper.model.encoder(it)
        hook.remove()
        spread(whisper.model.encoder.layer_norm)
        states = [whisper.model.encoder(it).last_hidden_state.expand(8, -1, -1) for it in features]
        for _ in range(3):
            hook = whisper.model.decoder.layer_norm.register_forward_pre_hook(keep)
            for it in states:
                ids = torch.randint(0, BASE_VOCABULARY, (8, 96), generator=generator)
                whisper.model.decoder(input_ids=ids, encoder_hidden_states=it)
            hook.remove()
            spread(whisper.model.decoder.layer_norm)


class WithAttention(WhisperOnnxConfig):
    """As the exports called `_timestamped`."""

    @property
    def outputs(self):
        outputs = super().outputs
        if self._behavior is ConfigBehavior.DECODER:
            for i in range(self._config.decoder_layers):
                axes = {0: "batch_size", 2: "decoder_sequence_length", 3: "encoder_sequence_length_out"}
                outputs[f"cross_attentions.{i}"] = axes
        return outputs


def export(whisper, folder):
    task = "automatic-speech-recognition-with-past"
    onnx_export_from_model(whisper, folder / "plain", task=task, do_validation=False)
    config = WithAttention(whisper.config, task="automatic-speech-recognition", use_past=True, use_past_in_inputs=True)
    parts = {
        "encoder_model": config.with_behavior("encoder"),
        "decoder_model": config.with_behavior("decoder", use_past=True, use_past_in_inputs=False),
        "decoder_with_past_model": config.with_behavior("decoder", use_past=True, use_past_in_inputs=True),
    }
    onnx_export_from_model(whisper, folder / "timestamped", task=task, do_validation=False,
                           model_kwargs={"output_attentions": True}, custom_onnx_configs=parts)


class Reference:
    """What transformers makes of a sound."""

    def __init__(self, whisper, fast, extractor):
        self.whisper, self.fast, self.extractor = whisper, fast, extractor

    def features(self, samples, whole=False):
        options = {"truncation": False, "padding": "longest"} if whole else {}
        samples = samples.astype(np.float32) / 32768
        return self.extractor(samples, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True, **options)

    def once(self, features, **options):
        return self.whisper.generate(features, return_dict_in_generate=True, output_scores=True,
                                     force_unique_generate_call=True, **{"task": "transcribe", **options})

    def ids(self, features, **options):
        return self.once(features, **options).sequences[0].tolist()

    def segments(self, result):
        return [{"start": round(float(it["start"]), 4), "end": round(float(it["end"]), 4),
                 "tokens": it["tokens"].tolist(), "text": self.fast.decode(it["tokens"], skip_special_tokens=True)}
                for it in result["segments"][0]]

    def of_sound(self, samples):
        inputs = self.features(samples)
        features = inputs.input_features
        config = self.whisper.generation_config
        encoded = self.whisper.model.encoder(features).last_hidden_state
        start = torch.tensor([[ID["<|startoftranscript|>"]]])
        logits = self.whisper(features, decoder_input_ids=start).logits[0, -1]
        languages = logits[list(config.lang_to_id.values())].softmax(-1)
        greedy = self.once(features)
        scores = torch.stack(greedy.scores)[:, 0]
        tokens = greedy.sequences[0].tolist()
        prompt = tokens[: len(tokens) - len(scores)]
        top = scores.topk(2).values
        taken = scores.log_softmax(-1)[range(len(scores)), tokens[len(prompt) :]]
        previous = torch.tensor(self.fast.get_prompt_ids("Hola Ana"))
        beam = self.once(features, num_beams=5)
        beam_times = self.once(features, num_beams=5, return_timestamps=True)
        timed = self.once(features, language="es", return_timestamps=True, attention_mask=inputs.attention_mask,
                          return_token_timestamps=True)
        timed_sequence = timed["sequences"][0].tolist()
        first = tokens[len(prompt)]
        usual, config.begin_suppress_tokens = config.begin_suppress_tokens, config.begin_suppress_tokens + [first]
        probe = self.ids(features)
        config.begin_suppress_tokens = usual
        return {
            "frames_with_audio": int(inputs.attention_mask.sum()),
            # Each 997th value of [mels, frames] and each 499th of [frames, width], in the order of memory.
            "mel_997": thinned(features, 997),
            "encoder_499": thinned(encoded, 499),
            "language_probabilities": {code: float(p) for code, p in zip(LANGUAGES, languages)},
            "no_speech_probability": float(logits.softmax(-1)[ID["<|nospeech|>"]]),
            "greedy": {"prompt": prompt, "tokens": tokens[len(prompt) :],
                       "text": self.fast.decode(tokens[len(prompt) :], skip_special_tokens=True),
                       "sum_logprob": float(taken.sum()), "margin": float((top[:, 0] - top[:, 1]).min())},
            "timestamps": self.ids(features, return_timestamps=True),
            "beam5": {"tokens": beam.sequences[0].tolist(), "score": float(beam.sequences_scores[0])},
            "beam5_timestamps": {"tokens": beam_times.sequences[0].tolist(), "score": float(beam_times.sequences_scores[0])},
            "es_translate": self.ids(features, language="es", task="translate"),
            "begin_suppress": {"also": first, "tokens": probe},
            "es_prompt": {"text": "Hola Ana", "ids": previous.tolist(),
                          "tokens": self.ids(features, language="es", prompt_ids=previous)},
            "es_token_times": {"tokens": timed_sequence,
                               "times": [round(float(it), 4) for it in timed["token_timestamps"][0]]},
        }

    def of_long(self, samples):
        inputs = self.features(samples, whole=True)
        results = {"frames": int(inputs.input_features.shape[-1])}
        for name, options in {
            "default": {},
            "condition_on_previous": {"condition_on_prev_tokens": True},
            "beam5": {"num_beams": 5},
            "es": {"language": "es"},
            "no_speech": {"temperature": (0.0,), "logprob_threshold": -0.8, "no_speech_threshold": 1e-9},
        }.items():
            result = self.whisper.generate(inputs.input_features, attention_mask=inputs.attention_mask, task="transcribe",
                                           return_timestamps=True, return_segments=True, **options)
            results[name] = {"options": options, "segments": self.segments(result)}
        return results


def thinned(tensor, stride):
    return [round(float(it), 6) for it in tensor.flatten()[::stride]]


def show(seed, reference, pieces):
    for name, samples in pieces.items():
        it = reference.of_sound(samples)
        times = [i - ID["<|0.00|>"] if i >= ID["<|0.00|>"] else "." for i in it["timestamps"]]
        language = max(it["language_probabilities"], key=it["language_probabilities"].get)
        print(seed, name, language, "greedy", len(it["greedy"]["tokens"]), len(set(it["greedy"]["tokens"])),
              "margin %.4f" % it["greedy"]["margin"], "beam", len(it["beam5"]["tokens"]), len(it["beam5_timestamps"]["tokens"]),
              "times", len(times), [it for it in times if it != "."][:12], flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", help="only show what these give, with commas between")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pieces = sounds()
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = pathlib.Path(name)
        fast = tokenizer(folder)
        extractor = WhisperFeatureExtractor(feature_size=MELS)
        for seed in map(int, (arguments.seeds or str(SEED)).split(",")):
            whisper = model(fast, seed)
            reference = Reference(whisper, fast, extractor)
            calibrate(whisper, [reference.features(it).input_features for it in pieces.values()], seed)
            show(seed, reference, pieces)
        if arguments.seeds:
            return
        whisper.save_pretrained(folder)
        extractor.save_pretrained(folder)
        export(whisper, folder)
        shutil.rmtree(OUT, ignore_errors=True)
        (OUT / "onnx").mkdir(parents=True)
        (OUT / "onnx_timestamped").mkdir()
        for file in ["config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json"]:
            compact = json.dumps(json.loads((folder / file).read_text()), ensure_ascii=False, separators=(",", ":"))
            (OUT / file).write_text(compact + "\n")
        for file in ["encoder_model", "decoder_model", "decoder_with_past_model", "decoder_model_merged"]:
            shutil.copy(folder / "plain" / f"{file}.onnx", OUT / "onnx")
        shutil.copy(folder / "timestamped" / "decoder_model_merged.onnx", OUT / "onnx_timestamped")
        for sound, samples in pieces.items():
            with wave.open(str(OUT / f"{sound}.wav"), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(RATE)
                file.writeframes(samples.tobytes())
        whisper.set_attn_implementation("eager")
        golden = {
            "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
            "sounds": {sound: reference.of_sound(samples) for sound, samples in pieces.items()},
            "long": {"parts": LONG, **reference.of_long(long_recording(pieces))},
        }
        (OUT / "golden.json").write_text(json.dumps(golden, ensure_ascii=False, indent=None) + "\n")


if __name__ == "__main__":
    main()
