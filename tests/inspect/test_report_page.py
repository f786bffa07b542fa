"""The HTML report: what stands in it, that names are never markup, and that it works in a browser."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn

import fxenorm
from fxenorm.errors import MissingLibraryError
from fxenorm.inspect.cli import main
from fxenorm.inspect.html.content import content_of
from fxenorm.inspect.html.page import page
from fxenorm.picture.palette import PALETTES
from fxenorm.rescale.measures.foreseen import foreseen

from ..browser import Browser, browser
from ..picture.test_picture import HOSTILE, MOST_ELEMENTS, Deep


class Whole(Deep):
    """Every kind of finding: repeated blocks, a chain, a barrier, a frozen weight, and names that look like markup."""

    def __init__(self) -> None:
        super().__init__(30, 20)
        torch.manual_seed(0)
        self.last = nn.Sequential()
        for name in HOSTILE:
            self.last.add_module(name, nn.Linear(2, 2))
            self.last.add_module(f"{name} relu", nn.ReLU())
        self.gelu, self.out = nn.GELU(), nn.Linear(2, 2)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)
        self.head[0].weight.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.gelu(self.last(super().forward(x))))


TARGET = "</script><b>model.py"


@pytest.fixture(scope="module")
def plan() -> fxenorm.Plan:
    return fxenorm.analyze(Whole(), torch.zeros(2, 3), modes="eval")


@pytest.fixture(scope="module")
def text(plan: fxenorm.Plan) -> str:
    return page(plan, TARGET)


@pytest.fixture(scope="module")
def pages(plan: fxenorm.Plan, text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    (folder / "whole.html").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture
def opened(chromium: Browser, pages: Path) -> Iterator[Browser]:
    """The page, freshly opened in a light window."""
    chromium.emulate()
    chromium.resize(1280, 900)
    chromium.open(pages / "whole.html")
    yield chromium
    chromium.run("localStorage.clear()")


class Tags(HTMLParser):
    """Collects the tags and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


# ---------------------------------------------------------------- what stands in it


def test_the_report_leaves_the_model_as_it_is(plan: fxenorm.Plan) -> None:
    model = plan.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    page(plan, "model.py")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert flags == [parameter.requires_grad for parameter in model.parameters()]


def test_the_foreseen_end_is_the_one_that_balance_comes_to() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    plan = fxenorm.analyze(model, torch.zeros(2, 3, dtype=torch.float64))
    end = foreseen(plan.rescaler, tol=1e-6, max_iterations=100)
    torch.testing.assert_close(end.before, plan.channel_imbalance())
    result = plan.balance(tol=1e-6)
    torch.testing.assert_close(end.result.log_scales, result.log_scales)
    torch.testing.assert_close(end.after, plan.channel_imbalance(), atol=1e-9, rtol=0)
    assert float(end.before.abs().max()) > 0.1 > 1e-6 >= float(end.after.abs().max())
    assert end.result.layer_norms_after == pytest.approx({k: float(v) for k, v in plan.layer_norms().items()})


def test_the_content_is_that_of_the_plan(plan: fxenorm.Plan) -> None:
    content = content_of(plan, TARGET)
    assert [(group.name, group.channels, group.kind) for group in content.groups] == [
        (group.name, len(group.variables), group.kind) for group in plan.groups
    ]
    norms = {layer.name: layer.before for layer in content.layers if layer.before is not None}
    assert norms == pytest.approx({name: float(value) for name, value in plan.layer_norms().items()})
    assert {row.reason for row in content.held} == {entry.reason for entry in plan.held} != set()
    assert sum(row.scales for row in content.held) == sum(entry.count for entry in plan.held)
    assert sum(row.channels for row in content.barriers) == sum(barrier.variables for barrier in plan.barriers) > 0
    assert any("test_report_page.py" in place for row in content.barriers for place, _ in row.places)
    told = {layer.name: layer.sentences for layer in content.layers}
    assert "\n".join(told["head.2"]) == plan.why("head.2").describe(expand=True, width=100_000)
    held = {variable for entry in plan.held for variable in entry.variables}
    assert len(content.before) == len(content.after) == plan.num_scales - len(held)
    assert max(map(abs, content.after)) < 1e-2 < max(map(abs, content.before))


