"""The paired run of scripts/bench-asr: ours, faster-whisper and transformers in turn, one process each time, and what
bounds all of them. Called with `--system` it is one such process for a system in Python."""

import argparse
import json
import math
import pathlib
import random
import resource
import statistics
import struct
import subprocess
import sys
import time
import wave

RATE = 16000
WINDOW_SECS = 30


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=pathlib.Path, required=True)
    parser.add_argument("--binary")
    parser.add_argument("--python")
    parser.add_argument("--audio")
    parser.add_argument("--system")
    for name in ["rounds", "windows", "tokens", "threads"]:
        parser.add_argument(f"--{name}", type=int, default=1)
    return parser.parse_args()


def write_audio(path, windows):
    """Something to hear, different in each window, never silent."""
    random.seed(1)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        for window in range(windows):
            samples = (
                int(6000 * math.sin(i * (0.05 + 0.01 * window)) * math.sin(i * 0.0004) + random.gauss(0, 900))
                for i in range(RATE * WINDOW_SECS)
            )
            file.writeframes(b"".join(struct.pack("<h", max(-32768, min(32767, it))) for it in samples))


def read_audio(path):
    import numpy as np

    with wave.open(path) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768


def run_transformers(options, _):
    import torch
    import transformers

    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    model = transformers.WhisperForConditionalGeneration.from_pretrained(options.models / "hf").eval()
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(options.models / "hf")

    def transcribe(audio):
        tokens = []
        for start in range(0, len(audio), RATE * WINDOW_SECS):
            window = audio[start : start + RATE * WINDOW_SECS]
            features = extractor(window, sampling_rate=RATE, return_tensors="pt").input_features
            with torch.inference_mode():
                ids = model.generate(features, language="es", task="transcribe", do_sample=False, num_beams=1,
                                     max_new_tokens=options.tokens, force_unique_generate_call=True)
            tokens.append(ids[0].tolist()[-options.tokens :])
        return tokens

    return transcribe


def run_faster_whisper(options, precision):
    import faster_whisper
    from faster_whisper.audio import pad_or_trim

    model = faster_whisper.WhisperModel(str(options.models / "ct2"), device="cpu", compute_type=precision,
                                        cpu_threads=options.threads, num_workers=1)
    tokens = json.loads((options.models / "hf" / "generation_config.json").read_text())
    prompt = [tokens["decoder_start_token_id"], tokens["lang_to_id"]["<|es|>"], tokens["task_to_id"]["transcribe"],
              tokens["no_timestamps_token_id"]]

    # Its parts instead of its `transcribe`, which takes the language out of the prompt of a model that it does not know.
    def transcribe(audio):
        texts = []
        for start in range(0, len(audio), RATE * WINDOW_SECS):
            features = pad_or_trim(model.feature_extractor(audio[start : start + RATE * WINDOW_SECS]))
            # CTranslate2 decodes half of this length.
            result = model.model.generate(model.encode(features), [prompt], beam_size=1, max_length=2 * options.tokens,
                                          suppress_blank=False, suppress_tokens=[])
            texts.append(result[0].sequences_ids[0])
        return texts

    return transcribe


def one_run(options):
    system, precision = options.system.split(":")
    transcribe = {"transformers": run_transformers, "faster-whisper": run_faster_whisper}[system](options, precision)
    audio = read_audio(options.audio)
    transcribe(audio[: RATE * WINDOW_SECS])
    begun = time.perf_counter()
    tokens = transcribe(audio)
    elapsed = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"elapsed_secs": elapsed, "tokens": tokens, "peak_rss_kib": peak}))


