"""The documentation site, without Quarto: nbdev's processors -> plain notebooks -> Sphinx (myst-nb, furo) -> _docs/

    python tools/docs.py                   the site; a warning is an error
    python tools/docs.py --readme          README.md and its pictures, from nbs/index.ipynb
    python tools/docs.py --readme --check  1 if that would change anything"""
import argparse, base64, json, os, posixpath, re, shutil, subprocess, sys, tarfile, tempfile
from functools import cached_property
from html import unescape
from importlib.util import find_spec
from pathlib import Path

import yaml
from nbdev.config import get_config
from nbdev.serve import proc_nbs

root = Path(__file__).resolve().parents[1]
js_cache = root/'.venv'/'js'
floors = [(9, 'Foundations'), (19, 'Interventions'), (26, 'Merge'), (39, 'Probe and classify'), (44, 'Erase'),
          (59, 'Sparse transformers'), (99, 'Dashboards and command line')]
own_pages = {'CONTRIBUTING.md': 'contributing.md', 'CHANGELOG.md': 'changelog.md'} # files outside nbs/ that are pages too
widget_state, widget_view = 'application/vnd.jupyter.widget-state+json', 'application/vnd.jupyter.widget-view+json'

# ---- links

_target = re.compile(r'(\]\(|\b(?:src|href)=")([^)\s"]+)')
_scheme = re.compile(r'^([a-z][a-z0-9+.-]*:|#|//|/)', re.I)

def relink(md,   # markdown
           here, # folder of the file it stands in, from the repository's root
           to):  # (existing path from the root, #anchor or '') -> the new target
    "Give every relative link of `md` that leads to a file of the repository a new target."
    def f(m):
        path, hash_, anchor = m[2].partition('#')
        if _scheme.match(m[2]): return m[0]
        path = posixpath.normpath(posixpath.join(here, path))
        return m[1] + to(path, hash_+anchor) if not path.startswith('..') and (root/path).exists() else m[0]
    return _target.sub(f, md)

# ---- README.md

def _directives(src):
    "The `#| key: value` lines of a cell as a dict, and the cell without them."
    ds = re.findall(r'^#\|\s*([\w-]+)(?:[:\s]\s*(.*))?$', src, re.M)
    return {k: v.strip() for k, v in ds}, re.sub(r'^#\|.*\n?', '', src, flags=re.M).strip('\n')

def _text(o): return o if isinstance(o, str) else ''.join(o)

def readme_files(nb):
    "What is made of the front page: `README.md` and its pictures, as {path from the root: bytes}."
    parts, files = [], {}
    def output(o, alt):
        d = o.get('data', {})
        for mime, ext in (('image/png', 'png'), ('image/jpeg', 'jpg'), ('image/svg+xml', 'svg')):
            if mime in d:
                f = f'docs/images/index_{len(files)+1}.{ext}'
                files[f] = _text(d[mime]).encode() if ext == 'svg' else base64.b64decode(_text(d[mime]))
                return f'![{alt}]({f})'
        if 'text/markdown' in d: return _text(d['text/markdown']).strip()
        if 'text/html' in d: return re.sub(r'<style.*?</style>\n?', '', _text(d['text/html']), flags=re.S).strip()
        return '```\n' + _text(d.get('text/plain', o.get('text', ''))).strip('\n') + '\n```'
    for c in nb['cells']:
        src = _text(c['source'])
        if c['cell_type'] == 'markdown': parts.append(relink(src.strip(), 'nbs', lambda p, a: p + a))
        if c['cell_type'] != 'code': continue
        d, src = _directives(src)
        if 'hide' in d or d.get('include') == 'false' or 'nbdev_export()' in src: continue
        if src and 'hide_input' not in d and d.get('echo') != 'false': parts.append(f'```python\n{src}\n```')
        if 'hide_output' not in d and d.get('output') != 'false': parts += [output(o, d.get('fig-alt', '')) for o in c.get('outputs', [])]
    note = '<!-- Made from nbs/index.ipynb by `make step`: edit there, not here. -->'
    return {'README.md': (note + '\n\n' + '\n\n'.join(p for p in parts if p) + '\n').encode(), **files}

def readme(check=False):
    "Write README.md and its pictures, or only `check` that they are as they would be written. Returns what differed."
    new = readme_files(json.loads((root/'nbs/index.ipynb').read_text(encoding='utf-8')))
    stale = [f for f in (root/'docs/images').glob('index_*') if f.relative_to(root).as_posix() not in new]
    diff = [f for f, b in new.items() if not (root/f).is_file() or (root/f).read_bytes() != b] + [str(f.relative_to(root)) for f in stale]
    if check: return diff
    for f in diff:
        if f not in new: (root/f).unlink(); continue
        (root/f).parent.mkdir(parents=True, exist_ok=True); (root/f).write_bytes(new[f])
    return diff

