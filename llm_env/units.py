"""How numba compiles here: what Python calls becomes one unit of machine code with all that it calls. Knows nothing of
the rest of the package.

numba by itself optimises each compiled function together with all that it calls, and emits it with wrappers for Python
and C: the leaves of a deep call graph are compiled dozens of times, most of them for nobody. Here a function that
compiled code calls is a `_Part`: typed and lowered once in a process, and then linked as it is into the `_Whole` of
each function that Python calls, which alone is optimised, emitted and kept in the disk cache.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba.core import compiler, sigutils, typeinfer, types
from numba.core import config as numba_config
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.codegen import JITCodeLibrary
from numba.core.environment import lookup_environment
from numba.core.registry import CPUDispatcher
from numba.core.typing.templates import make_concrete_template

config: Any = numba_config
_CHECKSUM_BYTES = hashlib.sha256().digest_size


# ---- libraries of code ---------------------------------------------------------------------------------------------
class _Library(JITCodeLibrary):
    """Code that needs no clean-up function by function: the whole is optimised in the end."""

    _codegen: Any

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def _below(self) -> tuple[list[_Part], list[JITCodeLibrary]]:
        """All parts within reach, and what numba itself compiled for them."""
        found: dict[Any, None] = {}
        todo = list(self._linking_libraries)
        while todo:
            library = todo.pop()
            if library not in found:
                found[library] = None
                todo += library._linking_libraries if isinstance(library, _Part) else []
        parts = [library for library in found if isinstance(library, _Part)]
        return parts, [library for library in found if not isinstance(library, _Part)]


class _Part(_Library):
    """A function that is only linked into others: never optimised nor emitted by itself."""

    def finalize(self) -> None:
        self._finalized = True

    def module(self) -> Any:
        """The function alone, to be linked into a unit."""
        return super()._get_module_for_linking()

    def _get_module_for_linking(self) -> Any:
        """For callers that numba compiles in its own way: with everything that the function calls."""
        module = self.module().clone()
        parts, others = self._below()
        for part in parts:
            module.link_in(part.module(), preserve=True)
        for library in others:
            module.link_in(library._get_module_for_linking(), preserve=True)
        return module


class _Whole(_Library):
    """A function that Python calls, with all that it calls."""

    counts_references = True

    def finalize(self) -> None:
        parts, self._linking_libraries = self._below()
        for part in parts:
            self._final_module.link_in(part.module(), preserve=True)
        super().finalize()
        for variable in self._final_module.global_variables:
            if variable.name.startswith("_ZN08NumbaEnv"):  # what compiled code needs to raise or print
                environment = lookup_environment(variable.name)
                if environment is not None:
                    self._codegen.set_env(variable.name, environment)

    def _optimize_final_module(self) -> None:
        if self.counts_references:
            super()._optimize_final_module()
            return
        passes = self._codegen._module_pass_manager()  # numba's last step; the one before only merges counts
        manager, *builder = passes if isinstance(passes, tuple) else (passes,)
        manager.run(self._final_module, *builder)


class _PartCompiler(compiler.Compiler):
    def define_pipelines(self) -> Any:
        state = self.state
        state.library = _Part(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        state.flags.no_cpython_wrapper = True
        state.flags.no_cfunc_wrapper = True
        return super().define_pipelines()


class _WholeCompiler(compiler.Compiler):
    def define_pipelines(self) -> Any:
        state = self.state
        state.library = _Whole(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.counts_references = state.flags.nrt
        state.library.enable_object_caching()
        return super().define_pipelines()


# ---- the disk cache ------------------------------------------------------------------------------------------------
class _Files(IndexDataCacheFile):
    """One file for each signature of a function, in place of numba's index and numbered files.

    Two processes that add to one index at once can end with an entry that names the other's code. Here the name of a
    file is a hash of all that numba tells code apart by, it appears whole or not at all, and it ends with a checksum:
    what is damaged is compiled again. A disk that cannot be written costs time, never a run.
    """

    def save(self, key: Any, data: Any) -> None:
        try:
            self._save_data(self._name(key), data)
        except OSError:
            pass

    def load(self, key: Any) -> Any:
        name = self._name(key)
        try:
            content = Path(self._data_path(name)).read_bytes()
            whole = hashlib.sha256(content[:-_CHECKSUM_BYTES]).digest() == content[-_CHECKSUM_BYTES:]
            return self._load_data(name) if whole else None
        except OSError:
            return None

    def flush(self) -> None:
        for path in Path(self._cache_path).glob(f"{self._index_name}-*"):
            path.unlink(missing_ok=True)

    def _name(self, key: Any) -> str:
        return f"{self._index_name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}"

    def _dump(self, obj: Any) -> bytes:
        content = super()._dump(obj)
        return content + hashlib.sha256(content).digest()  # what unpickles it stops before


def _cache(function: Callable[..., Any], folder: str) -> FunctionCache | None:
    """numba's cache of one function, on our files; None for a function without a file, as typed at a prompt."""
    before = config.CACHE_DIR
    config.CACHE_DIR = folder  # read when a cache is made; other packages keep their own
    try:
        cache = FunctionCache(function)
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        return None
    finally:
        config.CACHE_DIR = before
    cache._cache_file = _Files(cache.cache_path, cache._impl.filename_base, None)
    return cache


