"""The notebook of the examples runs from top to bottom, shows its pictures, and is kept without outputs."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="the notebook runs with triptych[test]")
nbclient = pytest.importorskip("nbclient", reason="the notebook runs with triptych[test]")
pytest.importorskip("ipykernel", reason="the notebook runs with triptych[test]")

NOTEBOOK = Path(__file__).parents[1] / "examples" / "09_loop.ipynb"


def test_the_notebook_runs_and_shows_pictures(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and not any(cell.outputs or cell.execution_count for cell in code)  # kept small: outputs are cleared
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    pages = [output.data.get("text/html", "") for output in code[0].outputs if "data" in output]
    assert "data:image/png;base64," in pages[-1]
    assert "castle" in "".join(output.get("text", "") for cell in code for output in cell.outputs)
