"""Notice, while a model runs, the weight matmuls that run outside of our graphs, and say so.

Dynamo leaves code out of graphs for many reasons, mostly without a word: a break in a loop, code of torch's own modules,
the limit of recompilations, an error that `suppress_errors` hides. What is left out runs eagerly, in high precision. So
calls of what our backend compiles are inspected: the first one, each that follows on a compilation or on a change of
`torch.compiler.set_stance`, and every one with `strict=True` or where new sizes run eagerly (`eager_on_recompile`). An
inspected call runs in a dispatch mode, which sees each op that no graph hides.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import types
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .. import _compat
from ..compiled import is_ours
from ..config.marks import KEY, class_mark
from ..config.names import names_in
from ..config.options import Config, configure
from ..errors import QuartetError, StrictError
from ..passes.plan import DTYPES, chosen, refused
from ..passes.products.eager import Reading, products
from ..places import is_users, place
from ..process import process
from ..ranks import check_gathers
from ..warn import warn
from .api import Backend
from .in_place import CopiesToo
from .nested import message as nested_message
from .nested import outer_of, parts_inside
from .said import Saying

_SHOWN = 6


class Watch:
    """The calls of one compiled object. slot: what holds its backend, which `set_recipe` may replace. name: what it is.
    owner: the module whose call it is."""

    def __init__(self, slot: Any, name: str, owner: nn.Module | None) -> None:
        self._slot, self._name = slot, name
        self._owner = None if owner is None else weakref.ref(owner)
        self._always = False
        self._saying = Saying(name)
        self._tried: dict[bool, tuple] = {}  # with and without gradients, which may have recipes of their own
        self._told: set[tuple[str, str]] = set()

    @torch.compiler.disable  # Dynamo sees this frame where another compiled object calls this one
    def __call__(self) -> _Inspection | None:
        """What the next call runs in: an inspection, or nothing."""
        tried, training = (_compat.compilations_tried(), _compat.stance()), torch.is_grad_enabled()
        if tried == self._tried.get(training) and not (self._always or tried[1] == "eager_on_recompile"):
            return None
        owner = self._owner() if self._owner is not None and not self._tried else None
        if owner is not None:
            check_gathers(_compat.fsdp_ranks(owner))
        self._tried[training] = tried
        config = self._config()
        self._always = config is not None and config.policy.strict
        return _Inspection(config, self._full_names, self._told, self._saying)

    def inlined(self, backend: Any) -> None:
        """Warn, or with `strict=True` raise, of another backend that compiles what this object was to compile."""
        config = self._config()
        outer = getattr(backend, "config", None) if is_ours(backend) else None
        if config is None or (is_ours(backend) and outer in (None, config)):
            return
        text = nested_message([self._name], backend)
        if config.policy.strict:
            raise StrictError(f"strict=True, and {text}")
        warn("QC103", text)

    def _config(self) -> Config | None:
        """The configuration in force; None if it is wrong, which the backend says."""
        function, given, _ = _compat.backend_in(self._slot)
        known = getattr(function, "config", None)
        if known is not None:
            return known
        try:
            return configure(function.options(given.get("options")), given.get("mode"))
        except QuartetError:
            return None

    def _full_names(self) -> dict[int, str]:
        """The names of the models that the backend knows, by the `id` of a module or parameter."""
        function, _, _ = _compat.backend_in(self._slot)
        known = getattr(function, "full_names", None)
        return {} if known is None else known()


@dataclasses.dataclass(frozen=True)
class _Eager:
    """A product that ran eagerly. where: the user's line. why: what is known from the frames around it."""

    name: str
    where: str
    why: str


