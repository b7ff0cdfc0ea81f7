"""Formats of dictionaries on disk, one file each, which `load_dictionary` discovers in this folder.

A file offers two names and two functions:

    TITLE: str                            the format for people, such as "SAELens"
    FILES: tuple[str, ...]                the files that `read` needs, those that must be there first: patterns relative
                                          to the dictionary's folder, in which `*` crosses no "/"; of a repository on
                                          the hub these alone are fetched
    matches(path: Path) -> bool           whether a folder or a single file has this format, be it one dictionary or
                                          several; looks at names of files and headers, opens few; no two formats match
    read(path: Path) -> Dictionary        the dictionary; errors say what is wrong, `load_dictionary` names the folder

and may offer two more:

    parts(path: Path) -> list[Path]       of a path that holds several dictionaries, the paths that `load_dictionary`
                                          opens one by one; empty for a single one; looks at names and small files only
    write(dictionary: Dictionary, folder: Path) -> None
                                          writes a dictionary in this format, or refuses one that does not fit

`load_dictionary` looks at every weight for values that are not finite, unless `read` did so and stated it with
`remembered.hold_examined` or `hold_finite`, as a reader does whose tensors are mapped from their file.
Where SAELens's list of releases states a setting that files lack, `read` gets it as `stated`, if it takes that:
`read(path, stated=None)`; see `saelens_registry`. What a caller of `load_dictionary` says of hook points and model is
compared with the dictionary that was read; a `read` that refuses files without a place gets it as `said`.
`recognition` asks all formats. `hub_names.repository_of(path)` says which repository of the hub a path belongs to.
"""
