"""What the tasks of `revolve demo` do: photos in, thumbnails out, with nothing but the standard library.

Ordinary functions: called directly they do the same, with a bar drawn by `track` and a prompt by `ask`.
"""

from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path

from revolve_assistant import ask, track

SIGNATURE = b"\x89PNG\r\n\x1a\n"
Rows = list[bytes]  # one row of a picture: red, green, blue, red, green, blue …
SIZE = 480, 320  # width and height of a photo

# --- pictures


def read_png(path: Path) -> Rows:
    """The rows of an 8-bit RGB picture without filters, as `write_png` makes it. ValueError when it is damaged."""
    data = path.read_bytes()
    if not data.startswith(SIGNATURE):
        raise ValueError(f"{path.name} is no PNG file")
    at, width, packed = len(SIGNATURE), 0, b""
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + size]
        if len(data) < at + 12 + size or zlib.crc32(kind + body) != int.from_bytes(data[at + 8 + size :][:4]):
            raise ValueError(f"{path.name} is damaged: wrong checksum in chunk {kind.decode()}")
        if kind == b"IHDR":
            width = struct.unpack_from(">I", body)[0]
        elif kind == b"IDAT":
            packed += body
        at += 12 + size
    raw = zlib.decompress(packed)
    step = 1 + 3 * width
    return [raw[start + 1 : start + step] for start in range(0, len(raw), step)]


def write_png(path: Path, rows: Rows) -> int:
    """Write an 8-bit RGB picture; returns its size in bytes."""
    header = struct.pack(">IIBBBBB", len(rows[0]) // 3, len(rows), 8, 2, 0, 0, 0)
    packed = zlib.compress(b"".join(b"\0" + row for row in rows), 6)
    data = SIGNATURE
    for kind, body in ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b"")):
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return path.write_bytes(data)


def paint(seed: int) -> Rows:
    """A landscape: a sky, a sun, hills."""
    width, height = SIZE
    chance = random.Random(seed)
    sky, sun, hill = (bytes(chance.randrange(low, low + 90) for _ in range(3)) for low in (90, 165, 10))
    x, y, radius = chance.randrange(60, width - 60), chance.randrange(50, height // 2), chance.randrange(20, 50)
    ridge = chance.randrange(height // 2, height - 40)
    rows = []
    for line in range(height):
        ground = min(width, max(0, (line - ridge) * 6))
        shade = bytes(max(0, value - line // 6) for value in sky)
        half = max(0, radius**2 - (line - y) ** 2) ** 0.5
        left, right = int(x - half), int(x + half)
        row = shade * left + sun * (right - left) + shade * (width - right)
        rows.append(hill * ground + row[3 * ground :])
    return rows


def shrink(rows: Rows, by: int = 4) -> Rows:
    """The picture with sides `by` times shorter: each new pixel is the mean of `by` x `by` old ones."""
    width = len(rows[0]) // 3 // by
    small = []
    for top in range(0, len(rows) - by + 1, by):
        block = rows[top : top + by]
        sums = [
            sum(sum(row[start : start + 3 * by : 3]) for row in block)
            for left in range(width)
            for start in range(3 * by * left, 3 * by * left + 3)
        ]
        small.append(bytes(value // by**2 for value in sums))
    return small


def histogram(rows: Rows) -> list[int]:
    """How many pixels are how bright, in eight steps."""
    steps = [0] * 8
    for row in rows:
        for red, green, blue in zip(row[::3], row[1::3], row[2::3], strict=True):
            steps[(2 * red + 5 * green + blue) >> 8] += 1
    return steps


def smooth(rows: Rows) -> Rows:
    """The picture softened: each value is the mean of itself and its eight neighbours."""
    soft = [rows[0]]
    for above, here, below in zip(rows, rows[1:], rows[2:], strict=False):
        sums = [a + b + c for a, b, c in zip(above, here, below, strict=True)]
        middle = bytes((a + b + c) // 9 for a, b, c in zip(sums, sums[3:], sums[6:], strict=False))
        soft.append(here[:3] + middle + here[-3:])
    return [*soft, rows[-1]]


def make_albums(folder: Path, albums: int = 4, photos: int = 6) -> list[Path]:
    """Fill `folder` with albums of photos; one photo of the last album is damaged."""
    made = []
    for number in range(1, albums + 1):
        album = folder / f"album-{number}"
        album.mkdir()
        for photo in range(1, photos + 1):
            write_png(album / f"photo-{photo}.png", paint(100 * number + photo))
        made.append(album)
    damaged = made[-1] / f"photo-{photos // 2}.png"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 0xFF
    damaged.write_bytes(data)
    return made


# --- the tasks


def thumbnails(album: Path) -> str:
    """A thumbnail of each photo; the one-line verdict is the result."""
    size = 0
    tones = [0] * 8
    photos = sorted(album.glob("photo-*.png"))
    for photo in track(photos, "shrinking"):
        rows = read_png(photo)
        for _ in range(6):
            rows = smooth(rows)
        tones = [old + new for old, new in zip(tones, histogram(rows), strict=True)]
        size += write_png(photo.with_name(f"thumb-{photo.name}"), shrink(rows))
    print(f"{album.name}: from dark to bright {' '.join(f'{tone / sum(tones):.0%}' for tone in tones)}")
    return f"{len(photos)} thumbnails, {size:,} bytes"


def soften(photo: Path, times: int = 5) -> str:
    """Far too much work: each step keeps a CPU busy for many seconds and looks up from it only after."""
    rows = read_png(photo)
    for _ in track(range(times), "softening"):
        for _ in range(500):
            rows = smooth(rows)
    return f"softened {500 * times} times"


def frame(photo: Path) -> str:
    """A photo in a frame of the colour that the caller says."""
    colours = {"gold": b"\xd4\xaf\x37", "silver": b"\xc0\xc0\xc0"}
    rows = read_png(photo)
    name = ask("A frame in gold or silver?", timeout=60)
    colour = colours[name]
    bar = colour * (len(rows[0]) // 3 + 40)
    framed = [bar] * 20
    for row in track(rows, "framing"):
        framed.append(colour * 20 + row + colour * 20)
    framed += [bar] * 20
    size = write_png(photo.with_name(f"{name}-{photo.name}"), framed)
    return f"a {name} frame, {size:,} bytes"


def crash(photo: Path) -> str:
    """What a bug in a C library does: reads address 0, and the whole process is gone."""
    import ctypes

    rows = read_png(photo)
    for _ in track(range(20), "decoding"):
        rows = smooth(rows)
    return ctypes.string_at(0).decode()
