"""Anyone's worlds in our rows: what goes in, what comes out, and what is said when it does not fit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marl.core.errors import ConfigError, MarlError, UserError, WorldError
from marl.core.host import HostRow, HostWorld
from marl.core.host_rows import RowBlock, RowSpec
from marl.core.spaces import Box, Dict, Discrete, MultiDiscrete
from marl.interop.worlds import is_host_world, make_world, world_config

TINY = Path(__file__).with_name("tiny_worlds.py")


def tiny(name: str, **options: Any) -> HostWorld:
    return make_world(f"pettingzoo:{TINY}:{name}", options)


class Player:
    """Plays a world in one lane, with copies of all rows."""

    def __init__(self, world: HostWorld) -> None:
        self.world = world
        block = RowBlock(RowSpec.of(world), 1)
        for array in block.arrays.values():
            array[...] = 1  # so that what a world does not write shows
        self.row: HostRow = block.host_row(0)
        self.action = block.lane_actions(0)
        for array in self.action.values():
            array[...] = 0

    def copy(self, by_role: Any) -> Any:
        if isinstance(by_role, dict):
            return {k: self.copy(v) for k, v in by_role.items()}
        return None if by_role is None else by_role.copy()


def test_the_adapters_leave_jax_out(repository: Path) -> None:
    """Processes that step worlds stay small."""
    code = (
        "import sys, marl.interop.worlds as w;"
        f"w.make_world('pettingzoo:{TINY}:Meeting', {{}}); w.make_world('gymnasium:CartPole-v1', {{}});"
        "import marl.interop.check; sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=repository, check=False).returncode == 0


def test_names_of_worlds_in_python() -> None:
    assert is_host_world("pettingzoo:mpe2.simple_spread_v3")
    assert is_host_world("gymnasium:CartPole-v1")
    assert not is_host_world("cartpole_v0")


def test_agents_with_equal_spaces_share_a_role_and_every_space_has_its_counterpart() -> None:
    scout, boss = tiny("Meeting").roles
    assert (scout.name, scout.size, boss.name, boss.size) == ("scout", 2, "boss", 1)
    assert scout.observation_space == Box((2,))
    assert scout.action_space == Discrete(3)
    assert boss.observation_space == Dict.of(
        {"where": Discrete(4), "what": Dict.of({"0": MultiDiscrete((2, 2)), "1": Box((1,), 0.0, 1.0)})}
    )
    assert boss.action_space == Box((2,), -1.0, 1.0)
    assert scout.state_space == Box((1,), 0.0)


def test_actions_and_observations_go_through() -> None:
    world: Any = tiny("Meeting", bonus=0.5)
    player = Player(world)
    world.reset(3, player.row)
    assert player.row.state is not None
    assert player.row.state[0] == 0.0
    assert player.row.obs["scout"][:, 0].tolist() == [0.0, 0.0]
    assert player.row.obs["scout"].dtype == np.float32
    assert player.row.obs["boss"]["where"].tolist() == [0]
    assert player.row.obs["boss"]["what"]["0"].tolist() == [[1, 0]]
    assert not player.row.reward["scout"].any()
    player.action["scout"][:] = [0, 2]
    player.action["boss"][:] = [[-1.0, 0.5]]
    assert world.step(player.action, player.row) is False
    received = world.env.received[-1]
    assert (received["scout_0"], received["scout_1"]) == (1, 3)
    np.testing.assert_allclose(received["boss"], [0.0, 5.0])
    player.action["boss"][:] = 0.0
    np.testing.assert_allclose(received["boss"], [0.0, 5.0], err_msg="the world keeps what it was given")
    assert player.row.reward["scout"].tolist() == [1.5, 2.0]
    assert player.row.reward["boss"].tolist() == [3.0]
    assert player.row.state[0] == 1.0
    ends = [world.step(player.action, player.row) for _ in range(4)]
    assert ends == [False, False, False, True]
    assert player.row.truncated["scout"].all()
    assert not player.row.terminated["scout"].any()
    assert player.row.alive["scout"].all(), "who is cut off by the end is still there at the last row"


def test_the_same_seed_gives_the_same_episode() -> None:
    player = Player(tiny("Meeting"))
    seen = []
    for seed in (1, 2, 1):
        player.world.reset(seed, player.row)
        seen.append(float(player.row.obs["scout"][0, 1]))
    assert seen[0] == seen[2] != seen[1]


def test_a_row_may_be_another_one_every_time() -> None:
    world = tiny("Meeting")
    players = [Player(world) for _ in range(2)]
    world.reset(0, players[0].row)
    world.step(players[0].action, players[1].row)
    assert players[0].row.obs["scout"][0, 0] == 0.0
    assert players[1].row.obs["scout"][0, 0] == 1.0


def test_agents_die_and_join() -> None:
    player = Player(tiny("Party"))
    (guest,) = player.world.roles
    assert guest.size == 3
    player.world.reset(0, player.row)
    rows = [player.copy(vars(player.row))]
    last = False
    while not last:
        last = player.world.step(player.action, player.row)
        rows.append(player.copy(vars(player.row)))
    assert [row["alive"]["guest"].tolist() for row in rows] == [
        [True, True, False],
        [True, True, False],
        [False, True, True],
        [False, False, True],
        [False, False, True],
        [False, False, True],
    ]
    assert [row["obs"]["guest"][:, 0].tolist() for row in rows[1:4]] == [[11, 21, 0], [12, 22, 32], [0, 23, 33]]
    assert [row["terminated"]["guest"].tolist() for row in rows[2:4]] == [[True, False, False], [False, False, False]]
    assert [row["truncated"]["guest"].tolist() for row in rows[3:]] == [
        [False, True, False],
        [False, False, False],
        [False, False, True],
    ]
    assert sum(row["reward"]["guest"] for row in rows).tolist() == [2.0, 3.0, 3.0]


def test_max_steps_cuts_an_episode() -> None:
    player = Player(tiny("Meeting", max_steps=2))
    assert player.world.max_steps == 2
    player.world.reset(0, player.row)
    assert [player.world.step(player.action, player.row) for _ in range(2)] == [False, True]
    assert player.row.truncated["boss"].all()
    assert player.row.alive["boss"].all()


def play_turns(world: Any, seed: int) -> tuple[np.ndarray, list[Any]]:
    """Sums of rewards, and who acted with which mask at every row."""
    player, random = Player(world), np.random.default_rng(seed)
    world.reset(seed, player.row)
    total, turns, last = np.zeros(3), [], False
    while not last:
        acting, mask = player.row.acting["player"], player.row.action_mask["player"]  # type: ignore[index]
        assert acting.sum() == 1
        assert not (acting & ~player.row.alive["player"]).any()
        assert mask[~acting].all(), "who does not act is not masked"
        (who,) = np.flatnonzero(acting)
        turns.append((int(who), int(mask[who].sum())))
        player.action["player"][:] = 3  # what those do who do not act is ignored
        player.action["player"][who] = random.choice(np.flatnonzero(mask[who]))
        last = world.step(player.action, player.row)
        total += player.row.reward["player"]
    assert not player.row.acting["player"].any()  # type: ignore[index]
    return total, turns


def official(env: Any, seed: int) -> dict[str, float]:
    """What PettingZoo says that every agent got: `last()` at its own turns."""
    random = np.random.default_rng(seed)
    env.reset(seed=seed)
    total = dict.fromkeys(env.possible_agents, 0.0)
    for agent in env.agent_iter():
        observation, reward, terminated, truncated, _ = env.last()
        total[agent] += reward
        over = terminated or truncated
        env.step(None if over else int(random.choice(np.flatnonzero(observation["action_mask"]))))
    return total


@pytest.mark.parametrize("seed", range(5))
def test_rewards_in_turns_add_up_to_what_pettingzoo_says(seed: int) -> None:
    world: Any = tiny("Dice")
    assert world.turn_based
    total, turns = play_turns(world, seed)
    assert total.tolist() == list(official(world.env, seed).values())
    assert turns[:7] == [(0, 1), (1, 2), (2, 3), (0, 4), (1, 1), (2, 2), (0, 3)]
    assert 2 not in [who for who, _ in turns[6:]], "player_2 has dropped out"


def test_rewards_that_a_world_forgets_to_clear_still_add_up() -> None:
    """PettingZoo's own converter leaves an agent's sum standing while the others act."""
    world: Any = make_world(f"pettingzoo:{TINY}:Meeting", {"api": "aec", "roles": {"a": "scout_*", "b": "boss"}})
    player = Player(world)
    assert world.turn_based
    world.reset(0, player.row)
    sums, last, rows = {"a": np.zeros(2), "b": np.zeros(1)}, False, 0
    while not last:
        last = world.step(player.action, player.row)
        rows += 1
        sums = {role: value + player.row.reward[role] for role, value in sums.items()}
    assert rows == 15
    assert sums["a"].tolist() == [5.0, 10.0]
    assert sums["b"].tolist() == [15.0]
    assert player.row.truncated["b"].all()
    assert player.row.alive["b"].all()


def test_max_steps_cuts_an_episode_of_turns() -> None:
    player = Player(tiny("Dice", max_steps=4))
    player.world.reset(0, player.row)
    ends = []
    for _ in range(4):
        player.action["player"][:] = 0
        ends.append(player.world.step(player.action, player.row))
    assert ends == [False, False, False, True]
    assert player.row.truncated["player"].all()
    assert player.row.alive["player"].all()
    assert not player.row.acting["player"].any()  # type: ignore[index]


def test_a_world_of_turns_cannot_be_had_all_at_once() -> None:
    with pytest.raises(ConfigError, match="api: parallel does not fit"):
        tiny("Dice", api="parallel")


def test_a_gymnasium_world_is_a_role_of_one_agent() -> None:
    world = make_world("gymnasium:CartPole-v1", {})
    (role,) = world.roles
    assert (role.name, role.size, role.max_steps, world.max_steps) == ("agent", 1, 500, 500)
    player = Player(world)
    world.reset(0, player.row)
    player.action["agent"][:] = 1
    steps, last = 0, False
    while not last:
        last = world.step(player.action, player.row)
        steps += 1
        assert player.row.reward["agent"].tolist() == [1.0]
    assert steps < 20
    assert player.row.terminated["agent"].tolist() == [True]
    assert player.row.alive["agent"].tolist() == [False]


def test_gymnasiums_time_limit_is_kept_and_can_be_shorter() -> None:
    world = make_world("gymnasium:Pendulum-v1", {"max_steps": 3, "g": 9.0})
    player = Player(world)
    world.reset(0, player.row)
    assert [world.step(player.action, player.row) for _ in range(3)] == [False, False, True]
    assert player.row.truncated["agent"].all()
    assert player.row.alive["agent"].all()
    assert make_world("gymnasium:Pendulum-v1", {}).max_steps == 200


def test_masks_in_info_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(TINY.parent)
    world = make_world("gymnasium:tiny_worlds:Masked", {})
    assert world.masked == {"agent"}
    player = Player(world)
    world.reset(0, player.row)
    assert player.row.action_mask["agent"].tolist() == [[True, False, True]]
    assert not world.step(player.action, player.row)
    assert player.row.action_mask["agent"].tolist() == [[False, True, True]]
    assert player.row.obs["agent"].tolist() == [1]
    assert [world.step(player.action, player.row) for _ in range(2)] == [False, True]
    assert player.row.action_mask["agent"].all()


def test_pictures() -> None:
    world = make_world(f"pettingzoo:{TINY}:Meeting", {}, render=True)
    player = Player(world)
    world.reset(0, player.row)
    assert world.render().shape == (4, 6, 3)
    assert world.render().dtype == np.uint8


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        ({"scouts": "scout_*", "chief": ["boss"]}, {"scouts": 2, "chief": 1}),
        ({"a": r"scout_[0]", "b": ["scout_1"], "c": "boss"}, {"a": 1, "b": 1, "c": 1}),
        ({"a": r"scout_\d", "b": "boss"}, {"a": 2, "b": 1}),
    ],
)
def test_roles_by_hand(roles: dict[str, Any], expected: dict[str, int]) -> None:
    assert {role.name: role.size for role in tiny("Meeting", roles=roles).roles} == expected


@pytest.mark.parametrize(
    ("id", "options", "message"),
    [
        (f"pettingzoo:{TINY}:Meeting", {"bonuss": 1}, r"unknown option 'bonuss'.*did you mean 'bonus'"),
        (f"pettingzoo:{TINY}:Meeting", {"max_step": 1}, r"unknown option 'max_step'.*did you mean 'max_steps'"),
        (f"pettingzoo:{TINY}:Meeting", {"max_steps": 0}, r"option 'max_steps' is 0"),
        (f"pettingzoo:{TINY}:Meeting", {"api": "both"}, r"option 'api' is 'both'"),
        (f"pettingzoo:{TINY}:Meeting", {"roles": {"all": "*"}}, r"'scout_0' and 'boss' have different spaces"),
        (f"pettingzoo:{TINY}:Meeting", {"roles": {"a": "scout_*"}}, r"agent 'boss' is in no role"),
        (f"pettingzoo:{TINY}:Meeting", {"roles": {"a": "scout_*", "b": ["bos"]}}, r"did you mean 'boss'"),
        (f"pettingzoo:{TINY}:Meting", {}, r"has no 'Meting'; did you mean 'Meeting'"),
        (f"pettingzoo:{TINY}", {}, r"has Meeting, Party, Dice; name one"),
        ("pettingzoo:nowhere.to_be_found", {}, r"no module 'nowhere'.*path of a .py file"),
        ("pettingzoo:nowhere.py", {}, r"there is no file .*nowhere.py"),
        ("gymnasium:CartPol-v1", {}, r"no environment 'CartPol-v1'; did you mean 'CartPole-v"),
        ("gymnasium:CartPole-v1", {"sutton_barto_rewardd": True}, r"did you mean 'sutton_barto_reward'"),
        ("gymnasium:CartPole-v1", {"roles": {}}, r"unknown option 'roles'"),
        ("gymnasium:", {}, r"is no world in Python"),
        ("highway_v0", {}, r"is no world in Python"),
    ],
)
def test_what_cannot_be_is_said_in_words(id: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make_world(id, options)
    assert caught.value.exit_code == 2


def test_all_options_with_their_values() -> None:
    resolved = world_config(f"pettingzoo:{TINY}:Meeting", {"bonus": 2.0, "resize": [2, 3]})
    expected = {"roles": None, "max_steps": None, "api": "auto", "state": None, "grey": False}
    assert resolved == {**expected, "resize": [2, 3], "bonus": 2.0}
    assert world_config("gymnasium:CartPole-v1", {}) == {"max_steps": None, "resize": None, "grey": False}


def test_a_file_that_does_not_run_is_said_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "broken_world.py"
    path.write_text("import numpy\n\nnumpy.nothing()\n")
    with pytest.raises(UserError, match=r"broken_world.py cannot be imported: AttributeError: .*line 3"):
        make_world(f"pettingzoo:{path}", {})
    path.write_text("import not_there\n")
    with pytest.raises(UserError, match=r"needs the module 'not_there', which is not installed"):
        make_world(f"pettingzoo:{path}", {})


def test_modules_of_the_current_folder_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_meeting_world.py").write_text(TINY.read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != ""])
    assert len(make_world("pettingzoo:my_meeting_world:Meeting", {}).roles) == 2


def broken(monkeypatch: pytest.MonkeyPatch, **methods: Any) -> Player:
    """A meeting with a method replaced after it was made."""
    world: Any = tiny("Meeting")
    player = Player(world)
    world.reset(0, player.row)
    for name, method in methods.items():
        monkeypatch.setattr(world.env, name, method)
    return player


def outcome(**changes: Any) -> Any:
    """A step's outcome with parts replaced."""
    env: Any = tiny("Meeting").env  # type: ignore[attr-defined]
    env.reset(seed=0)
    observations, rewards, terminations, truncations, infos = env.step({})
    parts = {
        "observations": observations,
        "rewards": rewards,
        "terminations": terminations,
        "truncations": truncations,
        "infos": infos,
    }
    for part, change in changes.items():
        parts[part] = {**parts[part], **change}
        parts[part] = {k: v for k, v in parts[part].items() if v is not ...}
    return tuple(parts.values())


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: outcome()[:4], r"step returned a tuple of 4, expected \(observations, rewards"),
        (lambda: None, r"step returned NoneType"),
        (lambda: outcome(observations={"scout_1": ...}), r"agent 'scout_1' has no observation"),
        (lambda: outcome(rewards={"scout_1": ...}), r"agent 'scout_1' has no reward"),
        (lambda: outcome(truncations={"boss": ...}), r"agent 'boss' has no truncation"),
        (lambda: outcome(rewards={"boss": None}), r"agent 'boss': reward is None, expected a number"),
        (
            lambda: outcome(observations={"scout_0": np.zeros(3)}),
            r"agent 'scout_0': observation has shape \(3,\).*\(2,\)",
        ),
        (lambda: outcome(observations={"scout_0": None}), r"agent 'scout_0': observation is None"),
        (lambda: outcome(observations={"scout_0": np.zeros(2, complex)}), r"dtype complex128, expected float64"),
        (lambda: outcome(observations={"boss": {"where": 1}}), r"agent 'boss': observation is .* keys"),
        (
            lambda: outcome(observations={"boss": {"where": 9, "what": (np.zeros(2, int), np.zeros(1))}}),
            r"agent 'boss': observation\['where'\] is 9, expected an integer from 0 to 3",
        ),
    ],
)
def test_what_a_world_does_wrong_names_the_agent(made: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    player = broken(monkeypatch, step=lambda actions: made())
    with pytest.raises(WorldError, match=message):
        player.world.step(player.action, player.row)


def test_an_agent_that_nobody_announced_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    player = broken(monkeypatch)
    world: Any = player.world
    monkeypatch.setattr(world.env, "agents", ["scout_0", "scout_1", "boss", "ghost"])
    with pytest.raises(WorldError, match="'ghost' is not among possible_agents"):
        world.step(player.action, player.row)


def test_an_agent_that_leaves_without_an_end_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    player = broken(monkeypatch, step=lambda actions: outcome())
    world: Any = player.world
    monkeypatch.setattr(world.env, "agents", ["scout_0", "boss"])
    with pytest.raises(WorldError, match="'scout_1' left `agents`, but is neither terminated nor truncated"):
        world.step(player.action, player.row)


def test_a_space_that_cannot_be_used_names_agent_and_space(tmp_path: Path) -> None:
    text = TINY.read_text().replace("self.actions = spaces.Discrete(2)", "self.actions = spaces.Text(5)")
    path = tmp_path / "texts.py"
    path.write_text(text)
    with pytest.raises(UserError, match=r"agent 'guest_0': actions of space Text cannot be used"):
        make_world(f"pettingzoo:{path}:Party", {})


def test_errors_name_the_world() -> None:
    with pytest.raises(MarlError, match=r"^world pettingzoo:.*tiny_worlds.py:Meeting: role 'a'"):
        tiny("Meeting", roles={"a": "nobody"})
