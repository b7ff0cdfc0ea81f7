"""Formats of lenses on disk, one file each, which `load_lens` and `Lens.save` discover in this folder.

A file offers a name and four functions:

    TITLE: str                       the format for people, such as "tuned-lens"
    matches(path: Path) -> bool      whether a folder or file has this format; looks at names of files and headers; no
                                     two formats match
    read(path: Path) -> Lens         the lens, of a kind from `Lens.kind_called`, with `about` as far as the files state
                                     it: an empty `model_hash` where they state none. Errors name the path
    check(lens, model) -> None       raises LensError unless the lens belongs to the model, by what the files state;
                                     `load_lens` has compared width and layers, and sets `model_hash` after it
    write(lens: Lens, folder: Path) -> None
                                     writes a lens in this format, or refuses a kind that has no place in it

Files of strangers hold weights alone: nothing is unpickled (`core/torch_files.py`), no link is followed.
"""
