"""Run docs/notebook.ipynb and store its outputs.

python -m tools.run_notebook
"""

import os
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"
VOLATILE = ("execution", "widgets")  # metadata that changes with each execution


def main() -> None:
    """Write the notebook with the outputs of its cells."""
    notebook = executed(nbformat.read(NOTEBOOK, as_version=4))
    nbformat.write(notebook, NOTEBOOK)


def executed(notebook: Any, timeout: int = 600) -> Any:
    """The notebook with new outputs. An error of a cell is raised.

    Args:
        timeout: seconds for one cell.
    """
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")  # of tqdm, without ipywidgets
    client = NotebookClient(notebook, timeout=timeout, kernel_name="python3")
    client.execute()
    for cell in notebook.cells:
        for name in VOLATILE:
            cell.metadata.pop(name, None)
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


if __name__ == "__main__":
    main()
