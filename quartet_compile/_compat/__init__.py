"""The private parts of torch that the backend and the passes use, in one place, by subject.

Supported: torch 2.11 and later. A torch that is older, or that lacks one of these parts, gives an `ImportError` that
names the part; tests/project/test_contract.py says which of them a torch has changed. (`kernels/lowering/inductor.py` is
the same for Inductor's lowerings.)
"""

# ruff: noqa: E402  the version comes first: an old torch lacks what the others import
from typing import TYPE_CHECKING, Any

from . import installed

installed.check_version()

from .accelerate import extend_accelerate
from .aot import (
    aot_module_simplified,
    default_partition,
    describe,
    description_of,
    descriptions_of,
    gradient_of,
    is_tangent,
    is_tracing,
    make_boxed,
    mark_boxed,
    output_of,
    update_of,
)
from .backends import known_backends, register_backend, replace_inductor
from .calls import Watcher, is_watched_call, watch_calls
from .compiled import (
    backend_function,
    backend_in,
    backend_name,
    backend_slot,
    calls_of,
    is_whole_call,
    original_call,
    original_of,
    other_backend,
    own_calls,
    owner_of,
    put_backend,
)
from .distributed import (
    from_first_rank,
    group_ranks,
    is_distributed_tensor,
    is_fully_sharded,
    mesh_groups,
    rank,
    say_to_ranks,
    sharded_name,
    whole,
)
from .dynamo import (
    Shortened,
    allow_variants,
    compilations_tried,
    compile_apart,
    compiled_forward,
    dynamo_sizes_restored,
    hides_errors,
    is_at_limit,
    is_not_compiled,
    reasons_not_compiled,
    shorten,
    stance,
)
from .fsdp import fsdp_parameters, gathered_dtype, parcel_of, send_parcel, was_gathered, why_no_parcel
from .inductor import (
    cache_dir,
    claim_joint_pass,
    compile_fx,
    cpp_compiler,
    decompositions,
    inductor_options,
    is_in_graph,
    kept_graphs,
    known_modes,
    mode_options,
    when_freed,
)
from .installed import UnfitTorch, is_tested, missing, tested_range
from .nodes import (
    OpOverload,
    annotation,
    annotations_of,
    expression,
    is_autograds,
    is_recomputed,
    is_tagged,
    is_tagged_backward,
    is_tagged_forward,
    keep_in_backward,
    keeps_in_backward,
    makes_a_view,
    module_stack,
    op_name,
    place_of,
    recomputation,
    save,
    sequence_number,
)
from .saved import graph_nodes, saved_bytes, saved_tensors
from .sources import WRAPPERS, Argument, arguments, attributes, example_shape, is_buffer, is_parameter, root_name
from .tensors import (
    FakeTensorMode,
    TorchDispatchMode,
    TransparentMode,
    ValueRead,
    base_of,
    check,
    decomposed,
    fake_like,
    fake_mode_of,
    is_fake,
    is_in_backward,
    map_instances,
    map_tensors,
    plain_tensors,
    plainly,
    wrapper,
)
from .texts import (
    function_name,
    graph_break,
    graph_break_logger,
    is_in_loop,
    trace_artifact,
    user_stack,
    with_remedy,
    wrapped_error,
)

__all__ = [
    "WRAPPERS",
    "Argument",
    "BufferInput",
    "CustomGraphPass",
    "FakeTensorMode",
    "GradOutput",
    "OpOverload",
    "ParamInput",
    "PlainInput",
    "Shortened",
    "TorchDispatchMode",
    "TransparentMode",
    "UnfitTorch",
    "ValueRead",
    "Watcher",
    "allow_variants",
    "annotation",
    "annotations_of",
    "aot_module_simplified",
    "arguments",
    "attributes",
    "backend_function",
    "backend_in",
    "backend_name",
    "backend_slot",
    "base_of",
    "cache_dir",
    "calls_of",
    "check",
    "claim_joint_pass",
    "compilations_tried",
    "compile_apart",
    "compile_fx",
    "compiled_forward",
    "cpp_compiler",
    "decomposed",
    "decompositions",
    "default_partition",
    "describe",
    "description_of",
    "descriptions_of",
    "dynamo_sizes_restored",
    "example_shape",
    "expression",
    "extend_accelerate",
    "fake_like",
    "fake_mode_of",
    "from_first_rank",
    "fsdp_parameters",
    "function_name",
    "gathered_dtype",
    "gradient_of",
    "graph_break",
    "graph_break_logger",
    "graph_nodes",
    "group_ranks",
    "hides_errors",
    "inductor_options",
    "is_at_limit",
    "is_autograds",
    "is_buffer",
    "is_distributed_tensor",
    "is_fake",
    "is_fully_sharded",
    "is_in_backward",
    "is_in_graph",
    "is_in_loop",
    "is_not_compiled",
    "is_parameter",
    "is_recomputed",
    "is_tagged",
    "is_tagged_backward",
    "is_tagged_forward",
    "is_tangent",
    "is_tested",
    "is_tracing",
    "is_watched_call",
    "is_whole_call",
    "keep_in_backward",
    "keeps_in_backward",
    "kept_graphs",
    "known_backends",
    "known_modes",
    "make_boxed",
    "makes_a_view",
    "map_instances",
    "map_tensors",
    "mark_boxed",
    "mesh_groups",
    "missing",
    "mode_options",
    "module_stack",
    "op_name",
    "original_call",
    "original_of",
    "other_backend",
    "output_of",
    "own_calls",
    "owner_of",
    "parcel_of",
    "place_of",
    "plain_tensors",
    "plainly",
    "put_backend",
    "rank",
    "reasons_not_compiled",
    "recomputation",
    "register_backend",
    "replace_inductor",
    "root_name",
    "save",
    "saved_bytes",
    "saved_tensors",
    "say_to_ranks",
    "send_parcel",
    "sequence_number",
    "sharded_name",
    "shorten",
    "stance",
    "tested_range",
    "trace_artifact",
    "update_of",
    "user_stack",
    "was_gathered",
    "watch_calls",
    "when_freed",
    "whole",
    "why_no_parcel",
    "with_remedy",
    "wrapped_error",
    "wrapper",
]


_LATER = {
    "BufferInput": "torch._functorch._aot_autograd.descriptors:BufferAOTInput",
    "CustomGraphPass": "torch._inductor.custom_graph_pass:CustomGraphPass",
    "GradOutput": "torch._functorch._aot_autograd.descriptors:GradAOTOutput",
    "ParamInput": "torch._functorch._aot_autograd.descriptors:ParamAOTInput",
    "PlainInput": "torch._functorch._aot_autograd.descriptors:PlainAOTInput",
}
"""Classes of parts of torch that `import torch` doesn't load: neither does an import of this package."""

if TYPE_CHECKING:
    BufferInput: type
    CustomGraphPass: type
    GradOutput: type
    ParamInput: type
    PlainInput: type


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return installed.private(_LATER[name])
