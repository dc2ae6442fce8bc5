"""Checkpoints and clips as objects that are named by their content: a folder embedded, a bucket when scaled."""

import asyncio
import contextlib
import errno
import hashlib
from collections.abc import AsyncGenerator
from datetime import datetime
from pathlib import Path
from typing import Literal, TypeAlias

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import LocalStore, ObjectStore, from_url

from services.chassis.errors import DataLoss, Exhausted, NotFound, Unavailable

Kind: TypeAlias = Literal["clips", "checkpoints", "conditioning"]
KINDS: tuple[Kind, ...] = ("clips", "checkpoints", "conditioning")

ATTEMPTS = 3
HASH_IN_THREAD_BYTES = 2**20
FULL = tuple(f"os error {number})" for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
"""How obstore words that the disk, the user's quota of it, or the file that may be written is full."""


class Artifacts:
    """Objects under `kind/ab/abcdef…`, where the name is the SHA-256 of the bytes.

    A write becomes visible as a whole or not at all, and the same content is stored once, whoever writes it: the
    conditional put of the store sees to both.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    @classmethod
    def open(cls, url: str) -> "Artifacts":
        """The artifacts at `url`: a folder's path, or a URL that obstore knows (`s3://bucket/prefix`, `gs://`, `az://`).

        Credentials come from the environment, as the cloud's own tools read them.
        """
        if "://" in url:
            return cls(from_url(url))
        return cls(LocalStore(prefix=Path(url), mkdir=True))

    async def put(self, kind: Kind, data: bytes | bytearray | memoryview) -> str:
        """Store `data` and answer its key. Raises `Exhausted` when the disk is full, and `Unavailable`."""
        content = bytes(data)
        key = await _key(kind, content)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await self._write(key, content)
            except (BaseError, OSError) as failed:
                if any(sign in str(failed) for sign in FULL):
                    raise Exhausted("The artifact store is full.", reason="ARTIFACTS_FULL") from failed
                if attempt == ATTEMPTS:
                    raise Unavailable(
                        "The artifact store is not available.", reason="ARTIFACTS_UNAVAILABLE"
                    ) from failed
                await asyncio.sleep(0.1 * 2**attempt)
            else:
                break
        return key

    async def _write(self, key: str, content: bytes) -> None:
        try:
            await obstore.put_async(self._store, key, content, mode="create")
        except AlreadyExistsError:
            # Written again, so that it is young: housekeeping takes what is old and named by no row.
            await obstore.put_async(self._store, key, content, mode="overwrite")

    async def get(self, key: str) -> bytes:
        """The whole object, checked against its name. Raises `NotFound` and `DataLoss`."""
        try:
            answer = await obstore.get_async(self._store, key)
            content = bytes(await answer.bytes_async())
        except (NotFoundError, FileNotFoundError):
            raise NotFound("The stored object is gone.", reason="ARTIFACT_NOT_FOUND") from None
        except (BaseError, OSError) as failed:
            raise Unavailable("The artifact store is not available.", reason="ARTIFACTS_UNAVAILABLE") from failed
        if await _key(key.split("/", 1)[0], content) != key:
            raise DataLoss("The stored object is damaged.", reason="ARTIFACT_DAMAGED")
        return content

    async def read(self, key: str, *, offset: int, size: int, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
        """The object's bytes from `offset` to its `size`, in pieces. Raises `NotFound`."""
        for start in range(offset, size, chunk_bytes):
            try:
                piece = await obstore.get_range_async(
                    self._store, key, start=start, length=min(chunk_bytes, size - start)
                )
            except (NotFoundError, FileNotFoundError):
                raise NotFound("The stored object is gone.", reason="ARTIFACT_NOT_FOUND") from None
            except (BaseError, OSError) as failed:
                raise Unavailable("The artifact store is not available.", reason="ARTIFACTS_UNAVAILABLE") from failed
            yield bytes(piece)

    async def older(self, kind: Kind, *, before: datetime) -> list[str]:
        """Keys of the objects of `kind` that were last written before `before`."""
        return [
            entry["path"]
            async for page in obstore.list(self._store, prefix=kind)
            for entry in page
            if entry["last_modified"] < before
        ]

    async def delete(self, key: str) -> None:
        """Delete an object; one that is gone already stays gone."""
        with contextlib.suppress(NotFoundError, FileNotFoundError):
            await obstore.delete_async(self._store, key)


def clip_key(sha256: str) -> str:
    """The key of the clip, or of a file made from one, with this SHA-256."""
    return f"clips/{sha256[:2]}/{sha256}"


def sha256_of(key: str) -> str:
    """The SHA-256 that a key names."""
    return key.rsplit("/", 1)[1]


def md5_of(content: bytes | bytearray) -> str:
    """The checksum that stores and tools ask for, 32 hexadecimal digits; identity is the SHA-256."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


async def _key(kind: str, content: bytes) -> str:
    if len(content) > HASH_IN_THREAD_BYTES:
        digest = await asyncio.to_thread(lambda: hashlib.sha256(content).hexdigest())
    else:
        digest = hashlib.sha256(content).hexdigest()
    return f"{kind}/{digest[:2]}/{digest}"
