"""Tout ce que l'on peut mettre dans images/ : lu à l'endroit et en couleurs justes, ou refusé."""
import os
import sys
from pathlib import Path

import kit
import model_VAE_64
import numpy as np
import pytest
from model_VAE_64 import find_images, read_image
from PIL import Image, ImageCms, features
from torchvision.transforms.functional import to_pil_image, to_tensor

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
RED, GREEN, BLUE, GREY = COLORS = (220, 30, 30), (30, 200, 40), (40, 60, 210), (120, 120, 120)
WHITE, BLACK, HALF_RED = (255, 255, 255), (0, 0, 0), (237, 143, 143)
NOT_AN_IMAGE = "pas une image, ou d'un format inconnu"
DAMAGED = "image abîmée, incomplète ou trop grande"


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
    for place, color in zip([(near, near), (far, near), (near, far), (far, far)], colors):
        found = image.getpixel(place)
        assert np.abs(np.subtract(found, color)).max() <= tolerance, (place, found, color)


def refusal(path):
    """Le texte du refus."""
    with pytest.raises(ValueError) as error:
        read_image(path, 64)
    return str(error.value)


# Formats et modes ------------------------------------------------------------------------
@pytest.mark.parametrize("name, options, tolerance", [
    ("a.png", {}, 0), ("a.bmp", {}, 0), ("a.tga", {}, 0), ("a.ppm", {}, 0), ("a.gif", {}, 8),
    ("a.tif", {}, 0), ("a.tif", {"compression": "tiff_lzw"}, 0), ("a.jp2", {}, 0),
    ("a.webp", {"quality": 95}, 8), ("a.avif", {"quality": 95}, 8), ("a.ico", {"sizes": [(80, 80)]}, 0),
    ("A.JPEG", {"quality": 95, "progressive": True}, 6), ("sans extension", {"format": "PNG"}, 0),
    ("pas un png.png", {"format": "JPEG", "quality": 95}, 6)])
def test_formats(tmp_path, name, options, tolerance):
    """Le contenu compte, pas le nom : chaque format rend ses quatre couleurs à leur place."""
    if name == "a.avif" and not features.check("avif"):
        pytest.skip("ce Pillow ne sait pas écrire d'AVIF")
    quarters().save(tmp_path / name, **options)
    assert_quarters(tmp_path / name, tolerance=tolerance)


def lab():
    """Les quatre quarts en L*a*b*."""
    rgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.profileToProfile(quarters(), rgb, lab, outputMode="LAB")


def palette(transparency=None, mode="P"):
    """Une palette de quatre couleurs, dont la troisième (bleu) peut être transparente."""
    image = quarters((0, 1, 2, 3), mode=mode)
    image.putpalette(RED + GREEN + BLUE + GREY)
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


ALPHA = quarters((GREEN + (255,), RED + (128,), BLUE + (0,), GREY + (255,)), mode="RGBA")


@pytest.mark.parametrize("name, image, colors, tolerance", [
    ("l.png", quarters((0, 60, 130, 255), mode="L"), ((0,) * 3, (60,) * 3, (130,) * 3, WHITE), 0),
    ("1.png", quarters((0, 255, 255, 0), mode="1"), (BLACK, WHITE, WHITE, BLACK), 0),
    ("p.png", palette(), COLORS, 0), ("cmyk.jpg", quarters().convert("CMYK"), COLORS, 8),
    ("cmyk.tif", quarters().convert("CMYK"), COLORS, 2), ("lab.tif", lab(), COLORS, 6),
    ("rgba.png", ALPHA, (GREEN, HALF_RED, WHITE, GREY), 1),
    ("rgba.webp", ALPHA, (GREEN, HALF_RED, WHITE, GREY), 8),
    ("la.png", quarters(((0, 255), (0, 128), (0, 0), (200, 255)), mode="LA"),
     (BLACK, (127,) * 3, WHITE, (200,) * 3), 1),
    ("p.gif", palette(2), (RED, GREEN, WHITE, GREY), 0),
    ("p2.png", palette(bytes([255, 255, 0, 255])), (RED, GREEN, WHITE, GREY), 0)])
