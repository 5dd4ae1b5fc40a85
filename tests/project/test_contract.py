"""What this project takes from torch's private parts, tried on torch itself: each test is named for what torch has changed.

It uses none of the project's code, so what fails here is a change of torch's, and `quartet_compile/_compat` or
`kernels/lowering/inductor.py` is where to follow it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import inspect
import logging
import types

import pytest
import torch
from torch import nn
from torch.fx.traceback import annotate
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

PARTS = [
    "functorch.compile:make_boxed_func",
    "torch._C._dynamo.eval_frame:_debug_get_cache_entry_list",
    "torch._C._dynamo.eval_frame:set_code_exec_strategy",
    "torch._C:_current_graph_task_id",
    "torch._dynamo.backends.registry:list_backends",
    "torch._dynamo.backends.registry:register_backend",
    "torch._dynamo.comptime:comptime",
    "torch._dynamo.config:accumulated_recompile_limit",
    "torch._dynamo.config:recompile_limit",
    "torch._dynamo.config:suppress_errors",
    "torch._dynamo.convert_frame:input_codes.seen",
    "torch._dynamo.device_interface:CudaInterface.Worker.current_device",
    "torch._dynamo.device_interface:CudaInterface.Worker.get_device_properties",
    "torch._dynamo.device_interface:CudaInterface.get_raw_stream",
    "torch._dynamo.eval_frame:OptimizeContext.__call__",
    "torch._dynamo.eval_frame:OptimizeContext.__init__",
    "torch._dynamo.eval_frame:skip_code",
    "torch._dynamo.exc:FailOnRecompileLimitHit",
    "torch._dynamo.exc:ShortenTraceback",
    "torch._dynamo.exc:Unsupported",
    "torch._dynamo.external_utils:wrap_inline",
    "torch._dynamo.pgo:get_code_state",
    "torch._dynamo.types:FrameAction.DEFAULT",
    "torch._dynamo.types:FrameExecStrategy",
    "torch._dynamo.utils:counters",
    "torch._dynamo:OptimizedModule",
    "torch._functorch._aot_autograd.descriptors:BufferAOTInput",
    "torch._functorch._aot_autograd.descriptors:GradAOTOutput",
    "torch._functorch._aot_autograd.descriptors:ParamAOTInput",
    "torch._functorch._aot_autograd.descriptors:PlainAOTInput",
    "torch._functorch.aot_autograd:aot_module_simplified",
    "torch._functorch.config:patch",
    "torch._functorch.partitioners:min_cut_rematerialization_partition",
    "torch._guards:TracingContext.try_get",
    "torch._inductor.async_compile:AsyncCompile",
    "torch._inductor.codecache:PyCodeCache",
    "torch._inductor.codecache:PyCodeCache.write",
    "torch._inductor.compile_fx:_recursive_joint_graph_passes",
    "torch._inductor.compile_fx:_warn_tf32_disabled",
    "torch._inductor.compile_fx:compile_fx",
    "torch._inductor.compile_fx:compile_fx_inner",
    "torch._inductor.config:get_config_copy",
    "torch._inductor.config:get_type",
    "torch._inductor.config:joint_custom_pre_pass",
    "torch._inductor.config:max_autotune",
    "torch._inductor.config:max_autotune_gemm",
    "torch._inductor.cpp_builder:CppBuilder.build",
    "torch._inductor.cpp_builder:CppBuilder.get_target_file_path",
    "torch._inductor.cpp_builder:get_cpp_compiler",
    "torch._inductor.custom_graph_pass:CustomGraphPass.uuid",
    "torch._inductor.decomposition:select_decomp_table",
    "torch._inductor.exc:InvalidCxxCompiler",
    "torch._inductor.fx_passes.joint_graph:UniformValueConstantFolder",
    "torch._inductor.fx_passes.joint_graph:lazy_init",
    "torch._inductor.fx_passes.post_grad:lazy_init",
    "torch._inductor.graph:GraphLowering._compile_to_module_lines",
    "torch._inductor.graph:GraphLowering.constant_name",
    "torch._inductor.ir:TensorBox",
    "torch._inductor.lowering:empty_strided",
    "torch._inductor.lowering:fallback_handler",
    "torch._inductor.lowering:lowerings",
    "torch._inductor.lowering:register_lowering",
    "torch._inductor.runtime.cache_dir_utils:cache_dir",
    "torch._inductor.runtime.triton_helpers:set_driver_to_gpu",
    "torch._inductor.select_algorithm:AlgorithmSelectorCache.do_autotuning",
    "torch._inductor.select_algorithm:SymbolicGridFn",
    "torch._inductor.select_algorithm:TritonTemplate.maybe_append_choice",
    "torch._inductor.select_algorithm:autotune_select_algorithm",
    "torch._inductor.select_algorithm:realize_inputs",
    "torch._inductor.sizevars:SizeVarAllocator.statically_known_multiple_of",
    "torch._inductor.virtualized:V",
    "torch._inductor.virtualized:ops",
    "torch._inductor:list_mode_options",
    "torch._logging:getArtifactLogger",
    "torch._logging:trace_structured",
    "torch._ops:OpOverload",
    "torch._subclasses.fake_tensor:DataDependentOutputException",
    "torch._subclasses.fake_tensor:DynamicOutputShapeException",
    "torch._subclasses.fake_tensor:FakeTensor",
    "torch._subclasses.fake_tensor:in_kernel_invocation_manager",
    "torch._subclasses.fake_tensor:is_fake",
    "torch._subclasses:FakeTensorMode",
    "torch.cuda:_DeviceGuard",
    "torch.cuda:_exchange_device",
    "torch.cuda:_maybe_exchange_device",
    "torch.distributed.distributed_c10d:_get_default_store",
    "torch.distributed.distributed_c10d:_resolve_process_group",
    "torch.distributed.fsdp:FSDPModule",
    "torch.distributed.tensor:DTensor",
    "torch.fx.traceback:current_meta",
    "torch.nn.parallel:DistributedDataParallel._get_active_ddp_module",
    "torch.utils._python_dispatch:TorchDispatchMode",
    "torch.utils._python_dispatch:_disable_current_modes",
    "torch.utils._python_dispatch:is_traceable_wrapper_subclass",
    "torch.utils._pytree:keystr",
    "torch.utils._pytree:tree_map_with_path",
    "torch:_TorchCompileInductorWrapper.__init__",
    "torch:_TorchCompileWrapper",
    "torch:_check",
]


for part in PARTS:  # the other tests read them as `torch._inductor...`
    with contextlib.suppress(ImportError):
        importlib.import_module(part.partition(":")[0])


@pytest.mark.parametrize("path", PARTS)
def test_torch_has(path):
    module, _, attributes = path.partition(":")
    found = importlib.import_module(module)
    for attribute in attributes.split("."):
        found = getattr(found, attribute)


ARGUMENTS = {
    "torch._inductor.compile_fx:compile_fx": ["config_patches", "inner_compile", "decompositions"],
    "torch._functorch.aot_autograd:aot_module_simplified": [
        *("fw_compiler", "bw_compiler", "inference_compiler", "partition_fn", "decompositions"),
        "keep_inference_input_mutations",
    ],
    "torch._functorch.partitioners:min_cut_rematerialization_partition": ["compiler"],
    "torch._inductor.select_algorithm:TritonTemplate": ["name", "grid", "source"],
}


@pytest.mark.parametrize("path", ARGUMENTS)
def test_arguments_of(path):
    module, _, name = path.partition(":")
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    assert set(ARGUMENTS[path]) <= set(parameters)


# What Dynamo says of a graph and of its inputs.


class Model(nn.Module):
    """A weight of its own, one of a submodule's, a buffer, and an annotated product."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4, bias=False)])
        self.register_buffer("scale", torch.ones(4))
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with annotate({"key": "value"}):
            x = x @ self.weight
        return self.layers[0](x) * self.scale


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


