"""The families, one file each, with the stems of csrc/formulas: importing one registers its ops."""

from importlib import import_module
from pkgutil import iter_modules

# A new file here is a new family: there is no list to edit.
for _module in iter_modules(__path__):
    if not _module.name.startswith("_"):
        import_module(f"{__name__}.{_module.name}")
