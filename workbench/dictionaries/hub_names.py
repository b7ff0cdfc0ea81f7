"""Names of dictionaries on the Hugging Face hub, and the repository of which a folder is a snapshot."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from workbench.core.type_words import shown
from workbench.dictionaries.folder import DictionaryError
from workbench.model.hub import is_repository

PREFIX = "hf:"
"""What a name begins with that is one of the hub whatever lies in the working folder."""
PAGE = re.compile(
    r"https://(?:huggingface\.co|hf\.co)/(?P<repository>[^/]+/[^/]+)(?:/(?:tree|blob|resolve)/(?P<rest>.+))?"
)
"""The address of a page of the hub: a folder, a file or a whole repository."""

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
    def name(self) -> str:
        """Repository and folder, without the revision."""
        return f"{self.repository}/{self.inside}" if self.inside else self.repository

    @property
    def address(self) -> str:
        """As `load_dictionary` takes it after "hf:": "google/gemma-scope-2b-pt-res/layer_20/width_16k@main"."""
        return f"{self.name}@{self.revision}" if self.revision else self.name


def repository_of(path: Path) -> Address | None:
    """The repository and commit to which a folder or file in a cache of `huggingface_hub` belongs; None elsewhere."""
    parts = path.absolute().parts
    for at, name in enumerate(parts[:-2]):
        if name.startswith("models--") and parts[at + 1] == "snapshots":
            repository = name.removeprefix("models--").replace("--", "/")
            return Address(repository, "/".join(parts[at + 3 :]), parts[at + 2])
    return None


def as_address(name: str) -> Address | None:
    """The address that a name stands for: "OWNER/REPOSITORY", with a folder or file after it and "@REVISION" at the
    end; with "hf:" before it or not; or that of a page of the hub. None for what can be no such name.

    Raises:
        DictionaryError: it begins with "hf:" or "https:" and is no name.
    """
    page = PAGE.fullmatch(name.partition("?")[0].rstrip("/"))
    if page:
        revision, _, inside = (page["rest"] or "").partition("/")
        found = Address(page["repository"], inside, revision)
    else:
        path, _, revision = name.removeprefix(PREFIX).partition("@")
        owner, _, rest = path.strip("/").partition("/")
        repository, _, inside = rest.partition("/")
        found = Address(f"{owner}/{repository}", inside.strip("/"), revision)
    steps = [step for part in (found.inside, found.revision) if part for step in part.split("/")]
    plain = all(steps) and not {".", ".."} & {*steps}
    if plain and not name.startswith(("/", ".", "~")) and is_repository(found.repository):
        return found
    if name.startswith((PREFIX, "https:", "http:")):
        raise DictionaryError(
            f"{shown(name)} is no name on the hub; write hf:OWNER/REPOSITORY, with /FOLDER and @REVISION if need be."
        )
    return None