def dynamo_inputs(model, *inputs):
    """The source of each input of a Dynamo graph, with its value; Dynamo forgets both after the backend's call."""
    found = {}

    def backend(gm, _):
        for argument in (node.meta["grapharg"] for node in gm.graph.nodes if node.op == "placeholder"):
            name = argument.source.name
            found[name() if callable(name) else name] = argument.example
        return gm.forward

    torch.compile(model, backend=backend, dynamic=False)(*inputs)
    return found


def dynamo_nodes(model, *inputs):
    """The nodes of a Dynamo graph."""
    nodes = []
    torch.compile(model, backend=lambda gm, _: nodes.extend(gm.graph.nodes) or gm.forward, dynamic=False)(*inputs)
    return nodes


SOURCES = {
    "a parameter": "L['self']._parameters['weight']",
    "a submodule's parameter": "L['self']._modules['layers']._modules['0']._parameters['weight']",
    "a buffer": "L['self']._buffers['scale']",
    "an argument": "L['x']",
}


@pytest.mark.parametrize("kind", SOURCES)
def test_source_of(kind):
    assert SOURCES[kind] in dynamo_inputs(Model(), torch.randn(2, 4))


def test_source_of_a_dicts_item():
    found = dynamo_inputs(lambda x, params: x @ params["a.weight"], torch.randn(2, 4), {"a.weight": torch.randn(4, 4)})
    assert "L['params']['a.weight']" in found


