"""Draws one line of text the way a camera might have caught it, as a pure function of its random numbers."""

from __future__ import annotations

import functools
import importlib.util
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from fullquant.errors import DataError

_Random = np.random.Generator
_Floats = npt.NDArray[np.float32]

_FAMILIES = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cmr10", "cmss10", "cmtt10", "cmb10", "cmti10")
_WITHOUT_LETTERS = ("Display",)


def _listed(text: str) -> tuple[str, ...]:
    """The comma-separated entries of a text."""
    return tuple(entry.strip() for entry in text.split(","))


_THINGS = _listed(
    """
    bakery, bicycle, blanket, bottle, bucket, cabinet, camera, candle, carpet, ceramic, charger, compass, copper,
    cotton, curtain, diesel, drawer, fabric, faucet, ferry, garage, garlic, ginger, glacier, granite, guitar,
    hammer, harvest, helmet, honey, hotel, jacket, kettle, kitchen, ladder, lantern, leather, linen, lobby, locker,
    magnet, marble, mirror, mortar, museum, mustard, needle, notebook, olive, onion, oven, package, parcel, pasta,
    pepper, pillow, pigment, plaster, platform, pottery, printer, pulley, radio, railway, raisin, ribbon, saffron,
    sandal, sensor, shelf, shuttle, silver, spinach, stadium, station, studio, syrup, tailor, terrace, textile,
    timber, toaster, tomato, tractor, trailer, tunnel, turbine, umbrella, vanilla, velvet, vinegar, violin, wagon,
    wallet, warehouse, whistle, willow, window, workshop, zipper
    """
)
_QUALITIES = _listed(
    """
    ancient, brisk, central, classic, clean, crisp, daily, deep, double, durable, early, eastern, elegant, entire,
    express, famous, fine, flexible, fragile, frozen, gentle, genuine, global, golden, grand, handmade, heavy,
    humid, instant, joint, large, light, lower, major, modern, mobile, narrow, natural, northern, original,
    outdoor, partial, pocket, portable, premium, quiet, rapid, rear, regional, robust, royal, rural, second, sharp,
    silent, simple, single, smooth, solar, solid, southern, special, spare, steady, thin, thermal, total, upper,
    urban, vintage, visible, western, wide, wooden
    """
)
_ACTIONS = _listed(
    """
    ask before boarding, call us today, check expiry date, deliver by hand, do not bend, do not freeze,
    follow the signs, handle with care, insert coin here, keep dry, keep upright, lift the cover, mind the step,
    open this side, out of order, pay here, please knock, press to start, pull to open, push firmly,
    refill allowed, reserved seats, return within 14 days, ring the bell, scan to continue, shake well, staff only,
    store below 25 C, subject to change, tear along line, this way up, turn off engine, use other door,
    wash separately, wet paint, while stocks last
    """
)
_STREETS = ("Road", "Lane", "Avenue", "Square", "Quay", "Hill", "Court", "Terrace")
_UNITS = ("kg", "g", "ml", "cm", "mm", "W", "V", "pcs", "km/h", "kPa")


@functools.lru_cache(maxsize=1)
def font_files() -> tuple[Path, ...]:
    """The TrueType files with Latin letters that matplotlib ships, found without importing it. Sorted by name.

    Raises DataError with the remedy where matplotlib is absent.
    """
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise DataError("text lines are drawn with matplotlib's fonts: pip install matplotlib")
    folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    files = sorted(
        file
        for file in folder.glob("*.ttf")
        if file.name.startswith(_FAMILIES) and not any(word in file.name for word in _WITHOUT_LETTERS)
    )
    if not files:
        raise DataError(f"no fonts in {folder}: reinstall matplotlib")
    return tuple(files)


@functools.lru_cache(maxsize=512)
def _font(file: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(file), size, layout_engine=ImageFont.Layout.BASIC)


def line_of_text(random: _Random) -> str:
    """Something that stands on signs, labels and receipts."""

    def pick(options: tuple[str, ...]) -> str:
        return options[int(random.integers(len(options)))]

    def number(low: int, high: int) -> str:
        return str(int(random.integers(low, high)))

    kind = random.random()
    if kind < 0.34:
        text = " ".join([pick(_QUALITIES), pick(_THINGS), pick(_THINGS)][: int(random.integers(2, 4))])
    elif kind < 0.52:
        text = pick(_ACTIONS)
    elif kind < 0.64:
        text = f"{pick(_THINGS)} {number(1, 900)} {pick(_UNITS)}"
    elif kind < 0.74:
        text = f"{number(1, 300)} {pick(_QUALITIES).title()} {pick(_STREETS)}"
    elif kind < 0.82:
        text = f"{pick(_THINGS)}{pick((' ', ': ', ' = '))}{number(0, 400)}.{number(10, 100)}"
    elif kind < 0.89:
        text = f"{number(1, 29)}/{number(1, 13)}/{number(1990, 2040)} {number(0, 24)}:{number(10, 60)}"
    elif kind < 0.94:
        text = "".join(pick(tuple("ABCDEFGHJKLMNPRTUVWXY3456789-")) for _ in range(int(random.integers(5, 11))))
    else:
        text = pick(_THINGS)
    style = random.random()
    return text.upper() if style < 0.3 else text.capitalize() if style < 0.6 else text


