"""Where models come from: a hub, a bucket, a directory, a bundle. ``pull`` brings one into the store."""

from medport_local.sources.bucket import BucketSource
from medport_local.sources.choose import source_for
from medport_local.sources.directory import DirectorySource
from medport_local.sources.download import download
from medport_local.sources.hub import HubSource
from medport_local.sources.pull import Progress, pull
from medport_local.sources.source import Changed, Offer, Offered, Pinned, Source
from medport_local.store import Terms

__all__ = [
    "BucketSource",
    "Changed",
    "DirectorySource",
    "HubSource",
    "Offer",
    "Offered",
    "Pinned",
    "Progress",
    "Source",
    "Terms",
    "download",
    "pull",
    "source_for",
]
