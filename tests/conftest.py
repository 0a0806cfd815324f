import os, shutil
from pathlib import Path

import pytest

@pytest.fixture(scope='session')
def shared():
    "A function that finds a folder of the shared material beside the repository; a user's machine may not have it, CI must."
    def find(name):
        path = Path(__file__).parents[2]/'shared'/name
        if path.exists(): return path
        why = f'{name} is not in the folder shared/ beside the repository'
        if os.environ.get('CI'): pytest.fail(why)
        pytest.skip(why)
    return find

def _no_browser(why):
    "No browser is a stated reason to skip at a user's, and a failure in CI unless CI itself says why there is none."
    if os.environ.get('CI') and not os.environ.get('SAEBOOK_NO_BROWSER'): pytest.fail(why)
    pytest.skip(os.environ.get('SAEBOOK_NO_BROWSER') or why)

@pytest.fixture(scope='session')
def browser():
    try: from playwright.sync_api import sync_playwright
    except ImportError: _no_browser('playwright is not installed: pip install playwright')
    exe = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'))), None)
    if exe is None: _no_browser('no Chromium was found: install it (Debian: apt install chromium)')
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=exe, args=['--no-sandbox', '--disable-gpu', '--disable-quic', '--disable-background-networking'])
        yield b
        b.close()
