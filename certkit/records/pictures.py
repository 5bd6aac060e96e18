"""Small pictures of samples inside a record, as PNG files. Standard library and pydantic alone.

A record may come from anyone, and a picture of it ends in a page that a browser reads. So the plainest PNG is all that is
taken: 8 bits, grey or colour, not interlaced, no chunk but IHDR, IDAT and IEND, checksums right, exactly as many bytes as
the picture has, and nothing behind its end. The whole of it has an upper limit, so that the page keeps one.
"""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from certkit.records.base import Count, Record

MOST = 60  # samples with pictures
BUDGET = 450_000  # characters of base64 over all pictures
SIDE = 512  # pixels of the longer side of a picture
FACTORS = (0.4, 0.5, 0.6, 0.8, *(step * 10.0**power for power in range(4) for step in (1, 1.5, 2, 3, 4, 5, 6, 8)))

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOURS = {0: 1, 2: 3}  # PNG's colour type: channels


def shape_of(png: bytes) -> tuple[int, int, int]:
    """Channels, height and width of a PNG that is whole and plain. Raises ValueError saying what is wrong with any other.

    At most as much is unpacked as the picture's size asks for, and that is at most 3 ``SIDE``^2 bytes and a few.
    """
    if png[:8] != _SIGNATURE:
        raise ValueError("not a PNG")
    chunks, at = [], 8
    while at < len(png):
        if len(png) < at + 12:
            raise ValueError("a PNG that ends too early")
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, body = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        if len(png) < at + 12 + length or png[at + 8 + length : at + 12 + length] != struct.pack(
            ">I", zlib.crc32(kind + body)
        ):
            raise ValueError("a PNG with a damaged chunk")
        chunks.append((kind, body))
        at += 12 + length
    kinds = [kind for kind, _ in chunks]
    if len(kinds) < 3 or kinds != [b"IHDR", *[b"IDAT"] * (len(kinds) - 2), b"IEND"] or chunks[-1][1]:
        raise ValueError("a PNG with other chunks than IHDR, IDAT and IEND")
    if len(chunks[0][1]) != 13:
        raise ValueError("a PNG with a damaged chunk")
    width, height, depth, colour, *methods = struct.unpack(">IIBBBBB", chunks[0][1])
    if depth != 8 or colour not in _COLOURS or any(methods):
        raise ValueError("a PNG that is not 8-bit grey or colour without interlacing")
    if not (1 <= width <= SIDE and 1 <= height <= SIDE):
        raise ValueError(f"a PNG of {width} x {height} pixels; at most {SIDE} x {SIDE} are taken")
    row = 1 + width * _COLOURS[colour]
    unpack = zlib.decompressobj()
    try:
        pixels = unpack.decompress(b"".join(body for _, body in chunks[1:-1]), height * row + 1)
    except zlib.error:
        raise ValueError("a PNG whose pixels cannot be unpacked") from None
    if len(pixels) != height * row or not unpack.eof or unpack.unused_data or max(pixels[::row]) > 4:
        raise ValueError("a PNG with more or fewer pixels than it states")
    return _COLOURS[colour], height, width


def _checked(text: str) -> str:
    try:
        shape_of(base64.b64decode(text, validate=True))
    except binascii.Error:
        raise ValueError("not base64") from None
    return text


Png = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]+={0,2}$", max_length=BUDGET), AfterValidator(_checked)]


class Picture(Record):
    """One sample, its nearest adversarial example, and the difference of the two, as base64 of PNG files.

    ``input`` and ``adversarial`` show the box from its lower end, 0, to its upper, 255, rounded to whole steps.
    ``difference`` shows example minus input: 128 where nothing changed, and ``factor`` times as strong as in the other two;
    it is made of the values themselves and not of the rounded pictures. ``becomes`` is the class that the program gave to
    the example.
    """

    index: Count
    becomes: Count
    factor: Annotated[float, Field(gt=0)]
    input: Png
    adversarial: Png
    difference: Png

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of each of the three."""
        return shape_of(base64.b64decode(self.input))

    @property
    def length(self) -> int:
        """How many characters the three take."""
        return len(self.input) + len(self.adversarial) + len(self.difference)

    @model_validator(mode="after")
    def _shows_one_change(self) -> Picture:
        if self.factor not in FACTORS:
            raise ValueError(f"a difference is not shown {self.factor:g} times as strong")
        if len({shape_of(base64.b64decode(png)) for png in (self.input, self.adversarial, self.difference)}) != 1:
            raise ValueError("input, adversarial example and difference are pictures of different sizes")
        return self


class Pictures(Record):
    """The samples that are shown, those with the smallest gap between proof and attack first; or why there are none.

    ``broken`` counts the samples with an adversarial example, of which as many are shown as ``MOST`` and ``BUDGET`` allow.
    """

    shown: Annotated[tuple[Picture, ...], Field(max_length=MOST)]
    broken: Count
    absent: str | None

    @model_validator(mode="after")
    def _is_bounded(self) -> Pictures:
        if bool(self.shown) == (self.absent is not None):
            raise ValueError("either there are pictures, or a reason why not")
        if len({one.index for one in self.shown}) < len(self.shown) or len(self.shown) > self.broken:
            raise ValueError("a sample is shown twice, or more are shown than were broken")
        if sum(one.length for one in self.shown) > BUDGET:
            raise ValueError(f"the pictures take more than {BUDGET} characters")
        return self
