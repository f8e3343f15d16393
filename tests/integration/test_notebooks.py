"""The notebooks run from top to bottom in a real kernel, leave nothing behind, and are kept without outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support import ROOT, environment

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path: Path) -> None:
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert code
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


def test_the_tour_does_the_whole_job(tmp_path: Path) -> None:
    temporary, cwd, home = (tmp_path / name for name in ("temporary", "cwd", "home"))
    temporary.mkdir()
    cwd.mkdir()
    notebook = nbformat.read(ROOT / "notebooks" / "00_tour.ipynb", as_version=4)
    env = environment(home, TMPDIR=str(temporary), IPYTHONDIR=str(tmp_path / "ipython"), MPLCONFIGDIR=str(tmp_path))
    NotebookClient(notebook, timeout=180, resources={"metadata": {"path": str(cwd)}}).execute(env=env)

    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    assert "".join(output.text for output in code[-1].outputs).splitlines() == [
        "flapping rank above steady: True",
        "everything stopped: True",
    ]
    shown = {kind for cell in code for output in cell.outputs for kind in output.get("data", ())}
    assert {"text/html", "image/png"} <= shown
    assert not home.exists()
    assert not [*cwd.iterdir()]
    # Feast itself leaves an empty folder of metrics behind.
    assert not [path for path in temporary.iterdir() if not path.name.startswith("feast_metrics_")]


def test_the_features_notebook_makes_a_training_set_that_knows_nothing_of_the_future(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    notebook = nbformat.read(ROOT / "notebooks" / "02_features.ipynb", as_version=4)
    env = environment(
        tmp_path / "home", TMPDIR=str(temporary), IPYTHONDIR=str(tmp_path / "ipython"), MPLCONFIGDIR=str(tmp_path)
    )
    NotebookClient(notebook, timeout=180, resources={"metadata": {"path": str(tmp_path)}}).execute(env=env)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "".join(output.text for output in code[-1].outputs).splitlines() == [
        "nothing later than the instant: True",
        "arrays equal the SDK: True",
        "everything removed: True",
    ]
    assert any("image/png" in output.get("data", ()) for cell in code for output in cell.outputs)
    assert not (tmp_path / "home").exists()
    # Feast itself leaves an empty folder of metrics behind.
    assert not [path for path in temporary.iterdir() if not path.name.startswith("feast_metrics_")]


def test_the_model_notebook_judges_the_bundled_model(tmp_path: Path) -> None:
    notebook = nbformat.read(ROOT / "notebooks" / "03_model.ipynb", as_version=4)
    env = environment(tmp_path / "home", IPYTHONDIR=str(tmp_path / "ipython"), MPLCONFIGDIR=str(tmp_path))
    NotebookClient(notebook, timeout=180, resources={"metadata": {"path": str(tmp_path)}}).execute(env=env)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "".join(output.text for output in code[-1].outputs) == "risky above steady: True\n"
    assert not (tmp_path / "home").exists()


def test_the_clients_notebook_measures_all_clients(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    notebook = nbformat.read(ROOT / "notebooks" / "01_http_clients.ipynb", as_version=4)
    env = environment(
        tmp_path / "home", TMPDIR=str(temporary), IPYTHONDIR=str(tmp_path / "ipython"), MPLCONFIGDIR=str(tmp_path)
    )
    NotebookClient(notebook, timeout=180, resources={"metadata": {"path": str(tmp_path)}}).execute(env=env)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "".join(output.text for output in code[-1].outputs).splitlines() == [
        "every body arrived: True",
        "everything stopped: True",
    ]
    assert any("image/png" in output.get("data", ()) for cell in code for output in cell.outputs)
    assert not [*temporary.iterdir()]


def test_the_serving_notebook_gets_the_same_from_all_protocols(tmp_path: Path) -> None:
    notebook = nbformat.read(ROOT / "notebooks" / "04_serving.ipynb", as_version=4)
    env = environment(tmp_path / "home", IPYTHONDIR=str(tmp_path / "ipython"), MPLCONFIGDIR=str(tmp_path))
    NotebookClient(notebook, timeout=180, resources={"metadata": {"path": str(tmp_path)}}).execute(env=env)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "".join(output.text for output in code[-1].outputs).splitlines() == [
        "all protocols agree: True",
        "outcomes are known: True",
        "everything removed: True",
    ]
    assert not (tmp_path / "home").exists()
