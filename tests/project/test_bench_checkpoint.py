"""tools/bench_checkpoint.py: it makes a checkpoint, copies and balances it, and says so; no time is looked at."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ..helpers import load_tool

pytest.importorskip("transformers")
pytest.importorskip("safetensors")

BENCH = load_tool("bench_checkpoint")


def test_a_small_run_says_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(BENCH, "_SHARD", 2 << 20)
    assert BENCH.main(["--gigabytes", "0.006", "--limit", "4", "--folder", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    number = r"(\d+\.\d+)"
    found = re.fullmatch(
        rf"{number} GB: copied in {number} s before and {number} s after \(\d+ MB/s\), {number} s of the processor\n"
        rf"balanced in {number} s \(\d+ MB/s\) and {number} s of analysis before\n"
        rf"speed of balancing / speed of copying: {number}; with the analysis {number}\n"
        rf"{number} s of the processor without the analysis, peak of resident memory {number} GB\n"
        r"norm (\S+) -> (\S+), converged: True\n",
        text,
    )
    assert found is not None, text
    size, before, after, _, working, analysis, ratio, whole, _, peak, old, new = map(float, found.groups())
    assert 0.004 < size < 0.008 and 0.05 < peak < 4.0 and new < old
    # What is printed is rounded.
    copying = (before + after) / 2
    assert abs(ratio - copying / working) < 0.006 + 0.006 * (1 + ratio) / working
    assert abs(whole - copying / (working + analysis)) < 0.006 + 0.011 * (1 + whole) / (working + analysis)
    assert not list(tmp_path.iterdir())


def test_checkpoints_have_the_size_that_is_asked_for_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for gigabytes in (0.006, 0.3, 4, 12, 26):
        config = BENCH.configuration(gigabytes)
        width, inner = config.hidden_size, config.intermediate_size
        narrow = width * config.num_key_value_heads // config.num_attention_heads
        layer = 2 * width * width + 2 * width * narrow + 3 * width * inner + 2 * width
        size = 2 * (config.num_hidden_layers * layer + 2 * config.vocab_size * width + width)
        assert abs(size - gigabytes * 1e9) <= max(2 * layer, 0.1 * gigabytes * 1e9)
    monkeypatch.setattr(BENCH, "_SHARD", 2 << 20)
    made = BENCH.make(BENCH.configuration(0.006), tmp_path / "source")
    files = sorted((tmp_path / "source").glob("*.safetensors"))
    assert len(files) > 1 and made == sum(file.stat().st_size for file in files)
    index = json.loads((tmp_path / "source" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in files}


def test_a_process_that_passes_the_limit_is_ended(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(SystemExit, match=r"it has passed 0\.005 GB of resident memory"):
        BENCH.balanced(tmp_path / "source", tmp_path / "target", 5_000_000, 1)
    with pytest.raises(SystemExit, match="ended with exit status 1"):  # nothing is there to balance
        BENCH.balanced(tmp_path / "source", tmp_path / "target", 8_000_000_000, 1)
