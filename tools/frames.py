"""Measures how fluently the picture of an HTML report moves in headless Chromium: frames a second of pan and zoom.

.venv/bin/python tools/frames.py                a Llama of 32 layers with tiny widths, collapsed and with all layers
.venv/bin/python tools/frames.py report.html    the picture of a report that fxenorm-inspect --html wrote
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SECONDS = 3.0

PAN = "{...at, clientX: 400 + 120 * Math.sin(k / 9), clientY: 400 + 90 * Math.cos(k / 7)}"
ZOOM = "{deltaY: 40 * Math.sin(k / 12), ctrlKey: true, cancelable: true, clientX: 500, clientY: 400}"
MOVES = {
    "pan": f"view.dispatchEvent(new PointerEvent('pointermove', {PAN}))",
    "zoom": f"view.dispatchEvent(new WheelEvent('wheel', {ZOOM}))",
}

PROGRAM = """
const done = arguments[arguments.length - 1];
const view = document.getElementById("view");
view.scrollIntoView({block: "center"});
const at = {pointerId: 1, button: 0, clientX: 400, clientY: 400, bubbles: true};
view.setPointerCapture = () => {};
view.dispatchEvent(new PointerEvent("pointerdown", at));
const times = [];
let k = 0;
function frame(time) {
  times.push(time);
  k += 1;
  if (time - times[0] < SECONDS * 1000) { MOVE; requestAnimationFrame(frame); return; }
  view.dispatchEvent(new PointerEvent("pointerup", at));
  const gaps = times.slice(1).map((one, n) => one - times[n]).sort((a, b) => a - b);
  done([1000 * gaps.length / (times.at(-1) - times[0]), gaps[Math.floor(gaps.length * 0.95)]]);
}
requestAnimationFrame(frame);
"""


def llama_page(folder: Path) -> Path:
    """Writes the report on a Llama of 32 layers with tiny widths."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import fxenorm
    from fxenorm.inspect.html.page import page

    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=32, **sizes))
    tokens = torch.zeros((2, 8), dtype=torch.int64, device="cpu")
    path = folder / "llama.html"
    path.write_text(page(fxenorm.analyze(model, tokens), "a Llama of 32 layers"), encoding="utf-8")
    return path


def main(arguments: list[str]) -> None:
    """Prints a line for each picture and each kind of motion."""
    from tests.browser import browser

    with tempfile.TemporaryDirectory() as folder, browser() as found:
        found.open(Path(arguments[0]).resolve() if arguments else llama_page(Path(folder)))
        for name in ("collapsed", "all layers"):
            if name == "all layers":
                if not found.run("document.getElementById('whole') !== null"):
                    break
                found.run("document.getElementById('whole').click()")
                found.run("document.getElementById('fit').click()")
            count = found.run("document.querySelectorAll('#stage *').length")
            for motion, code in MOVES.items():
                program = PROGRAM.replace("SECONDS", str(SECONDS)).replace("MOVE", code)
                rate, slow = found.driver.execute_async_script(program)
                print(
                    f"{name} ({count:,} elements), {motion}: {rate:.0f} frames a second; 95 % of the frames within {slow:.0f} ms"
                )


if __name__ == "__main__":
    main(sys.argv[1:])