layer = nn.Linear(4, 4, bias=False)


def test_source_of_a_global():
    assert "G['layer']._parameters['weight']" in dynamo_inputs(lambda x: layer(x), torch.randn(2, 4))


def test_a_graph_input_keeps_the_parameter_that_it_was_made_of():
    model = Model()
    assert dynamo_inputs(model, torch.randn(2, 4))[SOURCES["a parameter"]] is model.weight


def test_a_node_of_a_dynamo_graph_has_an_example_value():
    nodes = dynamo_nodes(Model(), torch.randn(2, 4))
    assert (2, 4) in [tuple(node.meta["example_value"].shape) for node in nodes if node.op == "placeholder"]


def test_the_module_stack_has_the_path_and_the_class():
    stacks = [node.meta.get("nn_module_stack") or {} for node in dynamo_nodes(Model(), torch.randn(2, 4))]
    assert ("L['self'].layers.0", nn.Linear) in [list(stack.values())[-1] for stack in stacks if stack]


def test_an_optimized_module_keeps_the_original():
    model = Model()
    compiled = torch.compile(model, backend="eager")
    assert isinstance(compiled, torch._dynamo.OptimizedModule) and compiled._orig_mod is model


def test_a_compiled_function_keeps_the_original_its_wrappers_id_and_its_inlining():
    def function(x):
        return x

    compiled = torch.compile(function, backend="eager")
    assert compiled._torchdynamo_orig_callable is function
    assert compiled._torchdynamo_wrapper_id == id(compiled) and callable(compiled._torchdynamo_inline)


def test_a_compiled_function_keeps_its_backend_in_a_variable_named_callback():
    def backend(gm, inputs):
        return gm.forward

    compiled = torch.compile(lambda x: x, backend=backend)
    variables = dict(zip(compiled.__code__.co_freevars, compiled.__closure__, strict=True))
    slot = variables["callback"].cell_contents
    while hasattr(slot._torchdynamo_orig_backend, "_torchdynamo_orig_backend"):
        slot = slot._torchdynamo_orig_backend
    held = slot._torchdynamo_orig_backend
    assert held.compiler_fn is backend and held.compiler_name and held.kwargs == {} and "fn" in variables


