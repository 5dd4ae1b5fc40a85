"""The Triton templates of `gpu/templates`, the grids that launch them, and the choice among their tile sizes."""

from __future__ import annotations

import functools
import hashlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from .inductor import SymbolicGridFn, TritonTemplate, V, autotune_select_algorithm, config, ir
from .library import LibraryCall
from .places import keep_alone

_GPU = pathlib.Path(__file__).parent.parent / "gpu"


@functools.cache
def _tiles_hash() -> str:
    """Of the tile functions: they are imported by the generated code, so its text must change with them."""
    digest = hashlib.sha256()
    for path in sorted(_GPU.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


_START = """{% macro at(start) %}({{start|trim("'")}}){% endmacro %}"""
"""Where a part of the output starts, as `Flat.starts` gives it."""


def _template(name: str, grid: Callable, variant: str = "", op: str = "") -> TritonTemplate:
    """op: what the generated kernel says that it is, if not its template's name."""
    nvfp4 = "{% if GROUP is defined and GROUP == 16 %}nvfp4{% else %}mxfp4{% endif %}"
    number_format = "{% if E4M3 is defined and E4M3 %}mxfp8{% else %}" + nvfp4 + "{% endif %}"
    head = (
        "from quartet_compile.kernels.gpu import any_blocks, assembly, blocks, fp8, groups, product, random, reductions\n"
        "from quartet_compile.kernels.gpu import rotation, rounding, scales\n"
        f"# quartet: {op or name} {number_format}, tile functions {_tiles_hash()}\n"
    )
    source = _START + (_GPU / "templates" / f"{name}.py.jinja").read_text()
    return TritonTemplate(
        name=f"quartet_{op or name}{variant and '_' + variant}", grid=SymbolicGridFn(grid), source=head + source
    )


def _grid_of_groups(rows, columns, meta, *, cdiv):
    return (cdiv(rows * cdiv(columns, 32), meta["GROUPS"]), 1, 1)


def _grid_of_rotations(rows, columns, meta, *, cdiv):
    return (cdiv(rows * cdiv(columns, meta["SIZE"]), meta["GROUPS"]), 1, 1)


def _grid_of_blocks(rows, blocks, meta, *, cdiv):
    if meta["TALL"]:
        return (cdiv(rows, meta["BLOCKS"]) * blocks, 1, 1)
    return (cdiv(rows * blocks, meta["BLOCKS"]), 1, 1)


def _grid_of_rows(rows, columns, meta, *, cdiv):
    return (cdiv(rows, meta["BLOCK_ROWS"]), 1, 1)


def _grid_of_tiles(rows, columns, meta, *, cdiv):
    return (cdiv(rows, meta["TILE_ROWS"]) * cdiv(columns, meta["TILE_COLUMNS"]), 1, 1)


def _grid_of_strips(rows, columns, meta, *, cdiv):
    return (cdiv(rows, meta["TILE_ROWS"] * meta["TILES"]) * cdiv(columns, meta["TILE_COLUMNS"]), 1, 1)


def _grid_of_products(m, n, meta, *, cdiv):
    return (cdiv(m, meta["BLOCK_M"]) * cdiv(n, meta["BLOCK_N"]), 1, 1)


def _grid_of_row_groups(rows, columns, matrices, meta, *, cdiv):
    return ((cdiv(rows, meta["BLOCK_M"]) + matrices + 1) * cdiv(columns, meta["BLOCK_N"]), 1, 1)


def _grid_of_stacked_products(rows, columns, matrices, meta, *, cdiv):
    return (matrices * cdiv(rows, meta["BLOCK_M"]) * cdiv(columns, meta["BLOCK_N"]), 1, 1)


def _grid_of_programs(m, n, meta, *, cdiv, min):
    return (min(meta["PROGRAMS"], cdiv(m, meta["BLOCK_M"]) * cdiv(n, meta["BLOCK_N"])), 1, 1)


quantize = _template("quantize", _grid_of_groups)
quantize_transposed = _template("quantize_transposed", _grid_of_tiles)
quantize_pair = _template("quantize_pair", _grid_of_strips)
requantize = _template("requantize", _grid_of_strips)
quantize_any = _template("quantize_any", _grid_of_blocks)
requantize_any = _template("quantize_any", _grid_of_blocks, op="requantize_any")
largest = _template("quantize_any", _grid_of_blocks, op="quantize_largest")
largest_of_codes = _template("quantize_any", _grid_of_blocks, op="requantize_largest")
scaled_mm = _template("scaled_mm", _grid_of_products)
scaled_mm_tma = _template("scaled_mm_tma", _grid_of_programs)
decode_fp8 = _template("decode_fp8", _grid_of_rows)
scaled_mm_fp8 = _template("scaled_mm_fp8", _grid_of_products)
grouped_rows = _template("scaled_grouped_mm", _grid_of_row_groups, "rows")
grouped_stacked = _template("scaled_grouped_mm", _grid_of_stacked_products, "stacked")
unrotate = _template("unrotate", _grid_of_rotations)

GROUP_TILES = [dict(GROUPS=128, num_warps=4, num_stages=1), dict(GROUPS=256, num_warps=8, num_stages=1)]
"""For templates whose programs take groups, wherever in the matrix."""


def over_k(tiles: Sequence[dict[str, Any]], k: Any) -> list[dict[str, Any]]:
    """The tiles of a product whose templates walk over `k` elements, BLOCK_K a step."""
    known = V.graph.sizevars.statically_known_multiple_of
    return [dict(t, STAGES=t["num_stages"], EVEN_K=known(k, t["BLOCK_K"])) for t in tiles]


def least_wasted(tiles: Sequence[dict[str, Any]], k: Any) -> list[dict[str, Any]]:
    """Those tiles, the first the one to take unmeasured: the longest step of two or more of which little lies beyond K, or
    the shorter step."""
    sizes = V.graph.sizevars

    def wasted(tile: dict[str, Any]) -> int:
        step = tile["BLOCK_K"]
        whole = sizes.statically_known_multiple_of(k, step) and sizes.statically_known_geq(k, 2 * step)
        return 0 if whole or sizes.statically_known_geq(k, 8 * step) else step

    return sorted(tiles, key=wasted)


def select(
    template: TritonTemplate,
    inputs: Sequence[Any],
    layout: ir.Layout,
    sizes: Sequence[Any],
    configurations: Sequence[dict[str, Any]],
    library: LibraryCall | None = None,
    **constants: Any,
) -> ir.TensorBox:
    """The template with its first configuration; under `max_autotune` the fastest of all, the library's call among them.

    library: a call that gives the same of the same inputs; the only choice if it is `alone`.
    """
    choices: list[Any] = []
    everything = config.max_autotune or config.max_autotune_gemm
    ours = [] if library is not None and library.alone else configurations if everything else configurations[:1]
    for configuration in ours:
        template.maybe_append_choice(
            choices, input_nodes=tuple(inputs), layout=layout, call_sizes=list(sizes), **configuration, **constants
        )
    if library is not None and (library.alone or (everything and not config.deterministic)):
        library.choice.maybe_append_choice(choices, input_nodes=tuple(inputs), layout=layout, **library.arguments)
    chosen = autotune_select_algorithm(template.name, choices, list(inputs), layout)
    made = chosen[0] if isinstance(chosen, tuple) else chosen  # torch 2.12 and later return the choice too
    if layout.dtype.is_floating_point:  # others have no epilogue
        keep_alone(made, layout.size)
    return made
