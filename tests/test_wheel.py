"A wheel, installed in a fresh environment, away from the repository."
import os, shutil, subprocess, sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
root = Path(__file__).resolve().parents[1]

def run(*args, **kw):
    env = {k: v for k, v in os.environ.items() if not k.startswith('PYTHON')} | dict(HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1')
    r = subprocess.run([str(a) for a in args], capture_output=True, text=True, env=env, **kw)
    assert r.returncode == 0, f'{args}\n{r.stdout[-3000:]}\n{r.stderr[-3000:]}'
    return r.stdout

@pytest.fixture(scope='module')
def python(tmp_path_factory):
    "The Python of a new environment that holds the wheel; built from a copy, so that no older build/ leaks into it."
    tmp = tmp_path_factory.mktemp('wheel')
    shutil.copytree(root, tmp/'src', ignore=shutil.ignore_patterns('.venv', '.git', '_docs', '_proc', 'build', 'dist', '*.egg-info', 'runs', 'quickstart', '__pycache__'))
    run(sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '-w', tmp, tmp/'src')
    run(sys.executable, '-m', 'venv', tmp/'env')
    py = tmp/'env'/('Scripts' if os.name == 'nt' else 'bin')/'python'
    run(py, '-m', 'pip', 'install', '-q', '-c', root/'constraints.txt', *tmp.glob('saebook-*.whl'))
    shutil.rmtree(tmp/'src')
    yield py
    shutil.rmtree(tmp/'env') # two gigabytes

def test_no_requirement_is_broken(python): run(python, '-m', 'pip', 'check')

def test_taught_models_travel_in_the_wheel(python, tmp_path):
    out = run(python, '-c', "import saebook; from saebook.world import load_taught; load_taught('base'); print(saebook.__file__)", cwd=tmp_path)
    assert str(root) not in out, 'the repository was imported instead of the wheel'

def test_the_command_is_installed(python, tmp_path):
    assert '--out' in run(python.parent/'saebook', 'quickstart', '--help', cwd=tmp_path)

def test_quickstart_runs_away_from_the_repository(python, tmp_path):
    run(python.parent/'saebook', 'quickstart', '--out', 'out', cwd=tmp_path, timeout=900)
    assert {'report.html', 'metrics.json'} <= {f.name for f in (tmp_path/'out').iterdir()}
