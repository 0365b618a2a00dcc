"""Refait toutes les images du README : python tests/make_captures.py (deux minutes environ).

Le kit tourne pour de vrai, dans une copie, sur un écran virtuel ; un film dessiné sert de webcam."""
import os
import re
import runpy
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from unittest.mock import patch

import kit
import numpy as np
from draw_exemple import draw_face, features
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.functional import to_pil_image, to_tensor

FOLDER = kit.ROOT / "tests" / "captures"


def save(image, name):
    """Enregistre une image en 256 couleurs, 1000 pixels de large au plus."""
    image = image.convert("RGB")
    image.thumbnail((1000, 2000), Image.Resampling.LANCZOS)
    image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3).save(FOLDER / name, optimize=True)


def grab(screen):
    """La fenêtre, seule sur le fond noir de l'écran."""
    image = screen.picture()
    return image.crop(image.getbbox())


def capture_record(screen, folder):
    """La fenêtre de record_images.py pendant que « s » est maintenue."""
    faces = [draw_face(0.1, np.sin(0.8 * t), np.sin(1.3 * t), np.sin(t)).resize((480, 480))
             for t in np.arange(1, 13, 0.05)]       # il tourne la tête, regarde et sourit
    kit.write_film(folder / "film.avi", [np.asarray(face)[:, :, ::-1] for face in faces], 20)
    kit.edit_zone(folder / "record_images.py", camera="film.avi", images_folder="enregistrees")
    process = subprocess.Popen([sys.executable, str(folder / "record_images.py")])
    screen.xdotool("windowactivate", "--sync", screen.window("record_images"), "keydown", "s")
    kit.wait_until(lambda: len(list(folder.glob("enregistrees/*.png"))) > 50)
    save(grab(screen), "record.png")
    screen.xdotool("keyup", "s", "key", "q")
    process.wait(timeout=30)


def capture_decode(screen, folder):
    """La vraie fenêtre de decode_VAE.py : à zéro, un slider tiré, une image réelle, l'image animée."""
    frames = []                    # l'image animée, un dixième de seconde chacune

    def still(window):
        """L'image de la fenêtre quand elle ne bouge plus et que ses petites images sont dessinées."""
        end = time.monotonic() + 1
        while time.monotonic() < end or window.glide or window.old_strips:
            window.update()
        return grab(screen)

    def play(window, n=0):
        save(still(window), "decode_zero.png")
        alone = [side * z for z in np.eye(4) for side in (1.8, -1.8)]      # chaque slider, à droite, à gauche
        for z in [*alone, (-1, 1, 1.4, 1), (1.2, -1, -0.8, 0.5), (0, 0, 0, 0)]:
            window.go(z)
            window.glide = window.glide[1::2]      # un pas sur deux : un fichier deux fois plus léger
            while window.glide:
                before = window.view.photo
                while window.view.photo is before:
                    window.update()
                frames.append(grab(screen))
            frames.extend([still(window)] * 7)
        window.go([0, 0, -2, 0])              # il sourit
        save(still(window), "decode_slider.png")
        window.buttons["i"].invoke()
        save(still(window), "decode_image.png")
        window.quit()

    with patch("tkinter.Misc.mainloop", play):
        runpy.run_path(str(folder / "decode_VAE.py"))
    for frame in frames:
        frame.thumbnail((600, 600), Image.Resampling.LANCZOS)
    palette = Image.fromarray(np.vstack(frames[::12])).quantize(128, Image.Quantize.MAXCOVERAGE, kmeans=2)
    first, *others = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    first.save(FOLDER / "sliders.gif", save_all=True, append_images=others, duration=100, loop=0, optimize=True)


def draw_vae(folder):
    """Le schéma : une image, l'encodeur, ses quatre nombres, le décodeur, l'image reconstruite."""
    vae = runpy.run_path(str(folder / "model_VAE_64.py"))["load_model"](folder / "model_VAE_64.pt")
    original = draw_face(*features()[3])
    numbers = vae.encode(to_tensor(original)[None])[0]
    picture = Image.new("RGB", (1000, 270), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.truetype("DejaVuSans.ttf", 17)
    for x, image in [(10, original), (780, to_pil_image(vae.decode(numbers)[0]))]:
        picture.paste(image.resize((210, 210), Image.Resampling.NEAREST), (x, 10))
    for x, near, far, name in [(240, 100, 45, "encodeur"), (610, 45, 100, "décodeur")]:
        draw.polygon([(x, 115 - near), (x + 150, 115 - far), (x + 150, 115 + far), (x, 115 + near)],
                     "#e4ebfa", "#3568d4")
        draw.text((x + 75, 115), name, "#20242c", font, anchor="mm")
    for k, number in enumerate(numbers[0].tolist()):
        draw.text((500, 58 + 38 * k), f"z{k + 1} = {number:+.2f}", "#20242c", font, anchor="mm")
    for x, text in [(115, "12 288 nombres"), (500, "4 nombres"), (885, "12 288 nombres")]:
        draw.text((x, 248), text, "#79818f", font, anchor="mm")
    save(picture, "vae.png")


def draw_map(folder):
    """La carte des images : le code du README, tel quel."""
    code = re.search(r"(?s)```python\n(.*?)```", (kit.ROOT / "README.md").read_text("utf-8"))[1]
    subprocess.run([sys.executable, "-X", "utf8", "-c", code], cwd=folder, check=True)
    save(Image.open(folder / "carte.png"), "carte.png")


if __name__ == "__main__":
    with closing(kit.Screen()) as the_screen, tempfile.TemporaryDirectory() as place:
        os.environ.update(the_screen.env)
        kit_folder = kit.copy_kit(Path(place) / "kit")
        subprocess.run([sys.executable, str(kit_folder / "train_VAE.py")], check=True)
        save(Image.open(kit_folder / "train_VAE.png"), "train.png")
        draw_vae(kit_folder)
        capture_decode(the_screen, kit_folder)
        capture_record(the_screen, kit_folder)
        draw_map(kit_folder)
