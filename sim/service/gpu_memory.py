"""Blocks of K and V in the GPU memory of an instance: shared by requests, kept as a cache."""

from __future__ import annotations

from collections import OrderedDict

from sim.service.loader import Active


class GpuMemory:
    """Blocks of prompts and answers.

    Blocks that no admitted request uses stay until room is needed; the one that was used longest
    ago leaves first, and of one prompt the last.

    Args:
        blocks: how many there are.
    """

    def __init__(self, blocks: int) -> None:
        self.blocks = self.free = blocks
        self.users: dict[int, int] = {}
        """Admitted requests that use each block of a prompt."""
        self.idle: OrderedDict[int, None] = OrderedDict()
        """Blocks that no request uses, the next to leave first."""

    def __contains__(self, node: int) -> bool:
        return node in self.users or node in self.idle

    def admit(self, one: Active, blocks: int) -> list[int] | None:
        """Give a request as many blocks, the cached ones of its prompt among them.

        Returns:
            Blocks that left for them; None if there is no room.
        """
        path, found = one.path, 0
        while found < len(path) and path[found] in self:
            found += 1
        kept = [node for node in path[:found] if node in self.idle]
        need = blocks - found
        if self.free + len(self.idle) - len(kept) < need:
            return None
        for node in kept:
            del self.idle[node]
        for node in path[:found]:
            self.users[node] = self.users.get(node, 0) + 1
        victims = self.make_room(need)
        self.free -= need
        one.shared, one.private = found, need
        return victims

    def grow(self, one: Active) -> list[int] | None:
        """Give a request one more block; returns blocks that left, or None without room."""
        victims = self.make_room(1)
        if victims is not None:
            self.free -= 1
            one.private += 1
        return victims

    def make_room(self, blocks: int) -> list[int] | None:
        """Evict unused blocks until `blocks` are free; None if that is impossible."""
        if self.free + len(self.idle) < blocks:
            return None
        victims = []
        while self.free < blocks:
            victims.append(self.idle.popitem(last=False)[0])
            self.free += 1
        return victims

    def share(self, one: Active) -> None:
        """A prompt is complete: other requests can use its blocks."""
        for node in one.path[one.shared :]:
            one.private -= 1
            if node in self.users:
                self.users[node] += 1
                self.free += 1
                continue
            if node in self.idle:
                del self.idle[node]
                self.free += 1
            self.users[node] = 1
        one.shared = len(one.path)

    def release(self, one: Active) -> None:
        """Take a request's blocks back; those of its prompt stay until room is needed."""
        for node in reversed(one.path[: one.shared]):
            self.users[node] -= 1
            if not self.users[node]:
                del self.users[node]
                self.idle[node] = None
        self.free += one.private
        one.shared = one.private = 0
