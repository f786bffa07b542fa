"""``fxenorm-inspect``: finding the model, reading the options, errors, and what is printed."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

import fxenorm
from fxenorm.errors import ModelFileError
from fxenorm.inspect.apart import answer_stream
from fxenorm.inspect.arguments.input_spec import DTYPES, parse_input
from fxenorm.inspect.cli import main
from fxenorm.inspect.printed.console import make_console
from fxenorm.inspect.printed.tables import show
from fxenorm.inspect.report import report
from fxenorm.inspect.targets.load import check_target, load

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=5):
        super().__init__()
        self.first, self.second = nn.Linear(4, width), nn.Linear(width, 3)

    def forward(self, x):
        return self.second(self.first(x).relu())
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "model.py") -> str:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter that finds the package."""
    start = f"import sys\nsys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
    command = [sys.executable, "-c", start + textwrap.dedent(code), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def width_of(target: str) -> int:
    """Width of the hidden layer of the `Net` that was found."""
    return load(target, (), 0).model.first.out_features


@pytest.mark.parametrize(
    ("ending", "width"),
    [
        ("model = Net(7)", 7),
        ("def model():\n    return Net(7)", 7),
        ("model = Net", 5),
        ("net = Net(7)", 7),
        ("net = Net(7)\nloss = nn.CrossEntropyLoss()", 7),
        ("def build() -> nn.Module:\n    return Net(7)", 7),
        ("def build():\n    return Net(7)", 7),
        ("def build(width=7):\n    return Net(width)", 7),
        ("def make_net():\n    return Net(7)\ndef classes():\n    return 10", 7),
        ("def classes():\n    return 10", 5),
        ("def main():\n    raise RuntimeError('training was started')", 5),
        ("def train_all():\n    raise RuntimeError('training was started')", 5),
        ("def build(width):\n    return Net(width)", 5),
        ("class Block(nn.Module):\n    def __init__(self, width):\n        super().__init__()", 5),
        ("Net.__signature__ = 'unreadable'", 5),
        ("", 5),
    ],
)
def test_the_model_that_a_file_most_plainly_offers(write, ending, width):
    assert width_of(write(NET + ending)) == width


def test_a_file_that_is_not_there_is_told_at_once_and_a_name_of_torchvision_is_no_file(tmp_path):
    check_target("torchvision:resnet18")
    for target in (str(tmp_path / "missing.py"), f"{tmp_path / 'missing.py'}:Net"):
        with pytest.raises(ModelFileError, match=r"missing\.py"):
            check_target(target)


def test_a_program_that_calls_the_command_has_its_stdout_back(write):
    """What the model's file prints goes elsewhere, the answer and what the program prints behind it do not."""
    path = write(NET + "print('loaded')")
    done = python(
        """
        import os
        from fxenorm.inspect.cli import main

        code = main(sys.argv[1:])
        print("after", code, flush=True)
        os.write(1, b"and past Python")
        """,
        path,
    )
    assert done.returncode == 0 and "loaded" in done.stderr and "loaded" not in done.stdout
    assert "Pairs: 1" in done.stdout and done.stdout.endswith("after 0\nand past Python")


@pytest.mark.parametrize("lasting", [False, True])
def test_the_stream_of_the_answer_leaves_no_file_open(lasting):
    """Looked at in a child, whose stdout a lasting stream has taken for good."""
    done = python(
        f"""
        import os
        from fxenorm.inspect.apart import answer_stream

        def lowest():
            number = os.dup(0)
            os.close(number)
            return number

        before = lowest()
        for _ in range(2):
            with answer_stream(lasting={lasting}) as stream:
                stream.write("an answer ")
        assert lowest() == before, (lowest(), before)
        """
    )
    assert (done.returncode, done.stderr) == (0, "" if not lasting else "an answer ")
    assert done.stdout == ("an answer " if lasting else "an answer an answer ")


@pytest.mark.parametrize(("name", "width"), [("Net", 5), ("small", 2), ("built", 3), ("holder.inner", 4)])
def test_a_name_chooses(write, name, width):
    text = "small = Net(2)\ndef built():\n    return Net(3)\nclass holder:\n    inner = Net(4)"
    assert width_of(f"{write(NET + text)}:{name}") == width


def test_a_file_name_with_a_colon_is_a_file_name(write):
    path = write(NET, "a:b.py")
    assert width_of(path) == 5
    assert width_of(f"{path}:Net") == 5


def test_neighbouring_modules_can_be_imported_and_nothing_of_it_stays(write):
    write("width = 9", "neighbour_of_model.py")
    before, arguments = list(sys.path), list(sys.argv)
    assert width_of(write(NET + "import neighbour_of_model\nmodel = Net(neighbour_of_model.width)")) == 9
    assert (sys.path, sys.argv) == (before, arguments)
    sys.modules.pop("neighbour_of_model")


def test_the_seed_decides_the_weights(write):
    path = write(NET)
    one, same, other = (load(path, (), seed).model.first.weight for seed in (3, 3, 4))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_example_inputs_of_the_file_and_of_the_command_line(write):
    path = write(NET + "example_inputs = torch.ones(2, 4)\nexample_kwargs = {}")
    assert torch.equal(load(path, (), 0).example_inputs, torch.ones(2, 4))
    loaded = load(path, [parse_input("3x4:float64"), parse_input("2:int64")], 0)
    assert [(tuple(t.shape), t.dtype) for t in loaded.example_inputs] == [((3, 4), torch.float64), ((2,), torch.int64)]
    assert loaded.example_kwargs is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_data_type_gives_a_tensor(dtype):
    assert parse_input(f"2x1:{dtype}").tensor().dtype == getattr(torch, dtype)


@pytest.mark.parametrize("text", ["", "x", "2x", "2x-1", "2,3", "0x2", "2x3:floot", "2x3:"])
def test_bad_input_options(text):
    with pytest.raises(ValueError, match=r"expected|at least 1"):
        parse_input(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", r"holds no model: expected a module-level `model`"),
        ("import torch\nclass Net(torch.nn.Module):\n    def __init__(self, width): ...", "holds no model.*Net needs width"),
        ("model = 3", "model in .* has type int: expected an nn.Module"),
        ("def model(): return 3", r"model\(\) in .* returned int"),
        ("def model(a): return 3", "cannot be called without arguments.*a"),
        (NET + "a, b = Net(), Net()", "several modules: choose one of .*:a, .*:b"),
        (NET + "class Other(Net): pass", "several ways to build a model: choose one of .*:Net, .*:Other"),
        ("def a_model() -> 'nn.Module': ...\ndef b_model(): ...", "several ways to build a model"),
        ("x = 1\ny = x / 0", r"model\.py:2, in <module>: ZeroDivisionError: division by zero"),
        ("import fxenorm_no_such_module", r"model\.py:1, in <module>: ModuleNotFoundError"),
        ("def f(:", r"model\.py:1: SyntaxError"),
        ("def model():\n    raise ValueError('wrong\\nshape')", r"model\(\) in .*model\.py:2, in model: ValueError: wrong"),
        ("import sys\nsys.exit(3)", r"model\.py:2, in <module>: the file ends the process"),
    ],
)
def test_files_without_a_model_say_why(write, text, message):
    with pytest.raises(ModelFileError, match=message):
        load(write(text), (), 0)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no_such_file.py", "no such file: no_such_file.py$"),
        ("no_such_file.py:model", "no such file: no_such_file.py$"),
        ("resnet18", "no such file: resnet18; a model of torchvision is written torchvision:resnet18"),
        ("/", "is a directory"),
    ],
)
def test_missing_files(target, message):
    with pytest.raises(ModelFileError, match=message):
        load(target, (), 0)


