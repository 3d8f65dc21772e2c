"""Makes tests/data/diarize/features.json: the features of a quarter of a second of a made-up signal, by independent
implementations: kaldi-native-fbank 1.22.5 for Kaldi's filter banks, NumPy after librosa's definitions for the mel
spectrogram of GE2E. Needs: pip install numpy kaldi-native-fbank. Run from the root of the checkout.
"""

import json

import kaldi_native_fbank
import numpy as np

RATE = 16_000


def signal():
    i = np.arange(4000)
    secs = i / RATE
    noise = ((i * 7919) % 1000) / 1000.0 - 0.5
    return (0.3 * np.sin(2 * np.pi * (200 + 900 * secs) * secs) + 0.05 * noise + 0.02).astype("f4")


def kaldi(audio, window, scale):
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0
    options.frame_opts.window_type = window
    options.frame_opts.snip_edges = True
    options.mel_opts.num_bins = 80
    options.mel_opts.low_freq = 20
    options.mel_opts.high_freq = 8000
    options.use_energy = False
    bank = kaldi_native_fbank.OnlineFbank(options)
    bank.accept_waveform(RATE, (audio * scale).tolist())
    bank.input_finished()
    return [bank.get_frame(at).tolist() for at in range(bank.num_frames_ready)]


def mel_to_hz(mel):
    step = np.log(6.4) / 27
    return np.where(mel >= 15, 1000 * np.exp(step * (mel - 15)), mel * 200 / 3)


def ge2e(audio, bands=40, fft=400, hop=160):
    edges = mel_to_hz(np.linspace(0, 15 + np.log(RATE / 2 / 1000) / (np.log(6.4) / 27), bands + 2))
    hz = np.arange(fft // 2 + 1) * RATE / fft
    rising = (hz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - hz) / (edges[2:] - edges[1:-1])[:, None]
    filters = np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))[:, None]
    padded = np.pad(audio, fft // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, fft)[::hop] * np.hanning(fft + 1)[:fft]
    return (np.abs(np.fft.rfft(frames)) ** 2 @ filters.T).tolist()


def rounded(rows):
    return [[float(f"{value:.5g}") for value in row] for row in rows]


audio = signal()
features = {
    "hamming": rounded(kaldi(audio, "hamming", 32768.0)),
    "povey": rounded(kaldi(audio, "povey", 1.0)),
    "ge2e": rounded(ge2e(audio)),
}
with open("tests/data/diarize/features.json", "w") as file:
    json.dump(features, file)
