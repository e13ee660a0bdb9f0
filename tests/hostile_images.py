"""Damaged and hostile files of every format that Pillow knows, each with the memory and time that it took.

python tests/hostile_images.py FIRST COUNT [FORMAT]
"""

from __future__ import annotations

import faulthandler
import io
import random
import resource
import struct
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
from damage import damaged_bytes
from PIL import Image

MEMORY = 6 * 2**30
SECONDS = 30
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")
MODES = ("RGB", "L", "P", "RGBA", "1", "CMYK", "LA", "I;16", "I", "F", "YCbCr")
#: Formats that are read and not written, and others that hold more than an image.
HANDMADE: dict[str, Callable[[], bytes]] = {
    "PPM in text": lambda: b"P3\n# a comment\n4 3 255\n" + b"10 20 30 " * 12,
    "PPM of 16 bits": lambda: b"P6 4 3 65535\n" + bytes(range(72)),
    "PFM": lambda: b"PF\n4 3\n-1.0\n" + bytes(144),
    "BMP of runs": lambda: (
        b"BM"
        + bytes(8)
        + b"\x36\4\0\0\x28\0\0\0\4\0\0\0\3\0\0\0\1\0\x08\0\1"
        + bytes(23 + 1024)
        + b"\4\1\0\0" * 3
    ),
    "QOI": lambda: b"qoif\0\0\0\4\0\0\0\3\3\0" + b"\xc3" * 4 + bytes(7) + b"\1",
    "FITS": lambda: (
        b"".join(
            line.ljust(80)
            for line in (
                b"SIMPLE  =  T",
                b"BITPIX  =  8",
                b"NAXIS   =  2",
                b"NAXIS1  =  4",
                b"NAXIS2  =  3",
                b"END",
            )
        ).ljust(2880)
        + bytes(12)
    ),
    "XPM": lambda: (
        b'/* XPM */\nstatic char *a[] = {\n"2 2 2 1",\n"a c #000000",\n"b c #ffffff",\n"ab",\n"ba"};\n'
    ),
    "PSD": lambda: b"8BPS\0\1" + bytes(7) + b"\3\0\0\0\3\0\0\0\4\0\x08\0\3" + bytes(14) + bytes(36),
    "SVG": lambda: b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
    "WMF": lambda: b"\xd7\xcd\xc6\x9a\0\0" + bytes(40),
    "zlib": lambda: zlib.compress(bytes(10**6)),
}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, kind: int = 2, bits: int = 8, before: bytes = b"", whole: bool = False
) -> bytes:
    """Of zeros, with `before` before its pixels; they are there, or no more than the first of them."""
    row = 1 + (width * {0: 1, 2: 3, 3: 1, 6: 4}[kind] * bits + 7) // 8
    packed = zlib.compressobj(1)
    rows = [row] * height if whole else [min(row, 2**16)]
    parts = [packed.compress(bytes(size)) for size in rows]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    if kind == 3:
        before += chunk(b"PLTE", bytes(768)) + chunk(b"tRNS", b"\x80")
    pixels = chunk(b"IDAT", b"".join(parts) + packed.flush())
    return b"\x89PNG\r\n\x1a\n" + header + before + pixels + chunk(b"IEND", b"")


def saved(kind: str, mode: str = "RGB", size: tuple[int, int] = (16, 12), **options: object) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind, **options)
    return file.getvalue()


def table(tags: int, size: int, total: int) -> bytes:
    """EXIF data, or the start of a TIFF, with tags that all refer to the same bytes."""
    entries = b"".join(struct.pack("<HHII", 5000 + i, 7, size, 8) for i in range(tags))
    ends = struct.pack("<H", tags) + entries + bytes(4)
    return (b"II*\0" + struct.pack("<I", total - len(ends))).ljust(total - len(ends), b"\0") + ends


def segment(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", 2 + len(data)) + data


def jpeg(*segments: bytes) -> bytes:
    return b"\xff\xd8" + b"".join(segments) + saved("JPEG")[2:]


def scans(count: int) -> bytes:
    data = saved("JPEG", "L", (4000, 4000), progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + data[-2:]


def tiff(**tags: int) -> bytes:
    """16 × 12 with tags by number: `t322=60000`."""
    known = {256: 16, 257: 12, 258: 8, 259: 8, 262: 1, 277: 1} | {int(k[1:]): v for k, v in tags.items()}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(known.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(known)) + entries + bytes(4) + zlib.compress(bytes(2**20))


def bmp(width: int, height: int, compression: int, data: bytes) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, compression, 0, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 1078) + info + bytes(1024) + data


def ico(image: bytes) -> bytes:
    return b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(image), 22) + image


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"


