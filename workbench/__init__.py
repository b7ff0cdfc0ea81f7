"""Workbench: see, measure, steer and change the parts of a language model, on one machine.

The names of the contract stand in `__init__.pyi`; all else is reached through its room, such as `wb.surgery.prune`. A
name is imported at its first use, so that `import workbench` itself takes no time.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
