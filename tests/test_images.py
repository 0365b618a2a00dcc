"""Tout ce que l'on peut mettre dans images/ : lu à l'endroit et en couleurs justes, ou refusé."""
import os
import struct
import subprocess
import sys
import tempfile
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, features

import kit
from model_VAE_64 import central_square, find_images, image_to_tensor, read_image, tensor_to_image

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
RED, GREEN, BLUE, GREY = (220, 30, 30), (30, 200, 40), (40, 60, 210), (120, 120, 120)
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def quarters(colors=(RED, GREEN, BLUE, GREY), size=(80, 80), mode="RGB"):
    """Quatre quarts unis : en haut à gauche, en haut à droite, en bas à gauche, en bas à droite."""
    image = Image.new(mode, (2, 2))
    image.putdata(list(colors))
    return image.resize(size, Image.Resampling.NEAREST)


def assert_quarters(image, colors=(RED, GREEN, BLUE, GREY), tolerance=0):
    """L'image lue fait 64×64, en RVB, et le milieu de chaque quart a la couleur attendue."""
    assert (image.mode, image.size) == ("RGB", (64, 64))
    for place, color in zip([(16, 16), (48, 16), (16, 48), (48, 48)], colors):
        found = image.getpixel(place)
        assert np.abs(np.subtract(found, color)).max() <= tolerance, (place, found, color)


def refused(path):
    """Le texte du refus : une courte raison en français, la même exception pour tous les cas."""
    with pytest.raises(ValueError) as error:
        read_image(path, 64)
    assert str(error.value) in {"pas un fichier", "pas une image, ou d'un format inconnu",
                                "image trop grande", "image abîmée, incomplète ou illisible"}
    return str(error.value)


def png(width, height, data, *chunks):
    """Un fichier PNG en RVB, écrit à la main : `data` sont les octets compressés de l'image."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")])


# Formats et modes ------------------------------------------------------------------------
@pytest.mark.parametrize("name, options, tolerance", [
    ("a.png", {}, 0), ("a.bmp", {}, 0), ("a.tga", {}, 0), ("a.ppm", {}, 0), ("a.gif", {}, 8),
    ("a.tif", {}, 0), ("a.tif", {"compression": "tiff_lzw"}, 0),
    ("a.tif", {"compression": "jpeg"}, 6),
    ("a.webp", {"lossless": True}, 0), ("a.webp", {"quality": 95}, 8), ("a.sgi", {}, 0),
    ("a.jpg", {"quality": 95}, 6), ("a.jpg", {"quality": 95, "progressive": True}, 6),
    ("a.jp2", {}, 0), ("a.ico", {"sizes": [(80, 80)]}, 0), ("a.pcx", {}, 0), ("a.dds", {}, 0),
    ("A.JPEG", {"quality": 95}, 6), ("sans extension", {"format": "PNG"}, 0),
    ("pas un png.png", {"format": "JPEG", "quality": 95}, 6), ("a.avif", {"quality": 95}, 8)])
def test_formats(tmp_path, name, options, tolerance):
    """Le contenu compte, pas le nom : chaque format rend ses quatre couleurs à leur place."""
    if name == "a.avif" and not features.check("avif"):
        pytest.skip("ce Pillow ne sait pas écrire d'AVIF")
    quarters().save(tmp_path / name, **options)
    assert_quarters(read_image(tmp_path / name, 64), tolerance=tolerance)


def make_lab():
    """Les quatre quarts en L*a*b*."""
    rgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.profileToProfile(quarters(), rgb, lab, outputMode="LAB")


def with_alpha(mode):
    """Vert opaque, rouge à demi transparent, bleu invisible, gris opaque."""
    image = quarters((GREEN + (255,), RED + (127,), BLUE + (0,), GREY + (255,)), mode="RGBA")
    return image.convert(mode)


def palette(transparency):
    """Une palette dont la couleur 2 (bleu) est transparente."""
    image = quarters((0, 1, 2, 3), mode="P")
    image.putpalette(RED + GREEN + BLUE + GREY)
    image.info["transparency"] = transparency
    return image


HALF_RED = tuple(round((127 * value + 128 * 255) / 255) for value in RED)
LUMA = [tuple([quarters().convert("L").getpixel(place)] * 3)
        for place in [(20, 20), (60, 20), (20, 60), (60, 60)]]


@pytest.mark.parametrize("name, image, colors, tolerance", [
    ("l.png", quarters().convert("L"), LUMA, 0),
    ("1.png", quarters((0, 255, 255, 0), mode="1"), (BLACK, WHITE, WHITE, BLACK), 0),
    ("1.tif", quarters((0, 255, 255, 0), mode="1"), (BLACK, WHITE, WHITE, BLACK), 0),
    ("p.png", quarters().quantize(4), (RED, GREEN, BLUE, GREY), 2),
    ("p.bmp", quarters().quantize(4), (RED, GREEN, BLUE, GREY), 2),
    ("rgba.png", with_alpha("RGBA"), (GREEN, HALF_RED, WHITE, GREY), 1),
    ("rgba.webp", with_alpha("RGBA"), (GREEN, HALF_RED, WHITE, GREY), 8),
    ("rgba.tif", with_alpha("RGBA"), (GREEN, HALF_RED, WHITE, GREY), 1),
    ("la.png", quarters(((0, 255), (0, 128), (0, 0), (200, 255)), mode="LA"),
     (BLACK, (127,) * 3, WHITE, (200,) * 3), 1),
    ("p.gif", palette(2), (RED, GREEN, WHITE, GREY), 0),
    ("p1.png", palette(2), (RED, GREEN, WHITE, GREY), 0),
    ("p2.png", palette(bytes([255, 255, 0, 255])), (RED, GREEN, WHITE, GREY), 0),
    ("cmyk.jpg", quarters().convert("CMYK"), (RED, GREEN, BLUE, GREY), 8),
    ("cmyk.tif", quarters().convert("CMYK"), (RED, GREEN, BLUE, GREY), 2),
    ("lab.tif", make_lab(), (RED, GREEN, BLUE, GREY), 6)])
def test_modes(tmp_path, name, image, colors, tolerance):
    """Gris, 1 bit, palettes, transparence (sur blanc), CMJN, L*a*b* : les bonnes couleurs."""
    image.save(tmp_path / name)
    assert_quarters(read_image(tmp_path / name, 64), colors, tolerance)


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "RGBX", "RGBA", "P"])
def test_modes_in_memory(mode):
    """Les modes que l'on rencontre rarement dans un fichier."""
    assert_quarters(central_square(quarters().convert(mode), 64), tolerance=30 * (mode == "P") + 6)