def test_modes(tmp_path, name, image, colors, tolerance):
    """Gris, 1 bit, palettes, transparence (sur blanc), CMJN, L*a*b* : les bonnes couleurs."""
    image.save(tmp_path / name)
    assert_quarters(tmp_path / name, colors, tolerance)


# Les gris profonds : la plage est celle du dossier, jamais celle d'une seule image -------------
@pytest.mark.parametrize("name, kind, values, shades", [
    ("a.png", "<u2", (0, 50 * 257, 128 * 257, 65535), (0, 50, 128, 255)),             # 16 bits
    ("a.tif", ">u2", (50 * 257,) * 4, (50,) * 4), ("a.tif", "<u2", (65535,) * 4, (255,) * 4),
    ("a.png", "<u2", (0, 1000, 3000, 4095), (0, 62, 187, 255)),                       # 12 dans 16
    ("a.png", "<u2", (0, 50, 128, 255), (0, 50, 128, 255)),                           # 8 dans 16
    ("a.tif", "<i4", (-500, 0, 3595, 3595), (0, 28, 227, 227)),
    ("a.tif", "<i4", (0, 10**6, 3 * 10**6, 4 * 10**6), (0, 64, 191, 255)),
    ("a.tif", "<f4", (0, 0.25, 0.75, 1), (0, 64, 191, 255)),
    ("a.tif", "<f4", (np.nan, 0.25, 0.75, np.inf), (0, 64, 191, 255)),                # sans valeur
    ("a.tif", "<f4", (-np.inf, 0.5, 0.5, np.nan), (0, 128, 128, 0))])
def test_deep_grey(tmp_path, name, kind, values, shades):
    """16 et 32 bits, flottants : chaque valeur donne son gris ; un point sans valeur reste seul."""
    array = np.kron(np.reshape(values, (2, 2)), np.ones((32, 32))) if np.isfinite(values).all() \
        else np.repeat(np.repeat(np.reshape(values, (2, 2)), 32, 0), 32, 1)
    mode = {"<u2": "I;16", ">u2": "I;16B", "<i4": "I", "<f4": "F"}[kind]
    Image.frombytes(mode, (64, 64), array.astype(kind).tobytes()).save(tmp_path / name)
    assert_quarters(tmp_path / name, [(shade,) * 3 for shade in shades], tolerance=1)


def test_deep_grey_set(tmp_path):
    """24 luminosités sur 16 bits : celles des mêmes images sur 8 bits, les sombres aussi ; un
    dégradé garde toutes ses nuances."""
    shades = [*range(0, 240, 10)]
    for shade in shades:
        Image.fromarray(np.full((64, 64), shade * 257, np.uint16)).save(tmp_path / f"{shade}.png")
    found = [read_image(tmp_path / f"{shade}.png", 64).getpixel((9, 9))[0] for shade in shades]
    assert np.abs(np.subtract(found, shades)).max() <= 1
    ramp = np.tile(np.linspace(0, 65535, 64).round().astype(np.uint16), (64, 1))
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    row = np.asarray(read_image(tmp_path / "ramp.png", 64))[32, :, 0].astype(int)
    assert abs(row - np.linspace(0, 255, 64)).max() <= 1


# À l'endroit, le carré du milieu ---------------------------------------------------------
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_right_side_up(tmp_path, name, orientation):
    """Les huit orientations EXIF, dans chaque format qui en a."""
    turn = ["", "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90",
            "TRANSVERSE", "ROTATE_270"][orientation - 1]    # comme l'appareil était tenu
    exif = Image.Exif()
    exif[274] = orientation
    stored = quarters().transpose(Image.Transpose[turn]) if turn else quarters()
    stored.save(tmp_path / name, exif=exif)
    assert_quarters(tmp_path / name, tolerance=12)


