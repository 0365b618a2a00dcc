"""Vitesse de record_images.py, de la caméra aux fichiers, sur un seul cœur (point 9).

Trois mesures, entrelacées : une boucle nue qui lit un film de 1280 × 720 et le montre ; notre
enregistrement du même film, les deux sans attente entre les images ; et l'enregistrement d'une
source à 60 images par seconde.

    python tests/bench_record.py
"""
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import cv2
import numpy as np
from kit import Screen, edit_zone, wait_until
from test_record import read_number, repeat_rate

ROOT = Path(__file__).resolve().parent.parent
FRAMES, ROUNDS = 480, 3
BARE = """
import sys, time, cv2
capture, count, start = cv2.VideoCapture(sys.argv[1]), 0, 0
while True:
    success, frame = capture.read()
    if not success:
        break
    cv2.imshow("boucle nue", frame)
    cv2.waitKey(1)
    start = start or time.monotonic()
    count += 1
print((count - 1) / (time.monotonic() - start))
"""


def write_films(folder):
    """Le même film deux fois : à lire sans attente (1000 images par seconde) et à 60."""
    films = [folder / "vite.avi", folder / "soixante.avi"]
    writers = [cv2.VideoWriter(str(film), cv2.VideoWriter_fourcc(*"MJPG"), fps, (1280, 720))
               for film, fps in zip(films, (1000, 60))]
    random = np.random.default_rng(0)
    scene = cv2.resize(random.integers(60, 190, (90, 160, 3), np.uint8), (1280, 720),
                       interpolation=cv2.INTER_CUBIC)
    for number in range(1, FRAMES + 1):
        frame = np.roll(scene, 3 * number, axis=1)
        bits = np.array([number >> k & 1 for k in range(12)] + [1, 0, 0, 1]).reshape(4, 4)
        for (row, column), bit in np.ndenumerate(bits):         # le numéro, en damier
            y, x = 180 * row + 60, 280 + 180 * column + 60
            frame[y:y + 60, x:x + 60] = 255 * bit
        for writer in writers:
            writer.write(frame)
    for writer in writers:
        writer.release()
    return films


def start(screen, *command):
    """Lance Python sur le cœur 0 seulement."""
    return subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.PIPE,
                            stderr=subprocess.DEVNULL, text=True, env={**os.environ, **screen.env},
                            preexec_fn=lambda: os.sched_setaffinity(0, {0}))


def record(screen, folder, film):
    """Enregistre le film, « s » maintenue jusqu'au bout ; rend les numéros et les dates."""
    shutil.rmtree(folder / "images", ignore_errors=True)
    edit_zone(folder / "record_images.py", camera=str(film))
    process = start(screen, folder / "record_images.py")
    screen.xdotool("windowactivate", "--sync", screen.window("record_images"), "keydown", "s")
    wait_until(lambda: process.poll() is not None, timeout=60)
    screen.xdotool("keyup", "s")
    files = sorted((folder / "images").glob("image_*.png"))[1:]         # après l'appui
    return [read_number(file) for file in files], [file.stat().st_mtime for file in files]


def rows():
    """Les mesures : une liste de (ce qui est mesuré, valeur)."""
    screen = Screen()
    folder = Path(tempfile.mkdtemp())
    try:
        repeat_rate(screen, 150, 30)
        shutil.copy(ROOT / "record_images.py", folder)
        fast, sixty = write_films(folder)
        bare, saved, kept = [], [], []
        for _ in range(ROUNDS):
            bare.append(float(start(screen, "-c", BARE, fast).communicate()[0]))
            numbers, dates = record(screen, folder, fast)
            saved.append((len(numbers) - 1) / (dates[-1] - dates[0]))
            numbers, dates = record(screen, folder, sixty)
            kept.append(len(numbers) / (numbers[-1] - numbers[0] + 1))
        return [("boucle nue (lire et montrer), images par seconde", f"{median(bare):.0f}"),
                ("de la caméra aux fichiers, images par seconde", f"{median(saved):.0f}"),
                ("rapport des deux", f"{median(saved) / median(bare):.2f}"),
                ("source à 60 images par seconde : part enregistrée", f"{min(kept):.1%}")]
    finally:
        screen.close()
        shutil.rmtree(folder)


if __name__ == "__main__":
    for name, value in rows():
        print(f"{name:55} {value:>8}")
