"""Tout ce que l'on peut mettre dans images/ : lu à l'endroit et en couleurs justes, ou refusé."""
import contextlib

import model_VAE_64
import numpy as np
import pytest
from model_VAE_64 import find_images, read_image
from PIL import Image

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
RED, GREEN, BLUE, GREY = COLORS = (220, 30, 30), (30, 200, 40), (40, 60, 210), (120, 120, 120)
WHITE, BLACK, HALF_RED = (255, 255, 255), (0, 0, 0), (237, 143, 143)


def quarters(colors=COLORS, size=(80, 80), mode="RGB"):
    """Quatre quarts unis : en haut à gauche, en haut à droite, en bas à gauche, en bas à droite."""
    image = Image.new(mode, (2, 2))
    image.putdata(list(colors))
    return image.resize(size, Image.Resampling.NEAREST)


def assert_quarters(path, colors=COLORS, tolerance=0, images_size=64):
    """L'image lue est un carré en RVB, et le milieu de chaque quart a la couleur attendue."""
    image = read_image(path, images_size)
    assert (image.mode, image.size) == ("RGB", (images_size, images_size))
    near, far = images_size // 4, images_size * 3 // 4
    found = [image.getpixel(place) for place in [(near, near), (far, near), (near, far), (far, far)]]
    assert np.abs(np.subtract(found, colors)).max() <= tolerance, found


def assert_refused(path, words="n'est pas une image, ou elle est abîmée.* exportez-la en JPEG"):
    """L'image est refusée par une phrase qui contient un de ces mots."""
    with pytest.raises(ValueError, match=words):
        read_image(path, 64)


MANY = {"save_all": True, "append_images": [quarters((WHITE, BLACK, GREY, RED))]}


@pytest.mark.parametrize("name, options, tolerance", [
    ("sans extension", {"format": "PNG"}, 0), ("a.bmp", {}, 0), ("a.tif", {"compression": "tiff_lzw"}, 0),
    ("a.png", MANY, 0), ("a.tif", MANY, 0), ("a.gif", MANY, 12), ("a.webp", MANY, 12), ("a.mpo", MANY, 12),
    ("A.JPEG", {"quality": 95, "progressive": True}, 12), ("png.png", {"format": "JPEG"}, 12),
    ("exif.jpg", {"exif": b"Exif\0\0bonjour"}, 12)])
def test_formats(tmp_path, name, options, tolerance):
    """Le contenu compte, pas le nom ; de plusieurs images, la première ; un EXIF abîmé ne gêne pas."""
    quarters().save(tmp_path / name, **options)
    assert_quarters(tmp_path / name, tolerance=tolerance)


PALETTE = quarters((0, 1, 2, 3), mode="P")
PALETTE.putpalette(RED + GREEN + BLUE + GREY)
PALETTE.info["transparency"] = 2        # la troisième couleur, bleu
ALPHA = quarters((GREEN + (255,), RED + (128,), BLUE + (0,), GREY + (255,)), mode="RGBA")
GREYS = quarters(((0, 255), (0, 128), (0, 0), (200, 255)), mode="LA")


@pytest.mark.parametrize("name, image, colors, tolerance", [
    ("l.png", GREYS.convert("L"), (BLACK, BLACK, BLACK, (200,) * 3), 0),
    ("1.png", quarters((0, 255, 255, 0), mode="1"), (BLACK, WHITE, WHITE, BLACK), 0),
    ("cmyk.jpg", quarters().convert("CMYK"), COLORS, 8),
    ("rgba.png", ALPHA, (GREEN, HALF_RED, WHITE, GREY), 1),
    ("la.png", GREYS, (BLACK, (127,) * 3, WHITE, (200,) * 3), 1),
    ("p.gif", PALETTE, (RED, GREEN, WHITE, GREY), 0),
    ("p.png", PALETTE, (RED, GREEN, WHITE, GREY), 0)])
def test_modes(tmp_path, name, image, colors, tolerance):
    """Gris, 1 bit, palettes, transparence (sur blanc), CMJN : les bonnes couleurs."""
    image.save(tmp_path / name)
    assert_quarters(tmp_path / name, colors, tolerance)


