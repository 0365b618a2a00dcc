"""Enregistre des images de la webcam dans le dossier images/.

La fenêtre montre, agrandie, l'image telle qu'elle sera enregistrée : le carré du milieu, réduit,
comme dans un miroir. Cliquez sur la fenêtre, puis :
- « s » maintenue enregistre toutes les images de la caméra ; un appui bref en enregistre une ;
- « q », Échap ou la croix de la fenêtre terminent.
"""
import contextlib
import io
import os
import re
import sys
import threading
import time
from collections import deque
from itertools import count
from pathlib import Path

# ******************************* PARAMÈTRES À MODIFIER *******************************
images_folder = "images"   # dossier où les images sont enregistrées (créé s'il n'existe pas)
images_size = 64           # *** 32-256 *** côté des images, en pixels
camera = 0                 # *** 0-3 *** numéro de la webcam, ou "film.mp4" pour lire un film
# *************************************************************************************


def stop(message):
    """Affiche un message clair et termine le script (par 0 dans Spyder, où 1 serait une erreur)."""
    print(message)
    sys.exit(0 if "spyder_kernels" in sys.modules else 1)


if type(images_folder) is not str or not images_folder.strip():
    stop(f"images_folder = {images_folder!r} : il faut le nom d'un dossier, comme \"images\".")
if type(images_size) is not int or not 8 <= images_size <= 1024:
    stop(f"images_size = {images_size!r} : il faut un nombre entier de 8 à 1024, comme 64.")
if not (type(camera) is int and 0 <= camera <= 99 or type(camera) is str and camera.strip()):
    stop(f"camera = {camera!r} : il faut le numéro d'une webcam, de 0 à 99, ou \"un_film.mp4\".")
if sys.platform == "linux" and not os.getenv("DISPLAY"):
    stop("Aucun écran : lancez record_images.py depuis un bureau, sa fenêtre en a besoin.")

# OpenCV lit ces réglages quand il est importé : caméra vite ouverte (Windows), console sans bruit
os.environ.setdefault("OPENCV_VIDEOIO_MSMF_ENABLE_HW_TRANSFORMS", "0")
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
os.environ.setdefault("QT_LOGGING_RULES", "*=false")
try:
    import cv2
    from PIL import Image
except (ImportError, OSError) as error:
    stop(f"Il manque une bibliothèque ({error}). Lancez Spyder depuis l'environnement vae "
         "(README.md, « Installer »).")
except KeyboardInterrupt:
    stop("Arrêt demandé, avant le début.")

HOLD = 0.15         # secondes sans « s » après lesquelles la touche est tenue pour relâchée
PATIENCE = 5        # secondes sans image, ou d'images noires, après lesquelles on s'arrête
VIEW = 512          # côté de l'image dans la fenêtre, en pixels
TITLE = "record_images"
CHECKS = f"""Vérifiez :
- qu'elle est branchée, son volet ouvert ;
- qu'aucun autre programme ne l'utilise (Teams, Zoom, navigateur, autre console) ;
- que les réglages de confidentialité l'autorisent (Windows : Paramètres > Confidentialité et
  sécurité > Caméra ; macOS : Réglages Système > Confidentialité et sécurité > Caméra) ;
- la valeur de camera en haut de record_images.py, ici {camera!r} : essayez 0, 1 ou 2."""


def as_saved(frame):
    """Le carré du milieu, réduit à images_size (moyenne des pixels), comme dans un miroir."""
    height, width = frame.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = frame[top:top + side, left:left + side]
    return cv2.flip(cv2.resize(square, (images_size, images_size), interpolation=cv2.INTER_AREA), 1)


def read_camera(capture, film, arrived, stopping):
    """Lit la caméra sans relâche et dépose chaque image dans `arrived` ; la libère à la fin.

    Dans un fil à part : la fenêtre répond même quand la caméra se tait. Un film passe à sa vitesse.
    """
    start, fps = time.monotonic(), capture.get(cv2.CAP_PROP_FPS) or 30
    for number in count(1):
        success, frame = capture.read()
        if stopping.is_set() or film and not success:
            break
        if success:
            arrived.append(as_saved(frame))
        if film:
            stopping.wait(start + number / fps - time.monotonic())
        elif not success:
            stopping.wait(0.05)
    capture.release()


def save_image(image, first):
    """Écrit l'image en PNG sous le premier numéro libre à partir de `first` ; rend ce numéro.

    Le fichier est écrit sous un nom caché, qui réserve le numéro, puis renommé : l'image apparaît
    entière ou pas du tout, et deux enregistrements à la fois ne s'écrasent pas."""
    png = io.BytesIO()
    Image.fromarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)).save(png, "PNG", compress_level=1)
    for number in count(first):
        path = images_path / f"image_{number:05d}.png"
        hidden = images_path / f".image_{number:05d}.part"
        try:
            file = open(hidden, "xb")
        except FileExistsError:         # un autre enregistrement écrit ce numéro : au suivant
            continue
        try:
            with file:
                file.write(png.getbuffer())
            if not path.exists():
                os.rename(hidden, path)
                return number
            hidden.unlink()
        except BaseException:
            hidden.unlink(missing_ok=True)
            raise


