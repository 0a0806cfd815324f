"The tutorials that `nbdev_test` leaves out, because they need files that are not ours, or minutes."
from pathlib import Path

import pytest

tutorials = Path(__file__).parents[1]/'nbs'/'tutorials'

@pytest.mark.slow
def test_which_featurizer_isolates_a_fact(shared, tmp_path, monkeypatch):
    "From beginning to end, its own assertions included."
    import nbformat
    from nbclient import NotebookClient
    monkeypatch.setenv('RAVEL', str(shared('data/ravel'))); monkeypatch.setenv('GPT2', str(shared('models/gpt2-tokenizer')))
    nb = nbformat.read(tutorials/'02_which_featurizer_isolates_a_fact.ipynb', as_version=4)
    NotebookClient(nb, timeout=2400, kernel_name='python3', resources=dict(metadata=dict(path=tmp_path))).execute() # a cell that raises is raised here

@pytest.mark.slow
def test_watching_a_network_grok(tmp_path):
    "Six trainings on the spot, their assertions included."
    import nbformat
    from nbclient import NotebookClient
    nb = nbformat.read(tutorials/'08_grokking.ipynb', as_version=4)
    NotebookClient(nb, timeout=1800, kernel_name='python3', resources=dict(metadata=dict(path=tmp_path))).execute()
