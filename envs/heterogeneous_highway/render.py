"""Pictures of the road: an overview of the whole platoon, and one close view for each agent."""

from __future__ import annotations

import dataclasses
from typing import Final

import numpy as np
from numpy.typing import NDArray

from marl.envs.common.raster import Colour, Image, box, canvas, disc, fill, line, text_width, write

from .params import AGGRESSIVE, CONTROLLED, DEFENSIVE, LANE_WIDTH, LENGTH, NORMAL, WIDTH, HighwayConfig, HighwayParams
from .reward import reward_terms
from .state import HighwayState, agent_ids

PICTURE_WIDTH: Final = 960  # [pixels]
CARD_WIDTH: Final = 132  # the text beside a close view
HEADER: Final = 30
GAP: Final = 6
BEHIND: Final = 40.0  # part of a close view that lies behind the agent [m]
SCALE: Final = 2.75  # of a close view [pixels/m]
CLOSE_VIEWS: Final = 8  # at most
MIN_SPAN_M: Final = 600.0  # of road in the wide view

PAPER: Final[Colour] = (247, 246, 242)
INK: Final[Colour] = (38, 42, 48)
FAINT: Final[Colour] = (128, 132, 138)
ASPHALT: Final[Colour] = (74, 79, 86)
SHOULDER: Final[Colour] = (150, 168, 138)
PAINT: Final[Colour] = (214, 216, 214)
CRASH: Final[Colour] = (255, 255, 255)
GLASS: Final[Colour] = (30, 34, 40)
COLOURS: Final[dict[int, Colour]] = {
    CONTROLLED: (255, 196, 37),
    NORMAL: (126, 178, 221),
    AGGRESSIVE: (231, 84, 74),
    DEFENSIVE: (96, 190, 130),
}
NAMES: Final = {CONTROLLED: "agent", NORMAL: "normal", AGGRESSIVE: "aggressive", DEFENSIVE: "defensive"}


