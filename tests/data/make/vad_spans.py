"""Reference spans for src/segment/speech.rs, from the functions of the wheel `silero-vad` themselves.

    pip download --no-deps silero-vad==6.2.3 && unzip silero_vad-*.whl -d silero
    python3 vad_spans.py silero > ../vad/spans.json

The model is replaced by a list of probabilities, so that only the decisions are compared; torch by the few calls
that those functions make of it.
"""

import json
import random
import sys
import types

SOURCE = sys.argv[1]


class Samples:
    """What the reference asks of a tensor: a length and slices."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, part):
        return Samples(len(range(*part.indices(self.length))))

    def dim(self):
        return 1

    @property
    def shape(self):
        return (self.length,)


torch = types.ModuleType("torch")
torch.Tensor = Samples
torch.is_tensor = lambda value: isinstance(value, Samples)
torch.no_grad = lambda: (lambda function: function)
torch.jit = types.SimpleNamespace(load=None)
torch.nn = types.SimpleNamespace(functional=types.SimpleNamespace(pad=lambda chunk, pads: Samples(chunk.length + pads[1])))
torch.backends = types.SimpleNamespace()
torch.float32, torch.device = None, str
sys.modules.update({"torch": torch, "torch.nn": torch.nn, "torch.nn.functional": torch.nn.functional,
                    "torchaudio": types.ModuleType("torchaudio")})

package = types.ModuleType("silero_vad")
source = open(f"{SOURCE}/silero_vad/utils_vad.py").read()
exec(compile(source, "utils_vad.py", "exec"), package.__dict__)


class Model:
    def __init__(self, probabilities):
        self.probabilities = iter(probabilities)

    def reset_states(self):
        pass

    def __call__(self, *_):
        return types.SimpleNamespace(item=lambda value=next(self.probabilities): value)


def probabilities(rng, frames):
    """Speech-like: stretches that stay high or low, with single frames between the two thresholds."""
    result, level = [], 0.02
    while len(result) < frames:
        level = rng.choice([0.02, 0.02, 0.2, 0.4, 0.45, 0.6, 0.9, 0.97])
        for _ in range(rng.choice([1, 1, 2, 3, 4, 8, 20, 60])):
            result.append(round(min(max(level + rng.uniform(-0.05, 0.05), 0.0), 1.0), 3))
    return result[:frames]


def live(values, **options):
    iterator = package.VADIterator(Model(values), sampling_rate=16000, **options)
    found = []
    for _ in values:
        event = iterator(Samples(512))
        if event:
            found.append(event)
    return found


rng = random.Random(20)
cases = []
for number in range(24):
    frames = rng.choice([40, 200, 600])
    values = probabilities(rng, frames)
    length = frames * 512 - rng.choice([0, 0, 100, 511])
    options = rng.choice([{}, {}, {"max_speech_duration_s": 4.0}, {"max_speech_duration_s": 2.0, "min_silence_duration_ms": 160},
                          {"min_speech_duration_ms": 0, "min_silence_duration_ms": 2000, "speech_pad_ms": 400}])
    spans = package.get_speech_timestamps(Samples(length), Model(values), sampling_rate=16000, **options)
    silence = rng.choice([100, 500])
    cases.append({
        "probabilities": values,
        "samples": length,
        "options": options,
        "offline": [[span["start"], span["end"]] for span in spans],
        "live_min_silence_ms": silence,
        "live": live(values, min_silence_duration_ms=silence, speech_pad_ms=30),
    })
json.dump({"cases": cases}, sys.stdout, separators=(",", ":"))