@dataclass(frozen=True)
class Look:
    """How a line is printed and photographed. Lengths are in pixels of the crop, colours in 0..255."""

    font: Path
    size: int
    tracking: int
    paper: tuple[float, float, float]
    ink: tuple[float, float, float]
    shade: float
    texture: float
    margins: tuple[float, float, float, float]
    tilt: float
    shear: float
    sharpness: float
    blur: float
    noise: float
    quality: int


def draw_look(random: _Random, hardness: float) -> Look:
    """A random look; `hardness` 0 gives clean prints, 1 crops that people struggle with."""
    paper = random.uniform(0, 255, 3)
    contrast = random.uniform(70, 190) * (1 - 0.5 * hardness * random.random())
    darker = paper.mean() > 127 if random.random() < 0.9 else paper.mean() > contrast
    ink = np.clip(paper + (-contrast if darker else contrast) + random.normal(0, 25, 3), 0, 255)
    degraded = random.random(3) < (0.6 * hardness, 0.5 * hardness, 0.6 * hardness)
    margins = random.uniform(-0.06 * hardness, 0.35, 4)
    return Look(
        font=font_files()[int(random.integers(len(font_files())))],
        size=int(random.integers(16, 49)),
        tracking=int(random.integers(1, 5)) if random.random() < 0.2 else 0,
        paper=(float(paper[0]), float(paper[1]), float(paper[2])),
        ink=(float(ink[0]), float(ink[1]), float(ink[2])),
        shade=float(random.uniform(0, 70)),
        texture=float(random.uniform(0, 30) * random.random()),
        margins=(float(margins[0]), float(margins[1]), float(margins[2]), float(margins[3])),
        tilt=float(random.normal(0, 0.05 * hardness)),
        shear=float(random.normal(0, 0.25 * hardness)),
        sharpness=float(random.uniform(7, 16)) if degraded[0] else 1000.0,
        blur=float(random.uniform(0.02, 0.075)) if degraded[1] else 0.0,
        noise=float(random.uniform(4, 30)) if degraded[2] else 0.0,
        quality=int(random.integers(30, 95)),
    )


def render(text: str, look: Look, random: _Random) -> Image.Image:
    """The upright crop, RGB."""
    cover = _warp(_letters(text, look), look)
    height, width = cover.shape
    surface = _surface(height, width, look, random)
    ink = np.asarray(look.ink, np.float32)
    pixels = surface + cover[:, :, None] * (ink - np.asarray(look.paper, np.float32))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if look.sharpness < height:
        share = look.sharpness / height
        small = (max(6, round(width * share)), max(6, round(height * share)))
        image = image.resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BICUBIC)
    if look.blur:
        image = image.filter(ImageFilter.GaussianBlur(look.blur * height))
    if look.noise:
        grain = random.normal(0, look.noise, (height, width, 3))
        image = Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))
    return image


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    """The JPEG file as bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _letters(text: str, look: Look) -> Image.Image:
    """The ink's cover, 0..255, with the margins around it (negative ones cut into the letters)."""
    font = _font(look.font, look.size)
    left, top, right, bottom = font.getbbox(text)
    width, height = round(right - left) + look.tracking * (len(text) - 1), round(bottom - top)
    above, below, before, after = (round(margin * look.size) for margin in look.margins)
    page = Image.new("L", (max(8, width + before + after), max(8, height + above + below)))
    pen = ImageDraw.Draw(page)
    x, y = before - left, above - top
    if not look.tracking:
        pen.text((x, y), text, font=font, fill=255)
        return page
    for letter in text:
        pen.text((x, y), letter, font=font, fill=255)
        x += font.getlength(letter) + look.tracking
    return page


def _warp(page: Image.Image, look: Look) -> _Floats:
    """The cover, 0..1, tilted and sheared about its centre on a page of the same size."""
    width, height = page.size
    tilt = look.tilt * min(1.0, 4 * height / width)  # long lines would leave the crop
    matrix = (1.0, look.shear, -look.shear * height / 2, tilt, 1.0, -tilt * width / 2)
    turned = page.transform(page.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return np.asarray(turned, np.float32) / np.float32(255)


def _surface(height: int, width: int, look: Look, random: _Random) -> _Floats:
    """The paper: its colour, a slanting light, and stains a few pixels wide."""
    direction = random.uniform(0, 2 * np.pi)
    across = np.linspace(-0.5, 0.5, width, dtype=np.float32) * np.float32(np.cos(direction))
    down = np.linspace(-0.5, 0.5, height, dtype=np.float32) * np.float32(np.sin(direction))
    light = (down[:, None] + across[None, :]) * np.float32(look.shade)
    cells = random.normal(0, 1, (max(2, height // 6), max(2, width // 6))).astype(np.float32)
    stains = np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC))
    paper = np.asarray(look.paper, np.float32)
    return paper + np.asarray(light + look.texture * stains, np.float32)[:, :, None]
