"""egd: energy-guided diffusion. Schedules, denoisers, posteriors, intermediate energies, guidance rules and samplers that
know of nothing but tensors.

The names are listed in ``__init__.pyi``, and imported on first use: ``egd --help`` need not wait for torch.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