def test_names_are_never_markup_and_the_page_asks_nobody(text: str) -> None:
    found = Tags()
    found.feed(text)
    assert not {tag for tag, _ in found.tags} & {"img", "b", "iframe", "object", "embed", "base", "form"}
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    links = [attributes.get(name) for _, attributes in found.tags for name in ("href", "src") if name in attributes]
    assert all(link is not None and link.startswith(("#", "data:")) for link in links)
    scripts = re.findall(r"<script(.*?)>(.*?)</script>", text, flags=re.DOTALL)
    assert len(scripts) == 3 == text.lower().count("</script")  # the data, Bokeh's, the page's own
    told = json.loads(scripts[0][1])
    assert {layer["name"] for layer in told["layers"]} >= {f"last.{name}" for name in HOSTILE}
    policy = next(
        attributes["content"] for _, attributes in found.tags if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None and policy.startswith("default-src 'none'") and policy.count("sha256-") == 2
    assert "unsafe-eval" not in policy and "script-src 'unsafe-inline'" not in policy and "http" not in policy


def luminance(colour: str) -> float:
    """The relative luminance of a colour, as WCAG 2.2 defines it."""
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("ground", PALETTES)
def test_words_and_signs_have_the_contrast_of_wcag_aa(ground: str) -> None:
    colours = PALETTES[ground]
    grounds = ("ground", "panel")
    words = set(colours) - {"ground", "panel", "rule", "edge", "focus", "found", "before", "after"}
    for below in grounds:
        assert {name for name in words if contrast(colours[name], colours[below]) < 4.5} == set()
        assert {name for name in ("edge", "focus", "before", "after") if contrast(colours[name], colours[below]) < 3} == set()
    assert min(contrast(colours[name], colours["found"]) for name in ("text", "muted")) >= 4.5
    assert contrast("#000000", "#ffffff") == pytest.approx(21) and contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (nn.Sequential(nn.Linear(3, 2)), "There is no group"),
        (nn.Sequential(nn.Linear(3, 4, device="meta"), nn.ReLU(), nn.Linear(4, 2, device="meta")), "on the meta device"),
    ],
    ids=["nothing to rescale", "no weights"],
)
def test_a_model_without_numbers_has_a_page_too(model: nn.Module, says: str) -> None:
    device = next(model.parameters()).device
    text = page(fxenorm.analyze(model, torch.zeros(2, 3, device=device)), "model.py")
    assert says in text and 'id="histogram"' not in text and len(text) < 200_000


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_weights_that_are_not_finite_or_all_zero_are_a_dash(value: float) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        model[2].weight.fill_(value)
    text = page(fxenorm.analyze(model, torch.zeros(2, 3)), "model.py")
    told = json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, flags=re.DOTALL)[0])
    norms = {layer["name"]: layer["before"] for layer in told["layers"]}
    assert norms["2"] == (0.0 if value == 0 else None) and norms["0"] > 0
    assert "nan" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL).lower().split()


# ---------------------------------------------------------------- the command

MODEL = "from torch import nn\nmodel = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))\n"


def test_the_command_writes_both_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    files = [tmp_path / "report.html", tmp_path / "picture.svg"]
    options = [str(tmp_path / "model.py"), "--html", str(files[0]), "--svg", str(files[1]), "--json"]
    assert main(options) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["totals"]["groups"] == 1
    assert files[0].read_text(encoding="utf-8").startswith("<!doctype html>")
    assert files[1].read_text(encoding="utf-8").startswith("<?xml")
    assert main(options) == 2 and "--force" in capsys.readouterr().err
    assert main([*options, "--force"]) == 0
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"model.py", "picture.svg", "report.html"}


