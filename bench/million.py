"""A million simulated pictures of 64 px in shards: how long the plan takes, how much memory, and how long a batch.

    python bench/million.py make FOLDER --rows 1000000     writes the shards, with captions, in ten classes
    python bench/million.py plan FOLDER                    seconds and peak memory of `calotype plan FOLDER`
    python bench/million.py list --rows 10000000           seconds and memory of the listing alone, of indices in memory
    python bench/million.py batch                          seconds of a batch of latents, at 0.1 to 100 million rows

`docs/growth.md` has the figures.
"""

from __future__ import annotations

import argparse
import io
import mmap
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from calotype.data import library
from calotype.data.folder import HashedFile, without_duplicates
from calotype.data.layout import find_layout
from calotype.data.shards import INDEX, MANIFEST, IndexFacts, ShardIndex, ShardManifest, Strings, scan
from calotype.data.sources import order
from calotype.files import write_json, write_tensors
from calotype.types import Rng

SIDE, CLASSES, A_SHARD, BATCH = 64, 10, 10_000, 32
DISTINCT = 500
"""Pictures of a shard with pixels of their own; the others differ from them in a comment, so in their hashes alone."""


def picture(generator: np.random.Generator, kind: int) -> bytes:
    """A JPEG of a few soft spots, whose colours its class shifts."""
    spots = generator.integers(0, 200, (6, 6, 3)) + 5 * kind
    soft = Image.fromarray(spots.astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    soft.save(buffer := io.BytesIO(), "JPEG", quality=85)
    return buffer.getvalue()


def make(folder: Path, rows: int) -> None:
    folder.mkdir(parents=True)
    manifest = ShardManifest(content=f"simulated {rows}")
    for start in range(0, rows, A_SHARD):
        shard = folder / f"shard-{start // A_SHARD:06}.tar"
        generator = np.random.default_rng(start)
        drawn = [picture(generator, number % CLASSES) for number in range(DISTINCT)]
        with tarfile.open(shard, "w") as tar:
            for row in range(start, min(rows, start + A_SHARD)):
                kind = row % CLASSES
                comment = b"number %09d" % row
                marked = b"\xff\xd8\xff\xfe\0" + bytes([len(comment) + 2]) + comment + drawn[row % DISTINCT][2:]
                for suffix, content in ((".jpg", marked), (".txt", b"spots, number %d" % row)):
                    (about := tarfile.TarInfo(f"kind-{kind}/{row:09}{suffix}")).size = len(content)
                    tar.addfile(about, io.BytesIO(content))
        write_tensors(shard.with_suffix(INDEX), scan(shard).tensors())
        manifest.shards[shard.name] = shard.stat().st_size
    manifest.finished = True
    write_json(folder / MANIFEST, manifest.model_dump())


def plan(folder: Path) -> None:
    """In a process of its own, whose peak is that of the plan alone."""
    command = [sys.executable, "-m", "calotype", "plan", str(folder), "--size", str(SIDE), "--budget", "30m"]
    began = time.perf_counter()
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(finished.stdout + finished.stderr)
    processor = peak.ru_utime + peak.ru_stime
    seconds = time.perf_counter() - began
    print(f"plan: {seconds:.1f} s, {processor:.1f} s of processor time, {peak.ru_maxrss / 1e6:.2f} GB at most")


def simulated(start: int) -> ShardIndex:
    rows = range(start, start + A_SHARD)
    generator = torch.Generator().manual_seed(start)
    return ShardIndex(
        IndexFacts(bytes=A_SHARD * 4096),
        torch.arange(A_SHARD) * 4096,
        torch.full((A_SHARD,), 2000),
        torch.randint(0, 256, (A_SHARD, 32), generator=generator).byte(),
        torch.zeros(A_SHARD, dtype=torch.uint8),
        Strings.of(f"kind-{row % CLASSES}/{row:09}.jpg" for row in rows),
        Strings.of("" for _ in rows),
        Strings.of(f"spots, number {row}" for row in rows),
    )


def list_rows(rows: int) -> None:
    """What `read_folder` does before it decodes."""
    before, began = resident(), time.process_time()
    shards = [Path(f"shard-{start // A_SHARD:06}.tar") for start in range(0, rows, A_SHARD)]
    library.shard_files = lambda _: shards
    library.open_shard = lambda shard: simulated(A_SHARD * int(shard.stem[6:]))
    opened = library.ShardLibrary(Path("simulated"), library.shard_files(Path("simulated")))
    made = time.process_time()
    layout = find_layout(opened.listing.pictures)
    hashed, _ = opened.hashes(layout.names)
    unique = without_duplicates(HashedFile(digest, name) for name, (digest, _) in hashed.items())
    assert len(unique) == rows
    listed = time.process_time()
    print(
        f"{rows:,} rows: indices {made - began:.1f} s, layout and hashes {listed - made:.1f} s of processor time, "
        f"{(peak() - before) / 1e9:.2f} GB at most beside {before / 1e9:.2f} GB of the libraries"
    )


def batch() -> None:
    """Latents of 8 x 8 x 8 in a sparse file: what a batch costs where each row is read."""
    for rows in (10**5, 10**6, 10**7, 10**8):
        with tempfile.TemporaryFile() as file:
            file.truncate(rows * 1024)
            latents = np.memmap(file, np.float16, "r", shape=(rows, 8, 8, 8))
            vars(latents)["_mmap"].madvise(mmap.MADV_RANDOM)  # as `open_latents` does
            began = time.process_time()
            for step in range(200):
                torch.from_numpy(latents[order(rows, step * BATCH, BATCH, Rng((0, "bench"))).numpy()])
            print(f"{rows:,} rows: a batch of {BATCH} in {(time.process_time() - began) / 200 * 1e3:.2f} ms")


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def peak() -> int:
    """VmHWM in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "plan", "list", "batch"])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--rows", type=int, default=10**6)
    options = parser.parse_args()
    match options.what:
        case "make":
            make(options.folder, options.rows)
        case "plan":
            plan(options.folder)
        case "list":
            list_rows(options.rows)
        case "batch":
            batch()


if __name__ == "__main__":
    main()
