"""The store: frozen snapshots by the hash of what they hold, on this machine."""

from __future__ import annotations

from medport_local.snapshot_names import check_name, check_names, is_allowed
from medport_local.store.collecting import Collected
from medport_local.store.intake import Intake
from medport_local.store.layout import default_root
from medport_local.store.records import Pin, Record, Terms
from medport_local.store.store import Store
from medport_local.store.stored import Stored
from medport_local.store.verifying import Finding

__all__ = [
    "Collected",
    "Finding",
    "Intake",
    "Pin",
    "Record",
    "Store",
    "Stored",
    "Terms",
    "check_name",
    "check_names",
    "default_root",
    "is_allowed",
]
