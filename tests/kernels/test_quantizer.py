"""Quantizers as data: the registered ones, their properties and names, and what can't be combined."""

import dataclasses
import math

import pytest
import torch
from quantizers import legal_quantizers

import quartet_compile as qc
from quartet_compile.errors import QuantizerError
from quartet_compile.kernels import quantizer as formats
from quartet_compile.kernels.numerics import reference
from quartet_compile.kernels.quantizer import QUANTIZERS, Quantizer


@pytest.mark.parametrize(("size", "multiple", "expected"), [(0, 32, 0), (1, 32, 32), (32, 32, 32), (33, 32, 64)])
def test_padded(size, multiple, expected):
    assert formats.padded(size, multiple) == expected


def test_registered_quantizers_are_the_published_ones():
    published = Quantizer(elements="e2m1", group=32, rotation=32, random_signs=False, scale="quest", shrink=1.0)
    assert QUANTIZERS["mxfp4-quest"] == published
    backward = Quantizer(group=32, rotation=32, random_signs=True, scale="absmax", shrink=0.75, rounding="nearest")
    assert QUANTIZERS["mxfp4-rtn"] == backward
    assert QUANTIZERS["mxfp4-sr"] == dataclasses.replace(backward, rounding="stochastic")
    assert formats.QUEST_GAUSSIAN_CLIP == 2.92247856
    nvfp4 = Quantizer(group=16, rotation=0, scale_format="e4m3", scale="absmax", headroom=1.0, largest_scale=448.0)
    table = {  # of arXiv 2601.22813
        "nvfp4-rtn": {},
        "nvfp4-rtn-2d": {"group_rows": 16},
        "nvfp4-rtn-4over6": {"scale": "four-over-six", "largest_scale": 256.0},
        "nvfp4-rtn-2d-4over6": {"scale": "four-over-six", "largest_scale": 256.0, "group_rows": 16},
        "nvfp4-sr": {"rounding": "stochastic", "headroom": 17 / 16},
        "nvfp4-eden": {
            "rounding": "eden",
            "headroom": 17 / 16 * 0.93,
            "largest_scale": 255.99,
            "rotation": 128,
            "random_signs": True,
        },
    }
    for name, fields in table.items():
        assert QUANTIZERS[name] == dataclasses.replace(nvfp4, **fields), name
    with pytest.raises(TypeError):
        QUANTIZERS["mine"] = published


def test_properties():
    """What noise and signs it takes, whether it clips, its blocks, gain and bits an element."""
    facts = {
        name: (
            "".join(
                letter if getattr(q, fact) else "-"
                for letter, fact in zip(
                    "nsuxctq",
                    ("noisy", "seeded", "unbiased", "exact", "clips", "two_level", "square"),
                    strict=True,
                )
            ),
            q.block,
            q.gain,
            q.bits,
        )
        for name, q in QUANTIZERS.items()
    }
    assert facts == {
        "mxfp4-quest": ("----c--", 32, 1.0, 4.25),
        "mxfp4-rtn": ("-s-----", 32, 4 / 3, 4.25),
        "mxfp4-sr": ("nsu----", 32, 4 / 3, 4.25),
        "mxfp4-eden": ("nsu----", 128, 4 / 3, 4.25),
        "mxfp4-rtn-2d": ("------q", 32, 1.0, 4.25),
        "nvfp4-rtn": ("-----t-", 16, 1.0, 4.5),
        "nvfp4-rtn-4over6": ("-----t-", 16, 1.0, 4.5),
        "nvfp4-rtn-2d": ("-----tq", 16, 1.0, 4.5),
        "nvfp4-rtn-2d-4over6": ("-----tq", 16, 1.0, 4.5),
        "nvfp4-sr": ("nsu--t-", 16, 1.0, 4.5),
        "nvfp4-eden": ("nsu--t-", 128, 1.0, 4.5),
        "mxfp8": ("-------", 32, 1.0, 8.25),
        "exact-fixed": ("--ux---", 32, 1.0, 32.0),
        "exact-random": ("-sux---", 32, 1.0, 32.0),
    }
    assert [name for name, q in QUANTIZERS.items() if q.stochastic] == ["mxfp4-sr", "nvfp4-sr"]