def test_damaged_exif(tmp_path):
    """Un EXIF abîmé n'empêche pas de lire une photo."""
    quarters().save(tmp_path / "a.jpg", exif=b"Exif\0\0bonjour", quality=95)
    assert_quarters(tmp_path / "a.jpg", tolerance=6)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif", "a.mpo"])
def test_first_of_many(tmp_path, name):
    """GIF, WebP et PNG animés, TIFF de plusieurs pages, MPO : la première image."""
    other = quarters((WHITE, BLACK, GREY, RED))
    quarters().save(tmp_path / name, save_all=True, append_images=[other])
    assert_quarters(tmp_path / name, tolerance=12)


@pytest.mark.parametrize("size", [(3000, 40), (40, 3000), (5001, 7), (640, 480), (900, 1), (1, 1)])
def test_central_square(tmp_path, size):
    """Le carré central, sans déformer : les bords d'une image très large n'y sont plus."""
    side = min(size)
    image = Image.new("RGB", size, RED)
    square = quarters(size=(side, side)) if side > 1 else Image.new("RGB", (1, 1), GREEN)
    image.paste(square, tuple((length - side) // 2 for length in size))
    image.save(tmp_path / "a.png")
    if side > 1:
        assert_quarters(tmp_path / "a.png", tolerance=12)
    assert read_image(tmp_path / "a.png", 64).size == (64, 64)


@pytest.mark.parametrize("images_size", [16, 32, 128, 512])
@pytest.mark.parametrize("name, size", [("a.png", (80, 60)), ("a.jpg", (2000, 1500))])
def test_sizes(tmp_path, images_size, name, size):
    """Toutes les tailles, plus grandes ou plus petites que l'image ; une photo aussi."""
    quarters(size=size).save(tmp_path / name, quality=95)
    assert_quarters(tmp_path / name, tolerance=6, images_size=images_size)


def test_tensor_and_back():
    """Une image de 64×64 est rendue telle quelle ; en tenseur 3×S×S, canaux d'abord, rien n'est
    mélangé ; le retour est exact."""
    path = next((kit.ROOT / "images" / "exemple").glob("*.png"))
    image, x = Image.open(path).convert("RGB"), to_tensor(read_image(path, 64))
    assert x.shape == (3, 64, 64) and to_pil_image(x).tobytes() == image.tobytes()
    assert (x[:, 40, 20] * 255).round().tolist() == list(image.getpixel((20, 40)))


# Ce qui est laissé de côté ---------------------------------------------------------------
@pytest.mark.parametrize("name, options", [
    ("a.png", {}), ("a.jpg", {}), ("a.gif", {}), ("a.bmp", {}), ("a.tif", {}), ("a.webp", {}),
    ("a.tif", {"compression": "tiff_lzw"}), ("a.jp2", {})])
def test_damaged(tmp_path, name, options):
    """Un fichier coupé n'est jamais pris pour une image entière ; cent fichiers abîmés au hasard
    sont lus ou refusés par une phrase."""
    rng, path = np.random.default_rng(0), tmp_path / name
    Image.fromarray(rng.integers(0, 255, (80, 80, 3), np.uint8)).save(path, **options)
    whole = path.read_bytes()
    for part in (0, 1, 10, len(whole) // 4, len(whole) // 2, len(whole) * 9 // 10):
        path.write_bytes(whole[:part])
        assert refusal(path) in (NOT_AN_IMAGE, DAMAGED)
    for _ in range(100):
        content = bytearray(whole)
        for place in rng.integers(0, min(len(whole), rng.choice([64, 400, len(whole)])), 4):
            content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            assert read_image(path, 64).size == (64, 64)
        except ValueError as error:
            assert str(error) in (NOT_AN_IMAGE, DAMAGED)


@pytest.mark.parametrize("name, content", [
    ("vide.png", b""), ("texte.jpg", "Ceci n'est pas une image.\n".encode() * 50),
    ("page.png", b"<!DOCTYPE html><html></html>"), ("a.svg", b"<svg xmlns='a'/>"),
    ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)), ("zeros.png", bytes(100_000))])
def test_not_an_image(tmp_path, name, content):
    """Vide, texte renommé, page web..."""
    (tmp_path / name).write_bytes(content)
    assert refusal(tmp_path / name) == NOT_AN_IMAGE


def test_unreadable(tmp_path, monkeypatch):
    """Un dossier nommé x.png, un fichier absent ou que l'on n'a pas le droit de lire ; une image de
    300 mégapixels dans un petit fichier, refusée sans être décompressée."""
    (tmp_path / "x.png").mkdir()
    assert refusal(tmp_path / "x.png") == refusal(tmp_path / "absent.png") == DAMAGED
    Image.new("1", (20_000, 15_000)).save(tmp_path / "affiche.gif")
    monkeypatch.setattr(Image.Image, "convert", None)
    assert refusal(tmp_path / "affiche.gif") == DAMAGED


# Le dossier ------------------------------------------------------------------------------
@pytest.fixture
def tree(tmp_path, monkeypatch):
    """photos/ de l'étudiant à côté de images/, où est le jeu de départ ; (dossier, noms -> chemins)."""
    monkeypatch.setattr(model_VAE_64, "EXEMPLE", tmp_path / "images" / "exemple")

    def put(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            quarters().save(tmp_path / name, "PNG")
        return sorted(tmp_path / name for name in names)
    return tmp_path, put


def test_own_images_first(tree):
    """Le jeu de départ, tant qu'il n'y a rien d'autre ; puis les images de l'étudiant, seules, triées,
    sous-dossiers compris. Les fichiers du système ne comptent pas ; ceux des scripts non plus."""
    folder, put = tree
    exemple = put("images/exemple/b.png", "images/exemple/a.png")
    put(*[f"images/{name}" for name in (".DS_Store", "Thumbs.db", "sous/desktop.ini", "._x.png")])
    assert find_images(folder / "images") == find_images(folder / "images" / "exemple") == exemple
    own = put("images/b.png", "images/été/c d.png", "images/x.png/dedans.gif", "images/notes.txt",
              "images/autre/exemple/f.png")
    assert find_images(folder / "images") == own
    own += put("moi.png")
    put("train_VAE.png", "decode_VAE_1.png")
    assert find_images(folder) == sorted(own)       # images_folder = "." : pas les images des scripts
    assert find_images(folder / "absent") == []


def test_own_exemple(tree):
    """Un dossier exemple/ de l'étudiant est à lui : seul celui du kit est le jeu de départ."""
    folder, put = tree
    assert find_images(folder / "photos") == []
    own = put("photos/a.png", "photos/exemple/b.png")
    assert find_images(folder / "photos") == own


@pytest.mark.skipif(sys.platform == "win32", reason="les liens demandent des droits sous Windows")
def test_linked_folders(tree, capsys, monkeypatch):
    """Un sous-dossier lié est lu, un lien vers le dossier parent ne tourne pas en rond ; un dossier
    qui ne s'ouvre pas est nommé."""
    folder, put = tree
    put("ailleurs/b.png", "photos/a.png", "photos/fermé/c.png")
    (folder / "photos" / "lié").symlink_to(folder / "ailleurs", target_is_directory=True)
    (folder / "photos" / "encore").symlink_to(folder / "photos", target_is_directory=True)
    scandir = os.scandir

    def closed(path):
        if Path(path).name == "fermé":              # root, lui, ouvre tout
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)
    monkeypatch.setattr(os, "scandir", closed)
    assert [path.name for path in find_images(folder / "photos")] == ["a.png", "b.png"]
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "ne s'ouvre pas" in said and "fermé" in said
