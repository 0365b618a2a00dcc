"""Montre ce que le modèle a appris : une fenêtre avec un slider pour chaque nombre de z.

L'image est dessinée par le décodeur à partir de ces seuls nombres. Sous chaque slider, sept
petites images montrent ce que son nombre change, les autres restant où ils sont.
"""
# ******************************* PARAMÈTRES À MODIFIER *******************************
model_file = "model_VAE_64.pt"   # modèle à ouvrir, enregistré par train_VAE.py
images_size = 64                 # *** 48-256 *** comme dans train_VAE.py
latent_size = 4                  # *** 1-32 *** comme dans train_VAE.py : autant de sliders
images_folder = "images"         # dossier du bouton « Image réelle »
camera = 0                       # *** 0-3 *** numéro de la webcam, ou un film : "film.mp4"
# *************************************************************************************

# %% Les préparatifs (à lire en dernier)
import contextlib
import gc
import math
import os
import signal
import sys
import threading
import time
from itertools import count
from pathlib import Path

folder = Path(__file__).resolve().parent
sys.path.insert(0, str(folder))               # pour trouver model_VAE_64.py, d'où que l'on lance
sys.modules.pop("model_VAE_64", None)         # relu à chaque fois : il a pu être modifié
if hasattr(sys.stdout, "reconfigure"):
    sys.stdout.reconfigure(errors="replace")     # une lettre inconnue de la console devient « ? »


def stop(message):
    """Affiche un message et termine le script (code 0 dans Spyder, où 1 serait une erreur)."""
    print(message)
    sys.exit(0 if "spyder_kernels" in sys.modules else 1)


for name in "model_file", "images_folder", "camera":
    value = globals().get(name)       # la valeur de la variable qui porte ce nom
    if name == "camera" and type(value) is int and 0 <= value <= 99:
        continue
    if type(value) is not str or not value.strip() or not value.isprintable():   # \t : tabulation
        stop(f"Paramètre {name} = {value!r} : dans la zone ***, il faut « {name} = » suivi d'un "
             "nom entre guillemets (et / entre les dossiers, non \\)"
             f"{', ou un numéro de webcam (0, 1, 2...)' if name == 'camera' else ''}.")

# %% Les bibliothèques et le modèle
on_stop = signal.signal(signal.SIGINT, signal.SIG_IGN)     # un arrêt laisserait PyTorch à moitié là
print("Chargement de PyTorch...", flush=True)
try:
    import tkinter as tk
    from tkinter import ttk
    import torch
    from PIL import Image, ImageOps, ImageTk
    from torchvision.transforms.functional import to_pil_image, to_tensor
    from model_VAE_64 import find_images, load_model, read_image
except (ImportError, OSError, RuntimeError) as error:
    stop(f"Il manque une bibliothèque ({error}). Lancez Spyder depuis l'environnement vae "
         "(README.md, « Installer ») ; si c'est fait, menu Console > Redémarrer le noyau. Sous "
         "Windows, s'il est question de DLL : installez Visual C++, "
         "https://aka.ms/vs/17/release/vc_redist.x64.exe. S'il est question de tkinter : sudo apt "
         "install python3-tk (Linux), brew install python-tk (macOS).")
finally:
    signal.signal(signal.SIGINT, on_stop)                  # l'arrêt agit de nouveau

try:
    vae = load_model(folder / model_file).requires_grad_(False)      # il n'apprend plus
except (OSError, ValueError) as error:
    stop(error)
for name in "images_size", "latent_size":
    here, there = globals().get(name), getattr(vae, name)
    if here != there:
        stop(f"Paramètre {name} = {here!r} : « {model_file} » est entraîné avec {name} = {there}. "
             f"Écrivez {name} = {there} dans la zone ***, ou relancez train_VAE.py.")


# %% Un slider
STEPS = 7       # petites images sous chaque slider


class Slider(ttk.LabelFrame):
    """Un nombre de z : le slider qui le règle, et STEPS petites images de ce qu'il change.

    Le nombre d'une image réelle peut sortir de [-3, 3] : le curseur reste alors en butée."""

    def __init__(self, parent, index, side, moved):
        super().__init__(parent, padding=(10, 0))
        self.index, self.size = index, (STEPS * side, side)   # celle de la bande
        self.number = tk.DoubleVar(self)
        self.scale = ttk.Scale(self, from_=-3, to=3, variable=self.number, command=moved)
        self.strip = ttk.Label(self, compound="center")
        self.scale.pack(fill="x")
        self.strip.pack()
        put_images(self.strip, [torch.ones(3, 1, 1)] * STEPS, self.size)

    def draw_strip(self, z):
        """Montre ce que change ce nombre, de -3 à 3, les autres restant ceux de z."""
        codes = torch.tensor([z] * STEPS)
        codes[:, self.index] = torch.linspace(-3, 3, STEPS)
        images = vae.decode(codes)
        # Inactif (et pâli), s'il change les pixels, en moyenne, de moins de 15 % du contraste.
        inactive = (images.amax(0) - images.amin(0)).mean() < 0.15 * vae.contrast
        self.strip["text"] = "inactif" if inactive else ""
        put_images(self.strip, 0.7 + 0.3 * images if inactive else images, self.size)


