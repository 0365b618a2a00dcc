"""Le jeu d'exemple : 600 visages redessinables, décrits par quatre nombres indépendants."""
import draw_exemple
import numpy as np
import pytest
from PIL import Image

FILES = sorted(draw_exemple.FOLDER.iterdir())


@pytest.fixture(scope="module")
def pictures():
    """Tous les visages, tels que les fichiers les donnent : un tableau 600×64×64×3."""
    return np.stack([np.asarray(Image.open(file)) for file in FILES])


def test_files():
    """600 fichiers PNG en couleur, de 64×64 pixels, de moins de 4 Ko, et rien d'autre."""
    assert [file.name for file in FILES] == [f"visage_{number:03}.png" for number in range(600)]
    for file in FILES:
        assert file.stat().st_size < 4000, file.name
        with Image.open(file) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 64)), file.name


def test_drawn_again(pictures):
    """Redessiner chaque visage à partir de ses quatre nombres redonne la même image.

    D'une version de Pillow à l'autre, un pixel du bord d'une forme change parfois à peine."""
    for values, picture, file in zip(draw_exemple.features(), pictures, FILES):
        again = np.asarray(draw_exemple.draw_face(*values)).astype(int)
        difference = np.abs(again - picture).max(axis=2)
        assert difference.max() <= 16 and np.count_nonzero(difference) <= 4, file.name


def test_no_duplicate(pictures):
    """Deux fichiers ne montrent jamais la même image."""
    assert len({picture.tobytes() for picture in pictures}) == 600


def test_features():
    """Chaque nombre parcourt uniformément [-1, 1], sans lien avec les trois autres."""
    features = draw_exemple.features()
    assert features.shape == (600, len(draw_exemple.FEATURE_NAMES)) == (600, 4)
    assert np.array_equal(features, draw_exemple.features())
    assert np.allclose(np.sort(features, axis=0), np.linspace(-1, 1, 600)[:, None])
    for table in (features, np.abs(features)):   # abs : un lien qui ne serait pas une droite
        correlations = np.corrcoef(table.T) - np.eye(4)
        assert np.abs(correlations).max() < 0.06


def test_every_feature_shows():
    """Chaque nombre, seul, change assez de pixels pour qu'un VAE lui consacre un curseur."""
    changes = []
    for feature in np.eye(4):
        line = [draw_exemple.draw_face(*(feature * value)) for value in np.linspace(-1, 1, 21)]
        line = np.stack([np.asarray(image) / 255 for image in line])
        changes.append(((line - line.mean(axis=0)) ** 2).sum() / len(line))
    assert min(changes) > 25, changes
    assert max(changes) < 5 * min(changes), changes
