"The habits of the house: what a reader of the notebooks would find boring, and a maintainer would miss."
import ast, importlib, inspect, json, re, subprocess, sys
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[1]
notebooks = sorted(f for f in root.glob('nbs/**/*.ipynb') if '.ipynb_checkpoints' not in f.parts)
modules = sorted(f.stem for f in root.glob('saebook/*.py') if not f.name.startswith('_'))
per_notebook = pytest.mark.parametrize('fn', notebooks, ids=lambda f: f.relative_to(root/'nbs').as_posix())
per_module = pytest.mark.parametrize('name', modules)
heavy = 'nnsight datasets sklearn matplotlib ipywidgets tensorboard wandb'.split()
own_heavy = dict(estimators={'sklearn'}) # a class of scikit-learn's can only be written where scikit-learn is loaded; nothing imports these modules before it needs them

def text(o): return o if isinstance(o, str) else ''.join(o)
def load(fn): return json.loads(fn.read_text(encoding='utf-8'))
def code_cells(fn): return [text(c['source']) for c in load(fn)['cells'] if c['cell_type'] == 'code']
def parse(src): return ast.parse(re.sub(r'^\s*[%!].*$', 'pass', src, flags=re.M)) # magics are not Python

def floors():
    "The floor of each module: the number of its notebook."
    return {m[1]: int(re.match(r'\d+', f.name)[0]) for f in notebooks for s in code_cells(f)
            if (m := re.search(r'^#\|\s*default_exp\s+(\S+)', s, re.M)) and re.match(r'\d', f.name)}

def own_imports(src):
    "The modules of saebook that a cell imports."
    for n in ast.walk(parse(src)):
        if isinstance(n, ast.Import): yield from (a.name.split('.')[1] for a in n.names if a.name.startswith('saebook.'))
        elif isinstance(n, ast.ImportFrom) and n.module == 'saebook': yield from (a.name for a in n.names)
        elif isinstance(n, ast.ImportFrom) and (n.module or '').startswith('saebook.'): yield n.module.split('.')[1]

def is_import(n): return isinstance(n, (ast.Import, ast.ImportFrom))
def is_string(n): return isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)

# ---- notebooks

def test_there_are_notebooks_and_modules(): assert notebooks and modules

@per_notebook
def test_the_kernel_is_called_python3(fn): assert load(fn)['metadata']['kernelspec']['name'] == 'python3'

@per_notebook
def test_the_notebook_is_small(fn): assert fn.stat().st_size < 2_000_000, 'outputs are kept small: fewer points, smaller figures, no widget state'

@per_notebook
def test_the_notebook_opens_with_a_title_and_a_quote(fn):
    assert re.match(r'# \S.*\n\n> \S', text(load(fn)['cells'][0]['source']))

@per_notebook
def test_imports_lead_only_downwards(fn):
    at = floors()
    m = re.match(r'\d+', fn.name)
    if not m or fn.parent.name != 'nbs': return # the front page and the tutorials stand above all floors
    bad = [f'{name} (floor {at[name]})' for s in code_cells(fn) for name in own_imports(s) if at.get(name, -1) > int(m[0])]
    assert not bad, f'floor {m[0]} imports from above: {bad}'

@per_notebook
def test_a_cell_that_imports_does_nothing_else(fn):
    "nbdev runs such cells of a module's notebook for the docs, without the cells before them."
    cells = code_cells(fn)
    if not any(re.search(r'^#\|\s*default_exp', s, re.M) for s in cells): return
    for s in cells:
        if 'nbdev_export()' in s or re.search(r'^#\|\s*(exports?|exporti|eval:\s*false)\b', s, re.M): continue
        tree = parse(s)
        if any(map(is_import, ast.walk(tree))): assert all(is_import(n) or is_string(n) for n in tree.body), f'move the imports to a cell of their own:\n{s}'

@per_notebook
def test_no_output_is_an_error(fn):
    for c in load(fn)['cells']:
        for o in c.get('outputs', []):
            assert o['output_type'] != 'error', text(c['source'])
            assert 'Traceback (most recent call last)' not in text(o.get('text', '')), text(c['source'])

@per_notebook
def test_no_path_of_a_machine(fn):
    s = re.sub(r'"image/(png|jpeg)": "[^"]*"', '', fn.read_text(encoding='utf-8')) # base64 may hold any letters
    assert not (m := re.search(r'(?<![\w.:/-])/(home|root|tmp|work|Users|private|mnt)/\S*', s)), m[0]

def test_no_path_of_a_machine_in_other_files():
    fs = [f for p in ('saebook/*.py', 'tools/*.py', 'docs/*.py', '*.md', '*.ini', 'setup.py', 'Makefile', '.ci/*', 'data/**/*.json') for f in root.glob(p)]
    bad = [(str(f.relative_to(root)), m[0]) for f in fs if (m := re.search(r'(?<![\w.:/*-])/(home|root|work|Users)/\S*', f.read_text(encoding='utf-8')))]
    assert not bad

