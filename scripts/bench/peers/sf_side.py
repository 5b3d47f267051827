"""Sample Factory's APPO, synchronous in this process (`mode: serial`) or asynchronous with `runners` processes.

A run of Sample Factory cannot pause, so that every window is a run of its own; it counts from the first training step
WARM_UP_S after the first one to the first one after the window's length, at the end of which the run is stopped.
"""

from __future__ import annotations

import shutil
import tempfile
import time

import gymnasium
import serving
from sample_factory.algo.runners.runner import AlgoObserver
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.envs.env_utils import register_env
from sample_factory.train import make_runner

WARM_UP_S = 1.5


def make_cartpole(full_env_name, cfg=None, env_config=None, render_mode=None):
    return gymnasium.make("CartPole-v1", render_mode=render_mode)


def make_pong(full_env_name, cfg=None, env_config=None, render_mode=None):
    import ale_py  # noqa: F401  (registers its worlds)
    from sf_examples.atari.atari_utils import make_atari_env

    return make_atari_env("atari_pong", cfg, env_config, render_mode)


def arguments(setting: dict, folder: str) -> list[str]:
    """The command line of a run that ends when it is told to."""
    batch = setting["batch"]
    given = {
        "env": {"cartpole": "bench_cartpole", "atari": "bench_pong"}[setting["task"]],
        "experiment": "bench",
        "train_dir": folder,
        "device": "cpu",
        "seed": setting.get("seed", 0),
        "num_workers": setting["runners"],
        "num_envs_per_worker": setting["worlds_per_runner"],
        "worker_num_splits": 1 if setting["mode"] == "serial" or setting["worlds_per_runner"] % 2 else 2,
        "rollout": setting["rollout"],
        "batch_size": batch,
        "num_batches_per_epoch": setting["minibatches"],
        "num_epochs": setting["epochs"],
        "learning_rate": setting["learning_rate"],
        "gamma": setting["gamma"],
        "gae_lambda": setting["gae_lambda"],
        "exploration_loss_coeff": setting["entropy_coef"],
        "max_grad_norm": setting["max_grad_norm"],
        "ppo_clip_ratio": 0.2,
        "value_loss_coeff": 0.5,
        "use_rnn": False,
        "train_for_env_steps": 10**12,
        "save_every_sec": 36000,
        "experiment_summaries_interval": 3600,
        "with_wandb": False,
        "serial_mode": setting["mode"] == "serial",
        "async_rl": setting["mode"] != "serial",
        "stats_avg": serving.EPISODES,
    }
    if setting["task"] == "cartpole":
        given |= {"nonlinearity": "tanh", "actor_critic_share_weights": False}
        layers = ["--encoder_mlp_layers", "64", "64"]
    else:
        given |= {"encoder_conv_architecture": "convnet_atari", "obs_scale": 255.0, "nonlinearity": "relu"}
        given |= {"env_frameskip": 4, "env_framestack": 4, "summaries_use_frameskip": False}
        layers = []
    return [*(f"--{name}={value}" for name, value in given.items()), *layers]


class Watch(AlgoObserver):
    """Times a run from the inside and stops it."""

    def __init__(self, request: dict) -> None:
        self.request = request
        self.started = time.perf_counter()
        self.first: float | None = None
        self.window: tuple[float, int] | None = None
        self.answer: dict = {}

    def on_training_step(self, runner, training_iteration_since_resume: int) -> None:
        now, steps = time.perf_counter(), runner.total_env_steps_since_resume or 0
        if "until" in self.request:
            returns = runner.policy_avg_stats.get("reward", [()])[0]
            mean = sum(returns) / len(returns) if len(returns) >= serving.EPISODES else None
            elapsed = now - self.started
            if mean is not None:
                self.answer["return"] = max(mean, self.answer.get("return", mean))
            reached = mean is not None and mean >= self.request["until"]
            if reached or elapsed >= self.request["limit_s"]:
                self._end(runner, {"env_steps": steps, "seconds": elapsed} | ({"reached": True} if reached else {}))
            return
        if self.first is None:
            self.first = now
        elif self.window is None:
            if now - self.first >= WARM_UP_S:
                self.window = (now, steps)
        elif now - self.window[0] >= self.request["seconds"]:
            self._end(runner, {"env_steps": steps - self.window[1], "seconds": now - self.window[0]})

    def _end(self, runner, answer: dict) -> None:
        if "env_steps" not in self.answer:
            self.answer |= answer
            runner.cfg.train_for_env_steps = 0  # looked at right after this call


def main() -> None:
    setting = serving.setting()
    register_env("bench_cartpole", make_cartpole)
    register_env("bench_pong", make_pong)
    serving.say(serving.versions("sample-factory", "torch", "gymnasium"))
    for request in serving.requests():
        folder = tempfile.mkdtemp(prefix="bench_sf_")
        watch = Watch(request)
        options = arguments(setting, folder)
        parser, _ = parse_sf_args(options)
        if setting["task"] == "atari":
            from sf_examples.atari.atari_params import atari_override_defaults

            atari_override_defaults("bench_pong", parser)
        _, runner = make_runner(parse_full_cfg(parser, options))
        runner.register_observer(watch)
        runner.init()
        runner.run()
        shutil.rmtree(folder, ignore_errors=True)
        serving.say(watch.answer)


if __name__ == "__main__":
    main()