@pytest.mark.parametrize("mode, kind, values, shades", [
    ("I;16", "<u2", (0, 10 * 257, 50 * 257, 128 * 257), (0, 20, 100, 255)),          # 16 bits
    ("I;16", "<u2", (50, 50, 50, 51), (0, 0, 0, 255)),                               # une caméra thermique
    ("I", "<i4", (-500, 0, 3500, 3500), (0, 32, 255, 255)),
    ("F", "<f4", (0, 0.0025, 0.005, 0.01), (0, 64, 128, 255)),
    ("F", "<f4", (0, 0.51, 1.02, 1.02), (0, 128, 255, 255))])
def test_deep_grey(tmp_path, mode, kind, values, shades):
    """16 bits, 32 bits, flottants : du plus sombre au plus clair de l'image, du noir au blanc."""
    array = np.array(values, kind).reshape(2, 2).repeat(32, axis=0).repeat(32, axis=1)
    Image.frombytes(mode, (64, 64), array.tobytes()).save(tmp_path / "a.tif")
    assert_quarters(tmp_path / "a.tif", [(shade,) * 3 for shade in shades], tolerance=1)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_right_side_up(tmp_path, name, orientation):
    """Les huit orientations EXIF, dans chaque format qui en a."""
    turn = ["", "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90",
            "TRANSVERSE", "ROTATE_270"][orientation - 1]    # comme l'appareil était tenu
    stored = quarters().transpose(Image.Transpose[turn]) if turn else quarters()
    stored.getexif()[274] = orientation
    stored.save(tmp_path / name, exif=stored.getexif())
    assert_quarters(tmp_path / name, tolerance=12)


@pytest.mark.parametrize("size, images_size", [
    ((3000, 40), 64), ((40, 3000), 64), ((5001, 50), 64), ((640, 480), 16), ((2000, 1500), 512)])
def test_central_square(tmp_path, size, images_size):
    """Le carré central, sans déformer, à toutes les tailles : les bords n'y sont plus."""
    image, side = Image.new("RGB", size, RED), min(size)
    image.paste(quarters(size=(side, side)), tuple((length - side) // 2 for length in size))
    image.save(tmp_path / "a.jpg", quality=95)
    assert_quarters(tmp_path / "a.jpg", tolerance=12, images_size=images_size)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.bmp", "a.tif", "a.webp", "a.jp2"])
def test_damaged(tmp_path, name):
    """Un fichier coupé est refusé ; quelques octets changés : une image ou une phrase."""
    rng, path = np.random.default_rng(0), tmp_path / name
    Image.fromarray(rng.integers(0, 255, (80, 80, 3), np.uint8)).save(path)
    whole = path.read_bytes()
    for part in (0, 1, 10, len(whole) // 4, len(whole) // 2, len(whole) * 9 // 10):
        path.write_bytes(whole[:part])
        assert_refused(path)
    for place in rng.integers(0, 400, 50):
        path.write_bytes(whole[:place] + rng.bytes(4) + whole[place + 4:])
        with contextlib.suppress(ValueError):
            assert read_image(path, 64).size == (64, 64)


def test_refused(tmp_path, monkeypatch):
    """Du texte, une photo HEIC, une image trop grande (avant de la décompresser) : la même phrase ; un
    fichier qui ne s'ouvre pas : la raison du système."""
    for content in (b"<html></html>\n" * 50, bytes(9000), b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", b""):
        (tmp_path / "a.png").write_bytes(content)
        assert_refused(tmp_path / "a.png")
    assert_refused(tmp_path / "absent.png", "No such file")
    assert_refused(tmp_path, "Is a directory|Permission denied")
    quarters().save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    monkeypatch.setattr(Image.Image, "convert", None)
    assert_refused(tmp_path / "a.png")


def test_own_images_first(tmp_path, monkeypatch):
    """Le jeu de départ, puis les images de l'étudiant, seules, triées ; les fichiers du système, jamais."""
    def put(*names):
        paths = sorted(images / name for name in names)
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return paths
    images = tmp_path / "images"
    monkeypatch.setattr(model_VAE_64, "EXEMPLE", images / "exemple")
    exemple = put("exemple/b.png", "exemple/a.png")
    put(".DS_Store", "Thumbs.db", "sous/desktop.ini", "._x.png", ".thumbnails/x.png")
    assert find_images(images) == find_images(images / "exemple") == exemple
    own = put("b.png", "été/c d.png", "x.png/dedans.gif", "notes.txt", "autre/exemple/f.png")
    assert find_images(str(images)) == own and find_images(tmp_path / "absent") == []
