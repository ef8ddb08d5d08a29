"""A run's folder: its lock, what cannot be written, and links that somebody planted."""

import errno
import os
import resource
import signal
import subprocess
import sys

import pytest

import hgrad_jax as hg
from experiments.common import write_json_line
from hgrad_jax.tools import files
from hgrad_jax.training import folder as folders
from hgrad_jax.training.folder import locked, told
from tests.training.test_checkpoints import PARAMS, STATE, assert_same, open_store, read, snapshot

HOLDER = """
import sys, time
from pathlib import Path
from hgrad_jax.training.folder import locked
with locked(Path(sys.argv[1])):
    print("has it", flush=True)
    time.sleep(60)
"""


class TestLock:
    def test_a_second_process_is_told_of_the_first_and_a_dead_one_does_not_block(self, tmp_path):
        child = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "has it\n"
            with pytest.raises(hg.CheckpointError) as told_of, open_store(tmp_path):
                pass
            assert str(told_of.value) == (
                f"the folder {tmp_path} is in use by process {child.pid}; wait until it ends, "
                "stop it, or name another folder."
            )
        finally:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            child.stdout.close()
        assert (tmp_path / ".lock").read_text() == f"{child.pid}\n"
        with open_store(tmp_path) as store:
            assert store.read(STATE, PARAMS) is None

    def test_a_second_call_of_this_process(self, tmp_path):
        with (
            open_store(tmp_path),
            pytest.raises(hg.CheckpointError, match=rf"this process, {os.getpid()}, by another"),
            open_store(tmp_path),
        ):
            pass
        with open_store(tmp_path):
            pass

    def test_a_store_that_could_not_be_opened_keeps_no_lock(self, tmp_path, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr("hgrad_jax.training.store._manager", lambda *args: 1 / 0)
            with pytest.raises(hg.CheckpointError, match="ZeroDivisionError"):
                open_store(tmp_path)
        with open_store(tmp_path):
            pass

    def test_a_folder_that_may_only_be_read_is_read(self, tmp_path, monkeypatch):
        with open_store(tmp_path / "run") as store:
            store.write(1, snapshot(1))
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["1"]
        opened = os.open

        def read_only(path, flags, *args, **kwargs):
            if flags & os.O_CREAT:
                raise PermissionError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return opened(path, flags, *args, **kwargs)

        monkeypatch.setattr(folders.os, "open", read_only)
        assert_same(read(tmp_path / "run"), snapshot(1))


class TestCannotBeWritten:
    @pytest.mark.parametrize(
        ("number", "why"),
        [
            (errno.ENOSPC, "the disk is full"),
            (errno.EDQUOT, "the disk is full"),
            (errno.EROFS, "it may not be written"),
            (errno.EACCES, "it may not be written"),
            (errno.ENOTDIR, "a file is in its way"),
            (errno.EIO, "OSError: .* Mend that"),
        ],
    )
    def test_a_sentence_for_each_kind(self, number, why, tmp_path):
        (tmp_path / "7").mkdir()
        (tmp_path / "8.orbax-checkpoint-tmp-1").mkdir()
        wanted = rf"{tmp_path} cannot be used: {why}.*; checkpoint 7 is whole, and the same call"
        if number == errno.EIO:
            wanted = rf"{tmp_path} cannot be used: OSError: .*; checkpoint 7 is whole.* Mend that"
        with pytest.raises(hg.CheckpointError, match=wanted) as raised, told(tmp_path):
            raise OSError(number, os.strerror(number))
        assert isinstance(raised.value.__cause__, OSError)

    def test_nothing_is_kept_before_the_first(self, tmp_path):
        with (
            pytest.raises(hg.CheckpointError, match="no checkpoint has been written there yet"),
            told(tmp_path),
        ):
            raise OSError(errno.ENOSPC, "")

    def test_a_file_in_the_way(self, tmp_path):
        choice = hg.Checkpoints(tmp_path / "run")
        (tmp_path / "run").write_text("")
        with (
            pytest.raises(hg.CheckpointError, match="a file is in its way"),
            locked(folders.Path(choice.folder)),
        ):
            pass

    def test_a_disk_that_fills_up_while_a_checkpoint_is_written(self, tmp_path):
        """As a limit on the size of files, which orbax's writes in C++ meet too."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        with open_store(tmp_path) as store:
            store.write(1, snapshot(1))
            try:
                resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
                with pytest.raises(hg.CheckpointError, match="the disk is full; checkpoint 1 is"):
                    store.write(2, snapshot(2))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert_same(read(tmp_path), snapshot(1))
        with open_store(tmp_path) as store:
            store.write(2, snapshot(2))
        assert_same(read(tmp_path), snapshot(2))


class TestFiles:
    def test_a_link_that_was_planted_is_not_written_through(self, tmp_path):
        theirs, ours = tmp_path / "theirs", tmp_path / "run" / "meta_steps.jsonl"
        theirs.write_text("precious")
        ours.parent.mkdir()
        for name in (".meta_steps.jsonl.part", "meta_steps.jsonl"):
            (ours.parent / name).symlink_to(theirs)
        files.write_whole(ours, b"line")
        assert (ours.read_bytes(), theirs.read_text()) == (b"line", "precious")
        assert not ours.is_symlink()

    def test_no_line_is_added_through_a_link(self, tmp_path):
        theirs, ours = tmp_path / "theirs", tmp_path / "results.jsonl"
        theirs.write_text("precious")
        ours.symlink_to(theirs)
        with pytest.raises(OSError, match="symbolic links"):
            write_json_line(ours, {"a": 1})
        assert theirs.read_text() == "precious"

    def test_a_temporary_name_that_exists_is_not_opened(self, tmp_path, monkeypatch):
        theirs = tmp_path / "theirs"
        theirs.write_text("precious")
        monkeypatch.setattr(files.secrets, "token_hex", lambda size: "guessed")
        (tmp_path / ".a.guessed.part").symlink_to(theirs)
        with pytest.raises(FileExistsError):
            files.write_whole(tmp_path / "a", b"line")
        assert theirs.read_text() == "precious"

    def test_a_write_that_fails_leaves_the_old_file_alone(self, tmp_path):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        files.write_whole(tmp_path / "a", b"old")
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (8, before[1]))
            with pytest.raises(OSError, match="too large"):
                files.write_whole(tmp_path / "a", b"n" * 100)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert [path.name for path in tmp_path.iterdir()] == ["a"]
        assert (tmp_path / "a").read_bytes() == b"old"

    def test_names_are_new_and_permissions_those_of_any_file(self, tmp_path, monkeypatch):
        replaced = []
        replace = os.replace
        monkeypatch.setattr(
            files.os, "replace", lambda a, b: (replaced.append(a.name), replace(a, b))
        )
        (tmp_path / "usual").write_text("")
        for _ in range(3):
            files.write_whole(tmp_path / "a", b"x")
        assert len(set(replaced)) == 3
        assert (tmp_path / "a").stat().st_mode == (tmp_path / "usual").stat().st_mode