@pytest.mark.parametrize("name", ["", "a-b", "missing"])
def test_missing_names(write, name):
    with pytest.raises(ModelFileError, match=r"is not the name|has no 'missing'; it has .*Net"):
        load(f"{write(NET)}:{name}", (), 0)


def test_unknown_torchvision_models_list_close_ones():
    pytest.importorskip("torchvision")
    with pytest.raises(ModelFileError, match=r"no model 'resnet19': did you mean .*resnet18"):
        load("torchvision:resnet19", (), 0)


def test_help_and_argument_errors_do_not_import_torch():
    result = python("""
        from fxenorm.inspect.cli import main
        for line, expected in ("--help", 0), ("--version", 0), ("m.py --p 0", 2), ("", 2), ("m.py --input x", 2):
            try:
                main(line.split())
            except SystemExit as error:
                assert error.code == expected, (line, error.code)
            else:
                raise AssertionError(line)
        assert main(["no_such_file.py"]) == 2
        assert not {"torch", "numpy", "networkx", "rich"} & set(sys.modules)
    """)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr


CHAIN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.act, self.second, self.third = nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        print("forward runs")
        return self.third(self.second(self.act(self.first(x))).relu())

print("imported")
model = Net()
"""


def test_json_is_all_of_stdout_and_strict(write, capsys):
    assert main([write(CHAIN), "--json", "--p", "inf", "--input", "2x4"]) == 0
    answer = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert answer["class"] == "Net"
    assert answer["options"]["p"] == "inf"
    (pair,) = answer["pairs"]
    assert (pair["producer"], pair["consumer"], pair["channels"], pair["operators"]) == ("second", "third", 6, ["relu"])
    (group,) = answer["groups"]
    assert [port["parameter"] for port in group["producers"]] == ["second.weight", "second.bias"]
    assert [port["parameter"] for port in group["consumers"]] == ["third.weight"]
    assert pair["imbalance"] == group["imbalance"] == pytest.approx(answer["totals"]["imbalance"])
    (barrier,) = answer["barriers"]
    assert barrier["operator"].startswith("gelu") and barrier["variables"] == 5 and "model.py" in barrier["source"]
    totals = answer["totals"]
    assert totals["parameters"] == 4 * 5 + 5 + 5 * 6 + 6 + 6 * 3 + 3
    assert (totals["free_channels"], totals["fixed_by_outputs"], totals["fixed_by_barriers"]) == (6, 3, 5)
    assert totals["exact"] is True


def test_the_imbalance_of_a_group_is_that_of_its_worst_channel(write, capsys):
    text = CHAIN + "with torch.no_grad():\n    [p.fill_(1) for p in model.parameters()]\n    model.second.weight[2] = 8\n"
    assert main([write(text), "--json"]) == 0
    (group,) = json.loads(capsys.readouterr().out)["groups"]
    # p = 2: (1/2) log(N / P) with N = 3 and P = 5 * 64 in the worst channel
    assert group["imbalance"] == pytest.approx(math.log(5 * 64 / 3) / 2)


def test_tables_name_pairs_groups_barriers_and_totals(write, capsys):
    assert main([write(CHAIN)]) == 0
    printed, told = capsys.readouterr()
    assert "imported" in told and "imported" not in printed and "forward runs" not in printed
    for word in ("Pairs: 1", "Groups: 1 with 6 free scales", "Barriers: 5 channels fixed", "gelu", "model.py:12", "Totals"):
        assert word in printed
    assert not any(line.endswith(" ") for line in printed.splitlines())


STREAM = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(6, width), nn.Linear(width, 6)

    def forward(self, x):
        return (x + self.down(self.up(x).relu())).relu()

def stream(blocks, spread=0):
    blocks = [Block(4 + k * spread) for k in range(blocks)]
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Sequential(*blocks), nn.Linear(6, 3))

model = stream(20)
"""


