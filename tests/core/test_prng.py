"""Keys are functions of their path and nothing else."""

from __future__ import annotations

import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.extend.random import threefry2x32_p

from marl.core.prng import permutation, stream


def data(*args: int | str) -> tuple[int, ...]:
    return tuple(np.asarray(jax.random.key_data(stream(*args))).tolist())


def test_the_same_path_gives_the_same_key() -> None:
    assert data(3, "lanes", "hider", 2) == data(3, "lanes", "hider", 2)


def test_every_part_and_its_place_matter() -> None:
    paths = [
        (0,),
        (1,),
        (0, "init"),
        (0, "lanes"),
        (0, "lanes", "init"),
        (0, "init", "lanes"),
        (0, "lanes", 0),
        (0, "lanes", 1),
        (0, "lanes", 0, 1),
        (0, "lanes", 1, 0),
        (0, "lanes", "1"),
        (2**32,),
        (2**32 + 1,),
        (0, 2**40),
        (0, 2**40 + 1),
    ]
    assert len({data(*path) for path in paths}) == len(paths)


def test_keys_are_the_same_in_another_process_with_another_hash_seed() -> None:
    code = "import jax; from marl.core.prng import stream; print(*jax.random.key_data(stream(5, 'update', 'car', 7)))"
    printed = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "1", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        check=True,
    )
    assert tuple(int(x) for x in printed.stdout.split()) == data(5, "update", "car", 7)


def test_negative_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="non-negative"):
        stream(-1)
    with pytest.raises(ValueError, match="non-negative"):
        stream(0, "lanes", -1)


def test_draws_of_a_lane_do_not_depend_on_the_batch() -> None:
    keys = jax.random.split(stream(0, "lanes"), 5)
    together = jax.vmap(lambda k: jax.random.uniform(k, (3,)))(keys)
    alone = jax.random.uniform(keys[3], (3,))
    np.testing.assert_array_equal(together[3], alone)


@pytest.mark.parametrize("n", [1, 2, 3, 1000, 1024, 20_000])
def test_a_permutation_holds_every_index_once(n: int) -> None:
    order = np.asarray(permutation(stream(0, "order", n), n))
    assert order.dtype == np.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


def test_permutations_are_uniform() -> None:
    orders = np.asarray(jax.vmap(lambda k: permutation(k, 4))(jax.random.split(stream(0, "order"), 24_000)))
    _, counts = np.unique(orders @ np.asarray([64, 16, 4, 1]), return_counts=True)
    assert len(counts) == 24
    chi_squared = float(((counts - 1000) ** 2 / 1000).sum())
    assert chi_squared < 49.7  # 99.9 % quantile with 23 degrees of freedom


@pytest.mark.parametrize(
    ("key", "count", "expected"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_the_generator_gives_the_published_known_answers(
    key: tuple[int, int], count: tuple[int, int], expected: tuple[int, int]
) -> None:
    """Of Random123's Threefry 2x32 with 20 rounds, through JAX's primitive and thus our lowering of it."""
    arguments = [np.uint32(x) for x in (*key, *count)]
    found = jax.jit(threefry2x32_p.bind)(*arguments)
    assert tuple(int(x) for x in found) == expected
    assert "while" not in jax.jit(threefry2x32_p.bind).lower(*arguments).as_text()