class _Inspection(_compat.TorchDispatchMode):
    """One call during which eager products are noted.

    full_names: gives those of modules and parameters, where the whole model is known. told: what was warned of before.
    failures: what our backend raised during the call. saying: told of the graphs that it compiles.
    """

    supports_higher_order_operators = True

    def __init__(
        self,
        config: Config | None,
        full_names: Callable[[], dict[int, str]],
        told: set[tuple[str, str]],
        saying: Saying,
    ) -> None:
        super().__init__()
        self.saying = saying
        self.failures: list[Exception] = []
        self._config, self._full_names, self._told = config, functools.cache(full_names), told
        self._of_root: dict[int, dict[int, str]] = {}
        self._found: dict[_Eager, None] = {}
        self._reasons: dict[str, int] = {}

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Dynamo compiles inside of this mode as it does without."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        looks = process.running.inspections[-1] is self and not (_compat.is_tracing() or _compat.is_in_backward())
        whole = _compat.decomposed(func, args, kwargs or {}, self) if looks else NotImplemented
        if whole is not NotImplemented:
            return whole
        result = func(*args, **(kwargs or {}))
        if looks:
            for product in products(func, args, result):
                self._see(product)
        return result

    @torch.compiler.disable
    def __enter__(self) -> _Inspection:
        self._reasons = _compat.reasons_not_compiled()
        process.running.inspections.append(self)
        super().__enter__()
        return self

    @torch.compiler.disable
    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        process.running.inspections.remove(self)
        strict = self._config is not None and self._config.policy.strict
        if error is not None:
            self.saying.failed()
            if strict and _compat.is_not_compiled(error):
                raise StrictError(
                    f"strict=True, and a part of the model can't be compiled: {_first_line(error)}\n"
                    "Remove what Dynamo names here, exclude that part from compilation, or set strict=False."
                ) from error
            return
        self.saying.over()
        for failure in self.failures:
            if isinstance(failure, QuartetError) and _compat.hides_errors():
                raise failure
        new = [eager for eager in self._found if (eager.name, eager.where) not in self._told]
        if strict and self._found:
            raise StrictError(f"strict=True, and {self._describe(list(self._found))}")
        if new:
            self._told.update((eager.name, eager.where) for eager in new)
            warn("QC102", self._describe(new))

    def _see(self, found: tuple[Reading, ...]) -> None:
        """Note a product if it has a weight, no graph runs, and the options want it in low precision."""
        frames = _frames()
        if frames is None or self._config is None:
            return
        modules = [module for frame in frames if (module := _owner(frame)) is not None]
        reading, weight = _with_weight(found, modules[:1])
        if reading is None or weight is None or reading.obstacle or reading.weight.dtype not in DTYPES:
            return
        names = self._names_of(weight, modules)
        policy = self._config.policy
        recipe = (policy.recipe if torch.is_grad_enabled() else policy.eval_recipe).of(names)
        mark = _mark(modules)
        if refused(names, mark, policy, recipe) or not chosen(names, mark, policy)[0]:
            return
        if mark != "fp4" and not policy.include and (_is_table(weight, modules) or reading.unprofitable):
            return
        where = _where(frames)
        self._found[_Eager(names[0] if names else where, where, _why(frames))] = None

    def _names_of(self, weight: torch.Tensor, modules: list[nn.Module]) -> tuple[str, ...]:
        """The names that patterns see: the innermost module and the parameter, in the outermost module that holds them."""
        wanted = [*map(id, modules[:1]), id(weight)]
        for module in reversed(modules):
            if id(module) not in self._of_root:
                self._of_root[id(module)] = names_in(module)
            known = self._of_root[id(module)]
            found = [self._full_names().get(key) or known.get(key) for key in wanted]
            if any(found):
                return tuple(dict.fromkeys(name for name in found if name))
        return ()

    def _describe(self, found: list[_Eager]) -> str:
        names = list(dict.fromkeys(eager.name for eager in found))
        shown = ", ".join(map(repr, names[:_SHOWN]))
        shown += f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        places = list(dict.fromkeys(eager.where for eager in found))
        reasons = list(dict.fromkeys(eager.why for eager in found if eager.why))
        if self.failures:
            reasons.append(
                f"compiling failed, which torch._dynamo.config.suppress_errors hides: {_first_line(self.failures[0])}"
            )
        if not reasons and _compat.stance() != "default":
            reasons = [f"torch.compiler.set_stance({_compat.stance()!r}) is in force"]
        if not reasons:
            counts = _compat.reasons_not_compiled().items()
            new = [reason for reason, count in counts if count > self._reasons.get(reason, 0)]
            loops = {_first_line(reason) for reason in new if _compat.is_in_loop(reason)}
            reasons = [
                f"{line}, in a loop, in which Dynamo can't go on" if line in loops else _compat.with_remedy(line)
                for line in dict.fromkeys(map(_first_line, new))
            ]
        return (
            f"{len(names)} weight matmul{'s' * (len(names) > 1)} ran eagerly, outside of every compiled graph, in high "
            f"precision: {shown}.\nWhere: {'; '.join(places[:3])}.\n"
            f"Why: {'; '.join(reasons) or 'Dynamo did not compile this code'}.\n"
            "Remedy: remove what breaks the graph (quartet_compile.explain(model, *inputs) lists it, fullgraph=True stops "
            "there); or compile the parts by themselves: quartet_compile.quartet(model, regions=['layers.*']); or exclude "
            "these matmuls."
        )


def _frames() -> list[types.FrameType] | None:
    """The Python frames around an op, innermost first, up to the compiled object's; None inside of a compiled graph."""
    found: list[types.FrameType] = []
    frame: types.FrameType | None = sys._getframe(3)
    while frame is not None and not _compat.is_watched_call(frame):
        if _compat.is_in_graph(frame.f_code.co_filename):
            return None
        found.append(frame)
        frame = frame.f_back
    return found


