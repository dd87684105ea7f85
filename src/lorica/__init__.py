"""Adapt pre-trained image models without leaking the training images and without breaking under attack.

Each verb of the command line is a sub-package with a `run` function and a configuration class of the same fields:
`lorica.adapt.run(AdaptConfig(...))` is `lorica adapt ...`.
"""

__version__ = "0.1.0"
