"Sphinx's settings. The pages are made from the notebooks by tools/docs.py, which calls Sphinx on its own working folder."
from configparser import ConfigParser
from pathlib import Path

ini = ConfigParser(delimiters=['='])
ini.read(Path(__file__).parents[2]/'settings.ini', encoding='utf-8') # this file is run from _proc/_sphinx
cfg = ini['DEFAULT']
project, author, release, copyright = cfg['title'], cfg['author'], cfg['version'], cfg['copyright']

extensions = ['myst_nb', 'sphinx_copybutton']
myst_enable_extensions = ['dollarmath', 'amsmath', 'deflist', 'html_image']
myst_heading_anchors = 3
nb_execution_mode = 'off'  # outputs are those saved in the notebooks
nb_merge_streams = True

html_theme, html_title = 'furo', project
html_static_path, html_css_files = ['_static'], ['nb.css']
html_theme_options = dict(top_of_page_buttons=[])
html_copy_source = html_show_sourcelink = False
suppress_warnings = ['myst.header']  # a function may stand straight under the title
pygments_style, pygments_dark_style = 'friendly', 'github-dark'

# Nothing is asked of another machine: tools/docs.py puts these files into _static where a page needs them.
mathjax_path = 'vendor/tex-svg.js'
nb_ipywidgets_js = {'vendor/require.js': {}, 'vendor/embed-amd.js': {}}
