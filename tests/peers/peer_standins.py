"""Modules that stand in for another library's while its own tests run: our functions where we have them, refusals elsewhere.

`import flashinfer.jit.core` works and means nothing; only a call of something that no adapter provides is refused, at the
moment a test depends on it.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from peer_adapters import OutsideContract

PREPARES = ("gen_", "build_")  # what compiles kernels before a test: there is nothing to compile
ASKS = ("is_", "has_")  # what asks whether a card or a build has a feature: it has not


class Missing:
    """A name that nobody provides: it can be imported, indexed and inherited from, and a call of it is refused."""

    def __init__(self, name: str):
        self.name = name

    def __call__(self, *args, **options):
        leaf = self.name.rpartition(".")[2]
        if leaf.startswith(PREPARES):
            return None
        if leaf.startswith(ASKS):
            return False
        raise OutsideContract(f"{self.name}()")

    def __getattr__(self, leaf: str) -> "Missing":
        if leaf.startswith("__"):
            raise AttributeError(leaf)
        return Missing(f"{self.name}.{leaf}")

    def __getitem__(self, key) -> "Missing":
        return self

    def __or__(self, other):
        return self

    __ror__ = __or__

    def __mro_entries__(self, bases) -> tuple[type, ...]:
        return (object,)


class StandIn(ModuleType):
    """A module whose names come from `provide` and `take_from`; every other name is `Missing`."""

    __path__: Sequence[str] = ()

    def provide(self, **names: object) -> None:
        self.__dict__.update(names)

    def take_from(self, path: Path) -> None:
        """Run a file of the checkout as this module: helpers of the tests that need no GPU and no compiled library."""
        if path.exists():
            exec(compile(path.read_text(), str(path), "exec"), self.__dict__)

    def __getattr__(self, leaf: str) -> Missing:
        if leaf.startswith("__"):
            raise AttributeError(leaf)
        return Missing(f"{self.__name__}.{leaf}")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, roots: Sequence[str]):
        self.roots = roots

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] not in self.roots:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec):
        return StandIn(spec.name)

    def exec_module(self, module):
        """Filled by `install`."""


def install(roots: Sequence[str], adapter: ModuleType, checkout: Path) -> None:
    """Let `roots` and everything below them be stand-ins, and let `adapter` fill them."""
    sys.meta_path.insert(0, _Finder(roots))
    adapter.install(importlib.import_module, checkout)
