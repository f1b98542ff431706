"""A cache of distributions whatever its file: a folder of Parquet shards, a folder with one HDF5 file, or that file.

An artifact folder has its manifest beside its data; a bare `.h5` file has it inside, without the list of files.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from efficientface import FerError
from efficientface.cache.distributions import Distributions
from efficientface.cache.parquet import read_shard, read_shards, write_shard
from efficientface.pipeline.artifact import (
    MANIFEST,
    VERSION,
    check_files,
    is_description,
    read_manifest,
    replacing,
    write_manifest,
)
from efficientface.pipeline.config import TeachConfig
from efficientface.pipeline.progress import progress

ONE_FILE = "distributions.h5"
SUFFIXES = (".h5", ".hdf5")


@dataclass(frozen=True)
class Cache:
    """A finished cache: `path` as given, the `folder` that relative paths start from, and its data files."""

    path: Path
    folder: Path
    manifest: dict[str, Any]
    shards: dict[str, Path | slice]  # by name, in order: a Parquet file, or rows of the HDF5 file
    hdf5: Path | None = None

    def read(self, views: bool = True) -> Distributions:
        """All of it, checked; without `views` the stored views are left on disk (V = 0)."""
        if self.hdf5 is None:
            return read_shards([path for path in self.shards.values() if isinstance(path, Path)], views)
        whole = hdf5_module().read_hdf5(self.hdf5, views)
        whole.check(str(self.hdf5))
        return whole

    def read_shard(self, name: str, views: bool = True) -> Distributions:
        """The rows of one shard, of which the numbers are not checked."""
        place = self.shards[name]
        if isinstance(place, Path):
            return read_shard(place, views)
        assert self.hdf5 is not None
        return hdf5_module().read_hdf5(self.hdf5, views, place)


def hdf5_module() -> ModuleType:
    """efficientface.cache.hdf5, imported when it is asked for: Parquet needs no h5py."""
    from efficientface.cache import hdf5

    return hdf5


def is_file(path: Path) -> bool:
    """Whether `path` names a cache in one file rather than a folder."""
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def home_of(path: Path) -> Path:
    """The folder that relative paths in the manifest of a cache start from."""
    return path.parent if is_file(path) else path


def open_cache(path: Path) -> Cache:
    """The cache at `path`; FerError says why there is none."""
    if is_file(path):
        if not path.is_file():
            raise FerError(f"{path} does not exist; give a cache that fer teach or fer cache convert wrote")
        hdf5_module().check_digest(path)
        manifest, rows = hdf5_module().read_header(path)
        check_manifest(manifest, path)
        files = {path.name: {"bytes": path.stat().st_size}}
        return Cache(path, home_of(path), {**manifest, "files": files}, _slices(rows), path)
    manifest = read_manifest(path, "distributions")
    return cache_in(path, manifest)


def default_cache(run: Path) -> Path:
    """The cache that is meant by a run's folder: distributions/, or the only one there is."""
    there = sorted(path.name for path in run.glob("distributions-*") if path.is_dir())
    if (run / "distributions").is_dir() or not there:
        return run / "distributions"
    if len(there) > 1:
        raise FerError(f"{run} has no distributions/ but {', '.join(there)}; give one of them, {run / there[0]}")
    return run / there[0]


def check_manifest(manifest: dict[str, Any], path: Path, kind: str = "distributions") -> None:
    """FerError if what a file says of itself is not a manifest of that kind."""
    fits = manifest.get("format") == "efficientface" and manifest.get("kind") == kind
    if not fits or not is_description(manifest):
        raise FerError(f"{path} has no manifest of {kind} inside; restore it, or make it again")
    if type(manifest.get("version")) is not int or manifest["version"] > VERSION:
        raise FerError(
            f"{path} has a manifest of version {manifest.get('version')}, this program reads up to {VERSION}; "
            "update efficientface"
        )


def why_left_out(settings: dict[str, Any]) -> str:
    """What is true of the faces that a cache with these settings has no row for."""
    reasons = ["not labelled training faces"] if settings.get("covers") == "train" else []
    reasons += ["without votes or a label"] if settings.get("source", TeachConfig.source) != "ldg" else []
    return " or ".join(reasons)


