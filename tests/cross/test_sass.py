"""Loops in SASS: where they are, and how often they run. Listings by hand, as nvdisasm writes them."""

from __future__ import annotations

import pytest

from quartet_compile.cross.sass import UnknownTrips, find_loops, issued, parse

HEAD = "        /*0010*/                   "


def listing(text):
    """Lines of `label:` or `instruction` as nvdisasm's."""
    lines = [line.strip() for line in text.strip().splitlines()]
    return "\n".join(line if line.endswith(":") else f"{HEAD}{line} ;" for line in lines)


COUNTED = """
    UMOV UR4, 0x100
    .L_x_0:
    FADD R0, R0, R1
    UIADD3 UR4, UPT, UPT, UR4, 0x80, URZ
    UISETP.NE.U32.AND UP0, UPT, UR4, {end}, UPT
    NOP
    BRA.U UP0, `(.L_x_0)
    EXIT
    FADD R0, R0, R1
"""
PERSISTENT = """
    S2UR UR36, SR_CTAID.X
    .L_x_1:
    MOV R5, RZ
    .L_x_0:
    FADD R0, R0, R1
    IADD3 R5, P1, R5, 0x1, RZ
    ISETP.NE.U32.AND P0, PT, R5, 0x4, PT
    @P0 BRA `(.L_x_0)
    UISETP.GE.U32.AND UP0, UPT, UR36, 0x6, UPT
    UIADD3 UR8, UPT, UPT, UR36, 0x4, URZ
    UMOV UR36, UR8
    BRA.U !UP0, `(.L_x_1)
    EXIT
"""
WIDE = """
    CS2R R22, SRZ
    .L_x_0:
    HGMMA.64x128x16.F32.BF16 R24, R108, gdesc[UR16], R24, gsb0
    IADD3 R22, P0, R22, 0x20, RZ
    IMAD.X R23, RZ, RZ, R23, P0
    ISETP.GE.U32.AND P0, PT, R22, 0x60, PT
    ISETP.GE.U32.AND.EX P0, PT, R23, RZ, PT, P0
    @!P0 BRA `(.L_x_0)
    EXIT
"""
FLAG = """
    UPLOP3.LUT UP0, UPT, UPT, UPT, UPT, 0x80, 0x0
    .L_x_0:
    FADD R0, R0, R1
    PLOP3.LUT P0, PT, PT, PT, UP0, 0x80, 0x0
    UPLOP3.LUT UP0, UPT, UPT, UPT, UPT, 0x40, 0x0
    @P0 BRA `(.L_x_0)
    EXIT
"""
WAIT = """
    .L_x_0:
    SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR9], R4
    @!P0 BRA `(.L_x_0)
    EXIT
"""


@pytest.mark.parametrize(
    "text, ctas, adds, total",
    [
        (COUNTED.format(end="0x300"), 3, 3 * 4, 3 * (2 + 4 * 4)),
        (COUNTED.format(end="0x180"), 1, 1, 2 + 4),
        # tiles 0 .. 9 among 4 CTAs, 4 steps each
        (PERSISTENT, 4, 10 * 4, 4 * 2 + 10 * 5 + 10 * 4 * 4),
        (FLAG, 1, 2, 2 + 2 * 4),
        (WAIT, 5, 0, 5 * 3),
    ],
)
def test_a_body_counts_once_a_trip(text, ctas, adds, total):
    counted = issued(listing(text), ctas)
    assert (counted["FADD"], counted.total()) == (adds, total)


def test_loops_inside_of_loops():
    (outer,) = find_loops(parse(listing(PERSISTENT)))
    assert (outer.first, outer.last) == (1, 9)
    assert [(loop.first, loop.last) for loop in outer.inner] == [(2, 5)]


def test_64_bits_are_compared_by_halves():
    assert issued(listing(WIDE), 2)["HGMMA"] == 2 * 3


def test_a_half_that_copies_no_predicate_is_refused():
    text = WIDE.replace("R23, RZ, PT, P0", "R23, RZ, PT, PT")
    with pytest.raises(UnknownTrips, match="end is decided by ISETP.GE.U32.AND.EX"):
        issued(listing(text), 1)


def test_a_path_that_is_not_taken():
    assert issued(listing(WIDE), 2, untaken=("HGMMA",)).total() == 2 * 2


@pytest.mark.parametrize(
    "change, reason",
    [
        (("UMOV UR4, 0x100", "LDCU UR4, c[0x0][0x390]"), "starts at a result of LDCU"),
        (("UR4, {end}, UPT", "UR4, UR9, UPT"), "end is not a constant"),
        (("UIADD3 UR4, UPT, UPT, UR4, 0x80, URZ", "UIMAD UR4, UR4, UR4, URZ"), "counter is set by UIMAD"),
        (("UISETP.NE.U32.AND UP0", "FSETP.NE.AND UP0"), "end is decided by FSETP"),
        (("BRA.U UP0, ", "BRA "), "left from its middle"),
        (("{end}", "0x101"), "never meets its end"),
        (("UMOV UR4, 0x100", "USETMAXREG 0x18"), "different parts of the code"),
    ],
)
def test_what_the_code_does_not_tell_is_refused(change, reason):
    text = COUNTED.replace(*change).format(end="0x300")
    with pytest.raises(UnknownTrips, match=reason):
        issued(listing(text), 1)
