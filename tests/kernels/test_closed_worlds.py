"""An entry that is added to a table is refused, by its name, by every backend that has no code for it."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch

pytest.importorskip("triton")
from grown_tables import (
    ENTRIES,
    add_architecture,
    add_operand_format,
    compile_for_gpu,
    quantizer_with,
)
from quantizers import legal_quantizers

import quartet_compile as qc
from quartet_compile.errors import CompilerError, QuantizerError
from quartet_compile.kernels import architectures, cpu, lowering, operand_formats
from quartet_compile.kernels import quantizer as formats
from quartet_compile.kernels.cpu import arguments, entries, loader, native, toolchain
from quartet_compile.kernels.cpu.supports import CPU
from quartet_compile.kernels.gpu.supports import GPU
from quartet_compile.kernels.lowering import device
from quartet_compile.kernels.numerics import reference
from quartet_compile.kernels.numerics.reference import Blocks
from quartet_compile.kernels.numerics.supports import REFERENCE
from quartet_compile.kernels.quantizer import QUANTIZERS, Quantizer
from quartet_compile.kernels.schemas import SCHEMAS
from quartet_compile.machines.targets import TARGETS

DECLARATIONS = {"reference": REFERENCE, "CPU": CPU, "GPU": GPU}
SEEDS = dict(stream=0, seed=torch.tensor(1), sign_seed=torch.tensor(2))
CHOSEN = ("elements", "scale_format", "scale", "scale_rounding", "rounding", "group_rows")


def calls_of(backend, made_up: Quantizer) -> dict:
    """Every way to hand a backend a quantizer."""
    x, known = torch.randn(64, 256), Quantizer()
    blocks, seeds = reference.quantize(x, known), dict(seed=SEEDS["seed"], sign_seed=SEEDS["sign_seed"])
    return {
        "quantize": lambda: backend.quantize(x, made_up, **SEEDS),
        "row": lambda: backend.quantize_pair(x, made_up, known, **seeds),
        "column": lambda: backend.quantize_pair(x, known, made_up, **seeds),
        "requantize to": lambda: backend.requantize(blocks, known, made_up, **SEEDS),
        "requantize from": lambda: backend.requantize(blocks, made_up, known, **SEEDS),
        "transposed": lambda: backend.transposed(blocks, made_up),
    }


def has_template(op: str, **named):
    """Asks whether the templates can do a call of an op, of which only the named arguments are given."""
    arguments = SCHEMAS[op].arguments
    return lambda: lowering._has_template(op, arguments(**dict.fromkeys(arguments._fields) | named))


def refused(call, *words: str) -> None:
    with pytest.raises(QuantizerError) as error:
        call()
    assert not [word for word in words if word not in str(error.value)], str(error.value)


@pytest.mark.parametrize("field", ENTRIES)
@pytest.mark.parametrize("backend", [reference, cpu], ids=("reference", "CPU"))
def test_a_new_choice_is_refused_by_kernels(monkeypatch, backend, field):
    made_up = quantizer_with(monkeypatch, field)
    wanted = "group" if field == "group_rows" else field  # its square has a new group too, the first to be refused
    for call in calls_of(backend, made_up).values():
        refused(call, "backend doesn't know", f"{wanted}={ENTRIES[field][0]!r}", "Use one of these")


@pytest.mark.parametrize("field", ENTRIES)
def test_a_new_choice_is_refused_by_lowerings(monkeypatch, field):
    made_up = quantizer_with(monkeypatch, field)
    name, known = ",".join(f"{f.name}={getattr(made_up, f.name)}" for f in dataclasses.fields(made_up)), "mxfp4-rtn"
    calls = [
        ("quantize", dict(quantizer=name)),
        ("quantize_pair", dict(row_quantizer=known, column_quantizer=name)),
        ("quantize_pair", dict(row_quantizer=name, column_quantizer=known)),
        ("requantize", dict(source=known, quantizer=name)),
        ("requantize", dict(source=name, quantizer=known)),
        ("transposed", dict(quantizer=name)),
    ]
    for op, named in calls:
        refused(has_template(op, **named), "The GPU backend", str(ENTRIES[field][0]))


def test_a_new_choice_is_refused_by_a_compilation_for_a_gpu(monkeypatch):
    median = quantizer_with(monkeypatch, "scale")
    recipe = qc.Recipe(name="made up", fprop=qc.Gemm(a=median, b=median), dgrad=None, wgrad=None)
    model, x = torch.nn.Linear(64, 64, bias=False), torch.randn(32, 64)
    with torch.no_grad(), pytest.raises(Exception, match="The GPU backend doesn't know scale='median'"):
        qc.cross_compile(model, x, target="sm_100", recipe=recipe)


@pytest.mark.parametrize(
    ("kernel", "constants", "words"),
    [
        ("e8m0", dict(scale="median", scale_rounding="down", rounding="nearest"), "no E8M0 scale by this rule"),
        ("e8m0", dict(scale="absmax", scale_rounding="odd", rounding="nearest"), "no such rounding of scales"),
        ("e8m0", dict(scale="absmax", scale_rounding="down", rounding="dithered"), "no such rounding"),
        ("e4m3", dict(scale="median", rounding="nearest"), "no E4M3 scale by this rule"),
        ("e4m3", dict(scale="absmax", rounding="dithered"), "no such rounding"),
        ("decoded", dict(format="mxfp6"), "no decoding of this operand format"),
    ],
)
def test_a_new_choice_is_refused_by_triton(kernel, constants, words):
    with pytest.raises(Exception) as error:  # noqa: PT011  Triton's, which tl.static_assert ends in
        compile_for_gpu(kernel, **constants)
    messages = []
    cause = error.value
    while cause is not None:
        messages.append(str(cause))
        cause = cause.__cause__
    assert any(words in message for message in messages), messages


@pytest.mark.parametrize(
    ("kernel", "constants"),
    [
        ("e8m0", dict(scale="absmax", scale_rounding="down", rounding="nearest")),
        ("e4m3", dict(scale="absmax", rounding="nearest")),
        ("decoded", dict(format="mxfp4")),
    ],
)
def test_known_choices_compile(kernel, constants):
    compile_for_gpu(kernel, **constants)


@pytest.mark.parametrize("name", DECLARATIONS)
def test_a_backend_knows_every_legal_quantizer(name):
    declared = DECLARATIONS[name]
    legal = [*QUANTIZERS.values(), *legal_quantizers()]
    assert len(legal) > 300 and not {why for q in legal if (why := declared.reason(q))}
    assert not [p for p in operand_formats.PRODUCT_FORMATS if declared.reason_of("product of", p)]


@pytest.mark.parametrize("name", DECLARATIONS)
def test_a_backend_declares_every_table_and_nothing_else(name):
    declared = DECLARATIONS[name]
    for field, allowed in {**formats.CHOICES, **formats.SIZES}.items():
        assert set(declared.entries[field]) == set(allowed)
    assert set(declared.entries["operand format"]) == set(operand_formats.OPERAND_FORMATS)


def test_what_the_backends_declare_they_do():
    """A quantizer for each legal combination of choices, with equal bits."""
    chosen = {tuple(getattr(q, field) for field in CHOSEN): q for q in legal_quantizers()}
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    for q in chosen.values():
        wanted, made = (backend.quantize(x, q, mask=True, **SEEDS) for backend in (reference, cpu))
        for name, a, b in zip(Blocks._fields[:4], wanted.tensors, made.tensors, strict=True):
            assert torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)), (q, name)


def test_the_numbers_are_those_of_the_compiler(tmp_path):
    text = '#include "entries.h"\n'
    for enum, numbers in entries.enumerations().items():
        text += "".join(f"static_assert((int64_t){enum}::{key} == {n});\n" for key, n in numbers.items())
    assert text.count("static_assert") >= 2 + 2 + 3 + 4 + 3 + 3
    source = tmp_path / "numbers.cpp"
    source.write_text(text)
    toolchain.run([toolchain.toolchain().compiler, "-std=c++17", "-fsyntax-only", f"-I{loader.SOURCES}", str(source)])


def test_numbers_are_read_as_c_counts_them():
    read = entries.read_enumerations("enum class X : int64_t { kA, kB = 4, kC };\nenum class Y : int64_t { kD };\n")
    assert read == {"X": {"kA": 0, "kB": 4, "kC": 5}, "Y": {"kD": 0}}


@pytest.mark.parametrize(
    ("old", "new", "source"),
    [
        ("kQuest, ", "kQuest, kMedian, ", "power_scale.h"),
        ("kStochastic, kEden", "kStochastic, kEden, kDithered", "quantize_any.cpp"),
        ("kError, kEven }", "kError, kEven, kOdd }", "operand.h"),
        ("{ kE2m1, kE4m3 }", "{ kE2m1, kE4m3, kE3m2 }", "gemm_decode.cpp"),
    ],
)
def test_a_new_enumerator_does_not_compile_without_its_code(tmp_path, old, new, source):
    folder = shutil.copytree(loader.SOURCES, tmp_path / "cpu", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    header = folder / "entries.h"
    assert old in header.read_text()
    header.write_text(header.read_text().replace(old, new, 1))
    tools = toolchain.toolchain()
    whole = {"power_scale.h": "quantize_any.cpp", "operand.h": "quantize.cpp"}.get(source, source)
    with pytest.raises(CompilerError) as error:
        toolchain.run([tools.compiler, *tools.compile_flags, "-fsyntax-only", str(folder / whole)])
    made_up = (set(new.replace(",", "").split()) - set(old.replace(",", "").split())).pop()
    assert made_up in str(error.value) and f"cpu/{source}" in str(error.value)


def test_an_enumerator_that_the_table_lacks_is_an_error(monkeypatch):
    grown = {**entries.enumerations(), "Scale": {"kAbsmax": 0, "kMedian": 1}}
    monkeypatch.setattr(entries, "enumerations", lambda: grown)
    with pytest.raises(CompilerError, match="kMedian in Scale, which quantizer.py's CHOICES"):
        entries.numbers.__wrapped__("scale")


@pytest.mark.parametrize("field", ["scale", "scale_rounding", "rounding"])
@pytest.mark.parametrize("rotation", [32, 64], ids=("the kernels for MXFP4", "the others"))
def test_a_number_that_cpp_does_not_know_is_refused(monkeypatch, field, rotation):
    q, x = Quantizer(rotation=rotation), torch.randn(32, 64)
    blocks = native.quantize(x, q)
    right = entries.numbers
    monkeypatch.setattr(
        arguments, "numbers", lambda name: dict.fromkeys(right(name), 99) if name == field else right(name)
    )
    for call in (
        lambda: native.quantize(x, q),
        lambda: native.quantize_pair(x, q, q, seed=SEEDS["seed"], sign_seed=SEEDS["seed"]),
        lambda: native.requantize(blocks, q, q, stream=0, seed=None),
    ):
        refused(call, f"{field}=99", "entries.h")


@pytest.mark.parametrize("backend", [reference, cpu], ids=("reference", "CPU"))
def test_a_new_operand_format_is_refused_by_kernels(monkeypatch, backend):
    made = add_operand_format(monkeypatch, "mxfp6")
    a = reference.quantize(torch.randn(4, 32), Quantizer())
    b = Blocks(
        torch.zeros(4, 32, dtype=made.codes), torch.zeros(4, 1, dtype=made.scales), torch.empty(0), None, "mxfp6"
    )
    for left, right in ((a, b), (b, a), (b, b)):
        refused(lambda x=left, y=right: backend.scaled_mm(x, y, 1.0, torch.float32), "backend doesn't know", "'mxfp6'")
    decode = reference.decode if backend is reference else cpu.gemm.decode
    refused(lambda: decode(b, Quantizer() if backend is reference else 1.0), "'mxfp6'")


def test_a_new_operand_format_is_refused_by_lowerings(monkeypatch):
    add_operand_format(monkeypatch, "mxfp6")
    for op in ("scaled_mm", "scaled_grouped_mm"):
        for a, b in (("mxfp6", "mxfp4"), ("mxfp4", "mxfp6"), ("mxfp6", "mxfp6")):
            refused(has_template(op, a_format=a, b_format=b), "The GPU backend", "'mxfp6'")


def test_a_pair_that_the_table_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(operand_formats, "PRODUCT_FORMATS", frozenset({("mxfp4", "mxfp4")}))
    a, b = (reference.quantize(torch.randn(4, 32), QUANTIZERS[name]) for name in ("mxfp4-quest", "mxfp8"))
    for backend in (reference, cpu):
        backend.scaled_mm(a, a, 1.0, torch.float32)
        refused(lambda backend=backend: backend.scaled_mm(a, b, 1.0, torch.float32), "'mxfp4' and 'mxfp8'")


def test_a_new_architecture_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (13, 0))
    questions = (device.has_fp4, device.multiplies_in_fp8, device.adds_in_pairs, device.through_tensor_memory)
    for question in questions:
        refused(lambda question=question: question(torch.device("cuda")), "compute capability 13.0", "12.0")
    add_architecture(monkeypatch, "rubin", (13, 0))
    for question in questions:
        refused(lambda question=question: question(torch.device("cuda")), "The GPU backend", "architecture='rubin'")


def test_a_new_way_to_multiply_is_refused(monkeypatch):
    monkeypatch.setattr(architectures, "PRODUCTS", {**architectures.PRODUCTS, "int8": "made up"})
    monkeypatch.setenv(architectures.VARIABLE, "int8")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    refused(lambda: device.multiplies_in_fp8(torch.device("cuda")), "The GPU backend", "products='int8'")


def test_every_target_is_an_architecture_that_the_templates_know():
    for target in TARGETS.values():
        assert GPU.reason_of("architecture", architectures.architecture(target.capability)) is None
    assert set(architectures.CAPABILITIES.values()) == set(architectures.ARCHITECTURES)