def test_palette_with_alpha():
    """PA : une palette et un canal alpha."""
    image = quarters(((0, 255), (1, 255), (2, 0), (3, 255)), mode="PA")
    image.putpalette(RED + GREEN + BLUE + GREY)
    assert_quarters(central_square(image, 64), (RED, GREEN, WHITE, GREY))


@pytest.mark.parametrize("name, mode, values", [
    ("a.png", "I;16", (0, 1000, 3000, 4000)), ("a.tif", "I;16", (0, 10000, 30000, 40000)),
    ("b.tif", "I;16B", (0, 10000, 30000, 40000)), ("a.pgm", "I", (0, 15000, 45000, 60000)),
    ("c.tif", "I", (-500, 0, 1000, 1500)), ("d.tif", "F", (-1.0, -0.5, 0.5, 1.0)),
    ("e.tif", "F", (1e-5, 2.5e-1, 7.5e-1, 1.0))])
def test_deep_grey(tmp_path, name, mode, values):
    """Les gris sur 16 ou 32 bits et flottants : étirés du noir au blanc, jamais saturés."""
    image = quarters(values, mode="F")
    if mode != "F":
        array = np.asarray(image).astype({"I": np.int32, "I;16": "<u2", "I;16B": ">u2"}[mode])
        image = Image.frombytes(mode, image.size, array.tobytes())
    image.save(tmp_path / name)
    assert_quarters(read_image(tmp_path / name, 64),
                    [(0,) * 3, (64,) * 3, (191,) * 3, (255,) * 3], tolerance=1)


def test_deep_grey_keeps_every_shade(tmp_path):
    """Un dégradé sur 12 bits garde ses nuances, dans l'ordre."""
    ramp = np.tile(np.linspace(0, 4095, 64).round().astype(np.uint16), (64, 1))
    Image.fromarray(ramp).save(tmp_path / "a.png")
    row = np.asarray(read_image(tmp_path / "a.png", 64))[32, :, 0].astype(int)
    assert abs(row - np.linspace(0, 255, 64)).max() <= 1


