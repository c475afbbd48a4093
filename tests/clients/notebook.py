"""Executes a notebook on the directory of a run, in the environment variable RUN, and prints what its cells said."""

import sys

import nbformat
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], as_version=4)
nbformat.validate(notebook)
assert all(not cell.get("outputs") for cell in notebook.cells), "the committed notebook must have no outputs: clear them"
NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
assert any("image/png" in output.get("data", {}) for output in outputs), "no plot was drawn"
print("".join(output.get("text", "") for output in outputs))
