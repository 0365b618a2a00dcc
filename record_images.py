"""Enregistre des images de la webcam dans le dossier images/.

La fenêtre montre, agrandie, l'image telle qu'elle sera enregistrée : le carré du milieu, réduit,
comme dans un miroir. Cliquez sur la fenêtre, puis :
- « s » maintenue enregistre toutes les images de la caméra ; un appui bref en enregistre une ;
- « q », Échap ou la croix de la fenêtre terminent.
"""
# ******************************* PARAMÈTRES À MODIFIER *******************************
images_folder = "images"   # dossier où les images sont enregistrées (créé s'il n'existe pas)
images_size = 64           # *** 32-256 *** côté des images, en pixels
camera = 0                 # *** 0-3 *** numéro de la webcam, ou "film.mp4" pour lire un film
# *************************************************************************************

# %% Les préparatifs (à lire en dernier)
import os
import sys
import threading
import time
from collections import deque
from pathlib import Path


def stop(message):
    """Affiche un message et termine le script (code 0 dans Spyder, où 1 serait une erreur)."""
    print(message)
    sys.exit(0 if "spyder_kernels" in sys.modules else 1)


if hasattr(sys.stdout, "reconfigure"):
    sys.stdout.reconfigure(errors="replace")     # une lettre inconnue de la console devient « ? »
images_folder = globals().get("images_folder")      # None, si la ligne manque
images_size, camera = globals().get("images_size"), globals().get("camera")
if (type(images_folder) is not str or not images_folder.strip()
        or not images_folder.isprintable()):        # \t : tabulation
    stop(f"images_folder = {images_folder!r} : il faut le nom d'un dossier (avec / et non \\).")
if type(images_size) is not int or not 8 <= images_size <= 1024:
    stop(f"images_size = {images_size!r} : il faut un nombre entier de 8 à 1024, comme 64.")
if not (type(camera) is int and 0 <= camera <= 99 or type(camera) is str and camera.strip()):
    stop(f"camera = {camera!r} : il faut le numéro d'une webcam, de 0 à 99, ou \"un_film.mp4\".")
if sys.platform == "linux" and not os.getenv("DISPLAY"):
    stop("Aucun écran : lancez record_images.py depuis un bureau, sa fenêtre en a besoin.")

# OpenCV lit ces réglages quand il est importé : caméra vite ouverte (Windows), console sans bruit
os.environ.update(OPENCV_VIDEOIO_MSMF_ENABLE_HW_TRANSFORMS="0", OPENCV_LOG_LEVEL="SILENT",
                  OPENCV_FFMPEG_LOGLEVEL="-8", QT_LOGGING_RULES="*=false")
try:
    import cv2
    import numpy as np
    from PIL import Image
except Exception as error:
    stop(f"Il manque une bibliothèque ({error}). Lancez Spyder depuis l'environnement vae "
         "(README.md, « Installer ») ; si c'est fait, menu Console > Redémarrer le noyau.")
if not cv2.currentUIFramework():
    stop("Pas de fenêtre : désinstallez opencv-python-headless, puis réinstallez opencv-python.")


# %% La caméra
def as_saved(frame):
    """Le carré du milieu, réduit à images_size (moyenne des pixels), comme dans un miroir."""
    height, width = frame.shape[:2]
    side = min(height, width)
    square = frame[(height - side) // 2:, (width - side) // 2:][:side, :side]
    image = cv2.resize(square, (images_size, images_size), interpolation=cv2.INTER_AREA)
    if image.dtype != np.uint8:
        image = (image >> 8).astype(np.uint8)       # de 16 bits à 8
    if image.ndim == 2:
        image = np.dstack([image] * 3)              # grise : trois fois la même
    return cv2.flip(image[:, :, :3], 1)


def read_camera(capture, film, arrived, stopping):
    """Dépose les images dans `arrived`, dans un thread : une caméra muette ne fige rien."""
    position = 0
    while not stopping.is_set():
        try:
            arrived.append(as_saved(capture.read()[1]))
        except Exception:       # image absente ou abîmée : essayer la suivante
            stopping.wait(0.02)
            continue
        if film:                # attendre l'heure, en millisecondes, que porte l'image
            before, position = position, capture.get(cv2.CAP_PROP_POS_MSEC)
            pause = (position - before) / 1000
            stopping.wait(pause if 0.002 < pause < 0.5 else 1 / 30)
    capture.release()


# %% La fenêtre et les fichiers
TITLE = "record_images"


def show(image, recording):
    """Montre l'image agrandie ; tout ce qui l'entoure est rouge pendant l'enregistrement."""
    large = cv2.resize(image, (512, 512), interpolation=cv2.INTER_NEAREST)
    panel = cv2.copyMakeBorder(large, 16, 60, 16, 16, cv2.BORDER_CONSTANT,
                               value=(0, 0, 220) if recording else (60, 60, 60))
    # cv2.putText ne connaît pas les accents : ce texte s'en passe
    text = f"Images : {len(numbers) + recorded}    Maintenir s : enregistrer    q : quitter"
    cv2.putText(panel, text, (16, 564), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255,) * 3, 1, cv2.LINE_AA)
    cv2.imshow(TITLE, panel)


def save_image(image, path):
    """Écrit l'image sous un nom provisoire, puis la renomme : elle apparaît entière, ou pas."""
    hidden = path.with_name(".image.part")
    for tries_left in reversed(range(15)):      # un antivirus bloque parfois un fichier neuf
        try:    # avec Pillow : cv2.imwrite échoue sans rien dire sur un chemin accentué
            Image.fromarray(image[:, :, ::-1]).save(hidden, "PNG", compress_level=1)
            return os.rename(hidden, path)
        except OSError:
            if not tries_left:
                hidden.unlink(missing_ok=True)
                raise
            time.sleep(0.1)


