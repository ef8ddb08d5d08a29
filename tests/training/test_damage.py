"""Checkpoints whose files were damaged: never other bits, and always one kind of error."""

import shutil
import sys

import numpy as np
import pytest

import hgrad_jax as hg
from tests.training.test_checkpoints import assert_same, open_store, read, snapshot

DAMAGES = {
    "a bit": lambda raw, draws: _flipped(raw, draws, 1),
    "many bits": lambda raw, draws: _flipped(raw, draws, 64),
    "shortened": lambda raw, draws: raw[: draws.integers(len(raw))],
    "emptied": lambda raw, draws: b"",
    "lengthened": lambda raw, draws: raw + b"\x00" * 9,
    "zeros": lambda raw, draws: bytes(len(raw)),
    "text": lambda raw, draws: b"<html>Please log in</html>",
    "json": lambda raw, draws: b"[]",
}


def _flipped(raw, draws, count):
    bits = bytearray(raw)
    for place in draws.integers(8 * len(raw), size=count):
        bits[place // 8] ^= 1 << (place % 8)
    return bytes(bits)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage") / "run"
    with open_store(folder) as store:
        for epoch in (1, 2):
            store.write(epoch, snapshot(epoch))
    return folder


@pytest.fixture
def silent(capfd, monkeypatch):
    """Nothing that nobody waits for, such as a task of an event loop, may speak."""
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    yield
    assert not unraisable
    out, err = capfd.readouterr()
    assert "Traceback" not in err + out
    assert "Event loop" not in err + out


def files_of(written):
    return sorted(p for p in (written / "2").rglob("*") if p.is_file() and p.stat().st_size)


def outcome(folder, number):
    """Returns whether the damage was told; the bits are those of a whole checkpoint otherwise."""
    found, said = None, ""
    try:
        found = read(folder)
    except hg.CheckpointError as error:
        said = str(error)
    if not said:
        assert found is not None
        assert_same(found, snapshot(len(found.step_loss)))
        return False
    assert f"the checkpoint {folder}/2 is damaged (" in said, (number, said)
    assert "delete it to go on from the one before, or the whole folder" in said
    assert len(said.splitlines()) == 1
    return True


def damaged(written, folder, path, damage, draws):
    shutil.copytree(written, folder)
    raw = path.read_bytes()
    bad = damage(raw, draws)
    (folder / path.relative_to(written)).write_bytes(bad)
    return bad != raw


def test_damage_is_told_or_the_bits_come_back(written, tmp_path, silent):
    """One damage for each file in turn, and each way to lose one; the whole campaign is slow."""
    draws, kinds = np.random.default_rng(0), list(DAMAGES)
    for number, path in enumerate(files_of(written)):
        folder = tmp_path / str(number)
        assert damaged(written, folder, path, DAMAGES[kinds[number % len(kinds)]], draws)
        assert outcome(folder, path)
        shutil.rmtree(folder / "2")
        assert_same(read(folder), snapshot(1))


@pytest.mark.parametrize("is_hashed", [True, False])
@pytest.mark.parametrize("name", [".", "arrays", "about"])
def test_a_folder_that_is_empty_gone_or_a_file(name, is_hashed, written, tmp_path, silent):
    """With hashes and, as an older version wrote it, without."""
    for way in ("empty", "gone", "a file"):
        folder = tmp_path / way
        shutil.copytree(written, folder)
        if not is_hashed:
            (folder / "2" / "sha256.json").unlink()
        shutil.rmtree(folder / "2" / name)
        if way == "empty":
            (folder / "2" / name).mkdir()
        elif way == "a file":
            (folder / "2" / name).write_text("other")
        found = outcome(folder, name)
        assert found == (name != "." or way == "empty")


def test_without_hashes_the_digest_tells(written, tmp_path):
    """What a kill between orbax's end and the hashes leaves, and what older versions wrote."""
    shutil.copytree(written, tmp_path / "run")
    (tmp_path / "run" / "2" / "sha256.json").unlink()
    assert_same(read(tmp_path / "run"), snapshot(2))


@pytest.mark.slow
def test_campaign(written, tmp_path, silent, capfd):
    draws, told, told_of_changed, changed, count = np.random.default_rng(1), 0, 0, 0, 0
    others = files_of(written)
    while count < 300:
        for path in others:
            raw = path.read_bytes()
            for damage in (*DAMAGES.values(), "missing", "another file", "a folder"):
                folder, count = tmp_path / str(count), count + 1
                is_changed = True
                if callable(damage):
                    is_changed = damaged(written, folder, path, damage, draws)
                else:
                    shutil.copytree(written, folder)
                    place = folder / path.relative_to(written)
                    place.unlink()
                    if damage == "another file":
                        content = others[draws.integers(len(others))].read_bytes()
                        is_changed = content != raw
                        place.write_bytes(content)
                    elif damage == "a folder":
                        place.mkdir()
                is_told = outcome(folder, (path, damage))
                told, changed = told + is_told, changed + is_changed
                told_of_changed += is_told and is_changed
                shutil.rmtree(folder)
    with capfd.disabled():
        print(f"\n{count} damaged checkpoints: {told} told, {count - told} with their own bits")
    assert count >= 224
    assert told == told_of_changed
    # The hashes themselves may be missing; then the whole is read and compared with its digest.
    assert changed - told <= count // 100 * 3
