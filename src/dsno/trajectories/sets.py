"""Sets of trajectories, read: rows by index from memory-mapped shards, here or elsewhere.

A row is what a seed determines (`dsno.trajectories.store`). Its index says which shard it is in and where, so a row is
read without looking at any other: a folder of any size opens at once, takes no memory, and travels to worker processes
as a path. A set somewhere else is one whose shards are fetched when a row in them is first asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dsno.condition import label_of, map_cond, nested
from dsno.denoise import Denoiser
from dsno.grids import find_times
from dsno.outside import unchecked
from dsno.schedule import Schedule, schedule_from_config
from dsno.steer import TARGET, Steered, as_label
from dsno.trajectories.format import check_foreign, check_shard, map_shard, shard_count, shard_path, shards_in
from dsno.trajectories.manifest import NAMED, describe, differences, join, read_manifest

if TYPE_CHECKING:
    from dsno.trajectories.shelf import Shelf

__all__ = ["TrajectorySet", "pairs_of", "samples_of"]

WINDOW = 8


class TrajectorySet(Dataset[dict[str, Any]]):
    r"""The trajectories of a folder, or of a URL, read lazily: a row is read when it is asked for.

    An item is a dict of float32 `noise` (*shape), `x0` and/or `state` (M, *shape), of `seeds` () int64, and of `cond`
    as stored, if any: (...), or several such by name. `__getitems__` gives the same with a batch dimension in front,
    gathered at once (which a `DataLoader` understands with `collate_fn=dict`).

    Files are memory-mapped; opening a folder reads headers only. A shard is compared with its checksum when a row of it
    is first asked for in a process (about two seconds per gigabyte), unless the environment says `DSNO_UNCHECKED=1`.
    Opening a URL (`hf://datasets/org/name`, `s3://bucket/name`, ...) reads the manifest only: a shard is fetched,
    checked and kept in a cache when it is first needed, and `batches` has the next ones fetched meanwhile.

    Arguments:
        folder: What `generate` or `pull` wrote, or a URL that `push` wrote to.
        times: The frames to read, a subset of the stored times; all by default.
        verify: Compare all checksums now, and not as shards are needed; of a URL, of what the cache has.
        window: How many shards `batches` shuffles together; by default 8 for a URL, and all rows at once for a folder.
        cache: Of a URL: the folder of the cache; by default `$DSNO_CACHE`, else `~/.cache/dsno`.
        cache_bytes: Of a URL: how large the cache of this set may grow, None for no bound. To fetch ahead it needs room
            for two windows.

    Attributes:
        manifest: What determined the trajectories.
        times: The frames, (M,), decreasing float64.
        shape: The shape of one sample.
        targets: Which of `x0` and `state` are stored.
        folder: Where the shards are; of a URL, in the cache.
        window: See above.

    Raises:
        ConnectionError: if a URL cannot be reached; also when a shard is needed, like the next three.
        FileNotFoundError: if the folder, its manifest or a shard is missing.
        OSError: if the disk of the cache is full.
        PermissionError: if a URL may not be read.
        ValueError: if the manifest or a shard is damaged or foreign, or a time is not stored; says how to mend it. Rows
            raise it, too: of a shard that is damaged, or holds numbers that are not finite.
    """

    def __init__(
        self,
        folder: Path | str,
        times: Sequence[float] | Tensor | None = None,
        verify: bool = False,
        *,
        window: int | None = None,
        cache: Path | str | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        if window is not None and window < 1:
            raise ValueError(f"window must be at least 1 shard, got {window}")
        self.window = window
        self._shelf: Shelf | None = None
        self._verified: set[int] = set()
        if "://" in str(folder):
            # Here and not above: fsspec and the file lock are not needed for a folder.
            from dsno.trajectories.shelf import Shelf

            self._shelf = Shelf(str(folder), cache, cache_bytes)
            self.source, self.folder, self.manifest = self._shelf.url, self._shelf.folder, self._shelf.manifest
            self.window = WINDOW if window is None else window
            self._count = int(self.manifest["count"])
            if verify:
                self._shelf.verify()
        else:
            self.folder = Path(folder)
            self.source, self.manifest = str(folder), read_manifest(self.folder)
            self._count = int(self.manifest["made"].get("pulled", self.manifest)["count"])
            self._check_shards(verify)
        self._frames: Tensor | None = None
        self._choose(times)
        self.shape: tuple[int, ...] = tuple(self.manifest["shape"])
        self.targets: tuple[str, ...] = tuple(self.manifest["targets"])
        self._mapped: dict[int, dict[str, Tensor]] = {}

    def _choose(self, times: Sequence[float] | Tensor | None) -> None:
        self.times = torch.tensor(self.manifest["times"], dtype=torch.float64)
        if times is not None:
            self._frames = torch.tensor(find_times(self.times, times, f"stored in {self.source}"), dtype=torch.int64)
            self.times = self.times[self._frames]

    def _check_shards(self, verify: bool) -> None:
        names = {k: shard_path(self.folder, k) for k in range(shard_count(self.manifest, self._count))}
        there = {*shards_in(self.folder)}
        if missing := [p.name for p in names.values() if p not in there]:
            pulled = "pulled" in self.manifest["made"]
            mend = "Pull it again to fetch" if pulled else "Call generate(..., resume=True) to make"
            raise FileNotFoundError(
                f"{self.folder} is incomplete: {len(missing)} of {len(names)} shards are missing "
                f"({join(missing, ', ')}). {mend} them"
            )
        check_foreign(self.folder, self.manifest)
        for k in names:
            check_shard(self.folder, self.manifest, k, verify)
        self._verified = {*names} if verify else set()

    @property
    def schedule(self) -> Schedule:
        """The schedule the trajectories were solved on.

        Raises:
            ValueError: if it is not one of dsno's own.
        """
        return schedule_from_config(self.manifest["schedule"])

    def check_teacher(self, teacher: Denoiser) -> None:
        """Make sure that these are the trajectories of `teacher`, or of it under a guide if it has none.

        Raises:
            ValueError: if they are another's; names what differs.
        """
        found = self.manifest["teacher"]
        if not isinstance(teacher, Steered) and "guide" in found:
            # To whoever has no guide, they are those of the teacher under it.
            found = {**found["denoiser"], "description": found["description"]}
        if wrong := differences(describe(teacher, found["description"]), found, "teacher"):
            raise ValueError(
                f"{self.source} holds trajectories of another teacher: {join(wrong)}. Give theirs, or call "
                "generate() with this one"
            )

    def head(self, count: int) -> TrajectorySet:
        """The first `count` trajectories as a set of their own.

        Raises:
            ValueError: if there are not as many.
        """
        if not 1 <= count <= len(self):
            raise ValueError(f"cannot take the first {count} of {len(self)} trajectories")
        first = copy.copy(self)
        first._count = count
        return first

    def at(self, times: Sequence[float] | Tensor) -> TrajectorySet:
        """The same trajectories at some of the stored times.

        Raises:
            ValueError: if a time is not stored.
        """
        chosen = copy.copy(self)
        chosen._choose(times)
        return chosen

    def prefetch(self, used: Sequence[int], then: Sequence[int] = ()) -> None:
        """Fetch shards in the background: those that are `used` now, and if the cache has room those needed `then`.

        Of a folder, where all of them are at hand, this does nothing.
        """
        if self._shelf is not None:
            self._shelf.ahead(used, then)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: map_cond(lambda x: x[0], rows) for name, rows in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """The rows `indices`, in any order: `noise` (B, *shape), `x0`/`state` (B, M, *shape), `seeds` (B,), `cond`.

        Raises:
            IndexError: if an index is out of range.
        """
        index = torch.as_tensor(indices, dtype=torch.int64)
        if not len(index) or int(index.min()) < -len(self) or int(index.max()) >= len(self):
            raise IndexError(f"expected indices of {len(self)} trajectories, got {indices!r:.80}")
        index = index % len(self)
        shard, row = index // self.manifest["shard"], index % self.manifest["shard"]
        batch: dict[str, Tensor] = {}
        for k in shard.unique().tolist():
            where = (shard == k).nonzero().squeeze(1)
            for name, stored in self._shard(k).items():
                if name in self.targets and self._frames is not None:
                    found = stored[row[where][:, None], self._frames]
                else:
                    found = stored[row[where]]
                if name not in batch:
                    dtype = torch.float32 if name in ("noise", *self.targets) else stored.dtype
                    batch[name] = torch.empty(len(index), *found.shape[1:], dtype=dtype)
                batch[name][where] = found.to(batch[name].dtype)
        for name, rows in batch.items():
            # The sum of finite numbers may overflow, and that of others is never finite: it decides what is looked at.
            if rows.is_floating_point() and not bool(rows.sum().isfinite()) and not bool(rows.isfinite().all()):
                self._refuse(name, rows, index)
        return nested(batch)

    def told(self, name: str) -> Tensor:
        """What the rows of the first shard are told under a name, (B, ...).

        Raises:
            KeyError: if they are told nothing of it.
        """
        return self._shard(0)[f"cond.{name}"][: len(self)]

    @property
    def guide(self) -> Mapping[str, Any] | None:
        """What the manifest says of the guide of a steered teacher; None if there was none."""
        found: Mapping[str, Any] | None = self.manifest["teacher"].get("guide")
        return found

    def _refuse(self, name: str, rows: Tensor, index: Tensor) -> NoReturn:
        """Say in which file and row the first number is that is not finite.

        Raises:
            ValueError: always.
        """
        at = int((~rows.isfinite()).flatten(1).any(1).nonzero()[0])
        k, row = divmod(int(index[at]), self.manifest["shard"])
        raise ValueError(
            f"{shard_path(self.folder, k)} holds numbers that are not finite: {name} of row {row}, seed "
            f"{self.manifest['first_seed'] + int(index[at])}. The data are at fault, not the training: make them again"
        )

    def _shard(self, k: int) -> dict[str, Tensor]:
        if k in self._mapped:
            if self._shelf is not None:
                self._shelf.touch(k)
        elif self._shelf is None:
            if k not in self._verified and not unchecked():
                check_shard(self.folder, self.manifest, k, verify=True)
                self._verified.add(k)
            self._mapped[k] = map_shard(shard_path(self.folder, k), self.manifest, k)
        else:
            rows = self._shelf.map(k)
            # What the cache has dropped takes room on the disk for as long as it is mapped.
            self._mapped = {j: held for j, held in self._mapped.items() if self._shelf.holds(j)} | {k: rows}
        return self._mapped[k]

    def __getstate__(self) -> dict[str, Any]:
        # A worker process maps the files itself instead of receiving their contents.
        return {**self.__dict__, "_mapped": {}}


def samples_of(data: TrajectorySet) -> tuple[Tensor, Tensor | None]:
    """The ends of trajectories, (N, *shape) float32, and their labels (N,) int64, if any: samples of the teacher.

    Raises:
        ValueError: if the trajectories do not end at t = 0, or are told more than a label.
    """
    _, x, labels = _ends_of(data, noises=False)
    return x, labels


def pairs_of(data: TrajectorySet) -> tuple[Tensor, Tensor, Tensor | None]:
    """What trajectories start from, noise of unit variance (N, *shape) float32, and `samples_of` them.

    Raises:
        ValueError: as `samples_of` does.
    """
    return _ends_of(data, noises=True)


def _ends_of(data: TrajectorySet, noises: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """The noises, none where they are not asked for, the ends and the labels of trajectories, read once."""
    if float(data.times[-1]) != 0:
        raise ValueError(
            f"{data.source} ends at t = {float(data.times[-1]):g}, where there is noise left: its ends are no samples"
        )
    cond = data.manifest["cond"]
    cond = cond if cond is None or data.manifest["format"] == NAMED else {"label": cond}
    more = sorted(name for name, c in (cond or {}).items() if name not in ("label", TARGET) or c["shape"])
    if more:
        raise ValueError(
            f"{data.source} is told {', '.join(more)} beside the state, and samples have labels alone: make "
            "trajectories without, give an image set, or distil with the method operator, which is told the same"
        )
    x, labels = torch.empty(len(data), *data.shape), torch.zeros(len(data), dtype=torch.int64)
    noise = torch.empty(len(data) if noises else 0, *data.shape)
    for rows in torch.arange(len(data)).split(1024):
        batch = data.__getitems__(rows.tolist())
        x[rows] = batch[data.targets[0]][:, -1]
        if noises:
            noise[rows] = batch["noise"]
        if (found := label_of(as_label(batch.get("cond")))) is not None:
            labels[rows] = found
    return noise, x, labels if cond else None