def test_an_optimized_module_keeps_its_backend_in_its_context():
    compiled = torch.compile(Model(), backend="eager")
    assert hasattr(compiled.dynamo_ctx.callback, "_torchdynamo_orig_backend")


def test_a_compilation_by_inductor_is_held_by_a_wrapper_with_its_options():
    compiled = torch.compile(lambda x: x, options={"max_autotune": True}, dynamic=False)
    names = compiled.__code__.co_freevars
    slot = compiled.__closure__[names.index("callback")].cell_contents
    while hasattr(slot, "_torchdynamo_orig_backend"):
        slot = slot._torchdynamo_orig_backend
    assert type(slot) is torch._TorchCompileInductorWrapper
    assert slot.config == {"max_autotune": True} and slot.dynamic is False


def test_a_wrapper_holds_a_backend_that_is_a_function():
    wrapper = torch._TorchCompileWrapper(print, None, None, True)
    assert wrapper.compiler_fn is print and wrapper.kwargs == {} and wrapper.dynamic is True
    assert wrapper == torch._TorchCompileWrapper(print, None, None, True)


def test_fsdp_knows_the_names_of_parameters_from_the_first_call_on(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.Sequential(nn.Sequential(nn.Linear(4, 4, bias=False)))
        for module in (model[0], model):
            torch.distributed.fsdp.fully_shard(module)
        (part,) = model[0]._get_fsdp_state()._fsdp_param_group.fsdp_params
        assert part._param_fqn is None
        model(torch.randn(2, 4))
        assert part._param_fqn == "0.0.weight"
        assert part._module_info.module is model[0][0] and part._module_info.param_name == "weight"
    finally:
        torch.distributed.destroy_process_group()


def test_the_context_of_a_compilation_knows_how_it_was_asked_for(monkeypatch):
    seen, context = [], torch._dynamo.eval_frame.OptimizeContext
    original = context.__call__
    monkeypatch.setattr(context, "__call__", lambda self, function: seen.append(self) or original(self, function))
    torch.compile(lambda x: x, backend="eager", dynamic=False, fullgraph=True)
    assert [(one._dynamic, one.fullgraph) for one in seen] == [(False, True)]


def test_module_compile_compiles_the_call_impl():
    model = Model()
    model.compile(backend="eager")
    assert vars(model)["_compiled_call_impl"] is not None
    assert model._compiled_call_impl._torchdynamo_orig_callable.__name__ == "_call_impl"


def test_comptime_knows_the_backend_and_the_variables():
    seen = []

    def backend(gm, inputs):
        return gm.forward

    def told(context):
        translator = context._i_will_not_complain_if_bc_breaks_InstructionTranslator()
        held = translator.output.compiler_fn
        held = getattr(held, "_torchdynamo_orig_backend", held)
        seen.append((context.get_local("number").as_python_constant(), getattr(held, "compiler_fn", held)))

    def function(x):
        number = 3  # noqa: F841
        torch._dynamo.comptime.comptime(told)
        return x + 1

    torch.compile(function, backend=backend)(torch.ones(2))
    assert seen == [(3, backend)]


def test_a_code_object_has_its_cache_entries_and_is_among_those_seen():
    def function(x):
        return x + 1

    torch.compile(function, backend="eager")(torch.ones(2))
    entries = torch._C._dynamo.eval_frame._debug_get_cache_entry_list(function.__code__)
    assert len(entries) == 1
    assert function.__code__ in [reference() for reference in torch._dynamo.convert_frame.input_codes.seen]


def test_dynamo_counts_frames_and_reasons():
    before = torch._dynamo.utils.counters["frames"]["total"]
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))
    assert torch._dynamo.utils.counters["frames"]["total"] == before + 1
    assert hasattr(torch._dynamo.utils.counters["unimplemented"], "items")


