"""The command line: what it prints, and one clear line for what was asked wrongly."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import subprocess
import sys
import types

import pytest
import torch
from expecttest import assert_expected_inline

import quartet_compile
from quartet_compile.__main__ import UsageError, load_model, main, parse_input

MODEL = """
import torch
from torch import nn
from quartet_compile import fp4

instance = nn.Linear(64, 96)

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.head = nn.Linear(64, 96), nn.Linear(96, 40)
        self.inner = nn.Linear(64, 64)

    @fp4
    def marked(self, x):
        return self.inner(x)

    def forward(self, x):
        return self.head(self.up(self.marked(x)))

class Sized(nn.Module):
    def __init__(self, width):
        super().__init__()

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.body = nn.Embedding(10, 64), nn.Linear(64, 64)

    def forward(self, ids, scale):
        return self.body(self.embed(ids)) * scale

def build():
    return Model(), (torch.zeros(32, 64),)

def build_with_one_input():
    return Model(), torch.zeros(32, 64)

def build_model():
    return Model()

def build_with_keywords():
    return Tokens(), (torch.zeros(2, 16, dtype=torch.long),), {"scale": torch.tensor(2.0)}

def build_nothing():
    return 3

width = 64
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "my_model.py"
    path.write_text(MODEL)
    return path


@pytest.fixture
def run(file, capsys):
    """Run a command on the model file; MODEL stands for its path."""

    def run(*arguments):
        code = main([argument.replace("MODEL", str(file)) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_recipes(run):
    code, out, err = run("recipes")
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line for line in out.splitlines()[2:] if line}
    assert rows["quartet"].split() == ["quartet", "mxfp4-quest", "mxfp4-sr", "mxfp4-sr"]
    assert rows["quartet-rtn"].split()[2:] == ["mxfp4-rtn", "mxfp4-rtn"]
    assert rows["bf16"].count("high precision") == 3
    assert "Which to pick: quartet, the default" in out


def test_explain(run):
    code, out, err = run("explain", "MODEL:Model", "--input", "32x64")
    assert (code, err) == (0, "")
    assert_expected_inline(
        out,
        """\
2 of 3 matmuls (69 % of FLOPs outside attention) in FP4, in 1 graph (recipe 'quartet').
Rules, and how many matmuls and what share of these FLOPs each decided:
    1    21 %  marked fp4
    1    48 %  matmul with a parameter
    1    30 %  output head by its name 'head'; include=['*'] rewrites it too

matmul   M   N   K  runs in  because
------------------------------------------------------------------------------------------
inner   32  64  64  fp4      marked fp4
up      32  96  64  fp4      matmul with a parameter
head    32  40  96  float32  output head by its name 'head'; include=['*'] rewrites it too

Each multiplies [M, K] by [K, N]; of a linear layer, M is the number of tokens.
""",
    )


def test_diff(run):
    code, out, _ = run("diff", "MODEL:instance", "--input", "32x64", "--no-grad")
    assert code == 0
    assert_expected_inline(
        out,
        """\
--- before
+++ after
@@ -1 +1,4 @@
-fwd  addmm: f32[32, 96] = addmm(bias, input, weight.T) -> output
+fwd  input.q = quantize[mxfp4-quest](input)
+fwd  weight.q = quantize[mxfp4-quest](weight)
+fwd  scaled_mm: f32[32, 96] = scaled_mm(input.q, weight.q)
+fwd  add: f32[32, 96] = add(scaled_mm, bias) -> output
""",
    )


def test_a_diff_of_nothing_says_so_and_why(run):
    code, out, _ = run("diff", "MODEL:instance", "--input", "32x64", "--recipe", "bf16")
    assert code == 0
    assert out.startswith("No matmul was rewritten")
    assert "recipe 'bf16' keeps high precision" in out


def rewritten(run, *arguments):
    code, out, err = run("explain", *arguments, "--json")
    assert (code, err) == (0, "")
    return {site["name"]: site["rewritten"] for graph in json.loads(out)["graphs"] for site in graph["sites"]}


@pytest.mark.parametrize("name", ["build", "build_with_one_input"])
def test_a_function_may_bring_the_inputs(run, name):
    assert rewritten(run, f"MODEL:{name}") == {"inner": True, "up": True, "head": False}


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--exclude", "up", "--exclude", "inner"], {"inner": False, "up": False, "head": False}),
        (["--include", "*"], {"inner": True, "up": True, "head": True}),
        (["--scope", "marked"], {"inner": True, "up": False, "head": False}),
        (["--recipe", "bf16"], {"inner": False, "up": False, "head": False}),
        (["--strict"], {"inner": True, "up": True, "head": False}),
    ],
)
def test_options(run, arguments, expected):
    assert rewritten(run, "MODEL:build_model", "--input", "32x64", *arguments) == expected


