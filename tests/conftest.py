import os
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
