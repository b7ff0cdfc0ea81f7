"""Formats of dictionaries on disk, one file each, which `load_dictionary` discovers in this folder.

A file offers two functions:

    matches(folder: Path) -> bool         whether the folder has this format; looks at names of files, opens few
    read(folder: Path) -> Dictionary      the dictionary; errors say what is wrong, `load_dictionary` names the folder

`load_dictionary` looks at every weight for values that are not finite, unless `read` did so and stated it with
`remembered.hold_examined`, as a reader does whose tensors are mapped from their file.
"""