# ---- one page

def _stem(fn): return re.sub(r'^\d+[a-zA-Z0-9]*_', '', fn.stem)

class Page:
    "A notebook as nbdev's processors left it, on its way to Sphinx."
    def __init__(self, fn, proc):
        self.src, self.nb = fn.relative_to(proc), json.loads(fn.read_text(encoding='utf-8'))
        self.name = (self.src.parent/_stem(fn)).as_posix()           # sites, tutorials/merge
        self.state = self.nb['metadata'].get('widgets', {}).get(widget_state, {}).get('state')
        num = re.match(r'\d+', self.src.name)
        self.floor = 'Start' if self.name == 'index' else self.src.parts[0].capitalize() if len(self.src.parts) > 1 else \
            next((c for top, c in floors if num and int(num[0]) <= top), 'More')

    @staticmethod
    def _shown(c):
        "The markdown that `show_doc` put out, or None."
        if c['cell_type'] == 'code' and re.search(r'^show_doc\(', _text(c['source']), re.M):
            return next((_text(o['data']['text/markdown']) for o in c.get('outputs', []) if 'text/markdown' in o.get('data', {})), None)

    @cached_property
    def targets(self):
        "What `show_doc` shows here, {name: link target}. Sphinx's targets have no case, so `Site` and `site` need two."
        ts = {}
        for nm in (m[1].strip() for c in self.nb['cells'] if (s := self._shown(c)) and (m := re.search(r'^#+ (.+)$', s, re.M))):
            t = f'{self.name}.{nm.lower()}'
            while t in ts.values(): t += '-'
            ts.setdefault(nm, t)
        return ts

    def _show_doc(self, md):
        "Heading with a target, the source at its right, the signature without links inside its code."
        md = re.sub(r'(\]\([^)]*\))\{[^}]*\}', r'\1', md.strip().removeprefix('---\n').strip())
        md = re.sub(r'```python\n.*?\n```', lambda m: re.sub(r'\[`([^`]+)`\]\([^)]*\)', r'`\1`', m[0]), md, flags=re.S)
        md = re.sub(r'^def ([A-Z]\w*\(.*?\))(?:->None)?:$', r'class \1:', md, count=1, flags=re.M|re.S)
        md = re.sub(r'^(    \w+\S*=.{160})[^\n]{40,}$', r'\1 …', md, flags=re.M) # a default that is a whole table
        md = md.replace('*Call self as a function.*', '') # what Python says of a function that says nothing
        src, side = re.search(r'\[source\]\(([^)]*)\)\n*', md), ''
        if src:
            md, at = md.replace(src[0], ''), re.search(r'/blob/[^/]+/saebook/([\w/]+)\.py#L(\d+)$', src[1])
            up = '../' * self.name.count('/')
            if at: side = f'<a class="nb-source" href="{up}source/{at[1]}.html#L-{at[2]}">source</a>'
        def head(m):
            nm = m[2].strip(); low = nm.lower()
            anchor = '' if low.isalnum() else f'<a id="{low}"></a>' # nbdev's own, where Sphinx makes another
            target = '' if nm in self._done else f'({self.targets[nm]})=\n'
            self._done.add(nm)
            return f'{target}{m[1]} {nm}\n\n{anchor}{side}\n'
        return re.sub(r'^(#+) (.+)$', head, md, count=1, flags=re.M)

    def convert(self, links, widgets):
        cells, self._done = [], set()
        def add(src): cells.append(dict(cell_type='markdown', id=f'c{len(cells)}', metadata={}, source=src))
        for c in self.nb['cells']:
            s = _text(c['source'])
            if c['cell_type'] == 'raw' and (m := re.match(r'^---\n(.*?)\n-{3,}\s*$', s.strip(), re.S)):
                fm = yaml.safe_load(m[1])
                add(f"# {fm.get('title', self.name)}" + (f"\n\n> {links(fm['description'], self)}" if fm.get('description') else '') + self.origin)
            elif c['cell_type'] == 'markdown':
                if 'WARNING: THIS FILE WAS AUTOGENERATED' not in s: cells.append(dict(c, source=links(s, self)))
            elif c['cell_type'] == 'code':
                if md := self._shown(c): add(links(self._show_doc(md), self)); continue
                d, s = _directives(s)
                tags = [t for t, on in (('remove-input', d.get('echo') == 'false' or not s), ('hide-input', d.get('code-fold') == 'true'),
                                        ('remove-output', d.get('output') == 'false')) if on]
                meta = {'tags': tags, **({'mystnb': {'image': {'alt': d['fig-alt']}}} if d.get('fig-alt') else {})}
                outs = [o if 'data' not in o else dict(o, data={k: links(_text(v), self) if k == 'text/markdown' else v
                        for k, v in o['data'].items() if widgets or k != widget_view}) for o in c.get('outputs', [])]
                cells.append(dict(c, source=s, execution_count=None, metadata=meta, outputs=outs))
        meta = {k: v for k, v in self.nb['metadata'].items() if k == 'kernelspec' or (k == 'widgets' and widgets and self.state)}
        return dict(self.nb, cells=cells, metadata=dict(meta, language_info={'name': 'python'}))

    @property
    def origin(self):
        if self.name == 'index': return ''
        mod = f'{self.name}.py' if (root/'saebook'/f'{self.name}.py').exists() else ''
        return f'\n\n<p class="nb-from">Notebook <code>nbs/{self.src.as_posix()}</code>' + \
            (f' · module <a href="source/{self.name}.html"><code>saebook.{self.name}</code></a>' if mod else '') + '</p>'