# %% L'enregistrement
HOLD = 0.15         # secondes sans « s » après lesquelles la touche est tenue pour relâchée
PAUSE = 2           # secondes, au plus, entre un appui et la première répétition de la touche
PATIENCE = 5        # secondes sans image, ou d'images noires, après lesquelles on s'arrête
CHECKS = f"""Vérifiez :
- que camera = {camera!r}, en haut du script, est le bon numéro, ou un film à côté du script ;
- que la webcam est branchée, son volet ouvert ;
- qu'aucun autre programme ne l'utilise (Teams, Zoom, navigateur, autre console) ;
- que Windows ou macOS l'autorise (réglages : Confidentialité et sécurité > Caméra)."""

folder = Path(__file__).resolve().parent
images_path = folder / images_folder
film = type(camera) is str and os.path.isfile(folder / camera)
capture = cv2.VideoCapture()
arrived, stopping = deque(maxlen=100), threading.Event()
reader = threading.Thread(target=read_camera, args=(capture, film, arrived, stopping), daemon=True)
recent = []                     # les images que « s » peut encore faire enregistrer
press = None                    # un appui, bref ou long ? pas encore su : son rang dans recent
waiting = deque(maxlen=40)      # à écrire ; si le disque est lent, les plus vieilles se perdent
numbers, chosen, recorded, ended = [], 0, 0, False      # numéros déjà là ; choisies, écrites
try:
    images_path.mkdir(parents=True, exist_ok=True)
    numbers = [int(path.stem[6:]) for path in images_path.glob("image_*.png")
               if path.stem[6:].isdecimal()]
    number = max(numbers, default=0) + 1    # la numérotation continue après la dernière image
    print("Ouverture de la caméra...")
    if not capture.open(str(folder / camera) if film else camera):
        stop(f"La caméra ne s'ouvre pas. {CHECKS}")
    reader.start()
    cv2.namedWindow(TITLE, cv2.WINDOW_AUTOSIZE | cv2.WINDOW_GUI_NORMAL)
    cv2.moveWindow(TITLE, 60, 30)
    show(np.zeros((8, 8, 3), np.uint8), False)
    cv2.waitKey(100)        # le temps d'apparaître, avant de passer devant Spyder
    cv2.setWindowProperty(TITLE, cv2.WND_PROP_TOPMOST, 1)
    print("Cliquez sur la fenêtre, puis maintenez « s » pour enregistrer ; « q » pour finir.")
    clock, last_s, last_image, now = 0, -PAUSE, 0, time.monotonic()
    while not ended or waiting:
        before, now = now, time.monotonic()
        clock += min(now - before, 0.1)     # un ordinateur qui se fige ou dort n'est pas un silence
        new = [arrived.popleft() for _ in range(len(arrived))]
        recent += new

        # Les touches. Le clavier n'annonce pas qu'une touche est relâchée : « s » maintenue arrive
        # une fois, puis, une demi-seconde plus tard, dix à quarante fois par seconde. La première
        # répétition ressemble donc à un nouvel appui ; la suivante, toute proche, tranche.
        while (key := cv2.waitKeyEx(10)) != -1:
            key &= 0xFFFF               # sans le bit de Verr. Num
            if key in (ord("s"), ord("S")):
                held = clock - last_s <= HOLD       # tout près du « s » d'avant : maintenue
                press = None if held else max(0, len(recent) - 1)
                last_s = clock
            ended = ended or key in (ord("q"), ord("Q"), 27)
        recording = clock - last_s <= HOLD and not ended

        # Les images à enregistrer
        saving = []
        if recording and press is None:             # touche maintenue : tout depuis l'appui
            saving, recent = recent, []
        elif not recording and press is not None and press < len(recent):     # appui bref : une
            saving, recent, press = [recent[press]], recent[press + 1:], None
        elif clock - last_s > PAUSE:                # plus de « s » : ne garder que la dernière
            recent = recent[-1:]
        waiting += saving
        chosen += len(saving)
        while waiting and time.monotonic() < now + 0.05:        # puis aux touches, à la fenêtre
            while (path := images_path / f"image_{number:05d}.png").exists():
                number += 1
            save_image(waiting.popleft(), path)
            recorded += 1

        try:
            ended = ended or cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1     # la croix
        except cv2.error:       # sous Linux, il n'y a déjà plus de fenêtre du tout
            ended = True
        if new and not ended:
            show(new[-1], recording)
            if film or new[-1].max() > 30:      # une image toute noire ne compte pas
                last_image = clock
        if film and clock - last_image > 1:
            print("Fin du film.")
            break
        if clock - last_image > PATIENCE:
            stop(f"Depuis {PATIENCE} secondes, la caméra n'envoie que du noir, ou rien. {CHECKS}")
except KeyboardInterrupt:
    print("Arrêt demandé.")
except OSError:
    stop(f"Impossible d'écrire dans {images_path} : vérifiez que c'est un dossier, qu'il n'est pas "
         "protégé en écriture et que le disque n'est pas plein.")
finally:
    stopping.set()
    if reader.is_alive():
        reader.join(timeout=1)
    cv2.destroyAllWindows()
    cv2.waitKey(1)
    print(f"Images enregistrées dans {images_path} : {recorded} "
          f"({len(numbers) + recorded} en tout).")
    if chosen > recorded:
        print(f"Images perdues, le disque étant trop lent ou plein : {chosen - recorded}.")