def put_images(label, images, size):
    """Montre des images (3×S×S), l'une à côté de l'autre, aussi grandes que le permet size."""
    row = ImageOps.contain(to_pil_image(torch.cat(list(images), dim=2)), size)
    label.photo = ImageTk.PhotoImage(row, master=label)       # Tk ne la garde pas lui-même
    label["image"] = label.photo


# %% La webcam
class Webcam(threading.Thread):
    """La caméra, ou un film à sa vitesse, lue dans un thread : la fenêtre n'attend jamais."""

    one_at_a_time = threading.Lock()      # une seule caméra ouverte à la fois
    image = None            # la dernière, jusqu'à ce que la fenêtre la prenne
    silence = -math.inf     # battements sans image ; -inf : la caméra n'est pas encore ouverte
    leaving = False         # la fenêtre n'en veut plus
    end = "Il manque OpenCV (README.md, « Installer »)."      # ce qu'il faut dire à la fin

    def run(self):
        os.environ.update(OPENCV_VIDEOIO_MSMF_ENABLE_HW_TRANSFORMS="0",    # Windows : vite ouverte
                          OPENCV_LOG_LEVEL="SILENT", OPENCV_FFMPEG_LOGLEVEL="-8")
        import cv2          # ici seulement : la fenêtre s'ouvre plus vite, et même sans OpenCV
        self.end = (f"La caméra ne s'ouvre pas (camera = {camera!r}). Fermez les autres programmes "
                    "qui l'utilisent, ou essayez un autre numéro, sans guillemets. Un film doit "
                    "être à côté des scripts.")
        with self.one_at_a_time:                  # celle d'avant se ferme d'abord
            if self.leaving:
                return
            film = type(camera) is str and os.path.isfile(folder / camera)
            capture = cv2.VideoCapture(str(folder / camera) if film else camera)
            if not capture.isOpened():
                return
            self.silence, self.end = 0, "Fin du film."
            missed, before, due = 0, 0, time.monotonic()        # due : l'heure de l'image
            while not self.leaving and not (film and missed > 30):
                try:
                    image = Image.fromarray(capture.read()[1].squeeze()).convert("RGB")
                    image = ImageOps.mirror(ImageOps.fit(image, (images_size, images_size)))
                    self.image = Image.merge("RGB", image.split()[::-1])   # elle était en BVR
                    self.silence = missed = 0
                except Exception:                 # pas d'image, ou une image abîmée : la suivante
                    missed += 1
                if film:                          # chaque image porte son heure, en millisecondes
                    now = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                    due += now - before if 0.005 < now - before < 2 else 1 / 30
                    before = now
                    time.sleep(max(0, due - time.monotonic()))
                elif missed:
                    time.sleep(0.03)
            capture.release()


# %% La fenêtre
TIP = ("Tirez un slider ; double clic : remettre à zéro ; flèches : petits pas. Défi : « Image "
       "réelle », puis « Tout à zéro », et retrouvez l'original avec les sliders.")