def _with_weight(
    found: tuple[Reading, ...], owners: list[nn.Module]
) -> tuple[Reading, torch.Tensor] | tuple[None, None]:
    """The reading whose weight is a parameter, is a view of one, or, after a cast, has the sizes of one; or is a matrix that
    gets a gradient of its own. Nothing of two activations or two parameters."""
    roots = [(reading, _compat.base_of(reading.weight)) for reading in found]
    direct = [pair for pair in roots if isinstance(pair[1], nn.Parameter)]
    if direct:
        return direct[0] if len(direct) == 1 else (None, None)
    own = [parameter for owner in owners for parameter in owner.parameters(recurse=False) if parameter.dim() > 1]
    cast = [(reading, p) for reading in found for p in own if sorted(p.shape) == sorted(reading.weight.shape)]
    leaves = [(r, root) for r, root in roots if root.is_leaf and root.requires_grad and root.dim() == 2]
    return next(iter((*cast, *leaves)), (None, None))


def _mark(modules: list[nn.Module]) -> str | None:
    """The mark of the code that runs: by annotation, or by the class of a module, the innermost first."""
    by_class = next((mark for module in modules if (mark := class_mark(type(module)))), None)
    annotated = _compat.annotation().get(KEY)
    return "no_fp4" if "no_fp4" in (annotated, by_class) else annotated or by_class


def _is_table(weight: torch.Tensor, modules: list[nn.Module]) -> bool:
    """Whether a weight is an embedding table too."""
    inner = modules[-1].modules() if modules else ()
    return any(isinstance(module, nn.Embedding) and module.weight is weight for module in inner)


def _where(frames: list[types.FrameType]) -> str:
    """The user's innermost line; the outermost function where all of the code is torch's."""
    for frame in frames:
        if is_users(frame.f_code.co_filename):
            return f"{place(frame.f_code.co_filename, frame.f_lineno)}, in {_title(frame)}"
    return f"in {_title(frames[-1])}"


def _why(frames: list[types.FrameType]) -> str:
    """What the frames around a product tell: a code object at Dynamo's limit, or one of torch's own modules at the start."""
    for index, frame in enumerate(frames):
        if _compat.is_at_limit(frame.f_code):
            named = next((inner for inner in frames[index::-1] if _owner(inner) is not None), frame)
            return (
                f"Dynamo reached its limit of recompilations of {_title(named)} (torch._dynamo.config.recompile_limit), "
                "often since sizes or values change: torch._dynamo.mark_dynamic, or a higher limit"
            )
    if any(_compat.is_fully_sharded(module) for frame in frames if (module := _owner(frame)) is not None):
        return (
            "the hooks of FSDP2 (fully_shard) break the graph; quartet_compile.quartet(model), in place of torch.compile or "
            "module.compile, compiles between them"
        )
    forwards = [frame for frame in frames if frame.f_code.co_name == "forward"]
    if len(forwards) > 1 and all(type(_owner(frame)).__module__.startswith("torch.nn.") for frame in forwards[:2]):
        return f"Dynamo starts no graph in the code of torch.nn, as {_title(forwards[1])}; what called it was not in a graph"
    return ""


def _owner(frame: types.FrameType) -> nn.Module | None:
    """The module whose method a frame runs."""
    code = frame.f_code
    first = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
    return first if isinstance(first, nn.Module) else None


def _title(frame: types.FrameType) -> str:
    """`Class.function` of a frame."""
    owner = _owner(frame)
    return frame.f_code.co_name if owner is None else f"{type(owner).__name__}.{frame.f_code.co_name}"


def _first_line(error: object) -> str:
    return str(error).strip().partition("\n")[0]


def watcher_of(slot: Any, function: Any, how: dict[str, Any]) -> Watch | None:
    """The watch over what our backend compiles. Warns of what it compiles inside of what another one does."""
    backend, _, held = _compat.backend_in(slot)
    if is_ours(backend):
        if not getattr(backend, "is_watched", False):
            return None
        owner = _compat.owner_of(function)
        if isinstance(backend, Backend) and owner is not None:
            part = backend.of_module(owner)
            if part is not backend:
                _compat.put_backend(slot, _compat.other_backend(held, part, {}))
                _compat.allow_variants(part.kinds)
        if owner is not None and _compat.is_whole_call(function):
            vars(owner)[CopiesToo.ATTRIBUTE] = CopiesToo(owner, lambda: {**_given(slot), **how})
        compiled = function if owner is None else type(owner)
        watch = Watch(slot, getattr(compiled, "__qualname__", repr(compiled)), owner)
        outer = outer_of(owner)
        if outer is not None:
            watch.inlined(outer)
        return watch
    inside = parts_inside(function, held)
    if inside:
        warn("QC103", nested_message(inside, held))
    return None


def _given(slot: Any) -> dict[str, Any]:
    """The backend in a slot and its options, as `torch.compile` takes them."""
    function, given, _ = _compat.backend_in(slot)
    return {"backend": function, **given}
