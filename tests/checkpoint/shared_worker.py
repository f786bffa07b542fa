"""One of two processes that balance a checkpoint together: python -m tests.checkpoint.shared_worker FOLDER RANK."""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import fxenorm
from fxenorm.checkpoint import balance_checkpoint as entry
from fxenorm.errors import CheckpointError
from tests.checkpoint.models import Blocks


def main(folder: Path, rank: int) -> None:
    """Balances; then once more with an error on the second process, and again without it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=120))
    group = dist.group.WORLD
    done: list[int] = []
    real = entry.balance_part

    def balance_part(part: entry.Part) -> entry.ComponentReport:
        """Notes what this process balances."""
        done.append(part.index)
        return real(part)

    entry.balance_part = balance_part
    result = fxenorm.balance_checkpoint(folder / "source", folder / "two", Blocks(), process_group=group)
    told = {"own": list(done), "log_scales": result.log_scales.tolist(), "norm": result.norm_after}

    def broken(part: entry.Part) -> entry.ComponentReport:
        """Fails on the second process."""
        if rank:
            raise RuntimeError("planted")
        return real(part)

    entry.balance_part = broken
    try:
        fxenorm.balance_checkpoint(folder / "source", folder / "again", Blocks(), process_group=group)
    except (CheckpointError, RuntimeError) as error:
        told["error"] = f"{type(error).__name__}: {error}"
    told["there"] = (folder / "again").exists()
    dist.barrier()
    done.clear()
    entry.balance_part = balance_part
    fxenorm.balance_checkpoint(folder / "source", folder / "again", Blocks(), process_group=group)
    told["rest"] = list(done)
    try:
        fxenorm.balance_checkpoint(folder / "source", folder / "again", Blocks(), process_group=group)
    except CheckpointError as error:
        told["second"] = str(error)
    (folder / f"told{rank}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
