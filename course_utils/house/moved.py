"""Modules that have moved: a notebook that imports them by their old names still finds what it asks for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

OLD = {  # name in course_utils: where its contents are now
    "arguments": ("metrics",), "calling": ("exercises.calling",), "cards": ("exercises.cards",),
    "charts": ("viz.charts", "viz.axes"), "checking": ("exercises.checking",), "clean_run": ("passes",),
    "comparing": ("exercises.comparing",), "dashboards": ("viz.dashboards",), "files": ("house",),
    "grading": ("exercises.grading",), "hub": ("models.hub", "house"), "local_models": ("models.local",),
    "model_files": ("models.folders", "house"), "padding": ("passes.padding",), "paths": ("house",),
    "pooling": ("metrics", "passes.pooling"), "progress_store": ("exercises.progress_store",), "report": ("measured",),
    "sae_objects": ("sae_formats.objects",), "shipped_saes": ("sae_files",), "sites": ("passes",),
    "smollm2": ("models.smollm2",), "traits": ("passes", "house"), "trial": ("passes.trial",),
}


class Finder(MetaPathFinder, Loader):
    """Finds `course_utils.<old name>`; Python asks it last, if there is no file of that name."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        package, _, old = name.partition(".")
        return ModuleSpec(name, self) if package == "course_utils" and old in OLD else None

    def exec_module(self, module: ModuleType) -> None:
        """Let every name that is asked for be looked up in the new places."""
        places = [importlib.import_module(f"course_utils.{new}") for new in OLD[module.__name__.partition(".")[2]]]

        def look_up(name: str) -> Any:
            for place in places:
                if hasattr(place, name):
                    return getattr(place, name)
            raise AttributeError(f"{module.__name__} has no {name!r}; it is now {places[0].__name__}")

        vars(module)["__getattr__"] = look_up


def keep_old_names() -> None:
    """Ask `Finder` after all others, once."""
    if not any(isinstance(each, Finder) for each in sys.meta_path):
        sys.meta_path.append(Finder())
