"""Les outils communs à tous les tests (pytest)."""
import shutil
import signal
import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]
import kit  # noqa: E402

# Lancé en arrière-plan (« pytest & »), un script hérite d'un Ctrl-C ignoré : rétabli pour les tests.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    config.addinivalue_line("markers", "window: un test qui ouvre une fenêtre sur un écran virtuel")


@pytest.fixture
def folder(tmp_path):
    """Une copie du kit, dans un dossier dont le nom a une espace et un accent."""
    return kit.copy_kit(tmp_path / "mon kit été")


@pytest.fixture(scope="session")
def screen():
    """Un écran virtuel pour toute la session de tests."""
    missing = [name for name in ("Xvfb", "xdotool") if not shutil.which(name)]
    if missing:
        pytest.skip("il manque " + " et ".join(missing) + " (apt-get install xvfb xdotool openbox)")
    screen = kit.Screen()
    yield screen
    screen.close()
