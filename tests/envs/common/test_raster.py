"""Drawing on numpy images."""

from __future__ import annotations

import numpy as np

from marl.envs.common.raster import box, canvas, disc, fill, line, text_width, write

WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def ink(image):
    return (image < 128).all(-1)


def test_fill_is_cut_off_at_the_edge():
    image = canvas(10, 20, WHITE)
    fill(image, -5, 8, 3, 30, BLACK)
    assert ink(image).sum() == 3 * 2


def test_box_covers_its_area_at_every_angle():
    for angle in (0.0, 0.3, np.pi / 2, 2.0):
        image = canvas(60, 60, WHITE)
        box(image, 30, 30, 30, 12, angle, BLACK)
        assert abs((255.0 - image[..., 0]).sum() / 255 - 30 * 12) < 8


def test_disc_and_line_have_their_size():
    image = canvas(40, 40, WHITE)
    disc(image, 20, 20, 10, BLACK)
    assert abs(ink(image).sum() - np.pi * 100) < 15
    image = canvas(40, 40, WHITE)
    line(image, 5, 20, 35, 20, BLACK, width=3)
    assert abs((255.0 - image[..., 0]).sum() / 255 - (30 * 3 + np.pi * 2.25)) < 5


def test_drawing_outside_the_image_changes_nothing():
    image = canvas(10, 10, WHITE)
    box(image, -50, 5, 20, 10, 0.3, BLACK)
    write(image, 200, -20, "far", BLACK)
    assert not ink(image).any()


def test_text_is_as_wide_as_promised_and_letters_differ():
    shapes = {}
    for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:-+=/%()_":
        image = canvas(9, 7, WHITE)
        write(image, 1, 1, letter, BLACK)
        shapes[letter] = ink(image).tobytes()
    assert len(set(shapes.values())) == len(shapes)
    image = canvas(20, 100, WHITE)
    write(image, 0, 0, "HMH", BLACK, scale=2)
    assert np.flatnonzero(ink(image).any(0)).max() + 1 == text_width("HMH", 2)
    image = canvas(9, 7, WHITE)
    write(image, 1, 1, "é", BLACK)
    unknown = canvas(9, 7, WHITE)
    write(unknown, 1, 1, "?", BLACK)
    np.testing.assert_array_equal(image, unknown)
