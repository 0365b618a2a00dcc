"""Des fichiers abîmés au hasard : chacun est lu ou refusé par une phrase, rien d'autre.

Ni plantage, ni blocage, ni un mot sur la sortie d'erreur. Tout dépend d'une graine, donc une
faute trouvée se retrouve. Plus longtemps, à la main (nombre de fichiers, graine) :

    python tests/test_fuzz.py 20000 1
"""
import collections
import faulthandler
import io
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from model_VAE_64 import VAE, load_model, read_image, save_model  # noqa: E402

LONGEST = 60     # secondes pour un fichier : au-delà, c'est un blocage


def whole_images():
    """De petites images entières, de chaque format et de chaque sorte : {nom: octets}."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8))
    rgb = small.resize((48, 36), Image.Resampling.BICUBIC)
    palette, mask = rgb.quantize(16), rgb.convert("L")
    rgba = rgb.copy()
    rgba.putalpha(mask)
    deep = Image.fromarray(np.asarray(mask).astype(np.uint16) * 200)
    real = Image.fromarray(np.asarray(mask).astype(np.float32) / 7)
    exif = Image.Exif()
    exif[274] = 6

    def many():
        return {"save_all": True, "append_images": [rgb.rotate(90)]}

    recipes = [
        ("png", rgb, {}), ("png", rgb, {"exif": exif}), ("png", palette, {"transparency": 3}),
        ("png", rgba, many()), ("png", deep, {}), ("png", rgb.convert("1"), {}),
        ("jpeg", rgb, {}), ("jpeg", rgb, {"progressive": True, "exif": exif}),
        ("jpeg", rgb.convert("CMYK"), {}), ("jpeg", mask, {}), ("mpo", rgb, many()),
        ("gif", palette, {"transparency": 3}), ("gif", rgb, many()),
        ("tiff", rgb, {}), ("tiff", rgb, {"compression": "tiff_lzw"}),
        ("tiff", rgba, {"compression": "tiff_adobe_deflate"}), ("tiff", rgb, many()),
        ("tiff", rgb, {"compression": "jpeg"}), ("tiff", palette, {"compression": "packbits"}),
        ("tiff", rgb.convert("1"), {"compression": "group4"}), ("tiff", deep, {}),
        ("tiff", real, {"compression": "tiff_lzw"}), ("tiff", rgb.convert("CMYK"), {}),
        ("webp", rgb, {}), ("webp", rgba, {"lossless": True, "exif": exif}), ("webp", rgb, many()),
        ("bmp", rgb, {}), ("bmp", palette, {}), ("bmp", rgb.convert("1"), {}), ("bmp", rgba, {})]
    images = {}
    for number, (form, image, options) in enumerate(recipes):
        file = io.BytesIO()
        image.copy().save(file, form, **options)
        images[f"{number}.{form}"] = file.getvalue()
    return images


def damage(rng, content):
    """Le même contenu, abîmé de une à quatre façons ; surtout au début, là où sont les tailles."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        if not content:
            break
        place = rng.randrange(min(len(content), rng.choice([64, 400, len(content)])))
        end = place + rng.choice([1, 2, 4, 30, 500])
        extreme = rng.choice([0, 1, -1, 2**15, 2**31 - 1, rng.randrange(2**31)]) & (2**32 - 1)
        kind = rng.randrange(7)
        if kind == 0:
            del content[place:]                                           # coupé
        elif kind == 1:
            content[place] ^= 1 << rng.randrange(8)                       # un bit
        elif kind == 2:
            content[place:end] = rng.randbytes(end - place)               # du bruit
        elif kind == 3:
            content[place:end] = bytes([rng.choice([0, 255])]) * (end - place)
        elif kind == 4:
            del content[place:end]                                        # un trou
        elif kind == 5:
            content[place:place] = content[place:end]                     # un morceau redit
        else:
            content[place:place + 4] = struct.pack(rng.choice("<>") + "I", extreme)
    return bytes(content)


