"""What `fxenorm.balance_checkpoint` costs beside copying the same files: seconds of both in one run, and the peak of memory.

    python tools/bench_checkpoint.py --gigabytes 12 --limit 4     # a Llama of 12 GB, in at most 4 GB of resident memory
    python tools/bench_checkpoint.py --gigabytes 1 --folder /tmp  # a small one

The checkpoint is made from a configuration of Transformers, bfloat16, random weights whose rows have norms of many sizes. Before
each part the files are dropped from the page cache, as far as the system does so when it is asked: times are those of the disk
and of the processor. Copying goes file by file, each copy is on the disk before its time is taken, and removed then; it is done
before the balance and after it, and the mean counts. The balance ends when its files are on the disk. All that was made is
removed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_SHARD = 1 << 30
"""Bytes of a file of the checkpoint."""


def configuration(gigabytes: float) -> Any:
    """Returns the configuration of a Llama of about so many 10^9 bytes in bfloat16."""
    import transformers

    width, inner = (4096, 14336) if gigabytes >= 6 else (2048, 8192) if gigabytes >= 0.8 else (1024, 4096)
    width, inner, words = (width, inner, 32_000) if gigabytes >= 0.1 else (256, 1024, 1000)
    layer = 2 * (2 * width * width + 2 * width * width // 4 + 3 * width * inner + 2 * width)
    depth = max(1, round((gigabytes * 1e9 - 4 * width * words) / layer))
    return transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=depth,
        num_attention_heads=width // 128,
        num_key_value_heads=max(1, width // 512),
        vocab_size=words,
        use_cache=False,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )


def make(config: Any, folder: Path) -> int:
    """Writes the configuration and its random weights, a file after the other; returns the bytes of the weights."""
    import transformers
    from safetensors.torch import save_file

    folder.mkdir()
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    noise = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    where: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    names = [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        count = parameter.numel()
        tensor = noise.repeat(-(-count // noise.numel()))[:count].reshape(parameter.shape)
        if parameter.ndim > 1:
            tensor *= (0.02 * torch.exp2(torch.randint(-2, 3, (parameter.shape[0], 1)))).to(torch.bfloat16)
        shard[name] = tensor
        if sum(one.numel() * 2 for one in shard.values()) >= _SHARD or name == names[-1]:
            file = f"model-{len(set(where.values())):05d}.safetensors"
            save_file(shard, folder / file, {"format": "pt"})
            where.update(dict.fromkeys(shard, file))
            shard = {}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def dropped(folder: Path) -> None:
    """Asks the system to drop the files of a folder from its page cache."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copied(folder: Path, target: Path) -> tuple[float, float]:
    """Copies the weights of a folder to the disk, file by file; returns the seconds and those of the processor."""
    dropped(folder)
    seconds = processor = 0.0
    for path in sorted(folder.glob("*.safetensors")):
        start, busy = time.perf_counter(), time.process_time()
        shutil.copyfile(path, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())
        seconds += time.perf_counter() - start
        processor += time.process_time() - busy
        target.unlink()
    return seconds, processor


def balanced(folder: Path, target: Path, limit: int, jobs: int) -> dict[str, Any]:
    """Balances in a process of its own, which is ended where it passes the limit; returns its seconds and its peak of memory.

    Args:
        folder, target: the checkpoint, and where the new one goes.
        limit: of resident memory, bytes.
        jobs: as in `fxenorm.balance_checkpoint`.
    """
    dropped(folder)
    command = [sys.executable, __file__, "--child", str(folder), str(target), str(jobs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            if resident(process.pid) > limit:
                process.kill()
                raise SystemExit(f"it has passed {limit / 1e9:g} GB of resident memory")
            time.sleep(0.02)
        if process.returncode:
            raise SystemExit(f"it ended with exit status {process.returncode}")
        assert process.stdout is not None
        found: dict[str, Any] = json.loads(process.stdout.read())
    return found


def resident(process: int) -> int:
    """Returns the resident bytes of a process; 0 once it is over."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def peak() -> int:
    """Returns the most resident memory of this process, bytes; getrusage would also count that of its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def child(folder: str, target: str, jobs: int) -> None:
    """Balances, and prints its seconds, those of model and analysis, its processor time, and its peak of memory."""
    import fxenorm
    from fxenorm.checkpoint import balance_checkpoint as entry

    analysis = analysing = 0.0

    def timed(real: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function that adds up its time."""

        def function(*args: Any, **kwargs: Any) -> Any:
            nonlocal analysis, analysing
            start, busy = time.perf_counter(), time.process_time()
            found = real(*args, **kwargs)
            analysis, analysing = analysis + time.perf_counter() - start, analysing + time.process_time() - busy
            return found

        return function

    entry.meta_model, entry.analyze = timed(entry.meta_model), timed(entry.analyze)  # type: ignore[assignment]
    start, processor = time.perf_counter(), time.process_time()
    result = fxenorm.balance_checkpoint(folder, target, jobs=jobs)
    seconds = time.perf_counter() - start
    print(
        json.dumps(
            {
                "seconds": seconds,
                "analysis": analysis,
                "processor": time.process_time() - processor - analysing,
                "peak": peak(),
                "norm": [result.norm_before, result.norm_after],
                "converged": result.converged,
            }
        )
    )


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the checkpoint, 10^9 bytes")
    parser.add_argument("--limit", type=float, default=4.0, help="resident memory of the process, 10^9 bytes")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the components")
    parser.add_argument("--folder", help="where all of it goes; it needs twice the size")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child:
        child(given.child[0], given.child[1], int(given.child[2]))
        return 0
    with tempfile.TemporaryDirectory(dir=given.folder) as made:
        folder = Path(made)
        size = make(configuration(given.gigabytes), folder / "source")
        before, busy = copied(folder / "source", folder / "copy")
        found = balanced(folder / "source", folder / "target", int(given.limit * 1e9), given.jobs)
        after, busy_after = copied(folder / "source", folder / "copy")
    report(size, (before, after), (busy + busy_after) / 2, found)
    return 0


def report(size: int, copies: tuple[float, float], busy: float, found: dict[str, Any]) -> None:
    """Prints the seconds, the ratio and the memory.

    Args:
        size: of the checkpoint, bytes.
        copies: seconds of copying before and after.
        busy: of the processor, for a copy.
        found: as `balanced` returns it.
    """
    copying, working = sum(copies) / 2, found["seconds"] - found["analysis"]
    print(
        f"{size / 1e9:.3f} GB: copied in {copies[0]:.2f} s before and {copies[1]:.2f} s after ({size / copying / 1e6:.0f} MB/s), "
        f"{busy:.2f} s of the processor"
    )
    print(f"balanced in {working:.2f} s ({size / working / 1e6:.0f} MB/s) and {found['analysis']:.2f} s of analysis before")
    print(f"speed of balancing / speed of copying: {copying / working:.2f}; with the analysis {copying / found['seconds']:.2f}")
    print(
        f"{found['processor']:.2f} s of the processor without the analysis, peak of resident memory {found['peak'] / 1e9:.2f} GB"
    )
    print(f"norm {found['norm'][0]:.6g} -> {found['norm'][1]:.6g}, converged: {found['converged']}")


if __name__ == "__main__":
    sys.exit(main())
