"""Les outils communs à tous les tests (pytest)."""
import contextlib
import os
import shutil
import signal
import sys

import kit
import pytest

try:
    import cv2
except ImportError:                 # sans libgl1, OpenCV est là, mais ne s'importe pas
    sys.modules["cv2"] = None       # alors il manque : chaque test qui le veut le dit

os.environ.setdefault("OMP_NUM_THREADS", "1")       # les autres cœurs restent libres
sys.path.insert(0, str(kit.ROOT))

# Lancé en arrière-plan (« pytest & »), un script hérite d'un Ctrl-C ignoré : rétabli pour les tests.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    config.addinivalue_line("markers", "window: ouvre une vraie fenêtre (-m 'not window' : sans)")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if "screen" in item.fixturenames:
            item.add_marker("window")


@pytest.fixture
def folder(tmp_path):
    """Une copie du kit, dans un dossier dont le nom a une espace et un accent."""
    return kit.copy_kit(tmp_path / "mon kit été")


@pytest.fixture(scope="session")
def screen():
    """Un écran virtuel pour toute la session de tests."""
    missing = [name for name in ("Xvfb", "xdotool", "openbox") if not shutil.which(name)]
    if missing:
        pytest.skip("il manque " + " et ".join(missing) + " (apt-get install xvfb xdotool openbox)")
    with contextlib.closing(kit.Screen()) as screen:
        yield screen
