"""Dessine les visages du jeu d'exemple : python tests/draw_exemple.py réécrit images/exemple/.

Quatre nombres entre -1 et 1 décrivent chaque visage, tirés au hasard et sans lien entre eux ;
tout le reste est identique d'une image à l'autre. Un VAE à 4 sliders peut donc les retrouver."""
import colorsys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COUNT, SIZE, ZOOM, SEED = 600, 64, 4, 275   # dessin 4 fois trop grand, puis réduit : bords lisses
FOLDER = Path(__file__).resolve().parent.parent / "images" / "exemple"
CENTRE = 32, 35   # le point autour duquel la tête s'incline

WALL, HALO, SWEATER, COLLAR = "#fbe3cf", "#fff4e6", "#3f8f9b", "#57a9b3"
HAIR, SHINE, INK, LIPS, WHITE = "#74456b", "#936088", "#2b2140", "#7f1537", "#ffffff"


def features():
    """Rend les 600×4 nombres : chaque colonne parcourt régulièrement [-1, 1], en désordre."""
    random = np.random.RandomState(SEED)
    return np.stack([random.permutation(np.linspace(-1, 1, COUNT)) for _ in range(4)], axis=1)


def ellipse(x, y, width, height, start=0, end=360):
    """Rend les points d'une ellipse de centre (x, y), ou d'un arc (en degrés, vers le bas)."""
    angle = np.radians(np.linspace(start, end, 90))
    return np.stack([x + width * np.cos(angle), y + height * np.sin(angle)], axis=1)


def mouth(smile):
    """Rend le contour d'une bouche épaisse : un arc vers le bas (1, sourire) ou le haut (-1)."""
    t = np.linspace(-1, 1, 60)
    middle = 45.5 + smile * 8.5 * (0.5 - t ** 2)
    thickness = (3.6 + 0.5 * smile) * np.sqrt(1 - t ** 4)
    upper, lower = (np.stack([32 + 12.5 * t, middle + side * thickness], 1) for side in (-1, 1))
    return np.concatenate([upper, lower[::-1]])


def draw_face(hue, smile, gaze, tilt):
    """Dessine le visage que décrivent sa teinte, son sourire, son regard et son inclinaison : 64×64."""
    image = Image.new("RGB", (SIZE * ZOOM, SIZE * ZOOM), WALL)
    canvas = ImageDraw.Draw(image)

    def skin(saturation, value):
        """Rend une couleur de peau, du rose pêche (-1) au bleu (1) par le jaune et le vert."""
        red_green_blue = colorsys.hsv_to_rgb(0.31 + 0.29 * hue, saturation, value)
        return tuple(round(255 * channel) for channel in red_green_blue)

    def paint(points, colour, angle=np.radians(16 * tilt)):
        """Peint une forme, tournée autour du centre de la tête."""
        (x, y), (cos, sin) = (points - np.array(CENTRE)).T, (np.cos(angle), np.sin(angle))
        turned = np.stack([x * cos - y * sin, x * sin + y * cos], axis=1) + CENTRE
        canvas.polygon([tuple(point) for point in turned * ZOOM], fill=colour)

    paint(ellipse(32, 32, 30, 30), HALO, angle=0)
    paint(ellipse(32, 66, 22, 16), SWEATER, angle=0)
    paint(ellipse(32, 52, 10, 5), COLLAR, angle=0)
    paint(ellipse(32, 29.5, 23, 22.5), HAIR)
    for side in (-1, 1):
        paint(ellipse(32 + 21 * side, 36, 4.2, 5), skin(0.54, 0.87))
    paint(ellipse(32, 33.5, 20.5, 21), skin(0.46, 0.98))
    for side in (-1, 1):
        paint(ellipse(32 + 15.5 * side, 42, 3.6, 2.8), "#f59a94")
        paint(ellipse(32 + 9.3 * side, 30.3, 8.7, 8.8), WHITE)
        pupil = 32 + 9.3 * side + 3.3 * gaze
        paint(ellipse(pupil, 30.7, 5, 5.5), INK)
        paint(ellipse(pupil + 1.7, 28.5, 1.7, 1.7), WHITE)
    paint(mouth(smile), LIPS)
    locks = [ellipse(22, 18, 9.5, 6, 180, 20), ellipse(40.5, 18, 11.5, 5.5, 160, 0)]
    paint(np.concatenate([ellipse(32, 29.5, 23, 22.5, 350, 190), *locks]), HAIR)
    shine = [ellipse(32, 28, 18, 17, 205, 255), ellipse(32, 28, 18, 14, 255, 205)]
    paint(np.concatenate(shine), SHINE)
    return image.reduce(ZOOM)


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for number, values in enumerate(features()):
        draw_face(*values).save(FOLDER / f"visage_{number:03}.png", optimize=True)