def iptc(image: bytes) -> bytes:
    """A file of IPTC, of the size 64 × 64, that holds another."""

    def field(record: int, number: int, data: bytes) -> bytes:
        return bytes((0x1C, record, number)) + struct.pack(">H", len(data)) + data

    side = struct.pack(">H", 64)
    fields = field(3, 60, b"\1\0") + field(3, 20, side) + field(3, 30, side) + field(3, 120, b"\5")
    return fields + field(8, 10, image) + bytes(5)


@cache
def bases() -> list[tuple[str, bytes]]:
    """What is damaged: every format that can be written, in all modes that it takes, and some by hand.

    HEIC, too, where pillow-heif is installed.
    """
    Image.init()
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener(thumbnails=False)
    pixels = np.random.default_rng(0).integers(0, 256, (24, 36, 4), dtype=np.uint8)
    whole = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    found = [(name, make()) for name, make in HANDMADE.items()]
    found += [
        ("IPTC", iptc(EPS)),
        ("IPTC of PNG", iptc(png(64, 64, whole=True))),
        ("ICO of PNG", ico(png(48, 48, 6, whole=True))),
        ("JPEG of a table", jpeg(segment(0xE1, b"Exif\0\0" + table(900, 30_000, 50_000)))),
        ("TIFF of a table", table(900, 60_000, 100_000)),
        ("TIFF of tiles", tiff(t322=16, t323=16, t324=90, t325=1020)),
    ]
    for kind in sorted(Image.SAVE):
        for mode in MODES if kind not in ("HEIF", "ICNS") else ("RGBA", "L"):  # their encoders are slow
            for options in (
                {},
                {"exif": exif},
                {"compression": "tiff_lzw"},
                {"progressive": True},
                {"save_all": True},
            ):
                file = io.BytesIO()
                image = whole.convert("RGB").convert("L").convert(mode) if mode != "RGBA" else whole
                try:
                    image.save(file, kind, **options)
                except Exception:
                    continue
                if (kind, file.getvalue()) not in found:
                    found.append((kind, file.getvalue()))
    return found


def hostile(seed: int, only: str = "") -> tuple[str, bytes]:
    """The name of what was damaged, and the bytes.  `only`: the format to damage; others may follow it."""
    rng = random.Random(seed)
    name, data = rng.choice([each for each in bases() if only in ("", each[0])])
    match rng.randrange(8):
        case 0:  # as it is
            return name, data
        case 1:  # its numbers
            at = rng.randrange(len(data))
            number = rng.choice((0, 1, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1)).to_bytes(4, "big")
            return name, data[:at] + rng.choice((number, number[::-1], number[2:])) + data[at + 4 :]
        case 2:  # the head of one and the rest of another
            other, more = rng.choice(bases())
            at = rng.choice((4, 8, 16, 30, 60))
            return f"{name}, {other}", data[:at] + more[at:]
        case 3:  # one behind another, or said again
            other, more = rng.choice(bases())
            return f"{name} + {other}", data + more * rng.choice((1, 100))
        case _:
            return name, damaged_bytes(data[: 2**20], rng)


def main(first: int, count: int, only: str = "") -> None:
    from gbp.errors import InputError
    from gbp.pictures.image import read_image
    from gbp.pictures.preprocess import Preprocess

    made = bases()
    started: list[str] = []
    sys.addaudithook(lambda event, _: started.append(event) if event in PROGRAMS else None)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    path = Path(tempfile.mkdtemp()) / "image"
    preprocess = Preprocess.parse("imagenet")
    outcomes: Counter[str] = Counter()
    decoded: Counter[str] = Counter()
    most_memory, most_cpu = (0, 0), (0.0, 0)
    for seed in range(first, first + count):
        print(seed, end=" ", flush=True)  # before the attempt: the last line names what crashed
        name, data = hostile(seed, only)
        path.write_bytes(data)
        del data
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak
        before, start = _mebibytes("VmRSS:"), time.process_time()
        try:
            preprocess.apply(read_image(path), channels=3, size=(32, 32))
            said = "decoded"
            decoded[name.partition(",")[0]] += 1
        except InputError as error:
            said = f"refused: {error}"
            assert said.isprintable()
        except Exception:
            traceback.print_exc()
            sys.exit(f"seed {seed}: no InputError")
        took, memory = time.process_time() - start, _mebibytes("VmHWM:") - before
        most_memory, most_cpu = max(most_memory, (memory, seed)), max(most_cpu, (took, seed))
        outcomes[said.partition(":")[0]] += 1
        print(f"{took:.2f} s {memory} MiB  {name}: {said[:150]}")
    faulthandler.cancel_dump_traceback_later()
    print(f"{len(made)} bases; {dict(outcomes)}; decoded {dict(decoded)}; programs started: {started}")
    print(f"peak {most_memory[0]} MiB (seed {most_memory[1]}), {most_cpu[0]:.2f} s (seed {most_cpu[1]})")


def _mebibytes(what: str) -> int:
    return int(Path("/proc/self/status").read_text().partition(what)[2].split()[0]) // 1024


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