def test_dynamo_remembers_sizes_in_a_mapping():
    state = torch._dynamo.pgo.get_code_state()
    assert all(hasattr(state, method) for method in ("clear", "update", "keys"))


def test_an_entry_point_is_a_backend():
    (entry,) = importlib.metadata.entry_points(group="torch_dynamo_backends", name="quartet")
    assert entry.name in torch._dynamo.list_backends(exclude_tags=())


def test_an_error_of_a_backend_that_shortens_its_traceback_reaches_the_user_as_it_is():
    class Wrong(torch._dynamo.exc.ShortenTraceback, ValueError):
        def __init__(self):
            super().__init__("no", first_useful_frame=None)

    def backend(gm, inputs):
        raise Wrong

    with pytest.raises(Wrong):
        torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))


# What Dynamo writes.


def broken(x):
    x = x + 1
    torch._dynamo.graph_break()
    return x + 1


def test_the_log_of_graph_breaks_names_the_line_and_the_reason():
    records = []
    logger = torch._logging.getArtifactLogger("torch._dynamo.symbolic_convert", "graph_breaks")
    handler = types.SimpleNamespace(level=0, handle=records.append)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        torch.compile(broken, backend="eager")(torch.ones(2))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    line = broken.__code__.co_firstlineno + 2
    (text,) = (record.getMessage() for record in records if "in user code at" in record.getMessage())
    assert f"in user code at {__file__}:{line}\nGraph Break Reason: " in text
    assert "Call to `torch._dynamo.graph_break()`\n  Explanation: " in text


def test_the_frame_after_a_graph_break_is_named_by_the_function():
    names = []

    def backend(gm, inputs):
        frame = inspect.currentframe()
        while frame is not None:
            names.extend(
                [frame.f_locals["code"].co_name] if isinstance(frame.f_locals.get("code"), types.CodeType) else []
            )
            frame = frame.f_back
        return gm.forward

    torch.compile(broken, backend=backend)(torch.ones(2))
    assert any(name.startswith("torch_dynamo_resume_in_broken_at_") for name in names)


def test_a_graph_break_in_a_loop_is_named_so():
    def function(x):
        for _ in range(2):
            torch._dynamo.graph_break()
            x = x + 1
        return x

    torch._dynamo.utils.counters["unimplemented"].clear()
    torch.compile(function, backend="eager")(torch.ones(2))
    assert any("graph break in loop" in reason for reason in torch._dynamo.utils.counters["unimplemented"])


def test_an_error_of_dynamo_has_the_users_stack():
    with pytest.raises(torch._dynamo.exc.Unsupported) as caught:
        torch.compile(broken, backend="eager", fullgraph=True)(torch.ones(2))
    assert [frame.filename for frame in caught.value.real_stack] == [__file__]


def test_an_error_on_fakes_ends_with_what_it_wraps():
    with pytest.raises(torch._dynamo.exc.TorchRuntimeError, match=r"(?m): got (\w+\(.*\))$"):
        torch.compile(lambda x: x @ torch.ones(5, 5), backend="eager")(torch.ones(2, 2))


# What AOTAutograd says of a joint graph.


def joint_graph(model, *inputs, edit=None, forwards=None):
    """The joint graph of a model, as the partition function gets it. edit: called with it before it is partitioned;
    forwards: a list that gets the forward graph."""
    graphs = []
    aot, partition = torch._functorch.aot_autograd, torch._functorch.partitioners.min_cut_rematerialization_partition

    def keep(joint, joint_inputs, **how):
        graphs.append(joint.graph)
        if edit is not None:
            edit(joint.graph)
        return partition(joint, joint_inputs, compiler="inductor", **how)

    def boxed(gm, _, into=None):
        if into is not None:
            into.append(gm.graph)
        return aot.make_boxed_func(gm.forward)

    def backend(gm, gm_inputs):
        forward = functools.partial(boxed, into=forwards)
        how = {"partition_fn": keep, "keep_inference_input_mutations": True}
        return aot.aot_module_simplified(gm, gm_inputs, fw_compiler=forward, bw_compiler=boxed, **how)

    torch.compile(model, backend=backend, dynamic=False)(*inputs).sum().backward()
    (graph,) = graphs
    return graph


