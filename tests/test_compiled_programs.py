"""Compiled programs are kept between runs of the tests, up to a limit."""

import os

from tests.compiled_programs import cache_settings, make_room


def write(path, size, used):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (used, used))
    return path


def test_two_runs_use_one_folder_below_the_users_cache(tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    first, second = (cache_settings(environment) for _ in range(2))
    assert first == second
    assert first["JAX_COMPILATION_CACHE_DIR"].startswith(f"{tmp_path}{os.sep}")


def test_a_folder_that_the_user_names_is_used_and_nothing_removed(tmp_path):
    program = write(tmp_path / "program", 10, 1)
    environment = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    assert cache_settings(environment, limit=0)["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path)
    assert program.exists()


def test_room_is_made_by_removing_what_was_not_used_for_longest(tmp_path):
    old = write(tmp_path / "jax-1" / "old", 60, 100)
    middle = write(tmp_path / "jax-2" / "middle", 30, 200)
    new = write(tmp_path / "jax-2" / "new", 20, 300)
    make_room(tmp_path, 110)
    assert old.exists()
    make_room(tmp_path, 50)
    assert [path.exists() for path in (old, middle, new)] == [False, True, True]


def test_the_folder_is_kept_within_the_limit(tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    folder = cache_settings(environment)["JAX_COMPILATION_CACHE_DIR"]
    write(tmp_path / folder / "program", 10, 1)
    cache_settings(environment, limit=9)
    assert list((tmp_path / folder).iterdir()) == []
