"""`specxai reproduce`: the paper's systems, from nothing to pages and numbers."""

from __future__ import annotations

from types import ModuleType

from specxai.cli.settings import ReproduceSettings
from specxai.experiments import EXPERIMENTS, Progress, Study, load, require


def run(settings: ReproduceSettings) -> None:
    """Run one experiment into `settings.out`, or all into folders inside it, and print their numbers."""
    names = list(EXPERIMENTS) if settings.name == "all" else [settings.name]
    modules = {name: load(name) for name in names}
    _check_options(settings, modules)
    for module in modules.values():  # before the first runs: the last may come half an hour later
        for package in getattr(module, "REQUIRES", ()):
            require(package)
    root = Study(settings.out, settings.name, settings.quick, settings.seed, {},
                 Progress(None if settings.progress else False), fresh=settings.fresh)
    entries = []
    for name, module in modules.items():
        own = {key: value for key, value in settings.options.items() if key in getattr(module, "OPTIONS", ())}
        study = root.sub(name, own) if settings.name == "all" else Study(
            settings.out, name, settings.quick, settings.seed, own, root.progress, fresh=settings.fresh)
        module.run(study)
        page = study.finish(module.SUMMARY)
        print(f"{name}: {module.SUMMARY}", *(f"  {line}" for line in study.lines()), f"  page: {page}", sep="\n")
        entries.append((name, module.SUMMARY, study.lines()))
    if settings.name == "all":
        from specxai.experiments.page import write_contents

        write_contents(settings.out / "index.html", "The paper's systems", entries)
        print(f"all pages: {settings.out / 'index.html'}")


def _check_options(settings: ReproduceSettings, modules: dict[str, ModuleType]) -> None:
    """Raise ValueError for a flag that none of the experiments reads."""
    for flag in settings.options:
        if not any(flag in getattr(module, "OPTIONS", ()) for module in modules.values()):
            raise ValueError(f"--{flag} means nothing to {settings.name}: leave it out")
