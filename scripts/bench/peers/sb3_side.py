"""Stable-Baselines3's PPO on one core or with its worlds in processes (`vector: subproc`)."""

from __future__ import annotations

import serving
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecMonitor


def spread(worlds: int):
    """simple_spread with one row an agent, so that all three share one network."""
    import supersuit
    from mpe2 import simple_spread_v3

    env = supersuit.pettingzoo_env_to_vec_env_v1(simple_spread_v3.parallel_env(N=3, max_cycles=25))
    return VecMonitor(supersuit.concat_vec_envs_v1(env, worlds, num_cpus=0, base_class="stable_baselines3"))


def make_worlds(setting: dict):
    worlds, seed = setting["worlds"], setting.get("seed", 0)
    kind = SubprocVecEnv if setting.get("vector") == "subproc" else DummyVecEnv
    if setting["task"] == "spread":
        return spread(worlds)
    if setting["task"] == "atari":
        import ale_py
        import gymnasium

        gymnasium.register_envs(ale_py)
        return VecFrameStack(make_atari_env("PongNoFrameskip-v4", worlds, seed=seed, vec_env_cls=kind), n_stack=4)
    return make_vec_env("CartPole-v1", worlds, seed=seed, vec_env_cls=kind)


def main() -> None:
    setting = serving.setting()
    torch.set_num_threads(1)
    set_random_seed(setting.get("seed", 0))
    worlds = make_worlds(setting)
    agents = 3 if setting["task"] == "spread" else 1
    rows = setting["rollout"] * worlds.num_envs
    model = PPO(
        "CnnPolicy" if setting["task"] == "atari" else "MlpPolicy",  # MlpPolicy: actor and critic of 64 x 64 tanh
        worlds,
        n_steps=setting["rollout"],
        batch_size=rows // setting["minibatches"],
        n_epochs=setting["epochs"],
        learning_rate=setting["learning_rate"],
        gamma=setting["gamma"],
        gae_lambda=setting["gae_lambda"],
        ent_coef=setting["entropy_coef"],
        vf_coef=0.5,
        max_grad_norm=setting["max_grad_norm"],
        device="cpu",
    )

    def train() -> int:
        before = model.num_timesteps
        model.learn(rows, reset_num_timesteps=False)
        return (model.num_timesteps - before) // agents

    def mean_return() -> float | None:
        episodes = model.ep_info_buffer  # the last 100; in simple_spread each agent's own
        if episodes is None or len(episodes) < serving.EPISODES:
            return None
        return sum(episode["r"] for episode in episodes) / len(episodes)

    if not setting.get("fresh"):
        train()
    serving.serve(serving.versions("stable-baselines3", "torch", "gymnasium"), train, mean_return)
    worlds.close()


if __name__ == "__main__":
    main()