def show(image, total, recording):
    """Montre l'image agrandie ; tout ce qui l'entoure est rouge pendant l'enregistrement."""
    large = cv2.resize(image, (VIEW, VIEW), interpolation=cv2.INTER_NEAREST)
    panel = cv2.copyMakeBorder(large, 16, 80, 16, 16, cv2.BORDER_CONSTANT,
                               value=(0, 0, 220) if recording else (60, 60, 60))
    # cv2.putText ne connaît pas les accents : ces textes s'en passent
    lines = [f"{total} image{'s' * (total > 1)} dans le dossier",
             "ENREGISTREMENT" if recording else "Maintenir s : enregistrer    q : quitter"]
    for line, text in enumerate(lines):
        cv2.putText(panel, text, (16, VIEW + 48 + 32 * line),
                    cv2.FONT_HERSHEY_SIMPLEX, 0.75, (255, 255, 255), 2, cv2.LINE_AA)
    cv2.imshow(TITLE, panel)


def window_is_open():
    """Faux dès que l'on a cliqué sur la croix."""
    try:
        return cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) >= 1
    except cv2.error:       # sous Linux, il n'y a déjà plus de fenêtre du tout
        return False


# %% Le dossier : la numérotation continue après la dernière image
folder = Path(__file__).resolve().parent
images_path = folder / images_folder
try:
    images_path.mkdir(parents=True, exist_ok=True)
    names = os.listdir(images_path)
except (OSError, ValueError):
    stop(f"images_folder = {images_folder!r} : impossible d'ouvrir le dossier {images_path}.")
numbers = [int(name[6:-4]) for name in names if re.fullmatch(r"image_[0-9]+\.png", name)]
next_number = max(numbers, default=0) + 1
already = sum(name.lower().endswith((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff",
                                     ".webp")) for name in names)

# %% L'enregistrement
film = type(camera) is str and os.path.isfile(folder / camera)
capture = cv2.VideoCapture()
arrived = deque(maxlen=100)     # images déposées par la caméra, que la boucle n'a pas encore prises
unsaved = []                    # images prises, que « s » peut encore faire enregistrer
stopping = threading.Event()
reader = threading.Thread(target=read_camera, args=(capture, film, arrived, stopping), daemon=True)
recorded = 0
recording = False
problem = ""
print("Ouverture de la caméra...")
try:
    if capture.open(str(folder / camera) if film else camera):
        reader.start()
        kind = cv2.WINDOW_AUTOSIZE | cv2.WINDOW_GUI_NORMAL
        cv2.namedWindow(TITLE, kind)
        if not window_is_open():        # sous Linux, la croix n'a fait que cacher celle d'avant
            cv2.destroyWindow(TITLE)
            cv2.namedWindow(TITLE, kind)
        cv2.moveWindow(TITLE, 60, 30)
        cv2.setWindowProperty(TITLE, cv2.WND_PROP_TOPMOST, 1)
        print("Cliquez sur la fenêtre, puis maintenez « s » pour enregistrer ; « q » pour finir.")
    elif type(camera) is int:
        problem = f"La caméra ne s'ouvre pas. {CHECKS}"
    else:
        problem = (f"camera = {camera!r} : ce film ne s'ouvre pas. Est-il à côté de "
                   "record_images.py, son nom est-il bien écrit ? (Le numéro d'une webcam s'écrit "
                   "sans guillemets.)")
    now = last_image = last_bright = time.monotonic()     # bright : une image non noire
    since_s = 1                                           # secondes depuis le dernier « s »
    while not problem:
        key = cv2.waitKeyEx(10) & 0xFFFF    # sans les bits qu'y ajoute, par exemple, Verr. Num
        before = now
        now = time.monotonic()
        if key in (ord("q"), ord("Q"), 27) or not window_is_open():
            break
        new = [arrived.popleft() for _ in range(len(arrived))]
        unsaved += new

        # Le clavier n'annonce pas qu'une touche est relâchée : « s » maintenue arrive une fois,
        # puis, une demi-seconde plus tard, dix à quarante fois par seconde. Un « s » isolé
        # enregistre l'image du moment ; un « s » qui en suit un autre de près, toutes celles
        # depuis cet autre, et les suivantes jusqu'au relâchement.
        is_s = key in (ord("s"), ord("S"))
        since_s += min(now - before, 0.05)      # un ordinateur qui se fige n'est pas un relâchement
        recording = since_s <= HOLD and (recording or is_s)
        if since_s > HOLD:
            del unsaved[:-1]
        if is_s:
            since_s = 0
        if is_s or recording:
            for image in unsaved:
                next_number = save_image(image, next_number) + 1
                recorded += 1
            unsaved.clear()

        if new:
            show(new[-1], already + recorded, recording)
            last_image = now
            last_bright = now if new[-1].max() > 30 else last_bright
        elif film and not reader.is_alive() and not arrived:
            print("Fin du film.")
            break
        if now - last_image > PATIENCE:
            problem = f"La caméra n'envoie pas d'image depuis {PATIENCE} secondes. {CHECKS}"
        elif not film and now - last_bright > PATIENCE:
            problem = f"La caméra ne donne que du noir depuis {PATIENCE} secondes. {CHECKS}"
except KeyboardInterrupt:
    print("Arrêt demandé.")
except OSError:
    problem = (f"Impossible d'écrire dans {images_path} : vérifiez que le disque n'est pas plein "
               "et que le dossier n'est pas protégé en écriture.")
except cv2.error:
    problem = ("La fenêtre d'OpenCV ne s'ouvre pas : installez opencv-python, et désinstallez "
               "opencv-python-headless.")
finally:
    stopping.set()
    if reader.is_alive():
        reader.join(timeout=1)
    else:
        capture.release()
    with contextlib.suppress(cv2.error):
        cv2.destroyAllWindows()
        cv2.waitKey(1)

# %% Le bilan
s = "s" * (recorded > 1)
print(f"{recorded or 'Aucune'} image{s} enregistrée{s} dans {images_path} "
      f"({already + recorded} en tout).")
if problem:
    stop(problem)
