"""`marl render`: one held-out episode of a trained run as a film."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from marl.io.console import next_commands, say
from marl.io.video import write_video
from marl.runner.build import build_player
from marl.runner.load import load_experiment
from marl.runner.policies import load_run_policy
from marl.runner.runs import resolve_run
from marl.runner.train import set_up_jax

DEFAULT_FPS = 5


def render(
    run: str,
    output: Path,
    *,
    episode_seed: int = 0,
    seed: int | None = None,
    greedy: bool | None = None,
    best: bool = False,
    runs_dir: str = "runs",
) -> int:
    """Film test episode number `episode_seed` into a .gif or .mp4 file.

    Raises: UserError if there is no such run, seed or policy, or the file cannot be written.
    """
    folder = resolve_run(run, Path(runs_dir))
    config = load_experiment(folder / "config.yaml").config
    set_up_jax(config)
    plan, params, _ = load_run_policy(folder, seed, "policy_best" if best else "policy")
    player = build_player(plan, config.evaluate.greedy if greedy is None else greedy)
    frames, result = player.frames(params, "test", episode_seed)
    write_video(output, frames, frames_per_second(plan.env))
    returns = ", ".join(f"{role} {float(np.mean(value)):.2f}" for role, value in result.returns.items())
    say(f"{output}: {len(frames)} frames, {int(result.length)} env steps, return {returns}")
    next_commands([f"marl evaluate {folder}", f"marl report {folder}"])
    return 0


def frames_per_second(env: object) -> float:
    """As fast as the world says, or as the one that it adapts says in its `metadata`."""
    metadata = getattr(getattr(env, "env", None), "metadata", None)
    said = metadata.get("render_fps") if isinstance(metadata, dict) else None
    fps = getattr(env, "render_fps", said)
    return float(fps) if isinstance(fps, int | float) and fps > 0 else DEFAULT_FPS