def source_page(fn):
    "A module with numbered lines, to which the functions' `source` links lead."
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer
    html = highlight(fn.read_text(encoding='utf-8'), PythonLexer(), HtmlFormatter(linespans='L', linenos='inline'))
    return f'---\norphan: true\n---\n# saebook.{fn.stem}\n\n````{{raw}} html\n<div class="nb-lines">{html}</div>\n````\n'

# ---- JavaScript: only where a page needs it, never from another machine

def widget_js():
    "The three files' folder that shows saved widgets, from the npm registry; None, and a word why, if they cannot be had."
    want = {'requirejs@2.3.7': {'package/require.js': 'require.js'},
            '@jupyter-widgets/html-manager@1.0.14': {'package/dist/embed-amd.js': 'embed-amd.js'}}
    if all((js_cache/f).exists() for fs in want.values() for f in fs.values()): return js_cache
    if not shutil.which('npm'): why = 'npm is not installed'
    else:
        js_cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=js_cache) as d:
            for pkg, fs in want.items():
                r = subprocess.run(['npm', 'pack', '--silent', pkg], cwd=d, capture_output=True, text=True)
                if r.returncode: why = f'npm pack {pkg} failed'; break
                with tarfile.open(Path(d)/r.stdout.split()[-1]) as t:
                    for member, f in fs.items():
                        (Path(d)/f).write_bytes(t.extractfile(member).read()); os.replace(Path(d)/f, js_cache/f)
            else: return js_cache
    print(f'Widgets stand as plain text in the site: {why}.')

def vendor(out):
    "Copy what the built pages ask for from `_static/vendor`."
    asked = {f for p in out.rglob('*.html') for f in re.findall(r'_static/vendor/([\w.-]+\.js)', p.read_text(encoding='utf-8'))}
    spec = find_spec('sphinx-mathjax-offline')
    mathjax = Path(spec.origin).parent/'static'/'mathjax' if spec else None
    for f in sorted(asked):
        d = mathjax if f == 'tex-svg.js' else js_cache
        if d is None: print('Formulas stand as TeX in the site: pip install sphinx-mathjax-offline to see them set.'); continue
        js = (d/f).read_text(encoding='utf-8')
        if f == 'embed-amd.js': js = js.replace('MathJax.Hub.Queue(["Typeset",MathJax.Hub,e])', 'MathJax.typesetPromise?.([e])') # MathJax 2 -> 3
        (out/'_static'/'vendor').mkdir(exist_ok=True); (out/'_static'/'vendor'/f).write_text(js, encoding='utf-8')

def outside(out):
    "What the built pages would load from another machine."
    load = re.compile(r'''<(?:script|img|iframe|source|video)\b[^>]*?\bsrc=["']((?:https?:)?//[^"']+)|<link\b(?=[^>]*rel=["'](?:stylesheet|preload|icon))[^>]*?href=["']((?:https?:)?//[^"']+)''')
    css = re.compile(r'''(?:@import\s+|url\()\s*["']?((?:https?:)?//[^"')]+)''')
    return sorted({f'{p.relative_to(out)} loads {unescape(next(filter(None, m.groups())))}'
                   for pat, rx in (('*.html', load), ('*.css', css)) for p in out.rglob(pat) for m in rx.finditer(p.read_text(encoding='utf-8'))})

def broken(out):
    "The links between built pages that lead nowhere: Sphinx checks its own, not those in raw HTML."
    links = ((p, unescape(l)) for p in out.rglob('*.html') for l in re.findall(r'\b(?:href|src)="([^"#?]+)', p.read_text(encoding='utf-8')))
    return sorted({f'{p.relative_to(out)} links to {l}' for p, l in links if not _scheme.match(l) and not (p.parent/l).exists()})