def test_blocks_are_one_row_and_a_residual_stream_is_one_row(write, capsys):
    """21 writers with 21 readers are 231 pairs, and 20 blocks have one of their own."""
    assert main([write(STREAM), "--input", "2x4"]) == 0
    printed = capsys.readouterr().out
    assert "Pairs: 251" in printed and "Groups: 21 with 86 free scales (20 chain, 1 residual)" in printed
    rows = [" ".join(line.split()) for line in printed.splitlines() if " -> " in line]
    assert [re.sub(r"\d\.\d{3}", "*", row) for row in rows[1:]] == [
        "0, 2.{0..19}.down -> 2.{0..19}.up, 3 231 6 * g0 residual relu, add",
        "2.{0..19}.up -> .down 20 20 × 4 * g1 ... g20 chain relu",
    ]


@pytest.mark.parametrize("option", ["--pairs", "--expand"])
def test_all_pairs_are_printed_on_request(write, capsys, option):
    path = write(STREAM)
    assert main([path, "--input", "2x4", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert main([path, "--input", "2x4", option]) == 0
    printed = capsys.readouterr().out
    rows = [line.split()[:4] for line in printed.partition("Pairs: 251")[2].partition("Groups:")[0].splitlines()]
    expected = [[pair["producer"], pair["consumer"], str(pair["channels"]), pair["group"]] for pair in answer["pairs"]]
    assert [row for row in rows if row[3:] and row[3].startswith("g")][1:] == expected and "{" not in printed
    groups = {line.split()[0] for line in printed.partition("Groups:")[2].splitlines() if re.match(r"g\d", line)}
    assert groups == ({group["name"] for group in answer["groups"]} if option == "--expand" else set())


def answer_at(report: dict, width: int | None, **options: bool) -> list[str]:
    """The printed lines on a terminal of this width, or in a pipe; a line that is too long counts as its pieces."""
    stream = io.StringIO()
    console = make_console(stream)
    if width is not None:
        console = Console(file=stream, width=width, force_terminal=True, color_system=None, highlight=False, markup=False)
    show(report, console, **options)
    lines = stream.getvalue().splitlines()
    return (
        lines if width is None else [line[k : k + width] for line in lines for k in range(0, max(1, len(line.rstrip())), width)]
    )


def crowded() -> nn.Module:
    """Layers that have nothing in common, many operators without a law, and names of every length."""
    words = ("sinh", "cosh", "tanh", "sigmoid", "erf", "exp", "gelu", "softplus", "logsigmoid", "atan")

    class Crowd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for k in range(40):
                setattr(self, f"{'left_' * (1 + k % 9)}{chr(97 + k % 26)}{'x' * k}", nn.Linear(5, 5 + k))
                setattr(self, f"{'right_' * (1 + k % 9)}{chr(97 + k % 26)}{'x' * k}", nn.Linear(5 + k, 5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            layers = list(self.children())
            for k in range(0, len(layers), 2):
                function = getattr(torch, words[k % 10], None) or getattr(nn.functional, words[k % 10])
                x = function(layers[k + 1](layers[k](x).relu()))
            return x

    return Crowd()


@pytest.fixture(scope="module")
def reports() -> dict[str, dict]:
    """What is printed of models that are long in one way or another."""
    models = {"crowded": (crowded(), torch.ones(2, 5))}
    namespace: dict = {}
    exec(STREAM, namespace)
    models["stream"] = (namespace["stream"](24), torch.ones(2, 4))
    models["widths"] = (namespace["stream"](40, spread=1), torch.ones(2, 4))
    return {name: report(fxenorm.analyze(model, x, modes="eval"), name) for name, (model, x) in models.items()}


@pytest.mark.parametrize("width", [80, 120, 200, None])
@pytest.mark.parametrize("name", ["crowded", "stream", "widths"])
def test_an_answer_is_at_most_60_lines_and_its_pairs_add_up(reports, name, width):
    answer = reports[name]
    lines = answer_at(answer, width)
    assert len(lines) <= 60
    text = "\n".join(lines)
    assert f"Pairs: {len(answer['pairs']):,}" in text and "--expand" in text and "Barriers" in text
    if name != "crowded":
        assert len(lines) <= 40 and "more rows" not in text
    expanded = answer_at(answer, width, expand=True)
    assert "--expand" not in "\n".join(expanded) and len(expanded) > len(answer["pairs"]) + len(answer["groups"])


def test_names_are_whole_on_a_narrow_terminal(reports):
    answer = reports["stream"]
    text = " ".join(answer_at(answer, 40, expand=True))
    stream = io.StringIO()
    show(answer, Console(file=stream, width=40, force_terminal=True, color_system=None), expand=True)
    words = set(re.split(r"[ ,\n]+", stream.getvalue()))
    assert {pair[side] for pair in answer["pairs"] for side in ("producer", "consumer")} <= words and "…" not in text


def test_long_names_are_printed_whole_where_there_is_no_terminal(write, capsys):
    name = "a_module_with_quite_a_long_name" * 4
    text = NET + f"model = nn.Sequential()\nmodel.add_module('{name}', Net())\n"
    assert main([write(text)]) == 0
    assert f"{name}.first" in capsys.readouterr().out


def test_dead_channels_are_reported_as_held(write, capsys):
    text = CHAIN + "with torch.no_grad():\n    model.second.weight[1] = 0\n    model.third.weight[:, 4] = 0\n"
    assert main([write(text), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert sorted(variable for entry in answer["held"] for variable in entry["variables"]) == [1, 4]
    assert all(entry["reason"].startswith("dead") and entry["channels"] == 1 for entry in answer["held"])
    assert answer["groups"][0]["imbalance"] is not None
    assert main([write(text)]) == 0
    assert "Free but left alone by step and balance: 2 channels" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text", ["model = nn.Linear(3, 2)", "model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))"]
)
def test_a_model_without_pairs(write, capsys, text):
    assert main([write("from torch import nn\n" + text)]) == 0
    printed = capsys.readouterr().out
    assert "Pairs: none" in printed and "Groups: none, no channel can be rescaled" in printed


def test_a_model_without_values(write, capsys):
    text = CHAIN.replace("model = Net()", "with torch.device('meta'):\n    model = Net()")
    assert main([write(text), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["totals"]["norm"] is None and answer["groups"][0]["imbalance"] is None
    assert main([write(text)]) == 0


def test_options_reach_the_plan(write, capsys):
    assert main([write(NET), "--json", "--exclude", "second*", "--modes", "eval", "--c", "1.2", "--biases", "count"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["groups"] == [] and answer["options"]["exclude"] == ["second*"]
    assert (answer["options"]["c"], answer["options"]["biases"], answer["totals"]["modes"]) == (1.2, "count", ["eval"])
    assert main([write(NET), "--json", "--no-balance-last"]) == 0
    assert {entry["reason"].split(":")[0] for entry in json.loads(capsys.readouterr().out)["held"]} == {"balance_last=False"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "holds no model"),
        ("raise RuntimeError('broken')", "RuntimeError: broken"),
        (NET + "example_inputs = torch.ones(2, 9)", "does not run on"),
        (NET + "example_inputs = torch.ones(2, 4)\nmodel = nn.Module()", "fxenorm-inspect: error"),
    ],
)
def test_errors_are_one_message_and_exit_code_2(write, capsys, text, message):
    path = write(text)
    assert main([path]) == 2
    printed, told = capsys.readouterr()
    assert printed == "" and "Traceback" not in told
    assert message in told and told.count("fxenorm-inspect: error:") == 1
    assert main([path, "--traceback"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_ends_with_130(write, capsys):
    assert main([write("raise KeyboardInterrupt")]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_exit_codes_of_the_process(write):
    code = "from fxenorm.inspect.cli import main\nsys.exit(main())"
    assert python(code, write(NET)).returncode == 0
    result = python(code, write("def f(:", "bad.py"))
    assert result.returncode == 2 and "Traceback" not in result.stderr and result.stdout == ""


def test_a_model_of_torchvision(capsys):
    pytest.importorskip("torchvision")
    assert main(["torchvision:resnet18", "--modes", "eval", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["model"], answer["class"]) == ("torchvision:resnet18", "ResNet")
    assert answer["totals"]["free_channels"] == sum(group["channels"] for group in answer["groups"]) >= 2880
    assert ("layer1.0.bn1", "layer1.0.conv2") in {(pair["producer"], pair["consumer"]) for pair in answer["pairs"]}


class Held(io.StringIO):
    """A stream that is no stream of the process and shows nothing before it is flushed."""

    shown = ""

    def flush(self) -> None:
        self.shown = self.getvalue()


def test_the_answer_is_shown_also_where_stdout_is_no_stream_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    held, others = Held(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", held)
    monkeypatch.setattr(sys, "stderr", others)
    with answer_stream(lasting=False) as stream:
        print("noise of the model's file")
        stream.write("the answer")
    assert held.shown == "the answer" and others.getvalue() == "noise of the model's file\n"


def test_a_warning_of_fxenorm_is_one_line_in_the_form_of_its_errors(write, capsys):
    assert main([write(NET), "--input", "2x4", "--exclude", "nobody.*"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "nobody" in line]
    assert said == ["fxenorm-inspect: warning: exclude: no parameter or module is named 'nobody.*'"]