def test_float_without_value(tmp_path):
    """nan, l'infini, une image d'un seul gris : rien ne déborde, pas d'avertissement."""
    values = np.full((64, 64), 5, np.float32)
    for name, special in [("a.tif", 5), ("b.tif", np.nan), ("c.tif", np.inf), ("d.tif", 3e38)]:
        values[:20] = special
        Image.fromarray(values).save(tmp_path / name)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert read_image(tmp_path / name, 64).mode == "RGB"


# À l'endroit -----------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_right_side_up(tmp_path, name, orientation):
    """Les huit orientations EXIF, dans chaque format qui en a."""
    turn = ["", "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90",
            "TRANSVERSE", "ROTATE_270"][orientation - 1]    # comme l'appareil était tenu
    stored = quarters().transpose(Image.Transpose[turn]) if turn else quarters()
    exif = Image.Exif()
    exif[274] = orientation
    stored.save(tmp_path / name, exif=exif)
    assert_quarters(read_image(tmp_path / name, 64), tolerance=12)


def test_large_photo(tmp_path):
    """Un JPEG de 12 mégapixels tenu en hauteur, et un EXIF abîmé : lu, à l'endroit."""
    exif = Image.Exif()
    exif[274] = 6
    photo = quarters(size=(3000, 4000)).transpose(Image.Transpose.ROTATE_90)
    photo.save(tmp_path / "a.jpg", exif=exif, quality=90)
    assert_quarters(read_image(tmp_path / "a.jpg", 64), tolerance=6)
    for name in ("b.jpg", "b.png"):
        quarters().save(tmp_path / name, exif=b"Exif\0\0bonjour", quality=95)
        assert_quarters(read_image(tmp_path / name, 64), tolerance=6)


# Plusieurs images en une, formes extrêmes ------------------------------------------------
@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif", "a.mpo"])
def test_first_of_many(tmp_path, name):
    """GIF, WebP et PNG animés, TIFF de plusieurs pages, MPO : la première image."""
    other = quarters((WHITE, BLACK, GREY, RED))
    quarters().save(tmp_path / name, save_all=True, append_images=[other])
    assert_quarters(read_image(tmp_path / name, 64), tolerance=12)