@pytest.fixture(scope="module")
def joint():
    torch._dynamo.reset()
    return joint_graph(Model(), torch.randn(2, 4, requires_grad=True))


def output_of(graph):
    return next(iter(reversed(graph.nodes)))


def products(graph):
    return [node for node in graph.nodes if node.target is torch.ops.aten.mm.default]


def test_inputs_are_described_by_their_position(joint):
    plain = torch._functorch._aot_autograd.descriptors.PlainAOTInput
    described = [node.meta["desc"] for node in joint.nodes if node.op == "placeholder"]
    assert [one.idx for one in described if isinstance(one, plain)] == [0, 1, 2, 3]


def test_parameters_and_buffers_are_described_by_their_names():
    descriptors = torch._functorch._aot_autograd.descriptors
    assert descriptors.ParamAOTInput("a.weight").target == "a.weight"
    assert descriptors.BufferAOTInput("scale").target == "scale"


def test_a_part_of_a_subclass_is_described_by_its_whole():
    descriptors = torch._functorch._aot_autograd.descriptors
    whole = descriptors.PlainAOTInput(0)
    assert descriptors.SubclassGetAttrAOTInput(whole, "_local_tensor").base == whole


def test_tangents_are_inputs_named_so(joint):
    assert [n for n in joint.nodes if n.op == "placeholder" and "tangents" in n.target]


def test_a_tangent_is_described_by_its_output(joint):
    (tangent,) = (node for node in joint.nodes if node.op == "placeholder" and "tangents" in node.target)
    assert tangent.meta["desc"].output in output_of(joint).meta["desc"]


def test_outputs_are_described_and_gradients_by_their_inputs(joint):
    inputs = [node.meta["desc"] for node in joint.nodes if node.op == "placeholder"]
    results = output_of(joint).meta["desc"]
    grads = [one for one in results if isinstance(one, torch._functorch._aot_autograd.descriptors.GradAOTOutput)]
    assert len(results) == len(output_of(joint).args[0]) and len(grads) >= 3
    assert all(one.grad_of in inputs for one in grads)


def test_a_new_value_is_described_by_its_input():
    descriptors = torch._functorch._aot_autograd.descriptors
    plain = descriptors.PlainAOTInput(1)
    assert descriptors.InputMutationAOTOutput(plain).mutated_input == plain


def test_a_forward_op_and_its_backward_have_one_sequence_number(joint):
    numbers = [node.meta["seq_nr"] for node in products(joint)]
    assert len(numbers) == 6 and {numbers.count(number) for number in numbers} == {3}


def test_the_partitioners_tags_say_forward_and_backward(joint):
    tags = {node.meta.get("partitioner_tag") for node in joint.nodes}
    assert {"is_forward", "is_backward"} <= tags


@pytest.mark.parametrize("tag, is_forward", [(None, True), ("must_be_in_backward", False)])
def test_a_node_that_must_be_in_backward_is_not_moved_into_the_forward_graph(tag, is_forward):
    """The largest element of an output, as a factor of a gradient: less to save than the output, so without the tag it is
    computed in the forward graph."""
    amax, mul = torch.ops.aten.amax.default, torch.ops.aten.mul.Tensor

    def edit(graph):
        product, output = products(graph)[0], output_of(graph)
        gradient = output.args[0][1]
        with graph.inserting_before(output):
            largest = graph.call_function(amax, (product,))
            scaled = graph.call_function(mul, (gradient, largest))
        with product.meta["val"].fake_mode:
            largest.meta["val"], scaled.meta["val"] = amax(product.meta["val"]), gradient.meta["val"] + 0
        if tag is not None:
            largest.meta["partitioner_tag"] = tag
        output.replace_input_with(gradient, scaled)

    forwards = []
    joint_graph(nn.Linear(64, 64, bias=False), torch.randn(8, 64), edit=edit, forwards=forwards)
    assert (amax in [node.target for node in forwards[0].nodes]) is is_forward


