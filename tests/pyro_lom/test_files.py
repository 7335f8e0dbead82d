"""Files are replaced as a whole, links are not followed, pipes are not waited for, and leftovers go away."""

import os
import signal
import subprocess
import sys
import time

import pytest

from pyro_lom.errors import UserError
from pyro_lom.files import open_own, replacing


def write(path, text):
    with replacing(path) as temporary:
        temporary.write_text(text)


def test_a_file_is_replaced_at_the_end(tmp_path):
    path = tmp_path / "a.txt"
    write(path, "old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and temporary.parent == tmp_path
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]


def test_permissions_are_those_of_a_new_file(tmp_path):
    (tmp_path / "b.txt").write_text("")
    write(tmp_path / "a.txt", "")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


def test_no_link_is_followed(tmp_path):
    """Neither at the name of the file nor at the name that its temporary file had in former versions."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("a.txt", "a.txt.tmp", ".a.txt.partial"):
        (tmp_path / name).symlink_to(victim)
    write(tmp_path / "a.txt", "new")
    assert victim.read_text() == "precious"
    assert not (tmp_path / "a.txt").is_symlink() and (tmp_path / "a.txt").read_text() == "new"


def test_the_temporary_file_is_opened_exclusively(tmp_path, monkeypatch):
    monkeypatch.setattr("secrets.token_hex", lambda num_bytes: "01234567")
    (tmp_path / ".a.txt.01234567.partial").symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match=f"^cannot write {tmp_path}/a.txt: File exists$"):
        write(tmp_path / "a.txt", "new")
    assert os.listdir(tmp_path) == [".a.txt.01234567.partial"]


def test_leftovers_of_killed_processes_are_removed_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    code = (
        "import sys, time, pathlib; from pyro_lom.files import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1])): print(flush=True); time.sleep(600)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE)
    writer.stdout.readline()
    others = {".b.txt.01234567.partial", ".a.txt.0123456.partial", ".a.txt.notes.partial", "a.txt.tmp"}
    for name in others:
        (tmp_path / name).write_text("of the user")
    (tmp_path / ".a.txt.89abcdef.partial").mkdir()
    write(path, "while the other process lives")
    assert len(os.listdir(tmp_path)) == len(others) + 3
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    write(path, "after its death")
    assert set(os.listdir(tmp_path)) == others | {"a.txt", ".a.txt.89abcdef.partial"}


@pytest.mark.parametrize("mode", ["rb", "ab", "a", "r"])
@pytest.mark.parametrize("kind", ["link", "link to a folder", "dangling link", "pipe", "folder", "device"])
def test_what_is_no_file_of_ours_is_not_opened(tmp_path, mode, kind):
    victim, path = tmp_path / "victim", tmp_path / "a"
    victim.write_text("precious")
    {
        "link": lambda: path.symlink_to(victim),
        "link to a folder": lambda: path.symlink_to(tmp_path),
        "dangling link": lambda: path.symlink_to("nowhere"),
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "device": lambda: path.symlink_to("/dev/zero"),
    }[kind]()
    started = time.monotonic()
    with pytest.raises(OSError):
        open_own(path, mode)
    assert time.monotonic() - started < 1 and victim.read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


def test_files_of_ours_are_opened_as_usual(tmp_path):
    with open_own(tmp_path / "a", "a") as file:
        file.write("one")
    with open_own(tmp_path / "a", "ab") as file:
        file.write(b" two")
    with open_own(tmp_path / "a") as file:
        assert file.read() == b"one two"
