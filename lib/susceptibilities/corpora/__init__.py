"""Where text comes from: pinned packages, the user's own folder, or the hub."""

from .documents import (
    TRAINING,
    CorpusError,
    Document,
    domains,
    read_checked,
    read_domain,
)
from .folder import use_folder_corpus
from .hub import HubCorpus, HubSource, build_hub_corpus
from .packages import PackageCorpus, build_package_corpus

__all__ = [
    "TRAINING",
    "CorpusError",
    "Document",
    "HubCorpus",
    "HubSource",
    "PackageCorpus",
    "build_hub_corpus",
    "build_package_corpus",
    "domains",
    "read_checked",
    "read_domain",
    "use_folder_corpus",
]