def test_an_annotation_is_on_the_nodes_that_it_was_traced_around(joint):
    marked = [node for node in products(joint) if (node.meta.get("custom") or {}).get("key") == "value"]
    assert len(marked) in (1, 3)  # its backward, too, in some versions


def test_an_annotation_is_in_the_current_meta():
    with annotate({"key": "value"}):
        assert torch.fx.traceback.current_meta["custom"] == {"key": "value"}


def test_joint_nodes_have_the_module_stack_and_the_line(joint):
    stacked = [node for node in products(joint) if node.meta.get("nn_module_stack")]
    assert list(stacked[0].meta["nn_module_stack"].values())[-1][1] is nn.Linear
    assert __file__ in stacked[0].meta["stack_trace"]


def test_a_selective_checkpoint_tags_nodes_with_a_policy_and_a_region():
    def policy(context, op, *args, **kwargs):
        return CheckpointPolicy.PREFER_RECOMPUTE

    contexts = functools.partial(create_selective_checkpoint_contexts, policy)

    def call(x, w):
        return checkpoint(lambda x: torch.sin(x @ w), x, use_reentrant=False, context_fn=contexts)

    graph = joint_graph(call, torch.randn(2, 4, requires_grad=True), torch.randn(4, 4, requires_grad=True))
    tagged = [node for node in graph.nodes if node.meta.get("recompute") is not None]
    assert tagged and all(node.meta["recompute"].name.endswith("RECOMPUTE") for node in tagged)
    assert all("ac_graph_id" in node.meta for node in tagged)


def test_a_boxed_function_is_told_by_an_attribute():
    assert torch._functorch.aot_autograd.make_boxed_func(lambda x: x)._boxed_call is True


# Tensors, ops, modes.


def test_a_fake_value_knows_its_mode(joint):
    value = products(joint)[0].meta["val"]
    assert isinstance(value.fake_mode, torch._subclasses.FakeTensorMode)


def test_a_fake_tensor_is_made_of_a_meta_tensor():
    module = torch._subclasses.fake_tensor
    mode = torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True)
    with module.in_kernel_invocation_manager(mode):
        meta = torch.empty_strided((2, 3), (1, 2), dtype=torch.float16, device="meta")
    made = module.FakeTensor(mode, meta, torch.device("cpu"))
    assert module.is_fake(made) and made.stride() == (1, 2) and made.device.type == "cpu"


@pytest.mark.parametrize("read", [torch.Tensor.item, torch.nonzero])
def test_reading_a_fake_tensors_values_is_an_error(read):
    module = torch._subclasses.fake_tensor
    with torch._subclasses.FakeTensorMode() as mode:
        fake = mode.from_tensor(torch.ones(1))
        with pytest.raises((module.DataDependentOutputException, module.DynamicOutputShapeException)):
            read(fake)


def test_a_size_has_an_expression():
    graph = []

    def backend(gm, inputs):
        graph.append(gm)
        return gm.forward

    torch.compile(lambda x: x + 1, backend=backend, dynamic=True)(torch.ones(3, 4))
    (placeholder,) = (n for n in graph[0].graph.nodes if n.op == "placeholder" and n.users and "x" in n.name)
    size = placeholder.meta["example_value"].shape[0]
    assert isinstance(size, torch.SymInt) and hash(size.node.expr) is not None


def test_an_op_has_a_schema_with_its_name_and_what_it_aliases():
    assert torch.ops.aten.mm.default._schema.name == "aten::mm"
    assert torch.ops.aten.view.default._schema.returns[0].alias_info.is_write is False
    assert torch.ops.aten.mm.default._schema.returns[0].alias_info is None


