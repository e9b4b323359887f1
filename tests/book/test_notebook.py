"""Values glued by the companion are stored as MyST-NB stores them."""

import nbformat
import pytest
from nbclient import NotebookClient

CELL = """
import numpy
from {module} import glue
for name, value in [("a", 0.25), ("b", 7), ("c", "dopri5"), ("d", {last})]:
    glue(name, value{more})
"""


@pytest.mark.notebook
def test_glue_writes_the_output_that_myst_nb_reads():
    pytest.importorskip("myst_nb")
    cells = [
        nbformat.v4.new_code_cell(CELL.format(module=module, more=more, last=last))
        for module, more, last in [
            ("companion.notebook", "", "numpy.float64(0.5)"),
            ("myst_nb", ", display=False", "0.5"),
        ]
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, kernel_name="python3").execute()
    ours, theirs = (cell.outputs for cell in notebook.cells)
    assert len(ours) == 4
    assert ours == theirs
