"""Drawing on numpy RGB images: rectangles, discs, lines, text in a 5x7 font. No window, no dependency."""

from __future__ import annotations

import math
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Image: TypeAlias = NDArray[np.uint8]  # [height, width, 3]
Colour: TypeAlias = tuple[int, int, int]

GLYPH_WIDTH: Final = 5
GLYPH_HEIGHT: Final = 7

# One glyph: seven rows from the top, each a number whose five bits are the pixels from left to right.
_ROWS: Final[dict[str, tuple[int, ...]]] = {
    " ": (0, 0, 0, 0, 0, 0, 0),
    "0": (14, 17, 19, 21, 25, 17, 14),
    "1": (4, 12, 4, 4, 4, 4, 14),
    "2": (14, 17, 1, 6, 8, 16, 31),
    "3": (30, 1, 1, 14, 1, 1, 30),
    "4": (2, 6, 10, 18, 31, 2, 2),
    "5": (31, 16, 30, 1, 1, 17, 14),
    "6": (6, 8, 16, 30, 17, 17, 14),
    "7": (31, 1, 2, 4, 8, 8, 8),
    "8": (14, 17, 17, 14, 17, 17, 14),
    "9": (14, 17, 17, 15, 1, 2, 12),
    "A": (14, 17, 17, 31, 17, 17, 17),
    "B": (30, 17, 17, 30, 17, 17, 30),
    "C": (14, 17, 16, 16, 16, 17, 14),
    "D": (30, 17, 17, 17, 17, 17, 30),
    "E": (31, 16, 16, 30, 16, 16, 31),
    "F": (31, 16, 16, 30, 16, 16, 16),
    "G": (14, 17, 16, 23, 17, 17, 15),
    "H": (17, 17, 17, 31, 17, 17, 17),
    "I": (14, 4, 4, 4, 4, 4, 14),
    "J": (7, 2, 2, 2, 2, 18, 12),
    "K": (17, 18, 20, 24, 20, 18, 17),
    "L": (16, 16, 16, 16, 16, 16, 31),
    "M": (17, 27, 21, 21, 17, 17, 17),
    "N": (17, 25, 25, 21, 19, 19, 17),
    "O": (14, 17, 17, 17, 17, 17, 14),
    "P": (30, 17, 17, 30, 16, 16, 16),
    "Q": (14, 17, 17, 17, 21, 18, 13),
    "R": (30, 17, 17, 30, 20, 18, 17),
    "S": (15, 16, 16, 14, 1, 1, 30),
    "T": (31, 4, 4, 4, 4, 4, 4),
    "U": (17, 17, 17, 17, 17, 17, 14),
    "V": (17, 17, 17, 17, 10, 10, 4),
    "W": (17, 17, 17, 21, 21, 21, 10),
    "X": (17, 10, 10, 4, 10, 10, 17),
    "Y": (17, 17, 10, 10, 4, 4, 4),
    "Z": (31, 1, 2, 4, 8, 16, 31),
    ".": (0, 0, 0, 0, 0, 12, 12),
    ",": (0, 0, 0, 0, 12, 4, 8),
    ":": (0, 12, 12, 0, 12, 12, 0),
    "-": (0, 0, 0, 14, 0, 0, 0),
    "+": (0, 4, 4, 31, 4, 4, 0),
    "=": (0, 0, 31, 0, 31, 0, 0),
    "/": (1, 1, 2, 4, 8, 16, 16),
    "%": (25, 25, 2, 4, 8, 19, 19),
    "(": (2, 4, 8, 8, 8, 4, 2),
    ")": (8, 4, 2, 2, 2, 4, 8),
    "_": (0, 0, 0, 0, 0, 0, 31),
    "?": (14, 17, 1, 2, 4, 0, 4),
}
_GLYPHS: Final = {
    letter: np.array([[row >> (GLYPH_WIDTH - 1 - bit) & 1 for bit in range(GLYPH_WIDTH)] for row in rows], bool)
    for letter, rows in _ROWS.items()
}


def canvas(height: int, width: int, colour: Colour) -> Image:
    """A new image of one colour."""
    image = np.empty((height, width, 3), np.uint8)
    image[:] = colour
    return image


def fill(image: Image, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
    """Fill an upright rectangle; what lies outside the image is cut off."""
    height, width = image.shape[:2]
    x0, x1 = max(round(left), 0), min(round(right), width)
    y0, y1 = max(round(top), 0), min(round(bottom), height)
    if x0 < x1 and y0 < y1:
        image[y0:y1, x0:x1] = colour


def _blend(image: Image, left: int, top: int, cover: NDArray[np.float64], colour: Colour) -> None:
    """Mix `colour` into the image with weight `cover` in [0, 1], whose upper left corner is at (left, top)."""
    height, width = image.shape[:2]
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + cover.shape[1], width), min(top + cover.shape[0], height)
    if x0 >= x1 or y0 >= y1:
        return
    weight = cover[y0 - top : y1 - top, x0 - left : x1 - left, None]
    part = image[y0:y1, x0:x1]
    part[:] = np.round(part * (1 - weight) + np.asarray(colour) * weight).astype(np.uint8)


def box(
    image: Image, x: float, y: float, length: float, width: float, angle: float, colour: Colour, corner: float = 0.0
) -> None:
    """Fill a rectangle with centre (x, y) [pixels], turned by `angle` [rad], corners rounded with radius `corner`."""
    reach = math.ceil(math.hypot(length, width) / 2) + 1
    left, top = math.floor(x) - reach, math.floor(y) - reach
    px = np.arange(left, left + 2 * reach + 2) + 0.5 - x
    py = np.arange(top, top + 2 * reach + 2) + 0.5 - y
    along = np.abs(px * math.cos(angle) + py[:, None] * math.sin(angle)) - length / 2 + corner
    across = np.abs(py[:, None] * math.cos(angle) - px * math.sin(angle)) - width / 2 + corner
    outside = np.hypot(np.maximum(along, 0), np.maximum(across, 0)) + np.minimum(np.maximum(along, across), 0) - corner
    _blend(image, left, top, np.clip(0.5 - outside, 0, 1), colour)


def disc(image: Image, x: float, y: float, radius: float, colour: Colour) -> None:
    """Fill a disc with centre (x, y) [pixels]."""
    box(image, x, y, 2 * radius, 2 * radius, 0.0, colour, corner=radius)


def line(image: Image, x0: float, y0: float, x1: float, y1: float, colour: Colour, width: float = 1.0) -> None:
    """A straight line of the given width with round ends [pixels]."""
    length = math.hypot(x1 - x0, y1 - y0)
    angle = math.atan2(y1 - y0, x1 - x0)
    box(image, (x0 + x1) / 2, (y0 + y1) / 2, length + width, width, angle, colour, corner=width / 2)


def text_width(text: str, scale: int = 1) -> int:
    """Width of `text` [pixels]."""
    return max(len(text) * (GLYPH_WIDTH + 1) - 1, 0) * scale


def write(image: Image, left: float, top: float, text: str, colour: Colour, scale: int = 1) -> None:
    """Write `text` (upper-cased; letters the font lacks become `?`) with its upper left corner at (left, top)."""
    at = round(left)
    for letter in text.upper():
        glyph = _GLYPHS.get(letter, _GLYPHS["?"])
        cover = np.kron(glyph, np.ones((scale, scale)))
        _blend(image, at, round(top), cover, colour)
        at += (GLYPH_WIDTH + 1) * scale
