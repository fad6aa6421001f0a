"""Energy-guided diffusion: schedules, denoisers, posteriors, intermediate energies, guidance rules and samplers.

They work on tensors of any shape and know of no application. ``__init__.pyi`` lists the public names. Each name is imported on
first use, so that ``egd --help`` does not wait for torch.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
