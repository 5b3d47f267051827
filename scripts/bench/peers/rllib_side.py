"""RLlib's PPO or IMPALA (new API stack, torch on the CPU): env runners in processes, the learner in this one.

IMPALA gets one aggregator actor: without one and with the learner in this process it delivers no samples.
"""

from __future__ import annotations

import logging
import tempfile

import ray
import serving
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.tune.registry import register_env

STEPS = "num_env_steps_sampled_lifetime"
SPREAD_AGENTS = 3


def make_spread(_: dict):
    from mpe2 import simple_spread_v3
    from ray.rllib.env.wrappers.pettingzoo_env import ParallelPettingZooEnv

    return ParallelPettingZooEnv(simple_spread_v3.parallel_env(N=3, max_cycles=25))


def make_pong(_: dict):
    import ale_py
    import gymnasium
    from ray.rllib.env.wrappers.atari_wrappers import wrap_atari_for_new_api_stack

    gymnasium.register_envs(ale_py)
    return wrap_atari_for_new_api_stack(gymnasium.make("PongNoFrameskip-v4"), dim=84, framestack=4)


def make_config(setting: dict):
    task, ppo = setting["task"], setting["algorithm"] == "ppo"
    worlds = setting["runners"] * setting["worlds_per_runner"]
    batch = setting.get("batch", worlds * setting["rollout"])
    rows = batch * (SPREAD_AGENTS if task == "spread" else 1)
    config = PPOConfig() if ppo else IMPALAConfig()
    config = config.environment({"cartpole": "CartPole-v1", "spread": "bench_spread", "atari": "bench_pong"}[task])
    config = config.env_runners(
        num_env_runners=setting["runners"],
        num_envs_per_env_runner=setting["worlds_per_runner"],
        rollout_fragment_length=setting["rollout"],
    )
    config = config.learners(num_learners=0)
    config = config.debugging(seed=setting.get("seed", 0), log_level="ERROR")
    if task != "atari":  # Atari keeps RLlib's own convolutions
        network = DefaultModelConfig(fcnet_hiddens=[64, 64], fcnet_activation="tanh", vf_share_layers=False)
        config = config.rl_module(model_config=network)
    common = {
        "lr": setting["learning_rate"],
        "gamma": setting["gamma"],
        "entropy_coeff": setting["entropy_coef"],
        "vf_loss_coeff": 0.5,
        "grad_clip": setting["max_grad_norm"],
        "train_batch_size_per_learner": batch,
    }
    if ppo:
        config = config.training(
            **common,
            minibatch_size=rows // setting["minibatches"],
            num_epochs=setting["epochs"],
            lambda_=setting["gae_lambda"],
            clip_param=0.2,
            use_kl_loss=False,
            vf_clip_param=float("inf"),
        )
    else:
        config = config.training(**common)
        config = config.learners(num_aggregator_actors_per_learner=1)
        config = config.reporting(min_time_s_per_iteration=1)
    if task == "spread":
        config = config.multi_agent(policies={"shared"}, policy_mapping_fn=lambda agent, episode, **more: "shared")
    return config


def find(result: dict, key: str) -> float:
    """The largest value of a key anywhere in a result; its place differs between algorithms."""
    best = 0.0
    for name, value in result.items():
        if isinstance(value, dict):
            best = max(best, find(value, key))
        elif name == key and value is not None:
            best = max(best, float(value))
    return best


def main() -> None:
    setting = serving.setting()
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
        _temp_dir=tempfile.mkdtemp(prefix="rb"),
        object_store_memory=256 * 1024**2,
    )
    register_env("bench_spread", make_spread)
    register_env("bench_pong", make_pong)
    algorithm = make_config(setting).build_algo()
    latest: dict = {}
    agents = SPREAD_AGENTS if setting["task"] == "spread" else 1

    def train() -> int:
        before = find(latest, STEPS)
        result = algorithm.train()
        if find(result, STEPS):  # the first results of an asynchronous run can hold no steps yet
            latest.clear()
            latest.update(result)
        return int(find(latest, STEPS) - before)

    def mean_return() -> float | None:
        runners = latest.get("env_runners", {})  # smoothed over 100 episodes
        if runners.get("episode_return_mean") is None or runners.get("num_episodes_lifetime", 0) < serving.EPISODES:
            return None
        return float(runners["episode_return_mean"]) / agents

    if not setting.get("fresh"):
        train()
        while not find(latest, STEPS):
            train()
    serving.serve(serving.versions("ray", "torch", "gymnasium"), train, mean_return)
    algorithm.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
