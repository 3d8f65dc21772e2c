#!/usr/bin/env python3
"""Makes tests/data/media: one tone in every encoding of the wire, one picture in every shape of photo.

    python3 -m venv /tmp/v && /tmp/v/bin/pip install pillow==13.0.0 && /tmp/v/bin/python tests/data/make/media.py

Needs gst-launch-1.0 with the base, good, bad and libav plugins.
The tone is the one that `src/media/tests/mod.rs` computes; keep both alike.
"""
import io, math, pathlib, struct, subprocess, tempfile, wave

from PIL import Image

OUT = pathlib.Path(__file__).parent.parent / "media"
SECS = 2.0


def tone(t):
    """200 Hz rising to 3 kHz, swelling three times a second: no two places are alike."""
    phase = 2 * math.pi * (200 * t + (3000 - 200) / (2 * SECS) * t * t)
    return 0.5 * math.sin(phase) * (0.6 + 0.4 * math.sin(2 * math.pi * 3 * t))


def write_wav(path, rate, channels=1, width=2):
    """Every further channel is half as loud as the one before."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        frames = bytearray()
        for n in range(int(SECS * rate)):
            for channel in range(channels):
                value = round(tone(n / rate) / 2**channel * 32767)
                frames += struct.pack("<h", value) if width == 2 else struct.pack("<i", value << 8)[0:3]
        file.writeframes(bytes(frames))


def launch(line):
    subprocess.run(["gst-launch-1.0", "-q", *line.split()], check=True)


def ogg_packets(data):
    """The packets of an Ogg stream with one logical stream."""
    packets, packet, at = [], b"", 0
    while at < len(data):
        assert data[at : at + 4] == b"OggS"
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


def audio(tmp):
    master, stereo = tmp / "master.wav", tmp / "stereo.wav"
    write_wav(master, 48000)
    write_wav(stereo, 48000, channels=2)
    write_wav(OUT / "tone.wav", 22050)
    source = f"filesrc location={master} ! wavparse ! audioconvert"
    source2 = f"filesrc location={stereo} ! wavparse ! audioconvert"
    at8 = f"{source} ! audioresample ! audio/x-raw,rate=8000"
    launch(f"{at8} ! alawenc ! wavenc ! filesink location={OUT}/alaw.wav")
    launch(f"{source} ! audioresample ! audio/x-raw,format=S16LE,rate=16000 ! flacenc ! filesink location={OUT}/tone.flac")
    launch(f"{source} ! opusenc bitrate=32000 ! oggmux ! filesink location={OUT}/opus.ogg")
    launch(f"{source} ! vorbisenc ! oggmux ! filesink location={OUT}/vorbis.ogg")
    launch(f"{source2} ! opusenc bitrate=48000 ! webmmux streamable=true ! filesink location={OUT}/stereo.webm")
    launch(f"{source} ! lamemp3enc target=bitrate cbr=true bitrate=64 ! filesink location={OUT}/tone.mp3")
    aac = f"{source} ! avenc_aac bitrate=64000 ! aacparse"
    launch(f"{aac} ! audio/mpeg,stream-format=adts ! filesink location={OUT}/tone.aac")
    launch(f"{aac} ! mp4mux fragment-duration=200 streamable=true ! filesink location={OUT}/fragmented.mp4")
    launch(f"{aac} ! mp4mux faststart=true ! filesink location={OUT}/faststart.m4a")
    launch(f"{aac} ! mp4mux ! filesink location={OUT}/moov_last.m4a")
    # Beyond the encodings of the wire: whole files of whatever else GStreamer reads, two with a picture beside the sound.
    picture = "videotestsrc num-buffers=20 ! video/x-raw,width=64,height=48,framerate=10/1 ! jpegenc ! m."
    s16 = f"{source} ! audioresample ! audio/x-raw"
    launch(f"{s16},rate=16000 ! aiffmux ! filesink location={OUT}/tone.aiff")
    launch(f"{s16},format=S16BE,rate=16000 ! avmux_au ! filesink location={OUT}/tone.au")
    launch(f"avimux name=m ! filesink location={OUT}/video.avi {picture} {source} ! lamemp3enc bitrate=64 ! m.")
    launch(f"matroskamux name=m ! filesink location={OUT}/video.mkv {picture} {source} ! avenc_ac3 bitrate=96000 ! m.")
    mp3 = "lamemp3enc target=bitrate cbr=true bitrate=64 ! mpegaudioparse"
    launch(f"{s16},rate=44100 ! {mp3} ! flvmux ! filesink location={OUT}/tone.flv")
    launch(f"{aac} ! mpegtsmux ! filesink location={OUT}/tone.ts")
    launch(f"{s16},rate=16000 ! avenc_alac ! qtmux ! filesink location={OUT}/alac.mov")
    launch(f"{s16},rate=16000 ! speexenc ! oggmux ! filesink location={OUT}/speex.ogg")
    launch(f"{source} ! avenc_ac3 bitrate=96000 ! filesink location={OUT}/tone.ac3")
    # As a phone sends it: packets without a container. Each is preceded by its length, 16 bits, big endian.
    packets = ogg_packets((OUT / "opus.ogg").read_bytes())[2:]
    (OUT / "opus.packets").write_bytes(b"".join(struct.pack(">H", len(it)) + it for it in packets))


def quadrants(width=64, height=32, mode="RGB"):
    """Red, green above blue, white."""
    image = Image.new("RGB", (width, height), "white")
    image.paste("red", (0, 0, width // 2, height // 2))
    image.paste((0, 255, 0), (width // 2, 0, width, height // 2))
    image.paste("blue", (0, height // 2, width // 2, height))
    return image.convert(mode)


def photos():
    T = Image.Transpose
    # How the camera held the upright picture, so that the orientation of that number makes it upright again.
    held = {1: None, 2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM,
            5: T.TRANSPOSE, 6: T.ROTATE_90, 7: T.TRANSVERSE, 8: T.ROTATE_270}
    for orientation, turn in held.items():
        image = quadrants() if turn is None else quadrants().transpose(turn)
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(OUT / f"orientation_{orientation}.jpg", quality=90, exif=exif)
    quadrants().save(OUT / "progressive.jpg", quality=90, progressive=True)
    quadrants(mode="L").save(OUT / "gray.jpg", quality=90)
    quadrants(mode="CMYK").save(OUT / "cmyk.jpg", quality=90)
    quadrants().save(OUT / "rgb.png")
    quadrants(mode="P").save(OUT / "palette.png")
    quadrants(mode="L").convert("I").point(lambda it: it * 257).convert("I;16").save(OUT / "gray16.png")
    clear = quadrants(mode="RGBA")
    clear.paste((0, 0, 0, 0), (32, 16, 64, 32))
    clear.save(OUT / "alpha.png")
    clear.save(OUT / "alpha.webp", lossless=True)
    quadrants().save(OUT / "lossy.webp", quality=90)
    clear.save(OUT / "animated.webp", save_all=True, append_images=[clear.transpose(T.ROTATE_180)], duration=100)
    quadrants(640, 320).save(OUT / "large.jpg", quality=80)
    # The header says 8×8, the picture inside is 64×32.
    plain = io.BytesIO()
    quadrants().save(plain, "WEBP", quality=90)
    chunk = plain.getvalue()[12:]
    vp8x = b"VP8X" + struct.pack("<IB3x", 10, 0) + (7).to_bytes(3, "little") * 2
    (OUT / "lying.webp").write_bytes(b"RIFF" + struct.pack("<I", 4 + len(vp8x) + len(chunk)) + b"WEBP" + vp8x + chunk)


OUT.mkdir(parents=True, exist_ok=True)
with tempfile.TemporaryDirectory() as tmp:
    audio(pathlib.Path(tmp))
photos()
print(sum(it.stat().st_size for it in OUT.iterdir()), "bytes")