class Window(tk.Tk):
    """À gauche l'image et les boutons, à droite les sliders, en bas deux lignes de messages."""

    def __init__(self):
        with contextlib.suppress(Exception):      # Windows : net sur les écrans à haute densité
            from ctypes import windll
            windll.shcore.SetProcessDpiAwareness(1)
        super().__init__()
        self.title("decode_VAE")
        self["background"] = "white"
        style = ttk.Style(self)
        style.theme_use("clam")                   # le même sur tous les systèmes
        style.configure(".", background="white")
        style.configure("TLabelframe", borderwidth=0)
        style.configure("TScale", background="#3568d4", gripcount=0)
        unit = max(1, self.winfo_fpixels("1i") / 96)          # 1.5 sur un écran à 150 %
        width = int(min(1340 * unit, self.winfo_screenwidth() - 16 * unit))
        height = int(min(680 * unit, self.winfo_screenheight() - 100 * unit))
        self.geometry(f"{width}x{height}+{(self.winfo_screenwidth() - width) // 2}+0")
        self.minsize(width // 2, height // 2)

        self.files = find_images(folder / images_folder)
        self.original = self.answer = None        # l'image réelle, et z selon le modèle
        self.glide = None                         # le chemin des sliders : (départ, arrivée, heure)
        self.webcam = None
        self.calm = 1                             # battements depuis le dernier changement
        self.events = {}                          # le dernier événement de chaque touche
        self.status = tk.Label(self, height=2, anchor="nw", justify="left", padx=12,
                               background="white", wraplength=width - 40)
        self.status.pack(side="bottom", fill="x")
        self.add_sliders(width, height, unit)
        self.add_buttons()
        self.view = ttk.Label(self, anchor="center")
        self.view.pack(fill="both", expand=True, padx=10, pady=10)
        self.view.bind("<Configure>", lambda event: self.draw())      # l'image, dès l'ouverture
        self.protocol("WM_DELETE_WINDOW", self.quit)
        self.attributes("-topmost", True)         # devant Spyder au début
        self.after(500, self.attributes, "-topmost", False)
        self.sliders[0].scale.focus_force()
        self.tick()

    def add_sliders(self, width, height, unit):
        """Les sliders, sur assez de colonnes pour tenir à l'écran."""
        most = (height - 44 * unit) // (44 * unit)            # rangées qui tiennent
        columns = max(1 + (latent_size > 5) + (latent_size > 16), math.ceil(latent_size / most))
        rows = math.ceil(latent_size / columns)
        side = min(0.36 * width / columns / STEPS, (height - 44 * unit) / rows - 40 * unit)
        frame = ttk.Frame(self)
        frame.pack(side="right", anchor="n")
        self.sliders = [Slider(frame, k, max(8, int(side)), self.take_over)
                        for k in range(latent_size)]
        for k, slider in enumerate(self.sliders):
            slider.grid(row=k // columns, column=k % columns)
        # Un clic prend le clavier, puis amène le curseur là, ce que Tk réserve au bouton du milieu.
        jump = self.bind_class("TScale", "<Button-2>")
        self.bind_class("TScale", "<Button-1>", "focus %W;" + jump)
        self.bind_class("TScale", "<Double-Button-1>", lambda event: event.widget.set(0))
        for key, step in ("Left", -0.1), ("Down", -0.1), ("Right", 0.1), ("Up", 0.1):
            self.bind_class("TScale", f"<{key}>", lambda event, step=step: event.widget.set(
                event.widget.get() + step))

    def add_buttons(self):
        bar = ttk.Frame(self)
        bar.pack(side="bottom", fill="x", padx=10, pady=6)
        self.buttons = {}
        for key, text, command in [("z", "Tout à zéro", lambda: self.go([0] * latent_size)),
                                   ("h", "Au hasard", self.at_random),
                                   ("i", "Image réelle", self.next_real_image),
                                   ("w", "Webcam", self.switch_webcam),
                                   ("e", "Enregistrer", self.save_picture)]:
            self.buttons[key] = ttk.Button(bar, text=f"{text} ({key})", command=command, width=0,
                                           takefocus=False)
            self.buttons[key].pack(side="left", expand=True, fill="x", padx=2)
        self.bind("<KeyPress>", self.on_key)
        self.bind("<KeyRelease>", self.on_key)

    def on_key(self, event):
        """La touche d'un bouton. Maintenue, elle se répète : des appuis sans relâchement ou, sous
        Linux, un relâchement et un appui à la même heure. Cela ne fait qu'une action."""
        pressed, letter = event.type == tk.EventType.KeyPress, event.char.lower()
        was_pressed, when = self.events.get(event.keysym, (False, -math.inf))
        self.events[event.keysym] = pressed, event.time       # en millisecondes
        limit = 1500 if was_pressed else 5                    # ms ; plus tôt : une répétition
        if pressed and letter in self.buttons and event.time - when > limit:
            self.buttons[letter].invoke()

    def z(self):
        return [slider.number.get() for slider in self.sliders]

    def set_z(self, z):
        for slider, number in zip(self.sliders, z):
            slider.number.set(number)
        self.calm = 0

    def say(self, message, error=False):
        self.status.configure(text=message, foreground="#c00000" if error else "black")

    def tick(self):
        """Le battement, cent fois par seconde au plus : avance d'un pas, dessine, puis laisse les
        boutons répondre. (Il réveille aussi Python, qui sinon ne verrait pas l'arrêt demandé.)"""
        try:
            if self.webcam:
                self.follow_webcam()
            if self.glide:
                start, end, begun = self.glide
                rest = max(0, 1 - (time.monotonic() - begun) / 0.5)       # de 1 à 0, en 0,5 s
                if rest == 0:
                    self.glide = None
                rest = rest ** 2 * (3 - 2 * rest)             # départ, arrivée en douceur
                self.set_z([b - (b - a) * rest for a, b in zip(start, end)])
            self.calm += 1
            if self.calm == 1:
                self.draw()
            elif 25 <= self.calm < 25 + latent_size:          # au calme : une bande par battement
                self.sliders[self.calm - 25].draw_strip(self.z())
            self.update_idletasks()
        finally:
            self.after(10, self.tick)

    def draw(self):
        """Dessine l'image de z, à droite de l'original s'il y en a un (entre eux, du blanc)."""
        z = self.z()
        for slider in self.sliders:
            slider["text"] = f"z{slider.index + 1} = {z[slider.index]:+.2f}"
        if self.original is None:
            images = vae.decode(torch.tensor([z]))
            self.say("Ouverture de la caméra..." if self.webcam else TIP)
        else:
            drawn = vae.decode(torch.tensor([z, self.answer]))
            images = [self.original, torch.ones(3, images_size, images_size // 16), drawn[0]]
            # L'erreur, comme dans la loss : celle de l'image dessinée, et de la réponse du modèle
            error, best = (drawn - self.original).square().sum(dim=(1, 2, 3)).tolist()
            if self.webcam:
                advice = "Touche w : arrêter la webcam et garder son image."
            elif round(error, 1) < round(best, 1):
                advice = "Bravo, vous faites mieux que lui !"
            else:
                advice = "Défi : « Tout à zéro », puis retrouvez l'original avec les sliders."
            self.say(f"Erreur : {error:.1f} ; celle de la réponse du modèle : {best:.1f}. {advice}")
        put_images(self.view, images, (self.view.winfo_width() - 4, self.view.winfo_height() - 4))

    def take_over(self, *_):
        """Un bouton, ou une main sur un slider, arrête ce qui bougeait tout seul."""
        self.glide, self.calm = None, 0
        if self.webcam:
            self.webcam.leaving = True
        self.webcam = None

    def go(self, z):
        """Fait glisser les sliders jusqu'à ces nombres."""
        self.take_over()
        self.glide = self.z(), z, time.monotonic()

    # Les boutons
    def at_random(self):
        self.original = None
        self.go(torch.randn(latent_size).tolist())

    def next_real_image(self):
        for _ in self.files:                      # un tour au plus, sans ce qui n'est pas une image
            self.files.append(self.files.pop(0))
            with contextlib.suppress(ValueError):
                return self.go(self.encode(read_image(self.files[-1], images_size)))
        self.say(f"Aucune image lisible dans « {folder / images_folder} ».", error=True)

    def encode(self, image):
        """Met une image à gauche ; rend les nombres qui la résument, selon le modèle (mu)."""
        self.original = to_tensor(image)
        self.answer = vae.encode(self.original[None])[0][0].tolist()
        return self.answer

    def switch_webcam(self):
        was_on = self.webcam
        self.take_over()
        if not was_on:
            self.original = None
            self.webcam = Webcam(daemon=True)
            self.webcam.start()

    def follow_webcam(self):
        """Prend la dernière image de la webcam ; après 5 secondes sans image, l'arrête."""
        webcam = self.webcam
        image, webcam.image = webcam.image, None
        webcam.silence += 1
        if image:
            self.set_z(self.encode(image))
        elif not webcam.is_alive() or webcam.silence > 500:
            self.take_over()
            self.calm = 1                         # rien à redessiner : ce message reste
            end = "La caméra n'envoie pas d'image." if webcam.is_alive() else webcam.end
            self.say(end, error=end != "Fin du film.")

    def save_picture(self):
        """Enregistre l'image dessinée sous un nom nouveau, qui porte ses nombres."""
        number = next(n for n in count(1) if not any(folder.glob(f"decode_VAE_{n:03d}_*")))
        path = folder / f"decode_VAE_{number:03d}_{'_'.join(f'{z:+.2f}' for z in self.z())}.png"
        image = to_pil_image(vae.decode(torch.tensor([self.z()]))[0]).resize((512, 512))
        try:
            with open(path, "xb") as file:
                image.save(file, "PNG")
            self.say(f"Image enregistrée à côté des scripts : {path.name}")
        except OSError:
            path.unlink(missing_ok=True)          # pas de moitié d'image
            self.say(f"Impossible d'écrire « {path} » : disque plein, dossier protégé, ou nom trop "
                     "long ?", error=True)


# %% La fenêtre, jusqu'à ce qu'on la ferme
threads = torch.get_num_threads()
torch.set_num_threads(1)    # dessiner une image est plus court que réveiller d'autres cœurs
try:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # arrêtée ici, la fenêtre resterait à moitié faite
    window = Window()
    signal.signal(signal.SIGINT, lambda *_: window.after(0, window.quit))
    print("La fenêtre est ouverte : fermez-la avant de relancer un script.", flush=True)
    window.mainloop()
    window.take_over()
    window.destroy()
except tk.TclError as error:
    stop(f"La fenêtre ne s'ouvre pas ({error}) : lancez decode_VAE.py depuis un bureau.")
finally:
    signal.signal(signal.SIGINT, on_stop)
    torch.set_num_threads(threads)
    window = None
    gc.collect()            # efface la fenêtre ici : dans un autre thread, plus tard, Tk planterait
print("La fenêtre est fermée.")