@pytest.mark.parametrize("option", ["--html", "--svg"])
def test_a_file_that_cannot_be_written_is_told_before_the_model_is_built(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.py").write_text("raise RuntimeError('built')")
    for path, why in ((tmp_path / "nowhere" / "file", "there is no folder"), (tmp_path, "is a folder")):
        assert main([str(tmp_path / "model.py"), option, str(path)]) == 2
        assert why in (error := capsys.readouterr().err) and error.count("\n") == 1 and "built" not in error


def test_without_bokeh_the_error_names_the_extra(plan: fxenorm.Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("bokeh", "bokeh.resources", "bokeh.plotting", "bokeh.models"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingLibraryError, match=r"fxenorm\[report\]"):
        page(plan, "model.py")


def test_help_loads_no_library_that_draws() -> None:
    program = (
        "import sys, fxenorm.inspect.cli as cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'bokeh', 'jinja2', 'matplotlib', 'networkx', 'numpy') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert told.splitlines()[-1] == "[]" and "--html FILE" in told and "--svg FILE" in told


# ---------------------------------------------------------------- in a browser


def test_the_page_opens_without_a_complaint_and_without_a_request(opened: Browser) -> None:
    opened.click("#ground")
    opened.click("#whole")
    assert opened.complaints() == [] and opened.requests() == []
    assert opened.run("document.querySelectorAll('.chart canvas, .chart .bk-Figure').length") == 2
    assert opened.run("getComputedStyle(document.querySelector('#stage .line text')).fill") != "rgb(0, 0, 0)"


def test_the_collapsed_picture_has_few_elements(opened: Browser) -> None:
    assert opened.run("document.querySelectorAll('#stage *').length") < 300 < MOST_ELEMENTS
    assert opened.run("document.querySelectorAll('*').length") < 2 * MOST_ELEMENTS


def test_a_script_that_gets_into_the_page_is_not_run(opened: Browser) -> None:
    opened.run(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.hacked = 1'; document.body.append(s) })()"
    )
    assert opened.run("window.hacked") is None
    assert "Content Security Policy" in opened.complaints()[0]


def test_a_click_on_a_layer_tells_why(opened: Browser, plan: fxenorm.Plan) -> None:
    opened.run("document.getElementById('nearer')").click()
    opened.find("#search").send_keys("embed")
    opened.press("\ue007")
    assert opened.find("#panel h3").text == "embed"
    opened.click("#panel .close")
    assert not opened.find("#panel").is_displayed()
    opened.click("#stage .box.found")
    told = opened.find("#panel").text
    for line in plan.why("embed").describe(expand=True, width=100_000).splitlines()[1:3]:
        assert " ".join(line.split()) in " ".join(told.split())
    assert opened.run("document.querySelector('.box.found').classList.contains('chosen')")
    assert opened.run("document.querySelector('.box.found').getAttribute('aria-pressed')") == "true"


def test_a_click_on_a_line_tells_of_its_group(opened: Browser) -> None:
    opened.run("document.querySelector('.line[data-line=\"0\"] .hit').dispatchEvent(new MouseEvent('click', {bubbles: true}))")
    assert opened.find("#panel h3").text.startswith("g0: residual")
    assert "embed" in opened.find("#panel").text and "blocks.0.up" in opened.find("#panel").text
    assert opened.run("document.querySelectorAll('.line.chosen').length") >= 1


def test_the_search_finds_layers_inside_collapsed_blocks(opened: Browser) -> None:
    opened.find("#search").send_keys("blocks.17")
    assert opened.find("#matches").text == "2 layers"
    assert opened.run("[...document.querySelectorAll('.box.found .name')].map((one) => one.textContent)") == ["up", "down"]
    assert opened.run("[...document.querySelectorAll('#found button')].map((one) => one.textContent)") == [
        "blocks.17.up",
        "blocks.17.down",
    ]
    opened.press("\ue015", "\ue015", "\ue007")  # down, down, enter
    assert opened.find("#panel h3").text == "blocks.17.down"
    assert opened.run("document.activeElement.classList.contains('box')")
    opened.run("(() => { const s = document.getElementById('search'); s.value = '<b>'; s.dispatchEvent(new Event('input')) })()")
    assert opened.find("#matches").text == "0 layers" and not opened.find("#found").is_displayed()


def test_a_block_is_opened_and_closed(opened: Browser) -> None:
    before = opened.run("document.querySelectorAll('#stage .box').length")
    opened.click("#stage .open rect")
    titles = opened.run("[...document.querySelectorAll('#stage .frame > .name')].map((one) => one.textContent)")
    assert [title for title in titles if title.startswith("blocks")] == [f"blocks.{k}" for k in range(30)]
    assert opened.run("document.querySelectorAll('#stage .box').length") == before + 58
    opened.click("#collapse")
    assert opened.run("document.querySelectorAll('#stage .box').length") == before
    opened.click("#whole")
    assert opened.run("[...document.querySelectorAll('#stage .box .name')].some((one) => one.textContent.includes('</script>'))")
    assert opened.run("document.querySelectorAll('#stage .box').length") > before + 58


def test_every_heading_sorts_up_and_down(opened: Browser) -> None:
    cell = "row.cells[{0}].dataset.value ?? row.cells[{0}].textContent"
    rows = f"[...document.querySelectorAll('#table-groups tbody tr')].map((row) => {cell})"
    first = opened.run(rows.format(0))
    for column, kind in ((0, float), (1, str), (2, float), (3, float), (7, str)):
        opened.run(f"document.querySelectorAll('#table-groups th button')[{column}].click()")
        heading = f"document.querySelectorAll('#table-groups th')[{column}].getAttribute('aria-sort')"
        assert opened.run(heading) == "ascending"
        up = [kind(value) for value in opened.run(rows.format(column)) if value != ""]
        opened.run(f"document.querySelectorAll('#table-groups th button')[{column}].click()")
        down = [kind(value) for value in opened.run(rows.format(column)) if value != ""]
        assert (opened.run(heading) == "descending" and down == up[::-1]) or kind is str
        assert kind is str or up == sorted(up)
        assert opened.run("document.querySelectorAll('#table-groups th:not([aria-sort=none])').length") == 1
    assert sorted(opened.run(rows.format(0)), key=int) == first


def transform(page: Browser) -> tuple[float, float, float]:
    x, y, scale = re.findall(r"-?[\d.]+(?:e-?\d+)?", page.run("document.getElementById('stage').style.transform"))
    return float(x), float(y), float(scale)


def test_the_picture_is_moved_and_zoomed(opened: Browser) -> None:
    from selenium.webdriver import ActionChains

    begin = transform(opened)
    opened.click("#nearer")
    nearer = transform(opened)
    assert nearer[2] == pytest.approx(1.25 * begin[2])
    opened.click("#farther")
    assert transform(opened)[2] == pytest.approx(begin[2])
    view = opened.find("#view")
    opened.run("arguments[0].scrollIntoView({block: 'center'})", view)
    before = transform(opened)
    ActionChains(opened.driver, duration=20).move_to_element(view).click_and_hold().move_by_offset(30, 40).release().perform()
    after = transform(opened)
    assert (after[0] - before[0], after[1] - before[1]) == pytest.approx((30, 40)) and after[2] == before[2]
    assert not opened.find("#panel").is_displayed(), "a drag is no click"
    turn = "{deltaY: -100, ctrlKey: true, cancelable: true, clientX: 300, clientY: 400}"
    wheel = f"arguments[0].dispatchEvent(new WheelEvent('wheel', {turn}))"
    opened.run(wheel, view)
    assert transform(opened)[2] > after[2]
    opened.run(wheel.replace("ctrlKey: true", "ctrlKey: false"), view)
    assert not opened.run("document.getElementById('view').contains(document.activeElement)")
    opened.click("#fit")
    frame = opened.run("document.getElementById('view').getBoundingClientRect().toJSON()")
    drawn = opened.run("document.querySelector('#stage svg').getBoundingClientRect().toJSON()")
    assert drawn["left"] >= frame["left"] - 1 and drawn["right"] <= frame["right"] + 1
    assert drawn["top"] >= frame["top"] - 1 and drawn["bottom"] <= frame["bottom"] + 1


def test_everything_is_reached_by_keyboard(opened: Browser) -> None:
    opened.run("document.querySelector('#stage .box').focus()")
    names = []
    for _ in range(3):
        opened.press("\ue015")
        names.append(opened.run("document.activeElement.getAttribute('data-box')"))
    assert names == ["1", "2", "3"]
    assert opened.run("document.querySelectorAll('#stage .box[tabindex=\"0\"]').length") == 1
    opened.press("\ue007")
    assert opened.run("document.activeElement.classList.contains('chosen')") and opened.find("#panel").is_displayed()
    scale = transform(opened)[2]
    opened.press("+")
    assert transform(opened)[2] > scale
    opened.press("\ue00c")
    assert not opened.find("#panel").is_displayed()
    opened.run("document.querySelector('#stage .open').focus()")
    opened.press("\ue007")
    assert opened.find("#collapse").is_displayed()
    reached = set()
    opened.run("document.querySelector('.skip').focus()")
    active = "document.activeElement"
    for _ in range(30):
        opened.press("\ue004")
        reached.add(opened.run(f"{active}.id || {active}.getAttribute('class') || ''"))
        assert opened.run(f"getComputedStyle({active}).outlineStyle !== 'none' || {active}.closest('#stage') !== null")
    assert {"search", "nearer", "fit", "collapse", "ground", "box"} <= {word for name in reached for word in name.split()}


@pytest.mark.parametrize("way", ["system", "button"])
def test_light_and_dark(opened: Browser, way: str) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light = opened.run(ground)
    if way == "system":
        opened.emulate(prefers_color_scheme="dark")
    else:
        opened.click("#ground")
    assert light == "rgb(255, 255, 255)" and opened.run(ground) == "rgb(18, 22, 28)"
    assert opened.find("#ground").text == "Light"
    wanted = PALETTES["dark"]["text"]
    opened.wait(f"Bokeh.documents[0].roots()[0].below[0].axis_label_text_color === '{wanted}'")
    fill = opened.run("getComputedStyle(document.querySelector('#stage .name')).fill")
    assert fill == f"rgb({', '.join(str(int(wanted[k : k + 2], 16)) for k in (1, 3, 5))})"
    opened.click("#ground")
    assert opened.run(ground) == light, "the button has the last word"


def test_a_phone_shows_all_of_it_without_scrolling_sideways(opened: Browser, pages: Path) -> None:
    opened.resize(375, 740, mobile=True)
    opened.open(pages / "whole.html")
    assert opened.run("document.documentElement.scrollWidth") <= 375
    opened.find("#search").send_keys("embed")
    opened.press("\ue007")
    assert opened.find("#panel").is_displayed()
    assert opened.run("document.getElementById('panel').getBoundingClientRect().right") <= 375
    assert opened.run("document.querySelector('#panel h3').getBoundingClientRect().bottom") <= 740, "it is scrolled into view"
    assert (
        opened.run("Math.min(...[...document.querySelectorAll('.buttons button:not([hidden])')].map((one) => one.offsetHeight))")
        >= 24
    )


def test_the_noise_of_rounding_has_a_section_where_it_is_asked_for(plan: fxenorm.Plan, text: str) -> None:
    torch.manual_seed(0)
    bits = fxenorm.Bits(weights=4, layers={"head*": fxenorm.Bits(activations=None)})
    prediction = plan.predict(plan.observe([torch.randn(8, 3)], derivatives=True), bits)
    told = page(plan, TARGET, prediction)
    assert 'id="rounding"' not in text and 'href="#rounding"' not in text and told.count('id="rounding"') == 1
    table = told[told.index('<table id="table-rounding">') :]
    rows = re.findall(r"<tr><td><code>.*?</tr>", table[: table.index("</table>")])
    assert len(rows) == len({one.layer for one in prediction.ranges}) and prediction.verdict in told
    values = [[float(value) if value else None for value in re.findall(r'data-value="([^"]*)"', row)] for row in rows]
    squares = sum(row[0] ** 2 + (row[2] or 0.0) ** 2 for row in values if row[0] is not None)
    assert squares == pytest.approx(prediction.now**2) and any(
        row[2] is None and "float" in text for row, text in zip(values, rows, strict=True)
    )
    assert not any(name in told for name in HOSTILE if "<" in name)


def test_content_is_plain_data(plan: fxenorm.Plan) -> None:
    json.dumps(dataclasses.asdict(content_of(plan, TARGET)), allow_nan=False)
