"""A stand-in for Google's Terraform provider: the real terraform runs against it, without a registry.

Its schema is Google's own, read at test time from a package on PyPI (``wheel``, ``generated``) with what that
package does not say written by hand (``overlay``). It plans as providers of that kind do (``planning``,
``labels``, ``validation``). Vertex endpoints are made over REST at whatever base URL the configuration names
(``endpoint``, ``model_garden``); every other type exists in terraform's state alone (``echo``).

It shows that our configurations fit the schema and what terraform does with them. It does not show what Google
Cloud does: those rules are ours, from the provider's source.
"""

from .reattach import attached, reaching
from .wheel import WheelMissing, schema_file

__all__ = ["WheelMissing", "attached", "reaching", "schema_file"]
