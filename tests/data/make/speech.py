#!/usr/bin/env python3
"""Makes tests/data/speech: one spoken sentence between two pauses, in every encoding of `/ws/audio`.

    python3 tests/data/make/speech.py

Needs espeak-ng and gst-launch-1.0 with the base, good, bad and libav plugins. The voice is a synthesiser's.
"""
import pathlib
import struct
import subprocess
import tempfile
import wave

OUT = pathlib.Path(__file__).parent.parent / "speech"
TEXT = "Cuidado con el escalón de la derecha."


def launch(line):
    subprocess.run(["gst-launch-1.0", "-q", *line.split()], check=True)


def ogg_packets(data):
    packets, packet, at = [], b"", 0
    while at < len(data):
        count = data[at + 26]
        lacing = data[at + 27 : at + 27 + count]
        at += 27 + count
        for size in lacing:
            packet += data[at : at + size]
            at += size
            if size < 255:
                packets.append(packet)
                packet = b""
    return packets


with tempfile.TemporaryDirectory() as folder:
    tmp = pathlib.Path(folder)
    spoken = subprocess.run(["espeak-ng", "-v", "es", "-s", "150", "--stdout", TEXT], check=True, capture_output=True).stdout
    (tmp / "spoken.wav").write_bytes(spoken)
    launch(f"filesrc location={tmp}/spoken.wav ! wavparse ! audioconvert ! audioresample ! "
           f"audio/x-raw,format=S16LE,rate=16000,channels=1 ! filesink location={tmp}/spoken.raw")
    pause = b"\0\0" * 16000
    samples = pause[:16000] + (tmp / "spoken.raw").read_bytes() + pause
    with wave.open(str(OUT / "speech.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(samples)
    source = f"filesrc location={OUT}/speech.wav ! wavparse ! audioconvert ! audioresample"
    launch(f"{source} ! audio/x-raw,rate=48000 ! opusenc bitrate=24000 ! oggmux ! filesink location={OUT}/speech.ogg")
    launch(f"{source} ! audio/x-raw,rate=48000 ! opusenc bitrate=24000 ! webmmux streamable=true ! filesink location={OUT}/speech.webm")
    launch(f"{source} ! flacenc ! filesink location={OUT}/speech.flac")
    launch(f"{source} ! audio/x-raw,rate=22050 ! lamemp3enc target=bitrate cbr=true bitrate=32 ! filesink location={OUT}/speech.mp3")
    aac = f"{source} ! audio/x-raw,rate=44100 ! avenc_aac bitrate=48000 ! aacparse"
    launch(f"{aac} ! audio/mpeg,stream-format=adts ! filesink location={OUT}/speech.aac")
    launch(f"{aac} ! mp4mux fragment-duration=200 streamable=true ! filesink location={OUT}/speech.mp4")
    for name, encoder in [("mulaw", "mulawenc"), ("alaw", "alawenc")]:
        launch(f"{source} ! audio/x-raw,rate=8000 ! {encoder} ! filesink location={OUT}/speech.{name}")
    packets = ogg_packets((OUT / "speech.ogg").read_bytes())[2:]
    # Each packet is preceded by its length, 16 bits, big endian.
    (OUT / "speech.packets").write_bytes(b"".join(struct.pack(">H", len(it)) + it for it in packets))
