"""Le jeu d'exemple : 600 visages redessinables, décrits par quatre nombres indépendants."""
import draw_exemple
import numpy as np
from PIL import Image

FILES = sorted(draw_exemple.FOLDER.iterdir())


def test_files():
    """600 PNG de moins de 4 Ko, tous différents, redessinés (un autre Pillow change parfois un pixel)."""
    assert [file.name for file in FILES] == [f"visage_{number:03}.png" for number in range(600)]
    pictures = set()
    for file, values in zip(FILES, draw_exemple.features()):
        with Image.open(file) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 64)), file.name
            picture = np.asarray(image, int)
        pictures.add(picture.tobytes())
        difference = np.abs(picture - draw_exemple.draw_face(*values)).max(axis=2)
        assert difference.max() <= 16 and np.count_nonzero(difference) <= 4, file.name
    assert len(pictures) == 600 and max(file.stat().st_size for file in FILES) < 4000
