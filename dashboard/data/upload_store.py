"""Uploaded files of all visitors, held by this server under an id that only their visitor knows."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from threading import Lock

from dashboard.data.uploads import Upload

MAX_BYTES = 256 * 2**20
"""Limit of all uploads together; those used longest ago make room."""

ID_BYTES = 9


class UploadStore:
    """Accepted uploads by id, until the server ends."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes, self._lock = max_bytes, Lock()
        self._held: OrderedDict[str, tuple[Upload, int]] = OrderedDict()

    def add(self, upload: Upload, size: int) -> str:
        """Hold an upload of `size` bytes; returns its id."""
        key = secrets.token_urlsafe(ID_BYTES)
        with self._lock:
            self._held[key] = upload, size
            while sum(held for _, held in self._held.values()) > self._max_bytes:
                self._held.popitem(last=False)
        return key

    def get(self, key: str) -> Upload | None:
        """The upload of an id; None if the server does not hold it any more."""
        with self._lock:
            if key not in self._held:
                return None
            self._held.move_to_end(key)
            return self._held[key][0]

    def remove(self, key: str) -> None:
        """Forget an upload."""
        with self._lock:
            self._held.pop(key, None)


STORE = UploadStore()
"""The uploads of this server."""