class _Road:
    """A strip of the picture that shows the road from `start` [m] on, at `scale` [pixels/m]."""

    def __init__(self, image: Image, top: int, left: int, start: float, scale: float, lanes: int) -> None:
        self.image, self.top, self.left, self.start, self.scale, self.lanes = image, top, left, start, scale, lanes
        self.height = self.strip_height(scale, lanes)
        self.view = image[top : top + self.height, left:]

    @staticmethod
    def strip_height(scale: float, lanes: int) -> int:
        """Pixels that the lanes and both shoulders need."""
        return round((lanes * LANE_WIDTH + 3.0) * scale)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixel of a point on the road, within the strip."""
        return (x - self.start) * self.scale, (y + LANE_WIDTH / 2 + 1.5) * self.scale

    def draw_lanes(self) -> None:
        width = self.view.shape[1]
        fill(self.view, 0, 0, width, self.height, SHOULDER)
        _, upper = self.at(0, -LANE_WIDTH / 2)
        _, lower = self.at(0, LANE_WIDTH * (self.lanes - 0.5))
        fill(self.view, 0, upper, width, lower, ASPHALT)
        thick = max(round(0.35 * self.scale), 1)
        for edge in (upper, lower - thick):
            fill(self.view, 0, edge, width, edge + thick, PAINT)
        first = int(np.floor(self.start / 12.0)) * 12.0
        for lane in range(1, self.lanes):
            for mark in np.arange(first, self.start + width / self.scale, 12.0):
                px, py = self.at(mark, LANE_WIDTH * (lane - 0.5))
                fill(self.view, px, py, px + 4.0 * self.scale, py + max(thick // 2, 1), PAINT)

    def draw_vehicle(self, x: float, y: float, heading: float, kind: int, crashed: bool, name: str) -> None:
        px, py = self.at(x, y)
        long, wide = LENGTH * self.scale, WIDTH * self.scale
        if not -2 * long < px < self.view.shape[1] + 2 * long:
            return
        if name:
            box(self.view, px, py, long + 4, wide + 4, heading, CRASH, corner=0.3 * wide)
        box(self.view, px, py, long, wide, heading, COLOURS[kind], corner=0.25 * wide)
        if self.scale > 2 and not name:
            ahead = 0.17 * long
            box(
                self.view,
                px + ahead * np.cos(heading),
                py + ahead * np.sin(heading),
                0.16 * long,
                0.7 * wide,
                heading,
                GLASS,
            )
        if name and self.scale > 2:
            write(self.view, px - text_width(name) / 2, py - 3, name, INK)
        if crashed:
            arm = max(0.75 * wide, 3)
            for tilt in (-1, 1):
                line(self.view, px - arm, py - tilt * arm, px + arm, py + tilt * arm, GLASS, 0.5 * arm)
                line(self.view, px - arm, py - tilt * arm, px + arm, py + tilt * arm, CRASH, 0.22 * arm)


def _legend(image: Image, config: HighwayConfig, time: int, crashes: int) -> None:
    title = f"{config.scenario}   t = {time:d} s / {config.duration:d}   crashed: {crashes:d}"
    write(image, 10, 8, title, INK, scale=2)
    at = image.shape[1] - 10
    for kind in reversed(COLOURS):
        at -= text_width(NAMES[kind])
        write(image, at, 11, NAMES[kind], INK)
        at -= 18
        box(image, at + 6, 14.5, 12, 6, 0.0, COLOURS[kind], corner=1.5)
        at -= 14


def render(state: HighwayState, params: HighwayParams, config: HighwayConfig) -> NDArray[np.uint8]:
    """An RGB image `[height, width, 3]` of one lane's `state`. The reward shown is the one that this state earns."""
    x, y, heading, speed = (np.asarray(leaf) for leaf in (state.x, state.y, state.heading, state.speed))
    kind, crashed = np.asarray(state.kind), np.asarray(state.crashed)
    agents = np.asarray(agent_ids(config))
    mine = dataclasses.replace(
        state,
        **{
            name: np.asarray(getattr(state, name))[agents]
            for name in ("y", "heading", "speed", "target_lane", "crashed")
        },
    )
    reward = np.asarray(sum(reward_terms(mine, params, config).values()))
    ended = np.asarray(state.ended)
    names = {int(i): str(number) for number, i in enumerate(agents)}

    shown = min(len(agents), CLOSE_VIEWS)
    span = max(float(np.ptp(x[agents])) + 240.0, MIN_SPAN_M)
    wide_scale = (PICTURE_WIDTH - 2 * GAP) / span
    # Room for the widest strip there can be, so that all pictures of an episode have one size.
    wide_height = _Road.strip_height((PICTURE_WIDTH - 2 * GAP) / MIN_SPAN_M, config.lanes)
    close_height = _Road.strip_height(SCALE, config.lanes)
    height = HEADER + wide_height + GAP + shown * (close_height + GAP)
    image = canvas(height + height % 2, PICTURE_WIDTH, PAPER)
    _legend(image, config, int(np.asarray(state.time)), int(crashed.sum()))

    def draw(road: _Road) -> None:
        road.draw_lanes()
        for i in sorted(range(len(x)), key=lambda i: i in names):
            road.draw_vehicle(
                float(x[i]), float(y[i]), float(heading[i]), int(kind[i]), bool(crashed[i]), names.get(i, "")
            )

    view = image[:, : PICTURE_WIDTH - GAP]
    wide = _Road(view, HEADER, GAP, float(x[agents].min()) - 60.0, wide_scale, config.lanes)
    draw(wide)
    for number in range(shown):
        i = agents[number]
        top = HEADER + wide_height + GAP + number * (close_height + GAP)
        draw(_Road(view, top, CARD_WIDTH, float(x[i]) - BEHIND, SCALE, config.lanes))
        disc(image, 22, top + 16, 11, COLOURS[CONTROLLED])
        write(image, 22 - text_width(str(number), 2) / 2 + 1, top + 10, str(number), INK, scale=2)
        status = "crashed" if crashed[i] else "arrived" if ended[number] else "driving"
        write(image, 42, top + 13, status, COLOURS[AGGRESSIVE] if crashed[i] else INK)
        for line_number, (label, value) in enumerate(
            (
                ("speed", f"{speed[i]:4.1f} m/s"),
                ("reward", f"{reward[number]:.2f}" if not crashed[i] else "-"),
                ("lane", f"{int(np.asarray(state.target_lane)[i]) + 1:d} of {config.lanes:d}"),
                ("x", f"{x[i]:.0f} m"),
            )
        ):
            write(image, 12, top + 36 + 14 * line_number, label, FAINT)
            write(image, 60, top + 36 + 14 * line_number, value, INK)
    return image
