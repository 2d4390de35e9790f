"""Copies a directory that is being written to into a bucket, and back, whole.

python snapshot.py save|restore DIRECTORY gs://BUCKET/PREFIX

PREFIX then holds

    objects/<SHA-256>     the contents of files, each stored once
    manifests/<time>      a JSON dict of path -> SHA-256: one state of DIRECTORY
    LATEST                the name of the newest manifest

An object is never overwritten and LATEST is written last, so a copy that is
cut short at any moment leaves the previous one as it was. What two manifests in
a row no longer name is removed. Names that begin with a dot are left out: they
are locks and files that are still being written.

Only the standard library of Python 3.10, which is what the machines come with.
"""

import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

# Files may go while they are read: checkpoints are pruned.
ATTEMPTS = 10
FILES_PER_CALL = 200
NO_OBJECT = "matched no objects"


class Snapshots:
    """The copies of one directory.

    Args:
        directory: What is copied. Next to it, `<name>.snapshot.json` says what
            the bucket has; without it nothing is saved, so that a machine that
            could not restore never replaces what it could not read.
        prefix: `gs://BUCKET/...` without a slash at the end.
    """

    def __init__(self, directory, prefix):
        self.directory = pathlib.Path(directory)
        self.prefix = prefix
        self.memory = self.directory.with_name(
            f"{self.directory.name}.snapshot.json"
        )

    def save(self):
        """Copies what has changed since the last copy.

        Raises:
            RuntimeError: Nothing was restored first, or gcloud failed.
        """
        if not self.memory.exists():
            raise RuntimeError(f"{self.directory} was not restored: not saved.")
        memory = json.loads(self.memory.read_text())
        with tempfile.TemporaryDirectory(dir=self.directory.parent) as staging:
            files = self._stage(memory["files"], pathlib.Path(staging))
            manifest = {path: entry["sha256"] for path, entry in files.items()}
            if manifest == memory["manifest"]:
                return
            new = [
                pathlib.Path(staging, sha256)
                for sha256 in sorted(set(manifest.values()))
                if sha256 not in memory["objects"]
            ]
            for start in range(0, len(new), FILES_PER_CALL):
                part = new[start : start + FILES_PER_CALL]
                _gcloud("cp", *part, f"{self.prefix}/objects/")
            name = f"{time.time_ns()}.json"
            _write(f"{self.prefix}/manifests/{name}", json.dumps(manifest))
            _write(f"{self.prefix}/LATEST", name)
        kept = {*manifest.values(), *memory["manifest"].values()}
        stored = {*memory["objects"], *manifest.values()}
        self._remember(files, manifest, stored & kept)
        for sha256 in sorted(stored - kept):
            _gcloud("rm", f"{self.prefix}/objects/{sha256}")

    def restore(self):
        """Puts the newest copy into the directory, once on each machine.

        Without a copy the directory stays empty: the run is a new one.

        Raises:
            RuntimeError: There is a copy that cannot be read or is damaged.
        """
        if self.memory.exists():
            return
        name = _read(f"{self.prefix}/LATEST")
        if name is None:
            self._remember({}, {}, set())
            return
        manifest = json.loads(
            _read(f"{self.prefix}/manifests/{name}") or "null"
        )
        if manifest is None:
            raise RuntimeError(f"{self.prefix}: manifest {name} is missing.")
        with tempfile.TemporaryDirectory(dir=self.directory.parent) as staging:
            objects = sorted(set(manifest.values()))
            for start in range(0, len(objects), FILES_PER_CALL):
                part = objects[start : start + FILES_PER_CALL]
                _gcloud(
                    "cp",
                    *(f"{self.prefix}/objects/{sha256}" for sha256 in part),
                    f"{staging}/",
                )
            for sha256 in objects:
                if _sha256(pathlib.Path(staging, sha256)) != sha256:
                    raise RuntimeError(f"{self.prefix}: {sha256} is damaged.")
            for path, sha256 in manifest.items():
                target = self.directory / path
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(pathlib.Path(staging, sha256), target)
        files = {
            path: {"sha256": sha256, "stat": _stat(self.directory / path)}
            for path, sha256 in manifest.items()
        }
        self._remember(files, manifest, set(objects))
        print(f"Files restored from {self.prefix}: {len(files)}, of {name}")

    def _stage(self, known, staging):
        """Returns path -> SHA-256 and stat; copies what is new to `staging`.

        The copy is hashed, not the file, which may still grow.
        """
        for _ in range(ATTEMPTS):
            try:
                return {
                    path: self._stage_file(path, known.get(path), staging)
                    for path in self._paths()
                }
            except FileNotFoundError:
                time.sleep(0.1)
        raise RuntimeError(f"{self.directory} changes too fast to be copied.")

    def _paths(self):
        paths = []
        for folder, folders, names in os.walk(
            self.directory, onerror=_raise, followlinks=False
        ):
            # A checkpoint has this name until it is whole.
            folders[:] = [
                name
                for name in folders
                if not name.startswith(".")
                and ".orbax-checkpoint-tmp" not in name
            ]
            paths += [
                os.path.relpath(os.path.join(folder, name), self.directory)
                for name in names
                if not name.startswith(".")
            ]
        return sorted(paths)

    def _stage_file(self, path, known, staging):
        file = self.directory / path
        stat = _stat(file)
        if known and known["stat"] == stat:
            return known
        copy = staging / "copy"
        shutil.copyfile(file, copy)
        sha256 = _sha256(copy)
        copy.replace(staging / sha256)
        return {"sha256": sha256, "stat": stat}

    def _remember(self, files, manifest, objects):
        text = json.dumps(
            {"files": files, "manifest": manifest, "objects": sorted(objects)}
        )
        unfinished = self.memory.with_suffix(".unfinished")
        unfinished.write_text(text)
        unfinished.replace(self.memory)


def _raise(error):
    raise error


def _stat(path):
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _gcloud(verb, *arguments):
    result = subprocess.run(
        ["gcloud", "storage", verb, *map(str, arguments), "--quiet"],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise RuntimeError(f"gcloud storage {verb}: {result.stderr.strip()}")
    return result.stdout


def _read(url):
    """Returns an object as text, `None` if there is none."""
    try:
        return _gcloud("cat", url)
    except RuntimeError as error:
        if NO_OBJECT in str(error):
            return None
        raise


def _write(url, text):
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(text)
        file.flush()
        _gcloud("cp", file.name, url)


def main(verb, directory, prefix):
    snapshots = Snapshots(directory, prefix)
    # One at a time: the last copy may meet one that is still under way.
    with open(f"{directory}.snapshot.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        {"save": snapshots.save, "restore": snapshots.restore}[verb]()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except (RuntimeError, OSError) as error:
        print(f"snapshot: {error}", file=sys.stderr)
        sys.exit(1)