# Only what looks like a call or belongs to a module or class of ours can be told from other code in backticks.
def named():
    for fn in notebooks:
        for c in load(fn)['cells']:
            if c['cell_type'] == 'markdown':
                for s in re.findall(r'(?<!`)`saebook\.([a-z_]+(?:\.\w+)*)(?:\(.*?\))?`', re.sub(r'```.*?```', '', text(c['source']), flags=re.S)): yield fn.name, s

def test_names_of_ours_in_backticks_exist():
    bad = []
    for fn, s in sorted(set(named())):
        mod, *attrs = s.split('.')
        if mod not in modules: bad.append((fn, s)); continue
        o = importlib.import_module(f'saebook.{mod}')
        for a in attrs:
            o = getattr(o, a, None)
            if o is None: bad.append((fn, s)); break
    assert not bad

# ---- modules

@per_module
def test_the_module_has_its_notebook(name):
    m = re.search(r'^# AUTOGENERATED! DO NOT EDIT! File to edit: (\S+)\.$', (root/f'saebook/{name}.py').read_text(encoding='utf-8'), re.M)
    assert m and (root/'saebook'/m[1]).exists(), 'its notebook is gone: delete the module, or write the notebook'

@per_module
def test_the_import_is_light(name):
    "Nothing that is heavy and not always needed is loaded before it is used."
    r = subprocess.run([sys.executable, '-c', f'import saebook.{name}, sys; print(*sorted(m for m in {heavy} if m in sys.modules))'],
                       cwd=root, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    assert not set(r.stdout.split()) - own_heavy.get(name, set()), f'loaded by `import saebook.{name}`: {r.stdout}'

def test_the_package_itself_loads_nothing():
    r = subprocess.run([sys.executable, '-c', "import saebook, sys; print('torch' in sys.modules)"], cwd=root, capture_output=True, text=True)
    assert r.stdout.strip() == 'False', r.stderr

@per_module
def test_public_names_have_docstrings(name):
    mod = importlib.import_module(f'saebook.{name}')
    mine = {n: getattr(mod, n) for n in mod.__all__}
    bad = [n for n, o in mine.items() if (inspect.isfunction(o) or inspect.isclass(o)) and o.__module__ == mod.__name__ and not own_doc(o)]
    bad += [f'{n}.{k}' for n, o in mine.items() if inspect.isclass(o) and o.__module__ == mod.__name__
            for k, f in vars(o).items() if not k.startswith('_') and inspect.isfunction(f) and not inspect.getdoc(getattr(o, k))]
    assert not bad, f'without a docstring: {bad}'

def own_doc(o):
    "The docstring of `o` itself: a class inherits its parent's, and dataclass writes one that only repeats the fields."
    d = vars(o).get('__doc__') if inspect.isclass(o) else o.__doc__
    return d and not d.startswith(f'{o.__name__}(')

# ---- README.md

@pytest.fixture(scope='module')
def docs():
    sys.path.insert(0, str(root/'tools'))
    try: yield importlib.import_module('docs')
    finally: sys.path.remove(str(root/'tools'))

def test_readme_is_made_from_the_front_page(docs): assert not docs.readme(check=True), 'run `make step`'

def test_links_of_the_readme_lead_somewhere():
    md = re.sub(r'```.*?```', '', (root/'README.md').read_text(encoding='utf-8'), flags=re.S)
    links = re.findall(r'\]\(([^)\s#]+)', md) + re.findall(r'(?:src|href)="([^"#]+)"', md)
    assert not [l for l in links if not re.match(r'[a-z]+:', l) and not (root/l).exists()]

def test_readme_shows_outputs_and_leaves_out_what_is_hidden(docs):
    "A front page with each kind of cell, and the README it makes."
    png = 'iVBORw0KGgo='
    cell = lambda src, *outs: dict(cell_type='code', source=src, outputs=[dict(output_type='display_data', data=d) for d in outs])
    nb = dict(cells=[dict(cell_type='markdown', source='# T\n\n[core](00_core.ipynb#a) [how](../CONTRIBUTING.md) [out](https://x.org)'),
                     cell('#| hide\nimport secret'), cell('#| echo: false\n#| fig-alt: a curve\nplot()', {'image/png': png}),
                     cell('1+1', {'text/plain': '2'}), cell('df', {'text/html': '<style>x</style>\n<table></table>', 'text/plain': 'x'})])
    files = docs.readme_files(nb)
    md = files['README.md'].decode()
    assert '[core](nbs/00_core.ipynb#a) [how](CONTRIBUTING.md) [out](https://x.org)' in md
    assert 'secret' not in md and 'plot()' not in md
    assert '![a curve](docs/images/index_1.png)' in md and 'docs/images/index_1.png' in files
    assert '```python\n1+1\n```\n\n```\n2\n```' in md and '```python\ndf\n```\n\n<table></table>' in md
