"""Image files become inputs as the model's own preprocessing makes them, and as a viewer shows them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from specxai.cli.images import Transform, read_image

GREY = Transform(4, 4, (0.0,), (1.0,))


def test_resized_and_cropped(tmp_path):
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 20:60] = 255  # the centre square is white
    Image.fromarray(pixels).save(tmp_path / "a.png")
    out = read_image(tmp_path / "a.png", Transform(size=16, resize=20))
    assert out.shape == (16, 16, 3)
    assert out.min() == 1.0
    x = Transform(size=16).normalise(out)
    assert x.shape == (1, 3, 16, 16)
    assert x[0, 0, 0, 0].item() == pytest.approx((1 - 0.485) / 0.229)


def test_sixteen_bits_keep_their_range(tmp_path):
    Image.fromarray(np.full((4, 4), 65535 // 2, np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png", GREY).mean() == pytest.approx(0.5, abs=0.01)
    assert read_image(tmp_path / "deep.png", Transform(4, 4)).mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("mode, colour", [("RGBA", (0, 0, 0, 0)), ("LA", (0, 0))])
def test_transparent_is_white(tmp_path, mode, colour):
    Image.new(mode, (4, 4), colour).save(tmp_path / "t.png")
    assert read_image(tmp_path / "t.png", GREY).min() == 1.0


def test_turned_as_the_camera_says(tmp_path):
    pixels = np.zeros((4, 4), np.uint8)
    pixels[0] = 255  # the top row
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert read_image(tmp_path / "turned.png", GREY)[-1].mean() == 1.0


def _damaged(path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:3000])


def _foreign(path):
    path.write_text("no picture")


def _thread(path):
    Image.new("L", (1, 60_000)).save(path)


@pytest.mark.parametrize("make, message", [
    (_damaged, "is not an image that Pillow can read: convert it to PNG or JPEG"),
    (_foreign, "is not an image that Pillow can read"),
    (_thread, "is 1 x 60000 pixels, too long for a square of 4: crop it first"),
])
def test_unreadable(tmp_path, make, message):
    make(tmp_path / "x.png")
    with pytest.raises(ValueError, match=message):
        read_image(tmp_path / "x.png", GREY)