def resum_png(content):
    """Refait les sommes de contrôle d'un PNG, pour que le dégât arrive plus loin que l'entrée."""
    content, place = bytearray(content), 8
    while place + 12 <= len(content):
        length = int.from_bytes(content[place:place + 4], "big")
        end = place + 8 + length
        content[end:end + 4] = struct.pack(">I", zlib.crc32(content[place + 4:end]))
        place = end + 4
    return bytes(content)


def rezip(rng, content):
    """Abîme un membre d'une archive (surtout le pickle) et refait l'archive autour."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        names = old.namelist()
        chosen = rng.choice(names[:1] * len(names) + names)
        for name in names:
            new.writestr(name, damage(rng, old.read(name)) if name == chosen else old.read(name))
    return file.getvalue()


def variants(rng):
    """Sans fin : (nom, contenu abîmé, fonction qui doit le lire ou le refuser)."""
    images = whole_images()
    with tempfile.TemporaryDirectory() as folder:
        save_model(VAE(1, 16), Path(folder, "a.pt"))
        model = Path(folder, "a.pt").read_bytes()
    for number in range(sys.maxsize):
        if number % 8 == 7:
            content = (rezip(rng, model) if number % 16 == 7 else damage(rng, model)
                       if number % 32 == 15 else model[:-4000] + damage(rng, model[-4000:]))
            yield "modèle.pt", content, load_model
        else:
            name = rng.choice(list(images))
            content = damage(rng, images[name])
            if name.endswith("png") and rng.random() < 0.5:
                content = resum_png(content)
            yield name, content, lambda path: read_image(path, 64)


def main(count=20000, seed=0):
    """Essaie `count` fichiers et affiche le compte ; rend le nombre de fautes."""
    results, faults, start = collections.Counter(), 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, content, read) in zip(range(count), variants(random.Random(seed))):
            path = Path(folder, name)
            path.write_bytes(content)
            faulthandler.dump_traceback_later(LONGEST, exit=True)
            try:
                found = read(path)
                assert getattr(found, "size", (64, 64)) == (64, 64)
                results[f"{path.suffix} lu"] += 1
            except (ValueError, FileNotFoundError) as error:
                assert str(error), (number, seed)
                results[f"{path.suffix} refusé"] += 1
            except Exception as error:
                kept = Path(tempfile.gettempdir(), f"faute_{seed}_{number}{path.suffix}")
                kept.write_bytes(content)
                print(f"FAUTE : {kept} : {error!r}")
                faults += 1
            faulthandler.cancel_dump_traceback_later()
            if number % 1000 == 999:
                print(f"{number + 1} fichiers, {time.monotonic() - start:.0f} s", flush=True)
    for result in sorted(results):
        print(f"{results[result]:6} {result}")
    print(f"{count} fichiers abîmés (graine {seed}) : {faults} fautes.")
    return faults


def test_damaged_files():
    """600 fichiers abîmés, dans un autre processus : on y verrait un plantage ou un mot de trop."""
    done = subprocess.run([sys.executable, __file__, "600", "0"], capture_output=True, timeout=300,
                          env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    output = done.stdout.decode("utf-8", "replace")
    assert (done.returncode, done.stderr) == (0, b""), output
    lines = dict(reversed(line.split(maxsplit=1)) for line in output.splitlines()[:-1])
    for form in (".png", ".jpeg", ".gif", ".tiff", ".webp", ".bmp"):    # des deux sortes, partout
        assert int(lines[f"{form} lu"]) > 3 and int(lines[f"{form} refusé"]) > 3
    assert int(lines[".pt refusé"]) > 60


def test_whole_files(tmp_path):
    """Sans dégât, les mêmes fichiers sont tous lus : le test ci-dessus part bien d'images."""
    for name, content in whole_images().items():
        (tmp_path / name).write_bytes(content)
        assert read_image(tmp_path / name, 64).size == (64, 64)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])) > 0)