def test_inputs_of_several_types(run):
    assert rewritten(run, "MODEL:Tokens", "--input", "2x16:int64", "--input", ":float32") == {"body": True}


def test_inputs_by_keyword(run):
    assert rewritten(run, "MODEL:build_with_keywords") == {"body": True}
    assert rewritten(run, "MODEL:Tokens", "--input", "2x16:int64", "--input", "scale=:float32") == {"body": True}


def test_a_diff_as_json(run):
    _, out, _ = run("diff", "MODEL:build", "--json")
    assert "+fwd  x.q = quantize" in json.loads(out)["diff"]


@pytest.mark.parametrize(
    "text, shape, dtype",
    [
        ("2x128x64", (2, 128, 64), torch.float32),
        ("7", (7,), torch.float32),
        ("2x3:int64", (2, 3), torch.int64),
        ("4x4:bfloat16", (4, 4), torch.bfloat16),
        (":int32", (), torch.int32),
    ],
)
def test_an_input_from_text(text, shape, dtype):
    tensor = parse_input(text)
    assert tensor.shape == shape and tensor.dtype == dtype


@pytest.mark.parametrize("text", ["", "2x", "2*3", "axb", "2x3:", "-1x2", "2x3:int64:int64"])
def test_an_input_that_is_no_shape(text):
    with pytest.raises(UsageError, match="expected SHAPE or SHAPE:DTYPE, as 2x128x64 or 2x128:int64"):
        parse_input(text)