# ---- functions -----------------------------------------------------------------------------------------------------
class UnitDispatcher(CPUDispatcher):
    """A compiled function: a whole to Python, a part to compiled code.

    Parts do not tell constants from other values: `f(0)` and `f(n)` call one compiled function.
    """

    _compiler: Any

    def __init__(self, py_func: Any, locals: Any = None, targetoptions: Any = None) -> None:  # noqa: A002 - numba's name
        super().__init__(py_func, locals or {}, targetoptions or {}, _WholeCompiler)
        options = self.targetoptions
        self._part_compiler = type(self._compiler)(py_func, self.targetdescr, options, self.locals, _PartCompiler)
        self._parts: dict[tuple[types.Type, ...], tuple[Any, object]] = {}  # compile results and numba's keys of them
        self._folder = ""

    def cache_in(self, folder: str) -> None:
        """Keeps what is compiled in a folder; it is not touched before something is."""
        self._folder = folder

    def compile(self, sig: Any) -> Any:
        """For Python: from the cache, or compiled with all that it calls. Rubbish is collected afterwards only."""
        if self._folder:
            self._cache, self._folder = _cache(self.py_func, self._folder) or self._cache, ""
        was_collecting = gc.isenabled()
        gc.disable()  # the compiler makes millions of objects: looking through them took a fifth of the time
        try:
            return super().compile(sig)
        finally:
            if was_collecting:
                gc.enable()

    def get_call_template(self, args: Any, kws: Any) -> Any:
        """For compiled callers."""
        pysig, args = self._compiler.fold_argument_types(args, kws)
        args = tuple(types.unliteral(arg) for arg in args)
        if args not in self._parts:
            with self._compiling_counter:
                part = self._part_compiler.compile(args, None)
            key = object()
            self.targetctx.insert_user_function(key, part.fndesc, [part.library])
            self._parts[args] = part, key
        name = self.py_func.__name__
        signatures = [part.signature for part, _ in self._parts.values()]
        return make_concrete_template(f"CallTemplate({name})", name, signatures), pysig, args, {}

    def get_overload(self, sig: Any) -> Any:
        """For compiled callers: the key under which numba finds the function."""
        return self._parts[tuple(sigutils.normalize_signature(sig)[0])][1]


def compile_unit(
    function: Callable[..., Any], signatures: tuple[Any, ...], options: dict[str, Any], folder: str
) -> UnitDispatcher:
    """What `numba.njit(*signatures, **options)(function)` does, in units; folder: of the cache, "" for none."""
    dispatcher = UnitDispatcher(function, targetoptions={"boundscheck": None, **options, "nopython": True})
    dispatcher.cache_in(folder)
    if signatures:
        with typeinfer.register_dispatcher(dispatcher):
            for signature in signatures:
                dispatcher.compile(signature)
            dispatcher.disable_compile()
    return dispatcher
