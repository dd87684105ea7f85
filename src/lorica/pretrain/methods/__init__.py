"""Methods of robust pre-training: which views a step learns from, and how strongly. One file each, in `METHODS`."""

from lorica.pretrain.methods.acl import Acl
from lorica.pretrain.methods.base import METHODS, Embedded, Method, Pair
from lorica.pretrain.methods.dynacl import DynAcl
from lorica.pretrain.methods.scl import Scl

__all__ = ["METHODS", "Acl", "DynAcl", "Embedded", "Method", "Pair", "Scl"]
