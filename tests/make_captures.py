"""Refait toutes les images du README : python tests/make_captures.py (deux minutes environ).

Le kit tourne pour de vrai, dans une copie : un film dessiné tient lieu de webcam, un écran virtuel
(Xvfb) d'écran, et xdotool de mains. Les images vont dans tests/captures/.
"""
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]
import kit  # noqa: E402
from draw_exemple import draw_face, features  # noqa: E402

FOLDER = kit.ROOT / "tests" / "captures"


def save(image, name):
    """Enregistre une image en 256 couleurs, 1000 pixels de large au plus."""
    FOLDER.mkdir(exist_ok=True)
    image = image.convert("RGB")
    image.thumbnail((1000, 2000), Image.Resampling.LANCZOS)
    image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE).save(
        FOLDER / name, optimize=True)
    print(f"{name} : {(FOLDER / name).stat().st_size // 1000} ko", flush=True)


def save_screen(screen, name):
    """Enregistre la fenêtre, seule sur le fond noir de l'écran."""
    path = Path(tempfile.gettempdir()) / name
    screen.picture(path)
    with Image.open(path) as image:
        image = image.convert("RGB")
        save(image.crop(image.getbbox()), name)
    path.unlink()


def write_film(path, seconds=60, fps=20):
    """Un film de visage qui tourne la tête, regarde et sourit peu à peu."""
    film = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), fps, (640, 480))
    for t in np.arange(1, seconds, 1 / fps):
        face = draw_face(0.1, np.sin(0.8 * t), np.sin(1.3 * t), np.sin(t)).resize((480, 480))
        frame = Image.new("RGB", (640, 480), "#fbe3cf")
        frame.paste(face, (80, 0))
        film.write(np.asarray(frame)[:, :, ::-1].copy())
    film.release()


def start(screen, script):
    return subprocess.Popen([sys.executable, str(script)], stdout=subprocess.DEVNULL,
                            env={**os.environ, **screen.env})


def capture_record(screen, folder):
    """La fenêtre de record_images.py pendant que « s » est maintenue."""
    write_film(folder / "film.avi")
    kit.edit_zone(folder / "record_images.py", camera="film.avi", images_folder="enregistrees")
    process = start(screen, folder / "record_images.py")
    try:
        window = screen.window("record_images")
        screen.xdotool("windowactivate", "--sync", window, "keydown", "s")
        kit.wait_until(lambda: len(list(folder.glob("enregistrees/*.png"))) > 50)
        save_screen(screen, "record.png")
    finally:
        screen.xdotool("keyup", "s", "key", "q")
        process.wait(timeout=30)


def capture_train(folder):
    """train_VAE.png, après un entraînement sur le jeu de départ."""
    subprocess.run([sys.executable, str(folder / "train_VAE.py")], check=True)
    with Image.open(folder / "train_VAE.png") as image:
        save(image, "train.png")


def capture_decode(screen, folder):
    """La fenêtre de decode_VAE.py : à zéro, le troisième slider tiré, une image réelle."""
    process = start(screen, folder / "decode_VAE.py")
    try:
        screen.xdotool("windowactivate", "--sync", screen.window("decode_VAE"))
        for keys, name in [([], "decode_zero.png"),
                           (["Tab"] * 2 + ["Right"] * 20, "decode_slider.png"),
                           (["i"], "decode_image.png")]:
            screen.xdotool("key", "--delay", 40, *keys) if keys else None
            time.sleep(2)                     # les petites images suivent
            save_screen(screen, name)
        screen.xdotool("key", "alt+F4")
        process.wait(timeout=30)
    finally:
        process.kill()


def draw_vae(folder):
    """Le schéma : une image, l'encodeur, ses quatre nombres, le décodeur, l'image reconstruite."""
    from model_VAE_64 import image_to_tensor, load_model, tensor_to_image
    vae = load_model(folder / "model_VAE_64.pt")
    original = draw_face(*features()[3])
    numbers = vae.encode(image_to_tensor(original)[None])[0]
    picture = Image.new("RGB", (1000, 270), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.truetype("DejaVuSans.ttf", 17)
    for x, image in [(10, original), (780, tensor_to_image(vae.decode(numbers)[0]))]:
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


if __name__ == "__main__":
    virtual_screen = kit.Screen()
    try:
        with tempfile.TemporaryDirectory() as place:
            kit_folder = kit.copy_kit(Path(place) / "kit")
            capture_record(virtual_screen, kit_folder)
            capture_train(kit_folder)
            capture_decode(virtual_screen, kit_folder)
            draw_vae(kit_folder)
    finally:
        virtual_screen.close()
