"""The tree hash: the same in every clone, another one for every change that matters."""

import base64
import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from muster.errors import MusterError
from muster.treehash import tree_archive, tree_hash


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "one" / "package"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.py").write_text("a = 1\n")
    (folder / "sub" / "b.py").write_text("b = 2\n")
    return folder


def test_a_clone_with_other_modes_times_and_litter_is_the_same(tree: Path, tmp_path: Path) -> None:
    clone = tmp_path / "two" / "package"
    shutil.copytree(tree, clone)
    (clone / "a.py").chmod(0o755)
    os.utime(clone / "sub" / "b.py", (0, 0))
    (clone / "__pycache__").mkdir()
    (clone / "__pycache__" / "a.cpython-311.pyc").write_bytes(b"x")
    (clone / "c.pyc").write_bytes(b"x")
    assert tree_hash([str(clone)]) == tree_hash([str(tree)]) == tree_hash(str(tree) + "/")


def change_content(tree: Path) -> None:
    (tree / "a.py").write_text("a = 2\n")


def add_file(tree: Path) -> None:
    (tree / "empty.py").touch()


def rename(tree: Path) -> None:
    (tree / "a.py").rename(tree / "c.py")


def move(tree: Path) -> None:
    (tree / "sub" / "b.py").rename(tree / "b.py")


def shift_between_files(tree: Path) -> None:
    (tree / "a.py").write_text("")
    (tree / "sub" / "b.py").write_text("a = 1\nb = 2\n")


@pytest.mark.parametrize("change", [change_content, add_file, rename, move, shift_between_files])
def test_every_change_shows(tree: Path, change: "object") -> None:
    before = tree_hash([str(tree)])
    assert callable(change)
    change(tree)
    assert tree_hash([str(tree)]) != before


def test_a_content_that_looks_like_a_file_is_none(tmp_path: Path) -> None:
    for clone, files in (("one", {"a": "1", "b": "2"}), ("two", {"a": "1package/b2"})):
        (tmp_path / clone / "package").mkdir(parents=True)
        for name, content in files.items():
            (tmp_path / clone / "package" / name).write_text(content)
    assert tree_hash(str(tmp_path / "one" / "package")) != tree_hash(str(tmp_path / "two" / "package"))


def test_extra_counts(tree: Path) -> None:
    assert len({tree_hash([str(tree)], extra) for extra in ("", "core", "ml")}) == 3


def test_it_is_short_and_hexadecimal(tree: Path) -> None:
    assert len(tree_hash(str(tree))) == 12 and int(tree_hash(str(tree)), 16) >= 0


def test_a_single_file_is_a_tree_too(tree: Path) -> None:
    assert tree_hash([str(tree / "a.py")]) != tree_hash([str(tree / "sub" / "b.py")])


def test_a_link_counts_by_where_it_points(tree: Path) -> None:
    (tree / "link").symlink_to("a.py")
    before = tree_hash(str(tree))
    (tree / "link").unlink()
    (tree / "link").symlink_to("sub")
    assert tree_hash(str(tree)) != before


def test_a_missing_path_is_a_mistake(tree: Path) -> None:
    with pytest.raises(MusterError, match="does not exist"):
        tree_hash([str(tree / "nowhere")])


def test_the_archive_holds_what_was_hashed_and_nothing_of_this_machine(tree: Path) -> None:
    (tree / "link").symlink_to("a.py")
    (tree / "run.sh").write_text("#!/bin/sh\n")
    (tree / "run.sh").chmod(0o700)
    (tree / "__pycache__").mkdir()
    (tree / "__pycache__" / "a.pyc").write_bytes(b"x")
    packed = base64.b64decode(tree_archive([str(tree)]))
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        members = {member.name: member for member in tar}
        assert set(members) == {"package/a.py", "package/link", "package/run.sh", "package/sub/b.py"}
        content = tar.extractfile("package/sub/b.py")
        assert content is not None and content.read() == b"b = 2\n"
    assert members["package/link"].linkname == "a.py"
    assert [oct(members[f"package/{name}"].mode) for name in ("run.sh", "a.py")] == ["0o755", "0o644"]
    assert {(member.uid, member.gid, member.mtime) for member in members.values()} == {(0, 0, 0)}