def test_a_view_knows_its_base():
    tensor = torch.ones(4)
    assert tensor.view(2, 2)._base is tensor and tensor._base is None


def test_a_sparse_tensor_gives_its_parts():
    indices, values = torch.eye(2).to_sparse()._indices(), torch.eye(2).to_sparse()._values()
    assert indices.shape == (2, 2) and values.shape == (2,)


def test_autograd_says_whether_it_is_running():
    seen = []
    x = torch.ones(1, requires_grad=True)
    x.register_hook(lambda _: seen.append(torch._C._current_graph_task_id()))
    x.sum().backward()
    assert torch._C._current_graph_task_id() == -1 and seen[0] != -1


def test_dynamo_compiles_under_a_mode_that_says_it_is_infrastructure():
    ran = []

    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        @classmethod
        def is_infra_mode(cls):
            return True

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    with Mode():
        torch.compile(lambda x: x + 1, backend=lambda gm, _: ran.append(gm) or gm.forward)(torch.ones(2))
    assert len(ran) == 1


def test_the_place_of_a_tensor_in_a_tree_is_written_as_python():
    tree = torch.utils._pytree
    places = []
    tree.tree_map_with_path(lambda path, _: places.append(tree.keystr(path)), {"a": [1, 2]})
    assert places == ["['a'][0]", "['a'][1]"]


def test_a_traced_graph_runs_under_the_file_name_of_fx():
    assert torch.fx.symbolic_trace(nn.Linear(2, 2)).forward.__code__.co_filename.startswith("<eval_with_key>")


# Inductor.


def test_inductor_has_modes_by_name():
    modes = torch._inductor.list_mode_options()
    assert {"default", "reduce-overhead", "max-autotune"} <= set(modes) and all(
        isinstance(o, dict) for o in modes.values()
    )


def test_inductor_knows_the_types_of_its_options():
    config = torch._inductor.config
    assert "max_autotune" in config.get_config_copy() and config.get_type("max_autotune") is bool


def test_a_pass_with_a_uuid_gets_the_joint_graph():
    seen = []

    class Pass(torch._inductor.custom_graph_pass.CustomGraphPass):
        def __call__(self, graph):
            seen.append(graph)

        def uuid(self):
            return "contract"

    def backend(gm, inputs):
        with torch._inductor.config.patch(joint_custom_pre_pass=Pass(), fx_graph_cache=False):
            return torch._inductor.compile_fx.compile_fx(
                gm, inputs, inner_compile=lambda part, *_, **how: part.forward, config_patches={}
            )

    model = torch.compile(nn.Linear(4, 4), backend=backend)
    with torch.no_grad():
        model(torch.ones(2, 4))
    assert len(seen) == 1 and isinstance(seen[0], torch.fx.Graph)


# What lowerings keep of a value.


def test_a_value_of_inductors_graph_has_annotations_of_its_own():
    ir = torch._inductor.ir
    one, other = (
        ir.TensorBox(ir.Constant(value=1.0, dtype=torch.float32, device=torch.device("cpu"))) for _ in range(2)
    )
    one.annotations["key"] = "value"
    assert one.annotations == {"key": "value"} and not other.annotations


# What Inductor's C++ compiler writes.


def test_the_compilers_output_is_in_a_field_of_the_builder(tmp_path):
    from torch._inductor.cpp_builder import CppBuilder, CppTorchOptions

    source = tmp_path / "one.cpp"
    source.write_text("int one() { return 1; }")
    builder = CppBuilder("one", str(source), CppTorchOptions(), output_dir=str(tmp_path))
    assert builder.get_target_file_path() in builder._output
    builder._output = builder._output.replace(builder.get_target_file_path(), str(tmp_path / "other"))
    assert str(tmp_path / "other") in builder.get_command_line()