WRONG = {
    "no separator": (["explain", "model.py"], "expected package.module:name or path/file.py:name"),
    "no file": (["explain", "nowhere.py:Model"], "no file 'nowhere.py'"),
    "no module": (["explain", "no_such_module.inner:Model"], "no module 'no_such_module.inner'"),
    "no attribute": (["explain", "MODEL:Modle"], "has no 'Modle' (did you mean 'Model'?)"),  # codespell:ignore
    "not a model": (["explain", "MODEL:width"], "is a int; expected a Module, a Module class or a function"),
    "needs arguments": (["explain", "MODEL:Sized"], "missing a required argument: 'width'"),
    "returns no model": (
        ["explain", "MODEL:build_nothing"],
        "returned a int; expected a model, (model, inputs) or (model, inputs, kwargs)",
    ),
    "no input": (["explain", "MODEL:Model"], "give their shapes, as --input 2x128x64"),
    "bad input": (["diff", "MODEL:Model", "--input", "8,64"], "--input '8,64' is not a shape"),
    "bad dtype": (["diff", "MODEL:Model", "--input", "8:flaot32"], "dtype 'flaot32' (did you mean 'float32'?)"),
    "bad recipe": (["explain", "MODEL:build", "--recipe", "quarted"], "recipe 'quarted' (did you mean 'quartet'?)"),
    "bad scope": (["explain", "MODEL:build", "--scope", "some"], "Option 'scope' is 'some'"),
    "wrong size": (["explain", "MODEL:Model", "--input", "8x63"], "Could not capture the model"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line_and_exit_code_2(run, case):
    arguments, message = WRONG[case]
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"quartet_compile {arguments[0]}: ")
    assert message in err
    assert case == "wrong size" or err.count("\n") == 1


def test_torch_logs_no_traceback_of_a_size_that_does_not_fit(run, monkeypatch):
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    monkeypatch.setattr(logger, "handle", lambda record: pytest.fail(record.getMessage()))
    assert "must have same reduction dim" in run("explain", "MODEL:Model", "--input", "8x63")[2]


@pytest.mark.parametrize("arguments", [[], ["describe"], ["explain"], ["explain", "m:M", "--inputs"]])
def test_what_argparse_refuses_is_exit_code_2_too(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m quartet_compile" in capsys.readouterr().err


def test_an_error_in_the_users_file_is_shown_as_it_is(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("import no_such_dependency\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        load_model(f"{path}:Model")


@pytest.mark.parametrize(
    "content, words",
    [
        (b"import torch\ndef build(:\n", ", line 2: invalid syntax in 'def build(:'"),
        (b"x = 1\n   y = 2\n", ", line 2: unexpected indent in 'y = 2'"),
        (b"\xff = 3\n", "codec can't decode byte 0xff"),
        (b"\0\0", "source code string cannot contain null bytes"),
        (b"import wrong_syntax\n", "wrong_syntax.py, line 1: "),
    ],
    ids=["syntax", "indentation", "encoding", "null", "imported"],
)
@pytest.mark.parametrize("how", ["file", "module"])
def test_a_file_that_is_no_python_is_one_line(tmp_path, monkeypatch, capsys, content, words, how):
    name = f"no_python_{len(content)}"
    (tmp_path / f"{name}.py").write_bytes(content)
    (tmp_path / "wrong_syntax.py").write_text("x =\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert main(["explain", f"{name}.py:build" if how == "file" else f"{name}:build"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("quartet_compile explain: ") and words in captured.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_one_line(file, run):
    file.chmod(0)
    code, _, err = run("explain", "MODEL:Model")
    file.chmod(0o644)
    assert code == 2 and err.count("\n") == 1 and "Permission denied" in err


def closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w")


def full_disk():
    return open("/dev/full", "w")


OUTPUTS = {"a reader that is gone": (closed_pipe, "")}
if os.path.exists("/dev/full"):
    OUTPUTS["a full disk"] = (
        full_disk,
        "quartet_compile recipes: the output can't be written: No space left on device\n",
    )


@pytest.mark.parametrize("case", OUTPUTS)
def test_an_output_that_cannot_be_written_is_one_line_and_a_reader_that_is_gone_none(case, monkeypatch, capsys):
    make, words = OUTPUTS[case]
    with make() as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert main(["recipes"]) == 1
        output.write("what Python would flush at its exit goes nowhere")
    assert capsys.readouterr().err == words


def test_a_folder_that_cannot_be_written_is_one_line(file, run, monkeypatch):
    def write(folder: str) -> None:
        (file / folder).mkdir()  # in a file

    artifact = types.SimpleNamespace(write=write)
    monkeypatch.setattr("quartet_compile.cross.cross_compile.cross_compile", lambda *inputs, **options: artifact)
    code, out, err = run("cross-compile", "MODEL:build", "--out", "folder")
    assert (code, out, err) == (
        2,
        "",
        "quartet_compile cross-compile: --out 'folder' can't be written: Not a directory\n",
    )


LINEAR = ["explain", "torch.nn:ReLU", "--input", "32x64"]


@pytest.mark.parametrize(
    "arguments, environment, output, code, words",
    [
        (["--help"], {}, "/dev/full", 1, "the output can't be written: No space left on device"),
        (LINEAR, {"TORCHINDUCTOR_CACHE_DIR": __file__}, os.devnull, 1, "Set TORCHINDUCTOR_CACHE_DIR to a folder"),
    ],
    ids=["help on a full disk", "a cache folder that is a file"],
)
def test_as_a_command_it_is_one_line_too(arguments, environment, output, code, words):
    if not os.path.exists(output):
        pytest.skip(f"needs {output}")
    command = [sys.executable, "-m", "quartet_compile", *arguments]
    with open(output, "w") as stdout:
        done = subprocess.run(command, env=os.environ | environment, stdout=stdout, stderr=subprocess.PIPE, text=True)
    assert done.returncode == code and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("quartet_compile") and words in done.stderr


def test_a_module_of_the_working_folder(file):
    arguments = ["explain", "my_model:Tokens", "--input", "2x16:int64", "--input", "16x1"]
    command = [sys.executable, "-m", "quartet_compile", *arguments]
    done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 matmuls (100 % of FLOPs outside attention) in FP4" in done.stdout


def test_a_folder_of_the_checkout_is_no_package(tmp_path):
    """transformers asks whether there is a package `kernels`, and imports it."""
    root = pathlib.Path(quartet_compile.__file__).parents[1]
    file = tmp_path / "asks.py"
    file.write_text(
        "import importlib.util, torch\nassert not importlib.util.find_spec('kernels')\nbuild = torch.nn.Identity\n"
    )
    command = [sys.executable, "-m", "quartet_compile", "explain", f"{file}:build", "--input", "2x64"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
