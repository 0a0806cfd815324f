"Packaging. Every value stands in `settings.ini`: edit there, not here."
import shlex
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

ini = ConfigParser(delimiters=['='])
ini.read('settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
lib = cfg['lib_path']
# `data/` stands at the top of the repository and travels as the package `saebook.data`, so that an installed wheel
# and a checkout find the taught models in the same way (importlib.resources).
data = [str(p.relative_to('data')) for p in Path('data').rglob('*') if p.is_file()]

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'],
    keywords=cfg['keywords'], author=cfg['author'], author_email=cfg['author_email'],
    license=cfg['license'].upper(), url=cfg['git_url'],
    project_urls={'Documentation': cfg['doc_host'] + cfg['doc_baseurl']},
    classifiers=['Programming Language :: Python :: 3', 'Intended Audience :: Science/Research'],
    long_description=Path('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    packages=find_packages(include=[lib, lib + '.*']) + [f'{lib}.data'], package_dir={f'{lib}.data': 'data'},
    package_data={f'{lib}.data': data}, zip_safe=False,
    python_requires='>=' + cfg['min_python'],
    install_requires=shlex.split(cfg['requirements']),
    extras_require={k: shlex.split(cfg[f'{k}_requirements']) for k in ('dev', 'app')},
    entry_points={'console_scripts': shlex.split(cfg['console_scripts']),
                  'nbdev': [f"{lib}={lib}._modidx:d"]},
)
