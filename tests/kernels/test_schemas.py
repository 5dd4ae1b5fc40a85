"""The arguments of every op, read by name: the op that torch knows, the NamedTuple, and what reads a graph's nodes agree."""

from __future__ import annotations

import pytest
import torch
from products import random_blocks
from torch import fx

from quartet_compile.errors import QuartetError
from quartet_compile.kernels.operand_formats import OPERAND_FORMATS, check_format
from quartet_compile.kernels.quantizer import QUANTIZERS
from quartet_compile.kernels.schemas import SCHEMAS, Operand, ScaledMM, arguments_of, by_name, op_of, operands_of

quartet = torch.ops.quartet


def test_every_op_has_a_schema():
    assert {f"quartet::{name}" for name in SCHEMAS} == {
        name for name in torch._C._dispatch_get_all_op_names() if name.startswith("quartet::")
    }


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_ops_are_registered_as_the_schemas_say(name):
    found, schema = getattr(quartet, name).default._schema, SCHEMAS[name]
    assert tuple(argument.name for argument in found.arguments) == schema.arguments._fields
    assert str(found).removeprefix(f"quartet::{name}") == str(schema)


def test_a_schema_as_torch_writes_it():
    """By hand: a renamed, reordered or retyped argument of the op that every graph has changes saved graphs."""
    assert str(SCHEMAS["scaled_mm"]) == (
        "(Tensor a, Tensor a_scales, Tensor a_tensor_scale, str a_format, Tensor b, Tensor b_scales,"
        " Tensor b_tensor_scale, str b_format, float alpha, ScalarType dtype, Tensor? mask=None, int rotation=0,"
        " SymInt? columns=None) -> Tensor"
    )
    assert str(SCHEMAS["seed"]) == "(SymInt length, Device device, str[] shared_by) -> Tensor"
    assert str(SCHEMAS["requantize"]) == (
        "(Tensor codes, Tensor scales, Tensor tensor_scale, str source, str quantizer, int stream, Tensor? seed,"
        " Tensor? sign_seed, Tensor? cached_for=None) -> (Tensor codes, Tensor scales, Tensor tensor_scale)"
    )


@pytest.mark.parametrize("by_keyword", [False, True])
def test_arguments_of_a_node(by_keyword):
    """In either way of writing the call, of nodes of other ops nothing."""
    graph = fx.Graph()
    x, mask = graph.placeholder("x"), graph.placeholder("mask")
    args, kwargs = ((x, mask, 32), {"columns": 7}) if by_keyword else ((x, mask, 32, 7), {})
    call = arguments_of(node := graph.call_function(quartet.unrotate.default, args, kwargs))
    assert (call.x, call.mask, call.rotation, call.columns) == (x, mask, 32, 7)
    assert op_of(node) == "unrotate"
    assert op_of(x) is None and op_of(graph.call_function(torch.ops.aten.mm.default, (x, x))) is None


def test_arguments_are_given_by_name():
    assert by_name("unrotate", lambda call: call.columns - call.rotation)("x", None, 32, columns=40) == 8
    with pytest.raises(TypeError, match="columns"):
        by_name("unrotate", tuple)("x", None, 32)


def test_operands_of_a_product():
    a, b = (Operand(f"{side}", f"{side}s", f"{side}t", f"{side}f") for side in "ab")
    assert operands_of(ScaledMM(*a, *b, alpha=1.0, dtype=torch.float32)) == (a, b)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_quantizers_make_the_format_that_they_name(name):
    seed = torch.tensor(3)
    codes, scales, tensor_scale, _ = quartet.quantize(torch.randn(32, 256), name, False, False, 0, seed, seed)
    facts = check_format(QUANTIZERS[name].format, codes, scales)
    assert tensor_scale.numel() == facts.two_level
    assert codes.shape[1] * facts.packed == 256
    assert scales.shape[1] == (0 if QUANTIZERS[name].exact else 256 // facts.group)


@pytest.mark.parametrize("wrong", [name for name in OPERAND_FORMATS if name != "mxfp4"])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_product_refuses_operands_of_another_format(wrong, side, device):
    operands = [[*(t.to(device) for t in random_blocks(32, 64)[:3]), "mxfp4"] for _ in range(2)]
    assert quartet.scaled_mm(*operands[0], *operands[1], 1.0, torch.float32).shape == (32, 32)
    operands[side][3] = wrong
    with pytest.raises(QuartetError, match=f"in {wrong} has codes torch.uint8.*expected"):
        quartet.scaled_mm(*operands[0], *operands[1], 1.0, torch.float32)


def test_an_unknown_format():
    with pytest.raises(QuartetError, match="Unknown number format 'mxfp5'; expected one of mxfp4, nvfp4"):
        check_format("mxfp5", *random_blocks(1, 32)[:2])