# ---- the site

def toc(pages):
    "The sidebar: floors in order, tutorials, the project."
    order = ['Start', *(c for _, c in floors), 'More', 'Tutorials']
    groups = {c: [] for c in order}
    for p in pages: groups.setdefault(p.floor, []).append('self' if p.name == 'index' else p.name)
    groups['Project'] = [f.removesuffix('.md') for src, f in own_pages.items() if (root/src).exists()]
    return '\n\n'.join(f'```{{toctree}}\n:hidden:\n:caption: {c}\n\n' + '\n'.join(ps) + '\n```' for c, ps in groups.items() if ps)

def site():
    cfg = get_config(); out = Path(cfg.doc_path); base = cfg.doc_host + cfg.doc_baseurl
    try: proc = proc_nbs(n_workers=2, force=True)
    except Exception as e: # a worker's traceback is long; the cell and the error itself are what is wanted
        why = re.findall(r'^(?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b.*$', str(e.__cause__), re.M)
        print(f'{e}\n{why[0] if why else e.__cause__}'); return 1
    dst = proc/'_sphinx'; dst.mkdir()
    shutil.copy(root/'docs'/'conf.py', dst); shutil.copytree(root/'docs'/'_static', dst/'_static')
    pages = [Page(f, proc) for f in sorted(proc.rglob('*.ipynb'))]
    by_name = {p.name: p for p in pages}
    by_src = {f'nbs/{p.src.as_posix()}': p.name for p in pages}

    def to(path, anchor):
        if path in by_src: return f'/{by_src[path]}.ipynb{anchor.lower()}'
        if path in own_pages: return f'/{own_pages[path]}{anchor}'
        return '/' + path.removeprefix('nbs/') if path.startswith('nbs/') else f'{cfg.git_url}/blob/{cfg.branch}/{path}'
    own = re.compile(rf'\[(`[^`\]]+`)\]\({re.escape(base)}/([\w/]+)\.html(?:#([\w.]+))?\)')
    def doclink(m): # to what is shown; if it is not shown, to the page it would stand on
        if not (p := by_name.get(m[2])): return m[1]
        near = sorted((nm for nm in p.targets if nm.lower() == m[3]), key=lambda nm: not m[1].strip('`()').endswith(nm))
        return f'[{m[1]}](#{p.targets[near[0]]})' if near else f'[{m[1]}](/{p.name}.ipynb)'
    def links(md, page): return relink(own.sub(doclink, md), posixpath.dirname(f'nbs/{page.src.as_posix()}'), to)

    widgets = widget_js() if any(p.state for p in pages) else None
    for p in pages:
        nb = p.convert(links, widgets)
        if p.name == 'index': nb['cells'].append(dict(cell_type='markdown', id='toc', metadata={}, source=toc(pages)))
        f = dst/f'{p.name}.ipynb'; f.parent.mkdir(exist_ok=True); f.write_text(json.dumps(nb), encoding='utf-8')
    for f in proc.rglob('*'): # pictures beside the notebooks
        if f.is_file() and dst not in f.parents and f.suffix in ('.png', '.jpg', '.svg', '.gif', '.webp'):
            d = dst/f.relative_to(proc); d.parent.mkdir(parents=True, exist_ok=True); shutil.copy(f, d)
    (dst/'source').mkdir()
    for f in (root/'saebook').glob('[!_]*.py'): (dst/'source'/f'{f.stem}.md').write_text(source_page(f), encoding='utf-8')
    for src, f in own_pages.items():
        if (root/src).exists(): (dst/f).write_text(relink((root/src).read_text(encoding='utf-8'), '', to), encoding='utf-8')

    shutil.rmtree(out, ignore_errors=True)
    if rc := subprocess.call([sys.executable, '-m', 'sphinx', '-b', 'html', '-W', '--keep-going', '-q', '-d', str(proc/'_doctrees'), str(dst), str(out)]): return rc
    vendor(out)
    if bad := outside(out): print('The site must ask for nothing from outside:\n' + '\n'.join(bad))
    if dead := broken(out): print('Dead links:\n' + '\n'.join(dead))
    return bool(bad or dead)

def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--readme', action='store_true'); a.add_argument('--check', action='store_true')
    a = a.parse_args()
    os.chdir(root)
    if not a.readme: return site()
    diff = readme(a.check)
    if diff: print('\n'.join(f'{f} {"is not what nbs/index.ipynb makes: run `make step`" if a.check else "written"}' for f in diff))
    return bool(diff and a.check)

if __name__ == '__main__': sys.exit(main())