@pytest.mark.parametrize(
    ("fields", "clips"),
    [
        ({}, True),
        ({"shrink": 0.75}, False),
        ({"scale_rounding": "nearest"}, False),
        ({"scale_rounding": "up"}, False),
        ({"scale_rounding": "error"}, True),
        ({"scale_rounding": "even"}, True),
        ({"scale": "quest", "scale_rounding": "up"}, True),
        ({"elements": "e4m3", "scale_rounding": "down"}, False),
    ],
)
def test_a_mask_is_for_what_clips(fields, clips):
    """`clips` is true of every quantizer whose mask can have a zero on finite values of any size."""
    quantizer = Quantizer(**fields)
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 65)[:, None]
    zeros = (reference.quantize(x, quantizer, mask=True).mask != 255).any().item()
    assert quantizer.clips is clips is zeros


def test_every_legal_quantizer_is_read_back_from_its_name():
    legal = list(legal_quantizers())
    assert len(set(legal)) == len(legal) > 300 and set(QUANTIZERS.values()) <= set(legal)
    for quantizer in legal:
        assert formats.quantizer(quantizer.name) == quantizer
    for name, quantizer in QUANTIZERS.items():
        assert quantizer.name == name


NVFP4 = {"group": 16, "rotation": 0, "scale_format": "e4m3"}
EDEN = {"rounding": "eden", "random_signs": True, "rotation": 128, "shrink": 0.75}
CONTRADICTIONS = [
    ({"random_signs": True, "rotation": 0}, ["random_signs", "rotation=32"]),
    ({"elements": "float32", "shrink": 0.75}, ["float32", "shrink=0.75", "shrink=1.0"]),
    ({"elements": "float32", "group_rows": 32, "rotation": 0}, ["float32", "no scales", "group_rows"]),
    ({**NVFP4, "elements": "e4m3"}, ["'e4m3'", "NVFP4", "elements='e2m1'"]),
    ({"group": 16}, ["group=16", "'e8m0'", "group=32"]),
    ({"scale_format": "e4m3"}, ["group=32", "'e4m3'", "group=16"]),
    ({"elements": "e4m3", "scale": "quest"}, ["'e4m3'", "'quest'", "scale='absmax'"]),
    ({"elements": "e4m3", "shrink": 0.75}, ["'e4m3'", "shrink=0.75", "shrink=1.0"]),
    ({"scale": "quest", "rounding": "stochastic", "shrink": 0.75}, ["quest", "stochastic", "absmax"]),
    ({**NVFP4, "scale": "quest"}, ["quest", "'e4m3'", "absmax"]),
    ({"scale": "quest", "shrink": 0.75}, ["quest", "shrink=0.75", "shrink=1.0"]),
    ({"scale": "four-over-six"}, ["four-over-six", "E8M0", "scale_format='e4m3'"]),
    (
        {**NVFP4, "scale": "four-over-six", "rounding": "stochastic"},
        ["four-over-six", "stochastic", "biased", "absmax"],
    ),
    ({"rounding": "stochastic"}, ["stochastic", "shrink=1.0", "shrink=0.75"]),
    ({"noise_bits": 16}, ["noise_bits=16", "'nearest'", "rounding='stochastic'"]),
    ({"scale_rounding": "even", "scale": "quest"}, ["scale_rounding='even'", "'quest'", "scale='absmax'"]),
    ({"scale_rounding": "error", "shrink": 0.75}, ["scale_rounding='error'", "shrink"]),
    ({**NVFP4, "scale_rounding": "error"}, ["scale_rounding='error'", "E8M0", "scale_format"]),
    ({**NVFP4, "rounding": "stochastic"}, ["stochastic", "headroom=1.0", "headroom=17/16"]),
    ({**EDEN, "random_signs": False}, ["eden", "random_signs=True", "rotation=128"]),
    ({**EDEN, "rotation": 16}, ["eden", "rotation=16", "group=32", "rotation=128"]),
    ({"group_rows": 16, "rotation": 0}, ["group_rows=16", "group=32", "square"]),
    ({"group_rows": 32}, ["square", "rotation=32", "rotation=0"]),
    ({"group_rows": 32, "rotation": 0, "scale": "quest"}, ["square", "quest", "absmax"]),
    ({**NVFP4, "shrink": 0.75}, ["shrink=0.75", "'e4m3'", "headroom"]),
    ({**NVFP4, "scale_rounding": "up"}, ["scale_rounding='up'", "'e4m3'"]),
    ({"headroom": 17 / 16}, ["headroom=1.0625", "'e8m0'", "shrink"]),
    ({"largest_scale": 256.0}, ["largest_scale=256.0", "'e8m0'"]),
    ({**NVFP4, "scale": "four-over-six"}, ["four-over-six", "largest_scale=448.0", "largest_scale=256"]),
]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"elements": "e3m2"}, ["'elements'", "'e3m2'", "'e2m1'"]),
        ({"group": 8}, ["'group'", "8", "32"]),
        ({"rotation": 48}, ["'rotation'", "48", "32", "128"]),
        ({"shrink": 0.5}, ["'shrink'", "0.5", "0.75"]),
        ({"random_signs": 1}, ["'random_signs'", "True"]),
        ({"group_rows": True}, ["'group_rows'", "True", "32"]),
        ({"rotation": 32.0}, ["'rotation'", "32.0", "32"]),
        ({"noise_bits": 4}, ["'noise_bits'", "4", "8, 16"]),
        ({"scale_rounding": "floor"}, ["'scale_rounding'", "'floor'", "'down'"]),
        ({**NVFP4, "headroom": 2}, ["'headroom'", "2", "0.75 to 1.5"]),
        ({**NVFP4, "headroom": math.nan}, ["'headroom'", "nan"]),
        ({**NVFP4, "headroom": "1"}, ["'headroom'", "'1'", "number"]),
        ({**NVFP4, "largest_scale": 449}, ["'largest_scale'", "449", "448"]),
        *CONTRADICTIONS,
    ],
)
def test_contradictory_fields(fields, words):
    with pytest.raises(QuantizerError) as error:
        Quantizer(**fields)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_every_contradiction_has_a_case():
    """Each rule is the first to object to some case above."""
    first = set()
    for fields, _ in CONTRADICTIONS:
        unchecked = object.__new__(Quantizer)
        for field in dataclasses.fields(Quantizer):
            object.__setattr__(unchecked, field.name, fields.get(field.name, field.default))
        first.add([wrong for wrong, _ in formats._contradictions(unchecked)].index(True))
    assert first == set(range(len(formats._contradictions(Quantizer()))))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mxfp4-qest", ["'mxfp4-qest'", "did you mean 'mxfp4-quest'", "mxfp4-sr"]),
        ("nvfp4-4over6", ["'nvfp4-4over6'", "did you mean 'nvfp4-rtn-4over6'"]),
        ("nothing like it", ["Registered", "mxfp4-rtn", "Quantizer(...)"]),
        ("size=3", ["'size'", "rotation"]),
        ("nvfp4-sr,rotations=64", ["'rotations'", "did you mean 'rotation'"]),
        ("nvfp4-sr,64", ["'64'", "rotation"]),
        ("random_signs=yes", ["'random_signs'", "'yes'", "True"]),
        ("group=many", ["'group'", "'many'", "32"]),
        ("group=16", ["group=16", "32"]),
        ("nvfp4-sr,headroom=big", ["'headroom'", "'big'", "a number"]),
        ("mxfp4-sr,rotation=48", ["'rotation'", "48", "128"]),
        ("mxfp4-quest,rounding=stochastic", ["quest", "stochastic", "absmax"]),
    ],
)
def test_unknown_names(name, words):
    with pytest.raises(QuantizerError) as error:
        formats.quantizer(name)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_name_with_fields():
    assert formats.quantizer("mxfp4-sr, rotation=64") == dataclasses.replace(QUANTIZERS["mxfp4-sr"], rotation=64)
    assert formats.quantizer("group=32,scale=quest") == QUANTIZERS["mxfp4-quest"]
    changed = formats.quantizer("nvfp4-rtn,headroom=1.0625,random_signs=True,rotation=16")
    assert (changed.headroom, changed.random_signs, changed.rotation) == (17 / 16, True, 16)


def test_a_recipes_name_is_no_quantizer():
    with pytest.raises(qc.QuantizerError, match=r"Unknown quantizer 'quartet'.*recipe\('quartet'\)"):
        qc.quantizer("quartet")
