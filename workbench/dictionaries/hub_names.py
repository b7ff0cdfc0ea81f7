"""Names of dictionaries on the Hugging Face hub, and the repository of which a folder is a snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HUB = "hub"
"""Key of a dictionary's provenance: the address of what was opened, with the revision's hash."""


@dataclass(frozen=True)
class Address:
    """A folder or file in a repository of the hub."""

    repository: str
    """With its owner, such as "google/gemma-scope-2b-pt-res"."""
    inside: str = ""
    """The folder or file, with "/"; empty for the whole repository."""
    revision: str = ""
    """A branch, tag or hash of a commit; empty for the repository's main branch."""

    @property
    def address(self) -> str:
        """As `load_dictionary` takes it after "hf:": "google/gemma-scope-2b-pt-res/layer_20/width_16k@main"."""
        path = f"{self.repository}/{self.inside}" if self.inside else self.repository
        return f"{path}@{self.revision}" if self.revision else path


def repository_of(path: Path) -> Address | None:
    """The repository and revision of which a folder or file is a part, in a cache of huggingface_hub; None elsewhere."""
    parts = path.absolute().parts
    for at, name in enumerate(parts[:-2]):
        if name.startswith("models--") and parts[at + 1] == "snapshots":
            repository = name.removeprefix("models--").replace("--", "/")
            return Address(repository, "/".join(parts[at + 3 :]), parts[at + 2])
    return None