def asked_teachers(manifest: dict[str, Any]) -> list[dict[str, str]]:
    """How a cache's manifest refers to the teachers that were asked, in their order: that of fold K is the K-th."""
    names = [name for name in manifest["made_from"] if name.partition("-")[0] == "teacher"]
    return [manifest["made_from"][name] for name in sorted(names, key=lambda name: int(name.partition("-")[2] or 0))]


def cache_in(path: Path, manifest: dict[str, Any]) -> Cache:
    """The cache in an artifact folder whose manifest is read already."""
    check_files(path, manifest, digests=True)
    names = sorted(manifest["files"])
    tables = [name for name in names if name.endswith(".parquet")]
    if tables:
        return Cache(path, path, manifest, {name: path / name for name in tables})
    if names != [ONE_FILE]:
        raise FerError(f"{path} has no shards; remove it and run fer teach again")
    hdf5_module().check_digest(path / ONE_FILE)
    return Cache(path, path, manifest, _slices(hdf5_module().read_header(path / ONE_FILE)[1]), path / ONE_FILE)


def _slices(rows: dict[str, int]) -> dict[str, Path | slice]:
    places: dict[str, Path | slice] = {}
    start = 0
    for name, count in rows.items():
        places[name] = slice(start, start + count)
        start += count
    return places


def assemble(folder: Path, shards: Sequence[str], manifest: dict[str, Any]) -> None:
    """FOLDER/distributions.h5 from its finished Parquet shards, under a temporary name until it is whole."""
    with replacing(folder / ONE_FILE) as part:
        hdf5_module().write_hdf5(part, manifest, shards, lambda name, views: read_shard(folder / name, views))


def convert(source: Path, target: Path) -> dict[str, Any]:
    """Write the cache `source` in the other form: a file if `target` ends in .h5 or .hdf5, else an artifact folder.

    The folder has the shards that the cache was first written as. Paths in `made_from` are made relative to where
    the target lies. Returns where it is, its faces, views and bytes.
    """
    if target.exists():
        raise FerError(f"{target} exists; give another name, or remove it")
    if (target.parent / MANIFEST).exists():
        raise FerError(f"{target.parent} is an artifact, nothing is added to it; write {target.name} elsewhere")
    cache = open_cache(source)
    keys = cache.read(views=False)  # ids unique over all shards, and every distribution one
    target.parent.mkdir(parents=True, exist_ok=True)
    one_file = is_file(target)
    home, about = home_of(target), {name: value for name, value in cache.manifest.items() if name != "files"}
    about["made_from"] = {name: _seen_from(home, cache.folder, ref) for name, ref in about["made_from"].items()}
    if one_file:
        hdf5_module().check_hdf5_names(keys.classes)
        # every shard is read twice: its keys and distributions, then its views
        with replacing(target, new=True) as part, progress("converting", 2 * len(cache.shards), "shards") as advance:
            hdf5_module().write_hdf5(
                part, about, list(cache.shards), lambda name, views: _checked(cache, name, advance, views)
            )
        size = target.stat().st_size
    else:
        with replacing(target, new=True) as part, progress("converting", len(cache.shards), "shards") as advance:
            part.mkdir()
            for name in cache.shards:
                with replacing(part / name) as shard:
                    write_shard(_checked(cache, name, advance), shard)
            described = {name: about[name] for name in ("kind", "classes", "made_from", "settings", "facts")}
            written = write_manifest(part, files=list(cache.shards), **described)
        size = sum(entry["bytes"] for entry in written["files"].values())
    return {"distributions": str(target), "faces": len(keys), "views": about["facts"].get("views"), "bytes": size}


def _checked(cache: Cache, name: str, advance: Callable[[int], None], views: bool = True) -> Distributions:
    part = cache.read_shard(name, views)
    part.check(f"{cache.path} ({name})")
    advance(1)
    return part


def _seen_from(home: Path, folder: Path, reference: Any) -> Any:
    """A reference of a manifest in `folder` as a manifest in `home` says it."""
    if not isinstance(reference, dict) or "path" not in reference or os.path.isabs(str(reference["path"])):
        return reference
    there = os.path.normpath(os.path.abspath(folder / str(reference["path"])))
    return {**reference, "path": os.path.relpath(there, os.path.abspath(home)).replace(os.sep, "/")}