@pytest.mark.parametrize("size", [(3000, 40), (40, 3000), (5001, 7), (640, 480), (1, 1)])
def test_central_square(tmp_path, size):
    """Le carré central, sans déformer : les bords d'une image très large n'y sont plus."""
    side = min(size)
    image = Image.new("RGB", size, RED)
    image.paste(quarters(size=(side, side)), tuple((length - side) // 2 for length in size))
    image.save(tmp_path / "a.png")
    assert_quarters(read_image(tmp_path / "a.png", 64),
                    [image.getpixel((0, 0))] * 4 if side == 1 else (RED, GREEN, BLUE, GREY), 12)


@pytest.mark.parametrize("size", [(900, 1), (1, 900), (60000, 1)])
def test_one_pixel_high(tmp_path, size):
    """Un seul pixel de haut ou de large."""
    Image.new("RGB", size, BLUE).save(tmp_path / "a.png")
    assert_quarters(read_image(tmp_path / "a.png", 64), [BLUE] * 4)


@pytest.mark.parametrize("images_size", [16, 32, 64, 128, 256])
def test_sizes(tmp_path, images_size):
    """Toutes les tailles, plus grandes ou plus petites que l'image."""
    quarters().save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", images_size)
    assert image.size == (images_size, images_size)
    assert image.getpixel((images_size // 4, images_size // 4)) == RED


def test_tensor_and_back():
    """Un tenseur 3×S×S : canaux d'abord, rien de mélangé, et le retour est exact."""
    image = quarters(size=(64, 64))
    x = image_to_tensor(image)
    assert x.shape == (3, 64, 64) and 0 <= x.min() and x.max() <= 1
    assert (x[:, 16, 48] * 255).round().tolist() == list(GREEN)      # ligne 16, colonne 48
    assert (x[:, 48, 16] * 255).round().tolist() == list(BLUE)
    assert tensor_to_image(x).tobytes() == image.tobytes()
    assert tensor_to_image(x * 3 - 1).mode == "RGB"                  # hors de [0, 1] : ramené


# Ce qui est laissé de côté ---------------------------------------------------------------
@pytest.mark.parametrize("name, options", [
    ("a.png", {}), ("a.jpg", {}), ("a.gif", {}), ("a.bmp", {}), ("a.tif", {}), ("a.webp", {}),
    ("a.tif", {"compression": "tiff_lzw"}), ("a.jp2", {})])
def test_truncated(tmp_path, name, options):
    """Un fichier coupé, où que ce soit, n'est jamais pris pour une image entière."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (80, 80, 3), np.uint8)).save(tmp_path / name, **options)
    whole = (tmp_path / name).read_bytes()
    for part in (0, 1, 10, len(whole) // 4, len(whole) // 2, len(whole) * 9 // 10):
        (tmp_path / name).write_bytes(whole[:part])
        assert refused(tmp_path / name)


def test_damaged_but_well_formed(tmp_path):
    """Des données fausses dans un fichier bien formé ne passent pas, même au second essai que
    fait Pillow (il rend alors sans rien dire une image à moitié vide)."""
    rows = np.random.default_rng(0).integers(0, 9, (64, 1 + 64 * 3), np.uint8)
    rows[:, 0] = 0                                   # chaque ligne commence par son filtre : aucun
    data = zlib.compress(rows.tobytes())
    (tmp_path / "a.png").write_bytes(png(64, 64, data))
    assert read_image(tmp_path / "a.png", 64).tobytes() == rows[:, 1:].tobytes()
    data = data[:len(data) // 2] + bytes(len(data) // 2)
    (tmp_path / "b.png").write_bytes(png(64, 64, data))
    exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    (tmp_path / "c.png").write_bytes(png(64, 64, data, (b"eXIf", exif)))
    assert refused(tmp_path / "b.png") == refused(tmp_path / "c.png")
    assert "abîmée" in refused(tmp_path / "c.png")


@pytest.mark.parametrize("name, content", [
    ("vide.png", b""), ("texte.jpg", "Ceci n'est pas une image.\n".encode() * 50),
    (".DS_Store", b"\0\0\0\x01Bud1" + bytes(4096)),
    ("Thumbs.db", b"\xd0\xcf\x11\xe0" + bytes(4096)),
    ("desktop.ini", b"[.ShellClassInfo]\r\n"), ("._a.jpg", b"\0\x05\x16\x07" + bytes(200)),
    ("page.png", b"<!DOCTYPE html><html></html>"), ("a.svg", b"<svg xmlns='a'/>"),
    ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)), ("zeros.png", bytes(100_000))])
def test_not_an_image(tmp_path, name, content):
    """Vide, texte renommé, fichiers cachés de macOS et de Windows..."""
    (tmp_path / name).write_bytes(content)
    assert refused(tmp_path / name) == "pas une image, ou d'un format inconnu"


def test_not_a_file(tmp_path):
    """Un dossier nommé x.png, des liens rompus ou en boucle, un tube, /dev/zero : sans attendre."""
    (tmp_path / "x.png").mkdir()
    assert refused(tmp_path / "x.png") == "pas un fichier"
    assert refused(tmp_path / "absent.png") == "pas un fichier"
    if sys.platform == "win32":
        return
    (tmp_path / "rompu.png").symlink_to("nulle part")
    (tmp_path / "boucle.png").symlink_to("boucle2.png")
    (tmp_path / "boucle2.png").symlink_to("boucle.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "tube.png")
    files, _ = find_images(tmp_path)
    assert {file.name for file in files} == {"rompu.png", "boucle.png", "boucle2.png", "zero.png",
                                             "tube.png"}
    assert {refused(file) for file in files} == {"pas un fichier"}


@pytest.mark.skipif(sys.platform == "win32", reason="les droits POSIX")
def test_unreadable():
    """Un fichier que l'on n'a pas le droit de lire."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.png")
        quarters().save(path)
        path.chmod(0)
        os.chmod(folder, 0o755)
        user = os.geteuid()
        if user == 0:                                # root lit tout : être un autre un instant
            os.seteuid(65534)
        try:
            assert refused(path) == "image abîmée, incomplète ou illisible"
        finally:
            os.seteuid(user)


def test_bomb(tmp_path):
    """50 000×50 000 pixels dans un petit fichier : refusé sans être décompressé."""
    rows = zlib.compressobj(1)
    data = b"".join(rows.compress(bytes(10**6)) for _ in range(100)) + rows.flush()
    (tmp_path / "bombe.png").write_bytes(png(50_000, 50_000, data))
    Image.new("1", (20_000, 15_000)).save(tmp_path / "affiche.gif")
    assert refused(tmp_path / "bombe.png") == refused(tmp_path / "affiche.gif") \
        == "image trop grande"
    if sys.platform != "linux":
        return
    code = ("import resource, sys; sys.path.insert(0, sys.argv[1]); import model_VAE_64 as m\n"
            "before = resource.getrusage(0).ru_maxrss\n"
            "try: m.read_image(sys.argv[2], 64)\n"
            "except ValueError: print(resource.getrusage(0).ru_maxrss - before)")
    for name in ("bombe.png", "affiche.gif"):
        grown = subprocess.check_output([sys.executable, "-c", code, kit.ROOT, tmp_path / name])
        assert int(grown) < 20_000                                   # en kio


# Les bibliothèques se taisent ------------------------------------------------------------
NOISY = """
import io, os, sys, warnings
sys.path.insert(0, sys.argv[1])
import model_VAE_64 as m
{before}
sys.stderr = io.StringIO()                  # dans Spyder, ce n'est pas le fichier 2
warnings.simplefilter("default", DeprecationWarning)
for path in sys.argv[2:]:
    try:
        print(m.read_image(path, 64).size)
    except ValueError as error:
        print(ascii(error))
print(sys.stderr.getvalue())
"""


@pytest.mark.parametrize("before", ["", "os.close(2)"])
def test_no_noise(tmp_path, before):
    """Ni les avertissements de Pillow ni ce que libtiff écrit n'arrivent dans la console, et tout
    marche aussi sans sortie d'erreur (IDLE sous Windows n'en a pas)."""
    quarters().save(tmp_path / "a.tif", compression="tiff_lzw")
    content = (tmp_path / "a.tif").read_bytes()
    strip = content.index(struct.pack("<H", 278), struct.unpack_from("<I", content, 4)[0])
    (tmp_path / "a.tif").write_bytes(content[:strip + 2] + b"\x07" + content[strip + 3:])
    Image.new("1", (10_000, 9_500)).save(tmp_path / "b.png")         # DecompressionBombWarning
    quarters().save(tmp_path / "c.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12")
    done = subprocess.run([sys.executable, "-c", NOISY.format(before=before), kit.ROOT,
                           *sorted(tmp_path.iterdir())], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("\n") == [
        ascii(ValueError("image abîmée, incomplète ou illisible")), "(64, 64)", "(64, 64)", "", ""]


# Le dossier ------------------------------------------------------------------------------
def test_find_images(tmp_path):
    """Tous les fichiers, triés, sous-dossiers compris ; ceux de exemple/ à part."""
    names = ["b.png", "a.jpg", "été/c d.png", "x.png/dedans.gif", "notes.txt", ".DS_Store",
             "exemple/e2.png", "exemple/sous/e1.png", "autre/exemple/f.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        quarters().save(tmp_path / name, "PNG")
    own, exemple = find_images(tmp_path)
    assert exemple == [tmp_path / "exemple/e2.png", tmp_path / "exemple/sous/e1.png"]
    assert own == sorted(tmp_path / name for name in names if not name.startswith("exemple/"))
    assert find_images(str(tmp_path / "exemple")) == (exemple, [])
    assert find_images(tmp_path / "absent") == ([], [])


@pytest.mark.skipif(sys.platform == "win32", reason="les liens demandent des droits sous Windows")
def test_loop_of_folders(tmp_path):
    """Un lien vers un dossier parent ne fait pas tourner en rond."""
    quarters().save(tmp_path / "a.png")
    (tmp_path / "encore").symlink_to(tmp_path, target_is_directory=True)
    assert [file.name for file in find_images(tmp_path)[0]] == ["a.png"]


def test_same_as_pillow(tmp_path):
    """Une image de la bonne taille est rendue telle quelle ; une plus grande, comme par Pillow."""
    picture = next((kit.ROOT / "images" / "exemple").glob("*.png"))
    with Image.open(picture) as image:
        assert read_image(picture, 64).tobytes() == image.convert("RGB").tobytes()
        large = image.convert("RGB").resize((640, 640), Image.Resampling.BICUBIC)
    large.save(tmp_path / "a.png")
    expected = ImageOps.fit(large, (64, 64), Image.Resampling.BICUBIC)
    difference = np.subtract(read_image(tmp_path / "a.png", 64), expected, dtype=int)
    assert abs(difference).max() <= 8 and abs(difference).mean() < 1
