#!/usr/bin/env python3
"""Makes a `-timestamped` Whisper out of a plain one: the same weights, and what the decoder listens to as outputs.

    python3 -m venv /tmp/v && /tmp/v/bin/pip install onnx==1.23.2 && /tmp/v/bin/python tests/data/make/whisper_timestamped.py FROM TO

FROM and TO are folders in the layout of published exports. It serves where a trained model is at hand that was exported
without: times of words, and AlignAtt, can be measured on it. Nothing of what it makes is kept in the repository.
"""
import pathlib, re, shutil, sys

import onnx

LISTENS = re.compile(r"layers\.(\d+)/encoder_attn/Softmax_output_0$")


def expose(graph):
    """Names of the outputs that this graph has now, by layer, with what they were called inside."""
    found = {}
    for node in graph.node:
        for name in node.output:
            if match := LISTENS.search(name):
                found[int(match[1])] = name
    for layer, inside in sorted(found.items()):
        outside = f"cross_attentions.{layer}"
        for node in graph.node:
            for names in (node.input, node.output):
                for at, name in enumerate(names):
                    if name == inside:
                        names[at] = outside
        graph.output.append(value(layer))
    return sorted(found)


def value(layer):
    shape = ["batch_size", "num_heads", "decoder_sequence_length", "encoder_sequence_length_out"]
    return onnx.helper.make_tensor_value_info(f"cross_attentions.{layer}", onnx.TensorProto.FLOAT, shape)


def timestamped(source, target):
    model = onnx.load(source)
    layers = expose(model.graph)
    for node in model.graph.node:
        branches = [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]
        for branch in branches:
            layers = expose(branch)
        if branches:
            node.output.extend(f"cross_attentions.{layer}" for layer in layers)
            model.graph.output.extend(value(layer) for layer in layers)
    if not layers:
        sys.exit(f"{source}: no attention to the encoder was found in it")
    onnx.save(model, target)


def main():
    source, target = map(pathlib.Path, sys.argv[1:])
    (target / "onnx").mkdir(parents=True)
    for file in source.glob("*.json"):
        shutil.copy(file, target)
    for file in (source / "onnx").glob("*.onnx*"):
        if file.name.startswith("decoder"):
            timestamped(file, target / "onnx" / file.name)
        else:
            shutil.copy(file, target / "onnx")


main()
