"The built site in a real browser: opened from disk, at a desk and on a phone, it asks for nothing and fits."
import os, subprocess, sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser
root = Path(__file__).resolve().parents[1]

@pytest.fixture(scope='module')
def pages(browser):
    "The pages of the site, which is built if it is missing."
    site = root/'_docs'
    if not (site/'index.html').exists(): subprocess.run([sys.executable, root/'tools'/'docs.py'], check=True, env=dict(os.environ, OMP_NUM_THREADS='1'))
    return [f for f in sorted(site.rglob('*.html')) if f.name not in ('genindex.html', 'search.html')]

@pytest.mark.parametrize('width, height', [(1440, 900), (390, 844)], ids=['desk', 'phone'])
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_pages_ask_for_nothing_and_fit(browser, pages, width, height, scheme):
    ctx = browser.new_context(viewport=dict(width=width, height=height), color_scheme=scheme)
    page, bad, now = ctx.new_page(), [], ''
    page.on('request', lambda r: r.url.startswith(('file:', 'data:', 'blob:')) or bad.append(f'{now}: asks for {r.url}'))
    page.on('requestfailed', lambda r: bad.append(f'{now}: {r.url} failed'))
    page.on('console', lambda m: m.type == 'error' and bad.append(f'{now}: {m.text}'))
    page.on('pageerror', lambda e: bad.append(f'{now}: {e}'))
    for f in pages:
        now = f.relative_to(root).as_posix()
        page.goto(f.as_uri(), wait_until='load')
        if page.locator('.math').count(): page.wait_for_selector('mjx-container', state='attached', timeout=20_000)
        if page.locator('script[type="application/vnd.jupyter.widget-view+json"]').count(): page.wait_for_selector('.jupyter-widgets', state='attached', timeout=20_000)
        if (w := page.evaluate('document.documentElement.scrollWidth')) > width: bad.append(f'{now}: {w} px wide')
    ctx.close()
    assert not bad, '\n'.join(bad)

def test_search_finds_a_function(browser, pages):
    page = browser.new_page()
    page.goto((root/'_docs'/'search.html').as_uri() + '?q=BadInput')
    page.wait_for_selector('#search-results li a', timeout=20_000)
    assert any('core.html' in (a.get_attribute('href') or '') for a in page.locator('#search-results li a').all())
    page.close()

def test_the_source_of_a_function_is_beside_it(browser, pages):
    page = browser.new_page()
    page.goto((root/'_docs'/'core.html').as_uri())
    link = page.locator('section:has(> h3:has-text("BadInput")) a.nb-source').first
    link.click(); page.wait_for_load_state()
    assert page.url.split('#')[0].endswith('source/core.html')
    assert 'class BadInput' in page.evaluate('document.querySelector(":target").textContent')
    page.close()
