"""A mounted `powerloss_tree.Tree`: `powerloss_fs` with folders and symbolic links, and the handle that tests hold."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, ClassVar

from fakes.powerloss_fs import Calls, PowerLossMount, serve
from fakes.powerloss_tree import Folder, Node, Symlink, Tree, load, save


class PowerLossTreeMount(PowerLossMount):
    """The disk of `folder`, with all below it, mounted at `mount`."""

    program: ClassVar[Path] = Path(__file__)


class TreeCalls(Calls):
    """FUSE's calls as calls of the tree."""

    _disk: Tree
    _folders: dict[int, Folder]

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._folders = {}

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        node: Node = self._open[fh] if fh in self._open else self._disk.node(path[1:])  # type: ignore[index, assignment]
        owner = {"st_uid": os.geteuid(), "st_gid": os.getegid(), "st_nlink": 1}
        times = {"st_mtime": node.mtime_ns, "st_ctime": node.mtime_ns, "st_atime": node.mtime_ns}
        if isinstance(node, Folder):
            return {"st_mode": stat.S_IFDIR | 0o755, **owner, **times}
        if isinstance(node, Symlink):
            return {"st_mode": stat.S_IFLNK | 0o777, "st_size": len(node.target), **owner, **times}
        return {"st_mode": stat.S_IFREG | 0o644, "st_size": len(node.cache), **owner, **times}

    def opendir(self, path: str) -> int:
        self._folders[self._next] = self._disk.folder(path[1:])
        self._next += 1
        return self._next - 1

    def releasedir(self, path: str, fh: int) -> int:
        self._folders.pop(fh, None)
        return 0

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *self._folders[fh].cache]

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        self._disk.sync_names(self._folders[fh])
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        self._disk.make_folder(path[1:])
        return 0

    def rmdir(self, path: str) -> int:
        self._disk.remove_folder(path[1:])
        return 0

    def symlink(self, target: str, source: str) -> int:
        self._disk.make_symlink(target[1:], source)
        return 0

    def readlink(self, path: str) -> str:
        node = self._disk.node(path[1:])
        assert isinstance(node, Symlink)
        return node.target


if __name__ == "__main__":
    serve(Tree, TreeCalls, load, save)