def measure(options, system, audio):
    name, precision = system.split(":")
    if name == "vigia":
        suffix = ["--suffix=_quantized"] if precision == "int8" else []
        command = [options.binary, "bench", "asr", str(audio), f"--model={options.models / 'onnx-model'}", *suffix]
    else:
        command = [options.python, __file__, f"--models={options.models}", f"--system={system}", f"--audio={audio}"]
    command += [f"--tokens={options.tokens}", f"--threads={options.threads}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{system} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def bounds(options):
    """Bytes that each token moves, arithmetic of a window, and what this machine does of each in a second."""
    import torch

    torch.set_num_threads(options.threads)
    config = json.loads((options.models / "hf" / "config.json").read_text())
    width, layers, ffn = config["d_model"], config["decoder_layers"], config["decoder_ffn_dim"]
    weights = layers * (6 * width * width + 2 * width * ffn) + config["vocab_size"] * width
    heard = layers * 2 * 1500 * width
    encoder = config["encoder_layers"] * (2 * 1500 * (4 * width * width + 2 * width * ffn) + 4 * 1500 * 1500 * width)
    encoder += 2 * 3000 * 3 * config["num_mel_bins"] * width + 2 * 1500 * 3 * width * width
    # Once a window each decoder layer makes keys and values of what was heard.
    encoder += layers * 2 * 2 * 1500 * width * width

    def best(work, amount):
        work()
        times = []
        for _ in range(5):
            begun = time.perf_counter()
            work()
            times.append(time.perf_counter() - begun)
        return amount / min(times)

    large = torch.ones(128 << 20)
    a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
    bandwidth = best(lambda: large.sum(), large.numel() * 4)
    peak = best(lambda: a @ b, 2 * 2048**3)
    return {"weights": weights, "heard": heard, "encoder_flop": encoder, "bandwidth": bandwidth, "peak": peak}


def bound_secs(known, precision, tokens):
    size = 1 if precision == "int8" else 4
    moved = known["weights"] * size + known["heard"] * 4
    return known["encoder_flop"] / known["peak"] + tokens * moved / known["bandwidth"]


def main():
    options = arguments()
    if options.system:
        return one_run(options)
    audio = options.models / f"audio-{options.windows}.wav"
    if not audio.exists():
        write_audio(audio, options.windows)
    systems = ["vigia:float32", "faster-whisper:float32", "transformers:float32", "vigia:int8", "faster-whisper:int8"]
    results = {system: [] for system in systems}
    for turn in range(options.rounds):
        # Another one begins each round, so that none always follows the same neighbour.
        for i in range(len(systems)):
            system = systems[(i + turn) % len(systems)]
            results[system].append(measure(options, system, audio))
    known = bounds(options)
    secs = options.windows * WINDOW_SECS
    print(f"{options.windows} windows of {WINDOW_SECS} s, {options.tokens} tokens each, {options.threads} threads, "
          f"medians of {options.rounds} rounds (least–most)\n")
    print(f"{'system':<26}{'real-time factor':>28}{'tokens/s':>10}{'peak MiB':>10}{'of its bound':>14}")
    for system, runs in results.items():
        elapsed = [run["elapsed_secs"] for run in runs]
        count = sum(len(window) for window in runs[0]["tokens"])
        median = statistics.median(elapsed)
        memory = statistics.median(run["peak_rss_kib"] for run in runs) / 1024
        bound = options.windows * bound_secs(known, system.split(":")[1], count / options.windows)
        factor = f"{median / secs:.4f} ({min(elapsed) / secs:.4f}–{max(elapsed) / secs:.4f})"
        print(f"{system:<26}{factor:>28}{count / median:>10.1f}{memory:>10.0f}{median / bound:>13.1f}x")
    exact = [results[system][0]["tokens"] for system in systems if system.endswith(":float32")]
    same = all(tokens == exact[0] for tokens in exact)
    counts = {system: [len(window) for window in runs[0]["tokens"]] for system, runs in results.items()}
    print(f"\nfloat32 tokens are {'the same in every system' if same else 'NOT the same: ' + json.dumps(counts)}")
    moved = known["weights"] * 4 + known["heard"] * 4
    print(f"a token moves {moved / 1e6:.0f} MB in float32 ({(known['weights'] + known['heard'] * 4) / 1e6:.0f} MB in int8); "
          f"memory gives {known['bandwidth'] / 1e9:.1f} GB/s")
    print(f"a window is {known['encoder_flop'] / 1e9:.1f} GFLOP; float32 products reach {known['peak'] / 1e9:.0f} GFLOP/s")


if __name__ == "__main__":
    main()
