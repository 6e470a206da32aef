"""The public functions of the package, named after the commands, and engines and servers to ask.

Their models and banks are those of the command line where none is given. `foreword` itself lists the names.
"""
